// Many viewers of server-sent events in one thread, cheap enough to share a machine with what it measures.
//
// usage: viewers [--again] [--leave]
//   --again  a viewer that loses its connection reconnects, with the last event's id
//   --leave  a viewer that has a stream's last token closes its connection; otherwise the server ends the response
//
// Commands come on standard input, a line each; viewers runs until that ends:
//   open PORT PATH LAST   watch a stream on 127.0.0.1 whose last token has the number LAST (0: unknown)
//   move PORT             from now on reconnect to this port
//   report                print what came since the last report, as a line of JSON
//
// "over PATH" is printed when a viewer has the last token. Tokens carry `@N,T@`: N counts from 1 in each stream, T is
// the producer's clock in microseconds since 1970. A number too high is a gap; a number that came before is a repeat.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    TICK_MS = 50,      // how often who waits to connect tries again
    EVENTS = 512,
    READ_BYTES = 1 << 18,
    HELD_BYTES = 2048, // more than a response's header, and than an event
    ID_BYTES = 64,
    BITS = 6,          // of a delay that are kept: percentiles are exact to 1.6 %
    STEPS = 1 << BITS, // of each power of two of microseconds
    BUCKETS = STEPS * 40,
};

struct viewer {
    enum { WAITING, CONNECTING, HEADER, BODY, OVER } phase;
    int fd, port, status;
    char *path;
    long last, final;                    // numbers of tokens: the last one here, and of the stream
    bool chunked, again, ended;
    enum { SIZE, EXTENSION, DATA, DATA_END } chunk;
    long chunk_left;
    enum { OUTSIDE, NUMBER, STAMP } marker;
    int64_t number, stamp;
    char id[ID_BYTES];                   // of the last whole event before the last loss
    char held[HELD_BYTES + 1];           // the header; then, with --again, the end of the body
    int held_bytes;
    struct viewer *next;
};

// What came since the last report.
static struct {
    long events, gaps, repeats, bytes, connected, failed, lost, whole, resumed;
    int64_t first_at, last_at, whole_at, resumed_at, longest;
    uint32_t delays[BUCKETS];
} counts;

static struct viewer *viewers;
static bool reconnects, leaves;
static int epoll_fd, moved_to;
static int64_t now;                      // microseconds since 1970, as of the last wake-up or read
static char buffer[READ_BYTES];

static int64_t clock_us(void) {
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    return at.tv_sec * 1000000LL + at.tv_nsec / 1000;
}

static void note_delay(int64_t us) {
    if (us < 0) us = 0;
    if (us > counts.longest) counts.longest = us;
    // Below 2 * STEPS each microsecond has its bucket; above, each power of two has STEPS of them.
    int power = us < 2 * STEPS ? 0 : 63 - __builtin_clzll((uint64_t)us) - BITS;
    long bucket = power * STEPS + (us >> power);
    counts.delays[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
}

static double percentile_ms(double share) {
    long wanted = (long)(counts.events * share), seen = 0;
    for (long bucket = 0; bucket < BUCKETS; bucket++) {
        seen += counts.delays[bucket];
        if (seen <= wanted) continue;
        int power = bucket < 2 * STEPS ? 0 : bucket / STEPS - 1;
        return (double)((bucket - power * STEPS) * (1LL << power)) / 1e3;
    }
    return counts.longest / 1e3;
}

static void report(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu = used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    long open = 0;
    for (struct viewer *v = viewers; v; v = v->next) open += v->phase == BODY;
    printf("{\"at\":%.6f,\"events\":%ld,\"gaps\":%ld,\"repeats\":%ld,\"bytes\":%ld,\"connected\":%ld,\"failed\":%ld,"
           "\"lost\":%ld,\"whole\":%ld,\"resumed\":%ld,\"open\":%ld,\"first_at\":%.6f,\"last_at\":%.6f,"
           "\"whole_at\":%.6f,\"resumed_at\":%.6f,\"p50_ms\":%.3f,\"p90_ms\":%.3f,\"p99_ms\":%.3f,\"max_ms\":%.3f,"
           "\"cpu_seconds\":%.3f}\n",
           clock_us() / 1e6, counts.events, counts.gaps, counts.repeats, counts.bytes, counts.connected, counts.failed,
           counts.lost, counts.whole, counts.resumed, open, counts.first_at / 1e6, counts.last_at / 1e6,
           counts.whole_at / 1e6, counts.resumed_at / 1e6, percentile_ms(.5), percentile_ms(.9), percentile_ms(.99),
           counts.longest / 1e3, cpu);
    memset(&counts, 0, sizeof counts);
}

static void token(struct viewer *v) {
    if (v->number <= v->last) {
        counts.repeats++;
    } else {
        counts.gaps += v->number - v->last - 1;
        v->last = v->number;
    }
    counts.events++;
    note_delay(now - v->stamp);
    if (!counts.first_at) counts.first_at = now;
    counts.last_at = now;
    if (v->again) {
        v->again = false;
        counts.resumed++;
        counts.resumed_at = now;
    }
    if (v->final && v->last == v->final && !v->ended) {
        v->ended = true;
        counts.whole++;
        counts.whole_at = now;
        printf("over %s\n", v->path);
    }
}

// Finds markers in a chunk of the body; a marker may begin in one chunk and end in another.
static void scan(struct viewer *v, const char *from, long bytes) {
    const char *end = from + bytes;
    for (const char *at = from; at < end; at++) {
        if (v->marker == OUTSIDE) {
            at = memchr(at, '@', end - at);
            if (!at) return;
            v->marker = NUMBER;
            v->number = v->stamp = 0;
        } else if (*at >= '0' && *at <= '9') {
            int64_t *value = v->marker == NUMBER ? &v->number : &v->stamp;
            *value = *value * 10 + *at - '0';
        } else if (v->marker == NUMBER && *at == ',') {
            v->marker = STAMP;
        } else {
            if (v->marker == STAMP && *at == '@') token(v);
            v->marker = OUTSIDE;
        }
    }
}

static void body(struct viewer *v, const char *from, long bytes) {
    scan(v, from, bytes);
    if (!reconnects) return;
    if (bytes > HELD_BYTES) from += bytes - HELD_BYTES, bytes = HELD_BYTES;
    if (v->held_bytes + bytes > HELD_BYTES) {
        int kept = HELD_BYTES - bytes;
        memmove(v->held, v->held + v->held_bytes - kept, kept);
        v->held_bytes = kept;
    }
    memcpy(v->held + v->held_bytes, from, bytes);
    v->held_bytes += bytes;
}

static int hex(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

// Removes the chunks' sizes; returns whether the response is over.
static bool chunks(struct viewer *v, const char *from, long bytes) {
    for (long at = 0; at < bytes;) {
        if (v->chunk == DATA) {
            long piece = bytes - at < v->chunk_left ? bytes - at : v->chunk_left;
            body(v, from + at, piece);
            at += piece;
            v->chunk_left -= piece;
            if (!v->chunk_left) v->chunk = DATA_END;
            continue;
        }
        char c = from[at++];
        if (v->chunk == SIZE && hex(c) >= 0) {
            v->chunk_left = v->chunk_left * 16 + hex(c);
        } else if (c != '\n') {
            if (v->chunk == SIZE) v->chunk = EXTENSION;
        } else if (v->chunk == DATA_END) {
            v->chunk = SIZE;
        } else {
            if (!v->chunk_left) return true;
            v->chunk = DATA;
        }
    }
    return false;
}

// Reads the header; returns how many of these bytes belong to it, or -1 if it is incomplete.
static long header(struct viewer *v, const char *from, long bytes) {
    int before = v->held_bytes;
    long piece = bytes < HELD_BYTES - before ? bytes : HELD_BYTES - before;
    memcpy(v->held + before, from, piece);
    v->held_bytes += piece;
    v->held[v->held_bytes] = 0;
    char *end = strstr(v->held, "\r\n\r\n");
    if (!end) return -1;
    v->status = atoi(v->held + strlen("HTTP/1.1 "));
    v->chunked = strcasestr(v->held, "\ntransfer-encoding: chunked") != NULL;
    v->chunk = SIZE;
    v->chunk_left = v->held_bytes = 0;
    v->phase = BODY;
    if (v->status == 200) counts.connected++;
    return end + 4 - v->held - before;
}

// Keeps the id of the last whole event. An event that was cut off arrives again, and is counted then.
static void keep_id(struct viewer *v) {
    v->held[v->held_bytes] = 0;
    char *cut = memrchr(v->held, '\n', v->held_bytes);
    while (cut && cut > v->held && cut[-1] != '\n') cut = memrchr(v->held, '\n', cut - v->held);
    if (cut) {
        *cut = 0;
        for (char *line = v->held, *next; line; line = next) {
            next = strchr(line, '\n');
            if (next) *next++ = 0;
            if (!strncmp(line, "id:", 3)) snprintf(v->id, ID_BYTES, "%.*s", ID_BYTES - 1, line + 3 + (line[3] == ' '));
        }
    }
    long number, stamp;
    char *marker = cut ? strchr(cut + 1, '@') : NULL, closing;
    if (marker && sscanf(marker, "@%ld,%ld%c", &number, &stamp, &closing) == 3 && closing == '@' && number == v->last) {
        v->last--;
        counts.events--;
    }
    v->held_bytes = 0;
}

static void leave(struct viewer *v) {
    close(v->fd);
    bool wanted = v->phase != BODY || v->status == 200;
    if (v->phase != BODY || (v->status != 200 && v->status != 204)) counts.failed++;
    else if (v->final && v->last < v->final && !reconnects) counts.lost++;
    if (reconnects && wanted && !v->ended) {
        if (v->phase == BODY) keep_id(v);
        v->again = true;
        v->phase = WAITING;
    } else {
        v->phase = OVER;
    }
}

static void watch_for(struct viewer *v, int operation, uint32_t what) {
    struct epoll_event event = {.events = what, .data.ptr = v};
    epoll_ctl(epoll_fd, operation, v->fd, &event);
}

static void join(struct viewer *v) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (v->again && moved_to) v->port = moved_to;
    address.sin_port = htons(v->port);
    v->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    v->phase = CONNECTING;
    v->held_bytes = 0;
    v->marker = OUTSIDE;
    if (connect(v->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) leave(v);
    else watch_for(v, EPOLL_CTL_ADD, EPOLLOUT);
}

static void ask(struct viewer *v) {
    char request[4096], id[ID_BYTES + 32] = "";
    if (*v->id) snprintf(id, sizeof id, "Last-Event-ID: %s\r\n", v->id);
    int bytes = snprintf(request, sizeof request,
                         "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: text/event-stream\r\n%s\r\n", v->path, v->port, id);
    v->phase = HEADER;
    if (send(v->fd, request, bytes, MSG_NOSIGNAL) != bytes) leave(v);
    else watch_for(v, EPOLL_CTL_MOD, EPOLLIN);
}

static void take(struct viewer *v) {
    ssize_t bytes = read(v->fd, buffer, sizeof buffer);
    if (bytes < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (bytes <= 0) {
        leave(v);
        return;
    }
    now = clock_us();
    counts.bytes += bytes;
    long used = v->phase == HEADER ? header(v, buffer, bytes) : 0;
    if (used < 0) return;
    bool over = v->status != 200;
    if (!over && v->chunked) over = chunks(v, buffer + used, bytes - used);
    else if (!over) body(v, buffer + used, bytes - used);
    if (over || (leaves && v->ended)) leave(v);
}

static void command(char *line) {
    char path[2048];
    int port;
    long final;
    if (sscanf(line, "open %d %2047s %ld", &port, path, &final) == 3) {
        struct viewer *v = calloc(1, sizeof *v);
        v->port = port;
        v->path = strdup(path);
        v->final = final;
        v->next = viewers;
        viewers = v;
        join(v);
    } else if (sscanf(line, "move %d", &port) == 1) {
        moved_to = port;
    } else if (!strcmp(line, "report")) {
        report();
    } else {
        fprintf(stderr, "viewers: what is %s?\n", line);
        exit(2);
    }
}

// Executes the lines that have arrived; returns whether more may come.
static bool obey(void) {
    static char lines[1 << 16];
    static size_t held;
    ssize_t bytes = read(STDIN_FILENO, lines + held, sizeof lines - held - 1);
    if (bytes <= 0) return bytes < 0 && (errno == EAGAIN || errno == EINTR);
    held += bytes;
    char *line = lines, *end;
    while ((end = memchr(line, '\n', lines + held - line))) {
        *end = 0;
        command(line);
        line = end + 1;
    }
    held -= line - lines;
    memmove(lines, line, held);
    return true;
}

static void join_again(void) {
    static int64_t tried_at;
    if (now - tried_at < TICK_MS * 1000) return;
    tried_at = now;
    for (struct viewer *v = viewers; v; v = v->next)
        if (v->phase == WAITING) join(v);
}

int main(int count, char **given) {
    for (int i = 1; i < count; i++) {
        if (!strcmp(given[i], "--again")) reconnects = true;
        else if (!strcmp(given[i], "--leave")) leaves = true;
        else return fprintf(stderr, "usage: viewers [--again] [--leave]\n"), 2;
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event input = {.events = EPOLLIN, .data.ptr = NULL}, ready[EVENTS];
    fcntl(STDIN_FILENO, F_SETFL, O_NONBLOCK);
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, STDIN_FILENO, &input)) return perror("viewers: standard input must be a pipe"), 2;
    for (bool more = true; more;) {
        int happened = epoll_wait(epoll_fd, ready, EVENTS, TICK_MS);
        now = clock_us();
        for (int i = 0; i < happened; i++) {
            struct viewer *v = ready[i].data.ptr;
            if (!v) more = obey();
            else if (v->phase == CONNECTING) ask(v);
            else take(v);
        }
        if (reconnects) join_again();
        fflush(stdout);
    }
    return 0;
}

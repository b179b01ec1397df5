// Publishes tokens over HTTP, each when it is due: the producer of systems that receive tokens by POST.
//
// usage: publisher PORT CONNECTIONS [--join | --produce LINGER_MS CONTENT_TYPE]
//   --join     send all due tokens of a stream in one POST, as a JSON array; otherwise each token has its own POST
//   --produce  as --join, as a fenced producer: each POST has the headers of one, waits until its first token has been due
//              for LINGER_MS, and has CONTENT_TYPE; a stream's last one closes the stream, and a stream has a connection of
//              its own if there are enough
//
// Commands come on standard input, a line each; publisher runs until that ends:
//   begin PATH TOKENS RATE PAUSE   publish TOKENS tokens there, RATE a second, the first after PAUSE seconds
//
// One timer makes the tokens of all streams. A connection has one POST in flight. Up to 1,024 due tokens of a
// stream may wait; then no more are made. A token that had to wait for more than one turn of the timer has the time at
// which it was due, so that its delay counts.
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
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { TICK_US = 4000, WAITING = 1024, JOINED = 128, EVENTS = 256, ANSWER_BYTES = 4096 };

struct stream {
    char *path;
    double rate;
    int64_t start;                       // when the first token is due; later when the system holds it back
    long tokens, sent, posts;
};

struct connection {
    int fd, held, many, at;
    bool busy;
    struct stream *streams;              // each in turn; the last one's turn was `at`
    char answer[ANSWER_BYTES + 1];
};

static const char *words[] = {" the", " answer", " of", " a", " pod", " is", " handed", " on", " to", " another", ".", " It", " goes"};
static struct connection *connections;
static int port, count, epoll_fd;
static bool joins, produces, refused;
static int64_t linger_us;
static const char *content_type = "application/json";

static int64_t clock_us(void) {
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    return at.tv_sec * 1000000LL + at.tv_nsec / 1000;
}

static void fail(const char *what) {
    fprintf(stderr, "publisher: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void dial(struct connection *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) fail("cannot connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event);
}

static int64_t due_at(const struct stream *s, long number) {
    return s->start + (int64_t)(number * 1e6 / s->rate);
}

static bool is_due(struct stream *s, int64_t now) {
    if (s->sent + WAITING < s->tokens && due_at(s, s->sent + WAITING) < now) s->start += now - due_at(s, s->sent + WAITING);
    return s->sent < s->tokens && due_at(s, s->sent) <= now;
}

static int token(const struct stream *s, int64_t now, char *into) {
    int64_t due = due_at(s, s->sent), made = now - due < TICK_US ? now : due;
    return sprintf(into, "{\"type\":\"text\",\"delta\":\"@%ld,%lld@%s\"}", s->sent + 1, (long long)made,
                   words[s->sent % (sizeof words / sizeof *words)]);
}

static void post(struct connection *c, struct stream *s, int64_t now) {
    char body[JOINED * 128], request[sizeof body + 1024];
    int bytes = 0, most = joins ? JOINED : 1;
    for (int made = 0; made < most && is_due(s, now); made++) {
        if (joins) body[bytes++] = made ? ',' : '[';
        bytes += token(s, now, body + bytes);
        s->sent++;
    }
    if (joins) body[bytes++] = ']';
    char fence[128] = "";
    if (produces)
        snprintf(fence, sizeof fence, "Producer-Id: bench\r\nProducer-Epoch: 0\r\nProducer-Seq: %ld\r\n%s", s->posts++,
                 s->sent == s->tokens ? "Stream-Closed: true\r\n" : "");
    int all = snprintf(request, sizeof request,
                       "POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: %s\r\n%sContent-Length: %d\r\n\r\n%.*s",
                       s->path, content_type, fence, bytes, bytes, body);
    if (send(c->fd, request, all, MSG_NOSIGNAL) != all) fail("cannot post");
    c->busy = true;
}

// Posts the due tokens of the next stream; forgets the stream after its last token.
static void turn(struct connection *c, int64_t now) {
    for (int tried = c->many; tried > 0 && !c->busy; tried--) {
        c->at = (c->at + 1) % c->many;
        struct stream *s = &c->streams[c->at];
        if (is_due(s, now) && due_at(s, s->sent) + linger_us <= now) post(c, s, now);
        if (s->sent < s->tokens) continue;
        free(s->path);
        *s = c->streams[--c->many];
    }
}

// Whether a whole answer has arrived. A refused token is lost, and viewers find the gap. The first refusal is reported.
static bool answered(struct connection *c) {
    c->answer[c->held] = 0;
    char *end = strstr(c->answer, "\r\n\r\n");
    if (!end) return false;
    int status = atoi(c->answer + strlen("HTTP/1.1 "));
    if ((status < 200 || status > 299) && !refused) {
        fprintf(stderr, "publisher: a POST was answered with %.*s\n", (int)(strchr(c->answer, '\r') - c->answer), c->answer);
        refused = true;
    }
    char *length = strcasestr(c->answer, "\ncontent-length:");
    if (status == 204) return true;
    if (length && length < end) return c->answer + c->held >= end + 4 + atoi(length + strlen("\ncontent-length:"));
    return !strcmp(c->answer + c->held - 5, "0\r\n\r\n");
}

static void take(struct connection *c) {
    ssize_t bytes = read(c->fd, c->answer + c->held, ANSWER_BYTES - c->held);
    if (bytes < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (bytes <= 0) {
        if (c->busy) fail("the server closed a connection");
        close(c->fd);
        dial(c);
        return;
    }
    c->held += bytes;
    if (!answered(c)) return;
    c->held = 0;
    c->busy = false;
    turn(c, clock_us());
}

static void begin(char *line) {
    static int next;
    char path[2048];
    double pause;
    struct stream s = {0};
    if (sscanf(line, "begin %2047s %ld %lf %lf", path, &s.tokens, &s.rate, &pause) != 4 || s.tokens < 1) {
        fprintf(stderr, "publisher: what is %s?\n", line);
        exit(2);
    }
    s.path = strdup(path);
    s.start = clock_us() + (int64_t)((pause + drand48() / s.rate) * 1e6);
    struct connection *c = &connections[next++ % count];
    for (int i = 0; produces && c->many && i < count; i++) c = &connections[next++ % count];
    c->streams = realloc(c->streams, (c->many + 1) * sizeof s);
    c->streams[c->many++] = s;
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
        begin(line);
        line = end + 1;
    }
    held -= line - lines;
    memmove(lines, line, held);
    return true;
}

static void tick(int timer) {
    uint64_t turns;
    if (read(timer, &turns, sizeof turns) < 0) return;
    for (int i = 0; i < count; i++)
        if (!connections[i].busy) turn(&connections[i], clock_us());
}

int main(int given, char **arguments) {
    if (given < 3) return fprintf(stderr, "usage: publisher PORT CONNECTIONS [--join | --produce LINGER_MS CONTENT_TYPE]\n"), 2;
    port = atoi(arguments[1]);
    count = atoi(arguments[2]);
    produces = given > 5 && !strcmp(arguments[3], "--produce");
    joins = produces || (given > 3 && !strcmp(arguments[3], "--join"));
    if (produces) linger_us = (int64_t)(atof(arguments[4]) * 1000), content_type = arguments[5];
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    connections = calloc(count, sizeof *connections);
    for (int i = 0; i < count; i++) dial(&connections[i]);
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct timespec every = {.tv_nsec = TICK_US * 1000};
    timerfd_settime(timer, 0, &(struct itimerspec){every, every}, NULL);
    static char input, clock;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = &input}, ready[EVENTS];
    fcntl(STDIN_FILENO, F_SETFL, O_NONBLOCK);
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, STDIN_FILENO, &event);
    event.data.ptr = &clock;
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer, &event);
    for (bool more = true; more;) {
        int happened = epoll_wait(epoll_fd, ready, EVENTS, -1);
        for (int i = 0; i < happened; i++) {
            void *what = ready[i].data.ptr;
            if (what == &input) more = obey();
            else if (what == &clock) tick(timer);
            else take(what);
        }
    }
    return 0;
}

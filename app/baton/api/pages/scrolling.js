// Keeps the end of an answer in view while it grows, unless the reader has scrolled away from it.

const NEAR_PIXELS = 80;
const MARGIN_PIXELS = 16;

export class Tail {
  #content;
  #button;
  #box;
  #scroll;
  #grows = false;
  #before = 0; // where the scroller was
  #pinned = false;

  // `content` grows at its end. `scroller`: what scrolls, the page unless it is given. `button` is shown while the end
  // is out of view, and goes there.
  constructor(content, button, scroller = null) {
    this.#content = content;
    this.#button = button;
    this.#box = scroller;
    this.#scroll = scroller ?? document.scrollingElement;
    new ResizeObserver(() => this.#grown()).observe(content);
    (scroller ?? window).addEventListener("scroll", () => this.#scrolled(), { passive: true });
    button.addEventListener("click", () => {
      this.#pinned = true;
      this.#grown();
    });
  }

  // Begins to follow what grows from now on; `pinned`: from its end.
  start({ pinned }) {
    this.#grows = true;
    this.#pinned = pinned;
    this.#grown();
  }

  stop() {
    this.#grows = false;
    this.#button.hidden = true;
  }

  #grown() {
    if (!this.#grows) return;
    const beyond = this.#beyond();
    if (this.#pinned && beyond > 0) this.#scroll.scrollTop += beyond;
    this.#offer();
  }

  // A scroll event may come after the content has grown: only one that goes up means that the reader leaves.
  #scrolled() {
    const up = this.#scroll.scrollTop < this.#before;
    this.#before = this.#scroll.scrollTop;
    if (!this.#grows) return;
    this.#pinned = this.#beyond() <= NEAR_PIXELS || (this.#pinned && !up);
    this.#offer();
  }

  #offer() {
    this.#button.hidden = this.#pinned || this.#beyond() <= NEAR_PIXELS;
  }

  // How far the end is below what can be seen, in pixels.
  #beyond() {
    const bottom = this.#box ? this.#box.getBoundingClientRect().bottom : window.innerHeight;
    return this.#content.getBoundingClientRect().bottom + MARGIN_PIXELS - bottom;
  }
}

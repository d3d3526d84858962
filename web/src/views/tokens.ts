// Tokens one by one: each can be hovered over, tapped or reached by arrow keys, and says how likely it was and what else might have stood there.
import type { App } from "../app";
import { fill, h, put, tool } from "../dom";
import { bits, LEAST, percent, shade, Shower, visible } from "../tokens";
import type { Alternative, Node, Token } from "../tree";

/** The tokens of a message as they come. */
export class TokenText {
  readonly element = h("div", { class: "tokens", role: "group", "aria-label": "Tokens of the answer: arrow keys move between them" });
  private n = 0;
  private readonly shower = new Shower();

  constructor(
    private readonly card: TokenCard,
    private readonly node: Node,
    heat: boolean,
  ) {
    this.element.classList.toggle("heat", heat);
    this.element.addEventListener("mouseover", (e) => this.at(e, (i, el) => card.show(node, i, el, false)));
    this.element.addEventListener("mouseleave", () => card.leave());
    this.element.addEventListener("click", (e) => this.at(e, (i, el) => card.show(node, i, el, true)));
    this.element.addEventListener("focusin", (e) => this.at(e, (i, el) => el.matches(":focus-visible") && card.show(node, i, el, true)));
    this.element.addEventListener("keydown", (e) => this.move(e));
  }

  update(): void {
    const tokens = this.node.tokens ?? [];
    for (; this.n < tokens.length; this.n++) this.element.append(this.span(tokens[this.n]!, this.n));
  }

  private span(token: Token, i: number): HTMLElement {
    const text = this.shower.next(token);
    const special = token.special === true;
    const kind = special ? " special" : text === "" ? " part" : "";
    const label = `${visible(token)}, ${percent(token.p)}`;
    const span = h("span", {
      class: `token s${shade(token.p)}${kind}`,
      "data-i": i,
      tabindex: i === 0 ? 0 : -1,
      role: "button",
      "aria-label": label,
    });
    text.split("\n").forEach((line, n) => {
      if (n) put(span, h("i", { class: "end", "aria-hidden": "true" }, "↵"), "\n"); // an end of a line has no width that could be pointed at
      put(span, line);
    });
    return span;
  }

  private at(event: Event, found: (i: number, element: HTMLElement) => void): void {
    const element = (event.target as Element).closest<HTMLElement>(".token");
    if (element) found(Number(element.dataset.i), element);
  }

  private move(event: KeyboardEvent): void {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const now = document.activeElement as HTMLElement;
    if (by === undefined || !now.matches(".token")) return;
    const next = this.element.children[Number(now.dataset.i) + by] as HTMLElement | undefined;
    if (!next) return;
    event.preventDefault();
    now.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
    this.card.show(this.node, Number(next.dataset.i), next, true);
  }
}

/** What is said of one token, beside it. A pinned one stays until something else is touched. */
export class TokenCard {
  readonly element = h("div", { class: "card", role: "dialog", "aria-label": "About this token", hidden: true });
  private pinned = false;
  private timer = 0;
  private on: HTMLElement | null = null;

  constructor(private readonly app: App) {
    this.element.addEventListener("mouseenter", () => clearTimeout(this.timer));
    this.element.addEventListener("mouseleave", () => this.leave());
    document.addEventListener("pointerdown", (e) => {
      if (!(e.target as Element).closest?.(".card, .token")) this.hide();
    });
    document.addEventListener("scroll", () => this.on && this.place(this.on), { capture: true, passive: true });
  }

  get open(): boolean {
    return !this.element.hidden;
  }

  show(node: Node, i: number, anchor: HTMLElement, pin: boolean): void {
    clearTimeout(this.timer);
    if (this.pinned && !pin) return;
    this.pinned = pin;
    this.on?.classList.remove("on");
    this.on = anchor;
    anchor.classList.add("on");
    this.fill(node, i);
    this.element.hidden = false;
    this.place(anchor);
  }

  leave(): void {
    clearTimeout(this.timer);
    if (!this.pinned) this.timer = window.setTimeout(() => this.hide(), 200); // long enough to reach the card itself
  }

  hide(): void {
    clearTimeout(this.timer);
    this.pinned = false;
    this.element.hidden = true;
    this.on?.classList.remove("on");
    this.on = null;
  }

  private fill(node: Node, i: number): void {
    const token = node.tokens![i]!;
    const ranked = token.top.some((t) => t.id === token.id) ? token.top : [...token.top, token];
    const may = !this.app.busy && this.app.link === "open" && !node.thinking && node.model === this.app.model;
    const surprise = token.p <= LEAST ? "could not be drawn" : `${bits(token.p).toFixed(bits(token.p) < 10 ? 1 : 0)} bits of surprise`;
    fill(
      this.element,
      h(
        "div",
        { class: "card-head" },
        h("code", {}, visible(token)),
        h("span", {}, `id ${token.id}`),
        tool("close", "Close", () => this.hide()),
      ),
      h("p", { class: "card-odds" }, h("strong", {}, percent(token.p)), ` · ${surprise}`),
      h("ol", { class: "odds" }, ...ranked.map((one) => this.row(node, i, one, one.id === token.id, may))),
      h(
        "p",
        { class: "fine" },
        may ? "Choose another token and the answer goes on from there, as a branch." : `The likeliest ${token.top.length} tokens in its place.`,
      ),
    );
  }

  private row(node: Node, i: number, one: Alternative, drawn: boolean, may: boolean): HTMLElement {
    const bar = h("span", { class: "bar" });
    bar.style.width = `${Math.max(1, 100 * Math.exp(Math.max(one.p, -20)))}%`;
    const content = [h("code", {}, visible(one)), h("span", { class: "track" }, bar), h("span", { class: "share" }, percent(one.p))];
    if (drawn || !may || one.special) return h("li", { class: drawn ? "drawn" : "" }, h("div", { class: "odd" }, ...content));
    const go = (): void => {
      this.hide();
      void this.app.branch(node, i, one);
    };
    return h(
      "li",
      {},
      h("button", { type: "button", class: "odd", "aria-label": `Go on with ${visible(one)}, ${percent(one.p)}`, onclick: go }, ...content),
    );
  }

  private place(anchor: HTMLElement): void {
    const at = [...anchor.getClientRects()].at(-1) ?? anchor.getBoundingClientRect(); // of one that is broken over two lines the word, not the space
    const { offsetWidth: width, offsetHeight: height } = this.element;
    const left = Math.max(8, Math.min(at.left, window.innerWidth - width - 8));
    const below = at.bottom + 6;
    this.element.style.left = `${left}px`;
    this.element.style.top = `${below + height < window.innerHeight - 8 ? below : Math.max(8, at.top - height - 6)}px`;
  }
}

// The conversation: a view for each message that is shown, drawn again only where something changed.
import { rate } from "../answer";
import type { App } from "../app";
import { fill, h, tool } from "../dom";
import { render } from "../markdown";
import { meanBits } from "../tokens";
import { path, siblings, type Node } from "../tree";
import { TokenCard, TokenText } from "./tokens";
import { welcome } from "./welcome";

export class Thread {
  readonly element = h("main", { class: "thread", id: "thread", tabindex: -1 });
  readonly card: TokenCard;
  private readonly inner = h("div", { class: "column" });
  private readonly shown = new Map<string, Message>();
  private frame = 0;
  private follow = true; // the end, whatever grows, is told of it, or takes room beside it; until somebody scrolls away
  private top = 0; // as far as it was scrolled
  private view = "";
  private conversation = "";

  constructor(
    private readonly app: App,
    private readonly begin: (text: string, mode: "chat" | "continue") => void,
  ) {
    this.card = new TokenCard(app);
    this.element.append(this.inner);
    this.element.addEventListener("scroll", () => this.scrolled(), { passive: true });
    const sizes = new ResizeObserver(() => this.follow && this.toEnd());
    sizes.observe(this.element);
    sizes.observe(this.inner);
  }

  draw(): void {
    const nodes = path(this.app.current);
    const legend = this.app.view === "surprise" && nodes.some((n) => n.tokens?.length) ? heatLegend() : null;
    this.element.classList.toggle("continued", this.app.current.mode === "continue");
    this.card.hide();
    for (const id of this.shown.keys()) if (!nodes.some((n) => n.id === id)) this.shown.delete(id);
    const messages = nodes.map((node) => {
      let message = this.shown.get(node.id);
      if (!message || message.node !== node) this.shown.set(node.id, (message = new Message(this.app, node, this.card)));
      message.draw();
      return message.element;
    });
    fill(this.inner, legend, ...(messages.length ? messages : [welcome(this.app, this.begin)]));
    if (this.app.view !== this.view) this.follow &&= this.element.scrollTop > 0; // what is all seen is looked at from its beginning
    this.follow = (this.follow || !!this.app.busy || this.app.current.id !== this.conversation) && messages.length > 0;
    [this.view, this.conversation] = [this.app.view, this.app.current.id];
    if (this.app.busy) this.toEnd();
  }

  /** A message has grown: once a frame is enough. */
  grow(node: Node): void {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.shown.get(node.id)?.body();
    });
  }

  edit(node: Node): void {
    this.shown.get(node.id)?.edit();
  }

  /** Only who scrolls goes up: an end that is far off may have come since. */
  private scrolled(): void {
    const { scrollTop, scrollHeight, clientHeight } = this.element;
    const near = scrollHeight - scrollTop - clientHeight < 80;
    if (near || scrollTop < this.top) this.follow = near;
    this.top = scrollTop;
  }

  private toEnd(): void {
    this.element.scrollTop = this.element.scrollHeight;
  }
}

class Message {
  readonly element: HTMLElement;
  private readonly content = h("div", { class: "content" });
  private readonly foot = h("div", { class: "foot" });
  private tokens: TokenText | null = null;
  private drawn = "";

  constructor(
    private readonly app: App,
    readonly node: Node,
    private readonly card: TokenCard,
  ) {
    this.element = h(
      "article",
      { class: `message ${node.role}`, "data-id": node.id, "aria-label": node.role === "user" ? "You" : "Model" },
      this.content,
      this.foot,
    );
  }

  draw(): void {
    this.element.classList.toggle("writing", this.app.busy?.node === this.node);
    this.body();
    this.footer();
  }

  /** What was said, in the view that is chosen. */
  body(): void {
    const { node, app } = this;
    if (this.content.querySelector(".editor")) return;
    const byToken = app.view !== "text" && !!node.tokens?.length;
    const busy = app.busy?.node === node;
    const state = [app.view, byToken, busy, app.current.mode, node.text.length, node.thinking?.length, node.tokens?.length, node.error].join();
    if (state === this.drawn) return;
    this.drawn = state;
    if (byToken) {
      const heat = app.view === "surprise";
      if (!this.tokens || !this.content.contains(this.tokens.element) || this.tokens.element.classList.contains("heat") !== heat) {
        this.tokens = new TokenText(this.card, node, heat);
        fill(this.content, this.tokens.element);
      }
      this.tokens.update();
      return;
    }
    fill(
      this.content,
      node.thinking &&
        h(
          "details",
          { class: "thinking", open: busy && !node.text },
          h("summary", {}, busy && !node.text ? "Thinking…" : "Thoughts"),
          h("div", {}, node.thinking),
        ),
      this.text(),
      busy && !node.text && !node.thinking && h("span", { class: "waiting", role: "status" }, "Reading the prompt…"),
    );
  }

  private text(): Element | DocumentFragment {
    const { node } = this;
    const asked = node.settings?.response_format;
    if (asked && node.text) return h("pre", { class: "json" }, h("code", {}, pretty(node.text)));
    if (node.role === "user" || this.app.current.mode === "continue") return h("div", { class: "plain" }, node.text);
    const out = document.createDocumentFragment();
    out.append(h("div", { class: "prose" }));
    out.firstElementChild!.append(render(node.text));
    return out;
  }

  private footer(): void {
    const { app, node } = this;
    const busy = app.busy !== null;
    if (app.busy?.node === node) {
      fill(this.foot);
      return;
    }
    const all = siblings(app.current, node.id);
    const at = all.indexOf(node.id);
    const turns =
      all.length > 1 &&
      h(
        "span",
        { class: "turns" },
        tool("left", "Earlier version", () => app.step(node, -1), { disabled: busy || at === 0 }),
        h("span", { class: "count" }, `${at + 1}/${all.length}`),
        tool("right", "Later version", () => app.step(node, 1), { disabled: busy || at === all.length - 1 }),
      );
    fill(
      this.foot,
      node.error &&
        h(
          "p",
          { class: "error", role: "alert" },
          h("strong", {}, node.text ? "This answer is not whole. " : "No answer. "),
          node.error,
          h("button", { type: "button", class: "link", disabled: busy, onclick: () => app.again(node) }, "Try again"),
        ),
      h(
        "div",
        { class: "row" },
        turns,
        h(
          "span",
          { class: "tools" },
          node.role === "assistant" && tool("again", "Another answer (r)", () => void app.again(node), { disabled: busy }),
          tool("pencil", node.role === "user" ? "Edit and ask again (e)" : "Edit this answer", () => this.edit(), { disabled: busy }),
          navigator.clipboard && tool("copy", "Copy", () => void this.copy()),
          tool("bin", "Delete from here on", () => void app.drop(node), { disabled: busy }),
        ),
        node.role === "assistant" && h("span", { class: "facts" }, facts(node, app.view)),
      ),
    );
  }

  private async copy(): Promise<void> {
    await navigator.clipboard.writeText(this.node.text);
    this.app.say("Copied");
  }

  edit(): void {
    if (this.app.busy) return;
    const area = h("textarea", {
      class: "editor",
      rows: Math.min(16, this.node.text.split("\n").length + 1),
      value: this.node.text,
      "aria-label": "Edit this message",
    });
    const back = (): void => {
      this.drawn = "";
      this.tokens = null;
      fill(this.content);
      this.draw();
    };
    const done = (): void => {
      const text = area.value;
      back();
      if (text !== this.node.text) void this.app.edit(this.node, text);
    };
    area.addEventListener("keydown", (e) => {
      if (e.key === "Escape") {
        e.stopPropagation();
        back();
      } else if (e.key === "Enter" && !e.shiftKey && !e.isComposing) {
        e.preventDefault();
        done();
      }
    });
    fill(
      this.content,
      area,
      h(
        "div",
        { class: "row" },
        h("button", { type: "button", class: "primary", onclick: done }, this.node.role === "user" ? "Ask this instead" : "Keep"),
        h("button", { type: "button", onclick: back }, "Cancel"),
      ),
    );
    fill(this.foot);
    area.focus();
  }
}

/** JSON with its lines, once it is whole. */
function pretty(text: string): string {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

function facts(node: Node, view: string): string {
  const s = node.stats;
  const speed = rate(node);
  const mean = view === "surprise" && node.tokens ? meanBits(node.tokens) : null;
  const seed = node.settings?.seed;
  return [
    node.edited && "edited by you",
    node.verdict &&
      (node.verdict.status === "valid"
        ? "valid JSON for what was asked"
        : `not whole: ${node.verdict.status}${node.verdict.reason ? `, ${node.verdict.reason}` : ""}`),
    node.finish === "length" && "cut at the limit",
    node.finish === "stopped" && "stopped by you",
    s && s.tokens > 0 && `${s.tokens} tokens`,
    speed !== null && `${speed < 10 ? speed.toFixed(1) : speed.toFixed(0)} tokens/s`,
    s && s.first > 0 && `first after ${s.first < 1000 ? `${s.first.toFixed(0)} ms` : `${(s.first / 1000).toFixed(1)} s`}`,
    mean !== null && `${mean.toFixed(1)} bits a token`,
    seed !== undefined && `seed ${seed}`,
    node.model,
  ]
    .filter(Boolean)
    .join(" · ");
}

function heatLegend(): Element {
  return h(
    "div",
    { class: "legend", role: "note" },
    h("span", {}, "expected"),
    h("span", { class: "shades", "aria-hidden": "true" }, ...Array.from({ length: 10 }, (_, i) => h("i", { class: `s${i}` }))),
    h("span", {}, "surprising, in bits: 0 to 9 and more"),
  );
}

// Beside the conversation: how answers are drawn, the prompt as the model gets it, and what the model is.
import type { App } from "../app";
import { fill, h, tool } from "../dom";
import { path } from "../tree";
import { promptView } from "./prompt";
import { reportView } from "./report";
import { settingsView } from "./settings";

export type Tab = "settings" | "prompt" | "model";
const TABS: [Tab, string][] = [
  ["settings", "Settings"],
  ["prompt", "Prompt"],
  ["model", "Model"],
];

export class Panel {
  readonly element = h("aside", { class: "panel", id: "panel", "aria-label": "Settings, prompt and model", hidden: true });
  private readonly tabs = h("div", { class: "tabs", role: "tablist" });
  private readonly body = h("div", { class: "panel-body", role: "tabpanel", tabindex: -1 });
  private tab: Tab = "settings";
  private asked = 0;
  private timer = 0;
  private shown = "";

  constructor(
    private readonly app: App,
    private readonly draft: () => string,
    private readonly moved: () => void,
  ) {
    this.element.append(
      h(
        "div",
        { class: "panel-head" },
        this.tabs,
        tool("close", "Close (Esc)", () => this.close()),
      ),
      this.body,
    );
  }

  get open(): boolean {
    return !this.element.hidden;
  }

  toggle(tab: Tab): void {
    if (this.open && this.tab === tab) this.close();
    else this.show(tab);
  }

  show(tab: Tab): void {
    this.tab = tab;
    this.shown = "";
    this.element.hidden = false;
    this.moved();
    this.draw();
    this.tabs.querySelector<HTMLElement>("[aria-selected=true]")?.focus();
  }

  close(): void {
    this.element.hidden = true;
    this.moved();
  }

  draw(): void {
    if (!this.open) return;
    fill(
      this.tabs,
      ...TABS.map(([tab, label]) =>
        h(
          "button",
          {
            type: "button",
            role: "tab",
            "aria-selected": String(this.tab === tab),
            tabindex: this.tab === tab ? 0 : -1,
            onclick: () => this.show(tab),
            onkeydown: (e: KeyboardEvent) => this.turn(e),
          },
          label,
        ),
      ),
    );
    if (this.app.link === "opening" || this.app.link === "key")
      fill(this.body, h("p", { class: "fine" }, "Nothing to show before the server answers."));
    else if (this.tab === "settings") {
      const key = `settings ${this.app.current.id} ${this.app.current.mode} ${this.app.model}`; // what is being written in stays as it is
      if (this.shown !== key) fill(this.body, settingsView(this.app));
      this.shown = key;
    } else void this.ask();
  }

  /** The draft has changed: the prompt it would become is asked for once the writing pauses. */
  drafted(): void {
    if (!this.open || this.tab !== "prompt") return;
    clearTimeout(this.timer);
    this.timer = window.setTimeout(() => void this.ask(), 300);
  }

  private async ask(): Promise<void> {
    const mine = ++this.asked;
    const tab = this.tab;
    if (!this.shown.startsWith(tab)) fill(this.body, h("p", { class: "waiting", role: "status" }, "Asking…"));
    const view = tab === "prompt" ? await promptView(this.app, this.draft(), path(this.app.current)) : await reportView(this.app);
    if (mine !== this.asked || tab !== this.tab) return;
    this.shown = tab;
    fill(this.body, view);
  }

  private turn(event: KeyboardEvent): void {
    const by = { ArrowRight: 1, ArrowLeft: TABS.length - 1 }[event.key];
    if (by !== undefined) this.show(TABS[(TABS.findIndex(([tab]) => tab === this.tab) + by) % TABS.length]![0]);
  }
}

// Where the next message is written.
import type { App } from "../app";
import { fill, h, icon } from "../dom";
import { path } from "../tree";

export class Composer {
  readonly element = h("footer", { class: "composer" });
  readonly area = h("textarea", { rows: 1, id: "message", "aria-label": "Message", enterkeyhint: "send", autocomplete: "off" });
  private readonly button = h("button", { type: "button", class: "send", onclick: () => this.press() });
  private readonly kind = h("div", { class: "kind", role: "group", "aria-label": "What the model does" });
  private readonly format = h("button", { type: "button", class: "chip", onclick: () => this.settings() });

  constructor(
    private readonly app: App,
    private readonly settings: () => void,
    private readonly changed: () => void,
  ) {
    this.area.addEventListener("input", () => this.fit());
    this.area.addEventListener("keydown", (e) => this.key(e));
    this.element.append(
      h("div", { class: "box" }, this.area, h("div", { class: "row" }, this.kind, this.format, h("span", { class: "gap" }), this.button)),
    );
  }

  draw(): void {
    const { app } = this;
    const continues = app.current.mode === "continue";
    this.area.placeholder = continues
      ? path(app.current).length
        ? "Add to the text, or press Enter to let it go on"
        : "Begin a text"
      : "Ask something";
    this.area.disabled = app.link === "key" || app.link === "opening";
    fill(
      this.kind,
      ...(["chat", "continue"] as const).map((mode) =>
        h(
          "button",
          {
            type: "button",
            "aria-pressed": String(app.current.mode === mode),
            onclick: () => app.mode(mode),
            disabled: app.busy !== null || (mode === "chat" && app.link === "open" && !app.card.chat),
            title: mode === "chat" ? "Question and answer, by the model's chat template" : "The model goes on with your text",
          },
          mode === "chat" ? "Chat" : "Continue text",
        ),
      ),
    );
    this.format.hidden = app.sampling.format === "text";
    this.format.textContent = app.sampling.format === "json" ? "JSON" : "JSON schema";
    fill(this.button, icon(app.busy ? "stop" : "send"));
    this.button.setAttribute("aria-label", app.busy ? "Stop" : "Send");
    this.button.title = app.busy ? "Stop (Esc)" : "Send (Enter)";
    this.button.classList.toggle("stop", app.busy !== null);
    this.button.disabled = !app.busy && app.link !== "open";
    this.fit();
  }

  write(text: string): void {
    this.area.value = text;
    this.fit();
    this.area.focus();
  }

  private press(): void {
    if (this.app.busy) this.app.stop();
    else this.send();
  }

  send(): void {
    const { app, area } = this;
    const text = app.current.mode === "chat" ? area.value.trim() : area.value;
    if (!app.canSend || (text === "" && (app.current.mode === "chat" || !path(app.current).length))) return;
    area.value = "";
    this.fit();
    void app.send(text);
  }

  private key(event: KeyboardEvent): void {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      this.send();
    } else if (event.key === "ArrowUp" && this.area.value === "") {
      const last = path(this.app.current).findLast((n) => n.role === "user");
      if (!last) return;
      event.preventDefault();
      document.dispatchEvent(new CustomEvent("edit", { detail: last }));
    }
  }

  private fit(): void {
    this.area.style.height = "auto";
    this.area.style.height = `${Math.min(this.area.scrollHeight, 240)}px`;
    this.changed();
  }
}

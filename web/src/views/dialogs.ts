// What stands before everything else: the key a server asks for, and the list of shortcuts.
import type { App } from "../app";
import { fill, h, tool } from "../dom";

export const SHORTCUTS: [string, string][] = [
  ["Enter", "send; in continued text, an empty line lets it go on"],
  ["Shift Enter", "a new line"],
  ["Esc", "stop the answer; close what is open"],
  ["/", "to the message"],
  ["↑", "in an empty message: edit the last one"],
  ["n", "new conversation"],
  ["r", "another answer"],
  ["e", "edit the last message"],
  ["[ and ]", "earlier and later version of the last answer"],
  ["v", "view: text, tokens, surprise"],
  ["← and →", "from token to token, in both token views"],
  ["s", "settings"],
  ["p", "the exact prompt"],
  ["m", "about the model"],
  ["?", "these shortcuts"],
];

export function helpDialog(): HTMLDialogElement {
  const dialog = h("dialog", { class: "help", "aria-labelledby": "help-title" });
  dialog.append(
    h(
      "div",
      { class: "dialog-head" },
      h("h2", { id: "help-title" }, "Keys"),
      tool("close", "Close", () => dialog.close()),
    ),
    h(
      "dl",
      { class: "keys" },
      ...SHORTCUTS.flatMap(([keys, what]) => [h("dt", {}, ...keys.split(" ").map((k) => (k === "and" ? " " : h("kbd", {}, k)))), h("dd", {}, what)]),
    ),
    h("p", { class: "fine" }, "Letters count where nothing is being written."),
  );
  dialog.addEventListener("click", (e) => e.target === dialog && dialog.close());
  return dialog;
}

export class KeyDialog {
  readonly element = h("dialog", { class: "key", "aria-labelledby": "key-title" });
  private readonly input = h("input", { type: "password", id: "key", autocomplete: "off", placeholder: "pk-…", required: true });
  private readonly refusal = h("p", { class: "error", role: "alert" });

  constructor(private readonly app: App) {
    const form = h(
      "form",
      {},
      h("h2", { id: "key-title" }, "A key, please"),
      h("label", { for: "key" }, "This server asks for a key. Its owner makes one with ", h("code", {}, "pellucid keys add NAME"), "."),
      this.input,
      this.refusal,
      h("p", { class: "fine" }, "Kept until this tab is closed, and sent to this server alone."),
      h("button", { class: "primary" }, "Open"),
    );
    form.addEventListener("submit", (e) => {
      e.preventDefault();
      this.app.api.key = this.input.value.trim();
      this.input.value = "";
      void this.app.connect();
    });
    this.element.addEventListener("cancel", (e) => e.preventDefault()); // there is nothing behind it
    this.element.append(form);
  }

  draw(): void {
    fill(this.refusal, this.app.refusal);
    if (this.app.link === "key" && !this.element.open) this.element.showModal();
    if (this.app.link !== "key" && this.element.open) this.element.close();
  }
}

// What stands where nothing was said yet: what is served, and how to begin; or why nothing can be.
import type { App } from "../app";
import { h } from "../dom";

const CONTINUE = ["It was a dark and stormy night, and", "The old house at the end of the lane", "“Tell me the truth,” she said,"];
const ASK = ["What makes a good question?", "Explain a tide to a child.", "Write a limerick about a patient engineer."];

export function count(n: number): string {
  const [unit, size] = n >= 1e9 ? ["B", 1e9] : n >= 1e6 ? ["M", 1e6] : n >= 1e3 ? ["K", 1e3] : ["", 1];
  return `${(n / (size as number)).toPrecision(3).replace(/\.?0+$/, "")} ${unit}`.trim();
}

export function welcome(app: App, begin: (text: string, mode: "chat" | "continue") => void): Element {
  if (app.link === "opening") return h("div", { class: "welcome", role: "status" }, h("p", { class: "waiting" }, "Asking what is served…"));
  if (app.link === "closed")
    return h(
      "div",
      { class: "welcome" },
      h("h1", {}, "Nobody answers"),
      h("p", {}, "The server is not there. This page asks again until it is, and your conversations are kept."),
    );
  if (app.link === "key") return h("div", { class: "welcome" }, h("h1", {}, "Pellucid"), h("p", {}, "This server asks for a key."));
  const card = app.card;
  const chat = app.current.mode === "chat";
  return h(
    "div",
    { class: "welcome" },
    h("h1", {}, "Pellucid"),
    h(
      "p",
      {},
      h("strong", {}, card.id),
      ` · ${card.family} · ${count(card.parameters)} parameters · ${card.context_window.toLocaleString("en")} tokens`,
      ` · ${card.license ?? "licence not stated"}`,
    ),
    !card.chat &&
      h("p", { class: "note" }, "This model has no chat template: it continues texts and holds no conversation. Write a beginning, and it goes on."),
    h(
      "div",
      { class: "starts" },
      ...(chat ? ASK : CONTINUE).map((text) => h("button", { type: "button", onclick: () => begin(text, app.current.mode) }, text)),
    ),
    h(
      "p",
      { class: "fine" },
      "Nothing leaves this machine but what you ask this server. Conversations are kept in this browser",
      app.store.kept ? "." : " until this tab is closed: it keeps nothing for longer.",
    ),
  );
}

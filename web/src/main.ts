// The page put together: head, conversations, thread, composer, panel; keys and theme.
import "./style.css";
import { App, type Part, type View } from "./app";
import { fill, h, icon, put, tool, type Icon } from "./dom";
import { recall, remember } from "./store";
import { path, type Node } from "./tree";
import { Composer } from "./views/composer";
import { helpDialog, KeyDialog } from "./views/dialogs";
import { Panel, type Tab } from "./views/panel";
import { Side } from "./views/side";
import { Thread } from "./views/thread";

const app = new App();
const root = document.getElementById("app")!;
const live = h("div", { class: "hidden", role: "status", "aria-live": "polite" });
const banner = h("div", { class: "banner", role: "alert", hidden: true });
const head = h("header", { class: "head" });
const help = helpDialog();
const key = new KeyDialog(app);
const side = new Side(app, () => root.classList.remove("side-open"));
const panel = new Panel(
  app,
  () => composer.area.value,
  () => {
    root.classList.toggle("panel-open", panel.open);
    drawHead();
  },
);
const composer = new Composer(
  app,
  () => panel.show("settings"),
  () => panel.drafted(),
);
const thread = new Thread(app, (text, mode) => {
  app.mode(mode);
  composer.write(text);
});
const scrim = h("div", { class: "scrim", onclick: () => closeDrawers() });
put(
  root,
  side.element,
  h("div", { class: "middle" }, head, banner, thread.element, composer.element),
  panel.element,
  scrim,
  thread.card.element,
  help,
  key.element,
  live,
);

const VIEWS: [View, string, string][] = [
  ["text", "Text", "The answer as text"],
  ["tokens", "Tokens", "The answer token by token: point at one or tap it"],
  ["surprise", "Surprise", "The answer coloured by how surprising each token was"],
];
const THEMES: [string, string, Icon][] = [
  ["auto", "Theme: as the system's", "auto"],
  ["light", "Theme: light", "sun"],
  ["dark", "Theme: dark", "moon"],
];
let theme = recall("theme") ?? "auto";

function drawTheme(): void {
  document.documentElement.dataset.theme = theme;
}

function nextTheme(): void {
  theme = THEMES[(THEMES.findIndex(([name]) => name === theme) + 1) % THEMES.length]![0];
  remember("theme", theme);
  drawTheme();
  drawHead();
}

function closeDrawers(): void {
  root.classList.remove("side-open");
  if (root.classList.contains("panel-open")) panel.close();
}

function drawHead(): void {
  const focused = (document.activeElement as HTMLElement | null)?.dataset.name;
  const models = h(
    "select",
    {
      id: "model",
      "aria-label": "Model",
      "data-name": "model",
      disabled: app.busy !== null || !app.models.length,
      onchange: () => app.choose(models.value),
    },
    ...app.models.map((m) => h("option", { value: m.id }, m.parent ? `${m.id} (adapter of ${m.parent})` : m.id)),
  );
  models.value = app.model;
  const [, label, sign] = THEMES.find(([name]) => name === theme)!;
  const tab = (name: Tab, text: string, shortcut: string): HTMLElement =>
    h("button", { type: "button", class: "tab", "data-name": name, title: `${text} (${shortcut})`, onclick: () => panel.toggle(name) }, text);
  fill(
    head,
    tool("menu", "Conversations", () => root.classList.toggle("side-open"), { class: "tool menu", "data-name": "menu" }),
    app.models.length > 0 && models,
    h(
      "div",
      { class: "views", role: "group", "aria-label": "View" },
      ...VIEWS.map(([view, text, about]) =>
        h(
          "button",
          { type: "button", "data-name": view, "aria-pressed": String(app.view === view), title: `${about} (v)`, onclick: () => app.look(view) },
          text,
        ),
      ),
    ),
    h("span", { class: "gap" }),
    tab("prompt", "Prompt", "p"),
    tab("model", "Model", "m"),
    h(
      "button",
      {
        type: "button",
        class: "tool",
        "aria-label": "Settings",
        title: "Settings (s)",
        "aria-expanded": String(panel.open),
        "data-name": "settings",
        onclick: () => panel.toggle("settings"),
      },
      icon("sliders"),
    ),
    tool(sign, label, nextTheme, { "data-name": "theme" }),
    tool("help", "Keys (?)", () => help.showModal(), { class: "tool help-button", "data-name": "help" }),
  );
  if (focused) head.querySelector<HTMLElement>(`[data-name="${focused}"]`)?.focus();
}

function drawBanner(): void {
  const down = app.link === "closed";
  banner.hidden = !down && !app.unkept;
  if (down) fill(banner, "The server does not answer. Asking again until it does; nothing you see is lost.");
  else fill(banner, `This browser could not keep the conversation: ${app.unkept}. Export it, or make room.`);
}

const DRAW: Record<Part, () => void> = {
  head: drawHead,
  side: () => side.draw(),
  thread: () => thread.draw(),
  composer: () => composer.draw(),
  panel: () => panel.draw(),
  banner: () => {
    drawBanner();
    key.draw();
  },
};
app.draw = (...parts) => parts.forEach((part) => DRAW[part]());
app.grow = (node) => thread.grow(node);
app.say = (words) => void (live.textContent = words);

function last(role: Node["role"]): Node | undefined {
  return path(app.current).findLast((n) => n.role === role);
}

function escape(): boolean {
  if (thread.card.open) thread.card.hide();
  else if (app.busy) app.stop();
  else if (panel.open || root.classList.contains("side-open")) closeDrawers();
  else return false;
  return true;
}

const KEYS: Record<string, () => void> = {
  "/": () => composer.area.focus(),
  n: () => {
    app.fresh();
    composer.area.focus();
  },
  r: () => last("assistant") && void app.again(last("assistant")!),
  e: () => last("user") && thread.edit(last("user")!),
  "[": () => last("assistant") && app.step(last("assistant")!, -1),
  "]": () => last("assistant") && app.step(last("assistant")!, 1),
  v: () => app.look(VIEWS[(VIEWS.findIndex(([view]) => view === app.view) + 1) % VIEWS.length]![0]),
  s: () => panel.toggle("settings"),
  p: () => panel.toggle("prompt"),
  m: () => panel.toggle("model"),
  "?": () => help.showModal(),
};

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") {
    if (escape()) event.preventDefault();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || (event.target as Element).matches("input, textarea, select")) return;
  const act = KEYS[event.key];
  if (act && app.link === "open") {
    event.preventDefault();
    act();
  }
});
document.addEventListener("edit", (event) => thread.edit((event as CustomEvent<Node>).detail));

drawTheme();
app.draw("head", "side", "thread", "composer", "banner");
await app.start();
if (!matchMedia("(pointer: coarse)").matches) composer.area.focus();

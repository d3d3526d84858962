// The conversations of this browser.
import type { App } from "../app";
import { fileName, save, toJson, toMarkdown } from "../files";
import { fill, h, icon, tool } from "../dom";

export class Side {
  readonly element = h("nav", { class: "side", id: "side", "aria-label": "Conversations" });
  private readonly list = h("ul", {});
  private readonly note = h("p", { class: "fine", role: "status" });
  private readonly file = h("input", { type: "file", accept: ".json,application/json", hidden: true, "aria-label": "Import conversations" });

  constructor(
    private readonly app: App,
    private readonly close: () => void,
  ) {
    this.file.addEventListener("change", () => void this.bring());
    this.element.append(
      h(
        "div",
        { class: "side-head" },
        h(
          "button",
          {
            type: "button",
            class: "new",
            title: "New conversation (n)",
            onclick: () => {
              app.fresh();
              close();
            },
          },
          icon("plus"),
          "New conversation",
        ),
      ),
      this.list,
      this.note,
      h(
        "div",
        { class: "side-foot" },
        h("button", { type: "button", onclick: () => this.file.click() }, icon("open"), "Import"),
        h(
          "button",
          { type: "button", onclick: () => save("pellucid-conversations.json", "application/json", toJson(app.conversations)) },
          icon("save"),
          "Export all",
        ),
      ),
      this.file,
    );
  }

  draw(): void {
    fill(
      this.list,
      ...this.app.conversations.map((c) => {
        const title = c.title || "Untitled";
        const open = c.id === this.app.current.id;
        return h(
          "li",
          { class: open ? "open" : "" },
          h(
            "button",
            {
              type: "button",
              class: "title",
              title,
              "aria-current": open ? "true" : false,
              onclick: () => {
                this.app.open(c.id);
                this.close();
              },
            },
            title,
          ),
          h(
            "span",
            { class: "tools" },
            tool("save", `Export ${title} as JSON`, () => save(`${fileName(c.title)}.json`, "application/json", toJson([c]))),
            h(
              "button",
              {
                type: "button",
                class: "tool",
                "aria-label": `Export ${title} as Markdown`,
                title: `Export ${title} as Markdown`,
                onclick: () => save(`${fileName(c.title)}.md`, "text/markdown", toMarkdown(c)),
              },
              "md",
            ),
            tool("bin", `Delete ${title}`, () => {
              if (confirm(`Delete "${title}"? It is kept nowhere else.`)) void this.app.forget(c.id);
            }),
          ),
        );
      }),
    );
    if (!this.app.conversations.length) fill(this.list, h("li", { class: "fine" }, "What you write is kept here, in this browser."));
  }

  private async bring(): Promise<void> {
    const file = this.file.files?.[0];
    if (!file) return;
    try {
      const n = await this.app.bring(await file.text());
      fill(this.note, `${n} conversation${n === 1 ? "" : "s"} imported`);
    } catch (error) {
      fill(this.note, h("span", { class: "error" }, (error as Error).message));
    }
    this.file.value = "";
  }
}

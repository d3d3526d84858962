// The prompt as the model gets it: every token, special ones too, from the server's own /tokenize.
import type { App } from "../app";
import type { Tokenized } from "../api";
import { h } from "../dom";
import { odd, Shower, visible } from "../tokens";
import type { Node } from "../tree";

/** Of what would be sent now, or where nothing is being written, of what the last answer was given. */
export async function promptView(app: App, draft: string, nodes: Node[]): Promise<Element> {
  const last = nodes.at(-1);
  const until = last?.role === "assistant" && draft === "" ? last.parent : (last?.id ?? null);
  if (until === null && draft === "")
    return h("p", { class: "fine" }, "Write something, and its tokens stand here: special ones too, as the model gets them.");
  let told: Tokenized;
  try {
    told = await app.api.tokenize(app.prompt(until, draft));
  } catch (error) {
    return h("p", { class: "error", role: "alert" }, (error as Error).message);
  }
  const shower = new Shower();
  const share = Math.min(100, (100 * told.count) / told.max_model_len);
  const bar = h("span", { class: "bar" });
  bar.style.width = `${Math.max(1, share)}%`;
  return h(
    "div",
    {},
    h("p", {}, h("strong", {}, `${told.count.toLocaleString("en")} tokens`), ` of ${told.max_model_len.toLocaleString("en")} that the context holds`),
    h("span", { class: "track" }, bar),
    h(
      "p",
      { class: "fine" },
      draft === "" ? "What the last answer was given." : "What would be sent now, with what you are writing.",
      " Special tokens are framed; point at one for its id.",
    ),
    h(
      "div",
      { class: "tokens exact" },
      ...told.pieces.map((piece, i) => {
        const spelled = { text: piece.token, ...odd(piece.token, piece.bytes), ...(piece.special ? { special: true as const } : {}) };
        const text = shower.next(spelled);
        return h(
          "span",
          { class: `token ${piece.special ? "special" : i % 2 ? "odd-one" : ""}`, title: `id ${piece.token_id}: ${visible(spelled)}` },
          piece.special ? piece.token : text.replace(/\n/g, "↵\n"),
        );
      }),
    ),
  );
}

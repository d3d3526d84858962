// Conversations as files: JSON holds everything and is read again, Markdown is what is shown, for people.
import { newId, path, type Conversation, type Node } from "./tree";

const FORMAT = "pellucid.conversations";

export const toJson = (all: readonly Conversation[]): string => JSON.stringify({ format: FORMAT, version: 1, conversations: all }, null, 1);

/** Conversations of a file, with ids of their own so that none is replaced. Throws what is wrong with it. */
export function fromJson(text: string): Conversation[] {
  let value: any;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Error(`The file is not JSON: ${(error as Error).message}`);
  }
  if (value?.format !== FORMAT || value.version !== 1 || !Array.isArray(value.conversations))
    throw new Error(`The file is not an export of this page: expected "format": "${FORMAT}", "version": 1 and a list of conversations`);
  return value.conversations.map((c: any, i: number) => ({ ...checked(c, `conversation ${i + 1}`), id: newId() }));
}

function checked(c: any, where: string): Conversation {
  const fail = (what: string): never => {
    throw new Error(`${where}: ${what}`);
  };
  if (typeof c !== "object" || c === null) fail("not an object");
  for (const key of ["title", "system"]) if (typeof c[key] !== "string") fail(`${key} is not a text`);
  for (const key of ["created", "changed"]) if (typeof c[key] !== "number") fail(`${key} is not a number`);
  if (c.mode !== "chat" && c.mode !== "continue") fail('mode is neither "chat" nor "continue"');
  for (const key of ["nodes", "chosen"]) if (typeof c[key] !== "object" || c[key] === null) fail(`${key} is not an object`);
  for (const [id, node] of Object.entries<any>(c.nodes)) {
    if (node?.id !== id || typeof node.text !== "string" || typeof node.created !== "number" || !["user", "assistant"].includes(node.role))
      fail(`the message ${id} is not whole`);
    if (node.parent !== null && !(node.parent in c.nodes)) fail(`the message ${id} follows ${node.parent}, which is not there`);
    const above = new Set<string>([id]); // a message that follows itself would never end
    for (let at = node.parent; at !== null; at = c.nodes[at]?.parent ?? null) {
      if (above.has(at)) fail(`the message ${id} follows itself`);
      above.add(at);
    }
    if (node.tokens !== undefined && !(Array.isArray(node.tokens) && node.tokens.every(tokenLike)))
      fail(`the tokens of the message ${id} are not whole`);
  }
  for (const [slot, id] of Object.entries<any>(c.chosen))
    if (!(id in c.nodes) || (c.nodes[id].parent ?? "root") !== slot) fail(`what is shown after ${slot} does not follow it`);
  return c as Conversation;
}

const tokenLike = (t: any): boolean => typeof t?.id === "number" && typeof t.text === "string" && typeof t.p === "number" && Array.isArray(t.top);

const asked = (node: Node): string => {
  const set = Object.entries(node.settings ?? {}).filter(([key]) => !["logprobs", "top_logprobs", "logprobs_content"].includes(key));
  return [node.model, ...set.map(([key, value]) => `${key} ${typeof value === "string" ? value : JSON.stringify(value)}`)]
    .filter(Boolean)
    .join(" · ");
};

export function toMarkdown(c: Conversation): string {
  const parts = [`# ${c.title || "Untitled"}`];
  if (c.system) parts.push(`**System**\n\n${c.system}`);
  for (const node of path(c)) {
    const note = node.role === "assistant" && asked(node) ? `\n\n*${asked(node)}*` : "";
    parts.push(`**${node.role === "user" ? "You" : "Model"}**\n\n${node.text}${note}`);
  }
  return `${parts.join("\n\n")}\n`;
}

export function save(name: string, type: string, text: string): void {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

export const fileName = (title: string): string =>
  (title || "conversation")
    .toLowerCase()
    .replace(/[^\p{L}\p{N}]+/gu, "-")
    .replace(/^-|-$/g, "")
    .slice(0, 40) || "conversation";

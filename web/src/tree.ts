// A conversation is a tree: each edit and each new answer is a sibling, and one path through it is shown. Nothing here touches the page.

/** A token and its log-probability. bytes: left out where they are those of `text`, as most are. special: no plain text ever becomes it. */
export interface Alternative {
  id: number;
  text: string;
  p: number;
  bytes?: number[];
  special?: true;
}

/** A token of an answer; top: the likeliest in its place. */
export interface Token extends Alternative {
  top: Alternative[];
}

/** Times in milliseconds as the page saw them; first: from asking to the first token. */
export interface Stats {
  prompt: number;
  tokens: number;
  reused: number;
  first: number;
  total: number;
}

export interface Node {
  id: string;
  parent: string | null;
  role: "user" | "assistant";
  text: string;
  created: number;
  thinking?: string;
  tokens?: Token[];
  model?: string;
  settings?: Record<string, unknown>;
  stats?: Stats;
  finish?: string;
  verdict?: { status: string; reason?: string | null };
  error?: string;
  edited?: boolean;
}

export interface Conversation {
  id: string;
  title: string;
  created: number;
  changed: number;
  mode: "chat" | "continue";
  system: string;
  nodes: Record<string, Node>;
  chosen: Record<string, string>; // parent, or "root" -> the child that is shown
}

const ROOT = "root";

export const newId = (): string => Array.from(crypto.getRandomValues(new Uint8Array(9)), (b) => b.toString(36).padStart(2, "0")).join("");

export function newConversation(mode: "chat" | "continue" = "chat", system = ""): Conversation {
  const now = Date.now();
  return { id: newId(), title: "", created: now, changed: now, mode, system, nodes: {}, chosen: {} };
}

/** The messages that are shown, first to last. */
export function path(c: Conversation): Node[] {
  const out: Node[] = [];
  for (let at = c.chosen[ROOT]; at !== undefined; at = c.chosen[at]) {
    const node = c.nodes[at];
    if (!node) break;
    out.push(node);
  }
  return out;
}

/** The messages from the first down to a node, shown or not. */
export function upTo(c: Conversation, id: string | null): Node[] {
  const out: Node[] = [];
  for (let at = id; at !== null;) {
    const node = c.nodes[at];
    if (!node) break;
    out.unshift(node);
    at = node.parent;
  }
  return out;
}

/** All that stand in a node's place, oldest first, itself among them. */
export function siblings(c: Conversation, id: string): string[] {
  const parent = c.nodes[id]?.parent ?? null;
  return Object.values(c.nodes)
    .filter((n) => n.parent === parent)
    .sort((a, b) => a.created - b.created || (a.id < b.id ? -1 : 1))
    .map((n) => n.id);
}

/** A new node below another (null: at the beginning), which is then shown. Created times never tie, so that siblings keep their order. */
export function add(c: Conversation, parent: string | null, role: Node["role"], text: string, more: Partial<Node> = {}): Node {
  const latest = Math.max(0, ...Object.values(c.nodes).map((n) => n.created));
  const node: Node = { ...more, id: newId(), parent, role, text, created: Math.max(Date.now(), latest + 1) };
  c.nodes[node.id] = node;
  c.chosen[parent ?? ROOT] = node.id;
  c.changed = Date.now();
  if (!c.title && role === "user") c.title = titleOf(text);
  return node;
}

export function choose(c: Conversation, id: string): void {
  const node = c.nodes[id];
  if (node) c.chosen[node.parent ?? ROOT] = id;
}

/** The sibling that many places on, if there is one, is shown. */
export function step(c: Conversation, id: string, by: number): boolean {
  const all = siblings(c, id);
  const next = all[all.indexOf(id) + by];
  if (next === undefined) return false;
  choose(c, next);
  return true;
}

/** Takes a node and all below it away; a sibling is shown in its place. */
export function remove(c: Conversation, id: string): void {
  const node = c.nodes[id];
  if (!node) return;
  const all = siblings(c, id);
  const at = all.indexOf(id);
  const next = all[at + 1] ?? all[at - 1];
  const slot = node.parent ?? ROOT;
  if (c.chosen[slot] === id) {
    if (next === undefined) delete c.chosen[slot];
    else c.chosen[slot] = next;
  }
  const doomed = [id];
  for (let one = doomed.pop(); one !== undefined; one = doomed.pop()) {
    for (const child of Object.values(c.nodes)) if (child.parent === one) doomed.push(child.id);
    delete c.nodes[one];
    delete c.chosen[one];
  }
  c.changed = Date.now();
}

export function titleOf(text: string): string {
  const line = text.trim().split("\n")[0] ?? "";
  return line.length > 60 ? `${line.slice(0, 57).trimEnd()}…` : line;
}

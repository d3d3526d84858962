// What the page knows and what may be done with it. What it looks like is views/'s affair: they are told by `draw` and `grow`.
import { answer, type Asked } from "./answer";
import { Api, Refused, Unreachable, type ModelCard } from "./api";
import { DEFAULTS, fields, type Sampling } from "./sampling";
import { fromJson } from "./files";
import { openStore, recall, remember, type Store } from "./store";
import { shown } from "./tokens";
import * as tree from "./tree";
import type { Alternative, Conversation, Node, Token } from "./tree";

export type View = "text" | "tokens" | "surprise";
export type Part = "head" | "side" | "thread" | "composer" | "panel" | "banner";
export type Link = "opening" | "open" | "closed" | "key";
const RETRY_MS = 2000;
const CONTINUED = 200; // tokens of a continued text where nobody said how many
const encoder = new TextEncoder();

/** Settings of an earlier visit; none where they cannot be read, as those of another version might not be. */
function recalled(name: string): Partial<Sampling> {
  try {
    return JSON.parse(recall(name) ?? "{}");
  } catch {
    return {};
  }
}

export class App {
  readonly api = new Api();
  store!: Store;
  models: ModelCard[] = [];
  conversations: Conversation[] = [];
  current: Conversation = tree.newConversation();
  sampling: Sampling = { ...DEFAULTS };
  view: View = "text";
  link: Link = "opening";
  refusal = ""; // why a key was refused
  unkept = ""; // why this conversation could not be kept
  busy: { node: Node; abort: AbortController } | null = null;
  model = "";
  draw: (...parts: Part[]) => void = () => undefined;
  grow: (node: Node) => void = () => undefined;
  say: (words: string) => void = () => undefined; // to those who hear the page

  async start(): Promise<void> {
    this.store = await openStore();
    this.conversations = (await this.store.all()).sort((a, b) => b.changed - a.changed);
    this.sampling = { ...DEFAULTS, ...recalled("sampling") };
    this.view = (recall("view") as View | null) ?? "text";
    await this.connect();
  }

  /** Asks what is served. Where nobody answers it asks again until somebody does. */
  async connect(): Promise<void> {
    try {
      this.models = await this.api.models();
    } catch (error) {
      if (error instanceof Refused && error.status === 401) {
        this.refusal = this.api.key ? error.message : "";
        this.api.key = null;
        this.link = "key";
      } else this.lost();
      this.draw("head", "side", "thread", "composer", "panel", "banner");
      return;
    }
    this.link = "open";
    if (!this.models.some((m) => m.id === this.model)) this.model = this.models.find((m) => m.id === recall("model"))?.id ?? this.models[0]!.id;
    if (!tree.path(this.current).length) this.current.mode = this.card.chat ? this.current.mode : "continue";
    this.draw("head", "side", "thread", "composer", "panel", "banner");
  }

  get card(): ModelCard {
    return this.models.find((m) => m.id === this.model)!;
  }

  get canSend(): boolean {
    return this.link === "open" && this.busy === null;
  }

  private lost(): void {
    if (this.link === "closed") return;
    this.link = "closed";
    const again = async (): Promise<void> => {
      if (await this.api.alive()) {
        this.link = "opening";
        await this.connect();
      } else setTimeout(again, RETRY_MS);
    };
    setTimeout(again, RETRY_MS);
  }

  // Conversations

  async keep(): Promise<void> {
    const c = this.current;
    if (!Object.keys(c.nodes).length && !this.conversations.includes(c)) return;
    if (!this.conversations.includes(c)) this.conversations.unshift(c);
    this.conversations.sort((a, b) => b.changed - a.changed);
    await this.put(c);
    this.draw("side");
  }

  /** A full disk is said, and costs nothing that is on the page. */
  private async put(c: Conversation): Promise<void> {
    try {
      await this.store.put(c);
      this.unkept = "";
    } catch (error) {
      this.unkept = (error as Error).message;
    }
    this.draw("banner");
  }

  fresh(): void {
    this.stop();
    this.current = tree.newConversation(this.models.length && !this.card.chat ? "continue" : this.current.mode, "");
    this.draw("head", "side", "thread", "composer", "panel");
  }

  open(id: string): void {
    const found = this.conversations.find((c) => c.id === id);
    if (!found) return;
    this.stop();
    this.current = found;
    this.draw("head", "side", "thread", "composer", "panel");
  }

  async forget(id: string): Promise<void> {
    this.conversations = this.conversations.filter((c) => c.id !== id);
    await this.store.remove(id);
    if (this.current.id === id) this.fresh();
    else this.draw("side");
  }

  async bring(text: string): Promise<number> {
    const found = fromJson(text);
    for (const c of found) await this.store.put(c);
    this.conversations = [...found, ...this.conversations].sort((a, b) => b.changed - a.changed);
    if (found[0]) this.open(found[0].id);
    return found.length;
  }

  // Settings

  choose(model: string): void {
    this.model = model;
    remember("model", model);
    if (!this.card.chat) this.current.mode = "continue";
    this.draw("head", "thread", "composer", "panel");
  }

  set(change: Partial<Sampling>): void {
    Object.assign(this.sampling, change);
    remember("sampling", JSON.stringify(this.sampling));
    this.draw("composer");
  }

  look(view: View): void {
    this.view = view;
    remember("view", view);
    this.draw("head", "thread");
  }

  mode(mode: Conversation["mode"]): void {
    this.current.mode = mode;
    void this.keep();
    this.draw("thread", "composer", "panel");
  }

  system(text: string): void {
    this.current.system = text;
    void this.keep();
  }

  // Messages

  async send(text: string): Promise<void> {
    if (!this.canSend) return;
    const last = tree.path(this.current).at(-1)?.id ?? null;
    const parent = text === "" && last !== null ? last : tree.add(this.current, last, "user", text).id; // nothing new: the text goes on
    await this.generate(parent);
  }

  again(node: Node): Promise<void> {
    return this.generate(node.parent);
  }

  /** Another version beside a message. One of the user's is answered; one of the model's stands as it is. */
  async edit(node: Node, text: string): Promise<void> {
    if (this.busy) return;
    const twin = tree.add(this.current, node.parent, node.role, text, node.role === "assistant" ? { edited: true } : {});
    if (node.role === "user" && this.canSend) await this.generate(twin.id);
    else {
      this.draw("thread");
      await this.keep();
    }
  }

  step(node: Node, by: number): void {
    if (this.busy || !tree.step(this.current, node.id, by)) return;
    this.draw("thread", "panel");
    void this.keep();
  }

  async drop(node: Node): Promise<void> {
    if (this.busy) return;
    tree.remove(this.current, node.id);
    this.draw("thread", "panel");
    await this.keep();
  }

  stop(): void {
    this.busy?.abort.abort();
  }

  /** The conversation up to a message, as /tokenize and the chat take it. */
  messages(until: string | null): { role: string; content: string }[] {
    const system = this.current.system.trim() ? [{ role: "system", content: this.current.system }] : [];
    return [...system, ...tree.upTo(this.current, until).map((n) => ({ role: n.role, content: n.text }))];
  }

  /** What stands before the answer, as /tokenize takes it. */
  prompt(until: string | null, draft = ""): Record<string, unknown> {
    if (this.current.mode === "continue") return { model: this.model, prompt: this.joined(until) + draft, as_prompt: true };
    return { model: this.model, messages: [...this.messages(until), ...(draft ? [{ role: "user", content: draft }] : [])] };
  }

  private joined(until: string | null): string {
    return tree
      .upTo(this.current, until)
      .map((n) => n.text)
      .join("");
  }

  private asked(parent: string | null): Asked {
    const chat = this.current.mode === "chat";
    const how = { model: this.model, ...fields(this.sampling, chat) };
    if (chat) return { path: "/v1/chat/completions", body: { ...how, messages: this.messages(parent) } };
    return { path: "/v1/completions", body: { max_tokens: this.most(this.longest(parent)), ...how, prompt: this.joined(parent) } };
  }

  /** At most so many tokens has the text up to a message: as many as were counted for the last answer, and of what follows one a byte. */
  private longest(until: string | null): number {
    let n = 0;
    for (const node of tree.upTo(this.current, until).reverse()) {
      if (node.stats?.prompt && node.model === this.model) return n + node.stats.prompt + node.stats.tokens;
      n += encoder.encode(node.text).length;
    }
    return n;
  }

  /** Of a continued text: null, as far as there is room, where the context might not hold the usual number more. */
  private most(longest: number): number | null {
    return longest + CONTINUED < this.card.context_window ? CONTINUED : null;
  }

  private async generate(parent: string | null): Promise<void> {
    if (!this.canSend) return;
    await this.run(parent, {}, () => this.asked(parent));
  }

  /** Another answer that begins as this one up to a token, and goes on with another in its place. */
  async branch(node: Node, at: number, other: Alternative): Promise<void> {
    if (!this.canSend || !node.tokens) return;
    const token = node.tokens[at]!;
    const begun: Token[] = [...node.tokens.slice(0, at), { ...other, top: token.top }];
    await this.run(node.parent, { tokens: begun, text: shown(begun.filter((t) => !t.special)).join("") }, async () => {
      const { tokens } = await this.api.tokenize(this.prompt(node.parent));
      const { response_format: _, ...how } = fields(this.sampling, false);
      const most = this.current.mode === "chat" ? null : this.most(tokens.length + begun.length);
      return { path: "/v1/completions", body: { max_tokens: most, ...how, model: this.model, prompt: [...tokens, ...begun.map((t) => t.id)] } };
    });
  }

  private async run(parent: string | null, begun: Partial<Node>, ask: () => Asked | Promise<Asked>): Promise<void> {
    const node = tree.add(this.current, parent, "assistant", begun.text ?? "", { model: this.model, ...begun });
    const busy = (this.busy = { node, abort: new AbortController() });
    const conversation = this.current;
    this.draw("thread", "composer", "head");
    this.say("The answer begins");
    try {
      const asked = await ask();
      const { model: _, messages: __, prompt: ___, ...settings } = asked.body;
      node.settings = settings;
      await answer(this.api, asked, node, busy.abort.signal, () => this.grow(node));
      this.say(`The answer is whole: ${node.stats?.tokens ?? 0} tokens`);
    } catch (error) {
      this.ended(node, error as Error, busy.abort.signal.aborted);
    }
    this.busy = null;
    conversation.changed = Date.now();
    if (conversation === this.current) await this.keep();
    else await this.put(conversation);
    this.draw("thread", "composer", "head", "panel", "banner");
  }

  private ended(node: Node, error: Error, stopped: boolean): void {
    if (stopped) {
      node.finish = "stopped";
      this.say("Stopped");
      return;
    }
    node.finish = "error";
    node.error = error.message;
    if (error instanceof Refused && error.retrySeconds) node.error += ` (the server is busy: try again in ${error.retrySeconds} s)`;
    this.say(`The answer failed: ${node.error}`);
    if (error instanceof Unreachable) this.lost();
    if (error instanceof Refused && error.status === 401) {
      this.refusal = error.message;
      this.api.key = null;
      this.link = "key";
    }
  }
}

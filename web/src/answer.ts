// One answer as it comes: chunks of either API into a node of the tree, with its tokens and its times.
import type { Api } from "./api";
import { odd } from "./tokens";
import type { Alternative, Node, Token } from "./tree";

export interface Asked {
  path: "/v1/chat/completions" | "/v1/completions";
  body: Record<string, unknown>;
}

const one = (t: any): Alternative => ({
  id: t.token_id,
  text: t.token,
  p: t.logprob,
  ...odd(t.token, t.bytes),
  ...(t.special ? { special: true } : {}),
});
const token = (t: any): Token => ({ ...one(t), top: t.top_logprobs.map(one) });

/** Puts a chunk into the node; whether it brought words or tokens. */
export function hear(node: Node, chunk: any, since: number, now: number): boolean {
  if (chunk.usage && node.stats) {
    node.stats.prompt = chunk.usage.prompt_tokens;
    node.stats.tokens = chunk.usage.completion_tokens;
    node.stats.reused = chunk.usage.prompt_tokens_details?.cached_tokens ?? 0;
  }
  const choice = chunk.choices?.[0];
  if (!choice) return false;
  const text: string = choice.text ?? choice.delta?.content ?? "";
  const thought: string = choice.delta?.reasoning_content ?? "";
  const tokens: any[] = choice.logprobs?.content ?? [];
  node.text += text;
  if (thought) node.thinking = (node.thinking ?? "") + thought;
  if (tokens.length) (node.tokens ??= []).push(...tokens.map(token));
  if (choice.finish_reason) node.finish = choice.finish_reason;
  if (choice.verdict) node.verdict = choice.verdict;
  const said = text !== "" || thought !== "" || tokens.length > 0;
  node.stats ??= { prompt: 0, tokens: 0, reused: 0, first: 0, total: 0 };
  if (said) {
    if (node.stats.first === 0) node.stats.first = now - since;
    node.stats.tokens = Math.max(node.stats.tokens, node.tokens?.length ?? node.stats.tokens + 1);
    node.stats.total = now - since;
  }
  return said;
}

/** Tokens a second once the first was there; null where there are too few to tell. */
export function rate(node: Node): number | null {
  const s = node.stats;
  return s && s.tokens > 1 && s.total > s.first ? (1000 * (s.tokens - 1)) / (s.total - s.first) : null;
}

/** Streams an answer into a node and calls `changed` as it grows. What ends it early is thrown; what came stays. */
export async function answer(api: Api, asked: Asked, node: Node, signal: AbortSignal, changed: () => void): Promise<void> {
  const since = performance.now();
  for await (const chunk of api.stream(asked.path, asked.body, signal)) {
    if (hear(node, chunk, since, performance.now())) changed();
  }
}

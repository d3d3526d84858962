// Tokens as people see them: their text where bytes of one character lie in several tokens, how surprising each was, and what it is called.
import type { Alternative, Token } from "./tree";

type Spelled = Pick<Alternative, "text" | "bytes" | "special">;
const encoder = new TextEncoder();

/** Bytes worth keeping beside the text they are of: those of no whole characters. */
export function odd(text: string, bytes: number[] | null): Pick<Alternative, "bytes"> {
  return bytes === null || encoder.encode(text).join() === bytes.join() ? {} : { bytes };
}

/** What each token shows. A character whose bytes lie in several tokens is shown by the last of them; those before show nothing. */
export class Shower {
  private decoder = new TextDecoder();

  next(token: Spelled): string {
    if (!token.special) return this.decoder.decode(token.bytes ? new Uint8Array(token.bytes) : encoder.encode(token.text), { stream: true });
    this.decoder = new TextDecoder(); // what was begun before a special token ends there
    return token.text;
  }
}

export function shown(tokens: readonly Spelled[]): string[] {
  const shower = new Shower();
  return tokens.map((token) => shower.next(token));
}

/** Surprise in bits: 0 where nothing else could come, 1 for a coin's toss. */
export const bits = (logprob: number): number => Math.max(0, -logprob / Math.LN2);

/** Ten shades, a bit each; the last is for all that is rarer than one in 512. */
export const shade = (logprob: number): number => Math.min(9, Math.floor(bits(logprob)));

export const LEAST = -9998; // what the server says of a token that could not be drawn

export function percent(logprob: number): string {
  if (logprob <= LEAST) return "0 %";
  const p = 100 * Math.exp(logprob);
  if (p >= 99.95) return "100 %";
  return p >= 10 ? `${p.toFixed(0)} %` : p >= 1 ? `${p.toFixed(1)} %` : p >= 0.01 ? `${p.toFixed(2)} %` : "< 0.01 %";
}

/** A token's text with what cannot be seen made visible. */
export function visible(token: Spelled): string {
  const { text } = token;
  if (token.bytes && text.includes("\ufffd")) return token.bytes.map((b) => `⟨${b.toString(16).toUpperCase().padStart(2, "0")}⟩`).join("");
  return text === "" ? "⟨empty⟩" : text.replace(/\r/g, "␍").replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/ /g, "·");
}

export function meanBits(tokens: readonly Token[]): number | null {
  const counted = tokens.filter((t) => t.p > LEAST);
  return counted.length ? counted.reduce((sum, t) => sum + bits(t.p), 0) / counted.length : null;
}

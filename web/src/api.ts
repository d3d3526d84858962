// The server, asked from its own page: the same address, nothing else is ever asked.
import { events } from "./stream";

export interface ModelCard {
  id: string;
  family: string;
  license: string | null;
  context_window: number;
  parameters: number;
  parent: string | null;
  chat: boolean;
}
export interface Piece {
  token: string;
  bytes: number[] | null;
  token_id: number;
  special?: true;
}
export interface Tokenized {
  tokens: number[];
  count: number;
  max_model_len: number;
  pieces: Piece[];
}
export type Report = Record<string, any>; // what loading decided; its fields are LoadReport's

/** The server said no. */
export class Refused extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly code: string | null,
    readonly retrySeconds: number | null,
  ) {
    super(message);
  }
}

/** The server did not say anything. */
export class Unreachable extends Error {}

const KEY = "pellucid.key";

export class Api {
  get key(): string | null {
    return sessionStorage.getItem(KEY);
  }

  /** Kept as long as this tab is open, and in it alone. */
  set key(value: string | null) {
    if (value === null) sessionStorage.removeItem(KEY);
    else sessionStorage.setItem(KEY, value);
  }

  async models(): Promise<ModelCard[]> {
    return (await this.json("/v1/models")).data;
  }

  report(name: string): Promise<Report> {
    return this.json(`/report/${name.split("/").map(encodeURIComponent).join("/")}`);
  }

  tokenize(body: Record<string, unknown>): Promise<Tokenized> {
    return this.json("/tokenize", { ...body, pieces: true });
  }

  async alive(): Promise<boolean> {
    return this.json("/health").then(
      () => true,
      (error) => !(error instanceof Unreachable),
    );
  }

  /** The chunks of a streamed answer. Throws Refused, Unreachable, also where the stream ends before it says that it is done; AbortError. */
  async *stream(path: string, body: Record<string, unknown>, signal: AbortSignal): AsyncGenerator<any> {
    const answer = await this.ask(path, { ...body, stream: true, stream_options: { include_usage: true } }, signal);
    try {
      for await (const data of events(answer.body!)) {
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new Refused(0, chunk.error.message, chunk.error.code, null);
        yield chunk;
      }
    } catch (error) {
      if (error instanceof Refused || signal.aborted) throw error;
      throw new Unreachable("The connection broke before the answer was whole");
    }
    throw new Unreachable("The connection ended before the answer was whole");
  }

  private async json(path: string, body?: Record<string, unknown>): Promise<any> {
    return (await this.ask(path, body)).json();
  }

  private async ask(path: string, body?: Record<string, unknown>, signal?: AbortSignal): Promise<Response> {
    const headers: Record<string, string> = {
      ...(body ? { "Content-Type": "application/json" } : {}),
      ...(this.key ? { Authorization: `Bearer ${this.key}` } : {}),
    };
    let answer: Response;
    try {
      answer = await fetch(path, {
        method: body ? "POST" : "GET",
        headers,
        cache: "no-store",
        credentials: "omit",
        redirect: "error",
        ...(body ? { body: JSON.stringify(body) } : {}),
        ...(signal ? { signal } : {}),
      });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new Unreachable("The server does not answer");
    }
    if (answer.ok) return answer;
    const told = await answer.json().catch(() => null);
    const wait = answer.headers.get("Retry-After");
    throw new Refused(
      answer.status,
      told?.error?.message ?? `The server answered ${answer.status}`,
      told?.error?.code ?? null,
      wait === null ? null : Number(wait),
    );
  }
}

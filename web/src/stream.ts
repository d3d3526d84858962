// Server-sent events from a stream of text, however it was cut on the way: https://html.spec.whatwg.org/multipage/server-sent-events.html.

/** Takes text in pieces, gives the data of the events that are whole. */
export class EventReader {
  private rest = "";
  private data: string[] = [];

  push(piece: string): string[] {
    const out: string[] = [];
    this.rest += piece;
    for (;;) {
      const end = /\r\n|\n|\r(?!$)/.exec(this.rest); // a return at the very end may be half of a pair
      if (!end) return out;
      const line = this.rest.slice(0, end.index);
      this.rest = this.rest.slice(end.index + end[0].length);
      if (line === "") {
        if (this.data.length) out.push(this.data.join("\n"));
        this.data = [];
      } else if (line.startsWith("data:")) {
        this.data.push(line.slice(5).replace(/^ /, ""));
      } // other fields and comments say nothing here
    }
  }
}

/** The data of each event of a body. Ends where the body ends; whether that was its proper end, [DONE] tells. */
export async function* events(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  const parser = new EventReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      yield* parser.push(done ? decoder.decode() : decoder.decode(value, { stream: true }));
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => undefined);
  }
}

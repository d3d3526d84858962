import { describe, expect, it } from "vitest";
import { EventReader, events } from "../src/stream";

const WHOLE = 'data: {"a": 1}\n\n: a comment\r\ndata: two\r\ndata: lines\r\n\r\nevent: x\ndata:close\n\ndata: ünï→😀\n\ndata: [DONE]\n\n';
const DATA = ['{"a": 1}', "two\nlines", "close", "ünï→😀", "[DONE]"];

describe("server-sent events", () => {
  it("are the same however their text is cut", () => {
    for (let size = 1; size <= WHOLE.length; size++) {
      const reader = new EventReader();
      const out: string[] = [];
      for (let at = 0; at < WHOLE.length; at += size) out.push(...reader.push(WHOLE.slice(at, at + size)));
      expect(out).toEqual(DATA);
    }
  });

  it("are the same however their bytes are cut, within characters too", async () => {
    const bytes = new TextEncoder().encode(WHOLE);
    for (const size of [1, 2, 3, 7, bytes.length]) {
      const body = new ReadableStream<Uint8Array>({
        start(controller) {
          for (let at = 0; at < bytes.length; at += size) controller.enqueue(bytes.slice(at, at + size));
          controller.close();
        },
      });
      const out: string[] = [];
      for await (const data of events(body)) out.push(data);
      expect(out).toEqual(DATA);
    }
  });

  it("are none where one has not ended", () => expect(new EventReader().push("data: half\n")).toEqual([]));
});

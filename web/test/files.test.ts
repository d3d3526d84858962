import { describe, expect, it } from "vitest";
import { hear, rate } from "../src/answer";
import { fileName, fromJson, toJson, toMarkdown } from "../src/files";
import { DEFAULTS, fields, parseSchema } from "../src/sampling";
import { add, newConversation, path, type Node } from "../src/tree";

function talk() {
  const c = newConversation("chat", "Be brief");
  const q = add(c, null, "user", "Hello <b>you</b>");
  add(c, q.id, "assistant", "Hi", { model: "m", settings: { temperature: 0.5, seed: 3 }, tokens: [{ id: 1, text: "Hi", p: -0.1, top: [] }] });
  return c;
}

describe("a file", () => {
  it("holds everything and is read back, as a conversation of its own", () => {
    const c = talk();
    const [back] = fromJson(toJson([c]));
    expect(back!.id).not.toBe(c.id);
    expect({ ...back, id: c.id }).toEqual(c);
  });

  it("for people says who said what, and with which settings", () => {
    expect(toMarkdown(talk())).toBe(
      "# Hello <b>you</b>\n\n**System**\n\nBe brief\n\n**You**\n\nHello <b>you</b>\n\n**Model**\n\nHi\n\n*m · temperature 0.5 · seed 3*\n",
    );
  });

  it.each([
    ["{", "not JSON"],
    ["{}", "not an export"],
    [JSON.stringify({ format: "pellucid.conversations", version: 2, conversations: [] }), "not an export"],
  ])("that is none of ours is refused: %s", (text, said) => expect(() => fromJson(text)).toThrow(said));

  it("is refused where a message follows one that is not there, or itself", () => {
    const one = talk();
    path(one)[1]!.parent = "nobody";
    expect(() => fromJson(toJson([one]))).toThrow("which is not there");
    const other = talk();
    path(other)[0]!.parent = path(other)[1]!.id;
    expect(() => fromJson(toJson([other]))).toThrow("follows itself");
  });

  it("has a name that any disk takes", () => expect(fileName("What: is / this? 東京")).toBe("what-is-this-東京"));
});

describe("an answer", () => {
  const node = (): Node => ({ id: "x", parent: null, role: "assistant", text: "", created: 0 });
  const top = [{ token: "b", token_id: 2, logprob: -2, bytes: [98] }];

  it("is its chunks put together, of either API", () => {
    const a = node();
    hear(a, { choices: [{ delta: { role: "assistant", content: "" } }] }, 0, 10);
    hear(
      a,
      {
        choices: [
          {
            delta: { reasoning_content: "hm" },
            logprobs: { content: [{ token: "hm", token_id: 7, logprob: -1, bytes: [104, 109], top_logprobs: top }] },
          },
        ],
      },
      0,
      100,
    );
    hear(a, { choices: [{ delta: { content: "yes" } }] }, 0, 300);
    hear(a, { choices: [{ delta: {}, finish_reason: "stop", verdict: { status: "valid" } }] }, 0, 310);
    hear(a, { choices: [], usage: { prompt_tokens: 5, completion_tokens: 3 } }, 0, 320);
    expect(a).toMatchObject({
      text: "yes",
      thinking: "hm",
      finish: "stop",
      verdict: { status: "valid" },
      stats: { prompt: 5, tokens: 3, first: 100, total: 300 },
    });
    expect(a.tokens).toEqual([{ id: 7, text: "hm", p: -1, top: [{ id: 2, text: "b", p: -2 }] }]);
    expect(rate(a)).toBeCloseTo(10); // two tokens in the 0.2 s after the first
    const b = node();
    hear(b, { choices: [{ text: "on", logprobs: { content: [] } }] }, 0, 5);
    expect(b.text).toBe("on");
  });
});

describe("settings", () => {
  it("that change nothing are not sent, and a seed always is", () => {
    const sent = fields(DEFAULTS, true);
    expect(sent).toMatchObject({ temperature: 0.8, top_p: 0.95, logprobs: true, top_logprobs: 5 });
    expect(Object.keys(sent).sort()).toEqual(["logprobs", "seed", "temperature", "top_logprobs", "top_p"]);
    expect(Number.isSafeInteger(sent.seed)).toBe(true);
    expect(fields({ ...DEFAULTS, seed: 0, top_k: 3, stop: ["x"] }, false)).toMatchObject({
      seed: 0,
      top_k: 3,
      stop: ["x"],
      logprobs: 5,
      logprobs_content: true,
    });
  });

  it("hold an answer to a schema, which has to be an object", () => {
    expect(fields({ ...DEFAULTS, format: "schema", schema: '{"type": "object"}' }, true).response_format).toMatchObject({
      json_schema: { schema: { type: "object" }, strict: true },
    });
    expect(() => parseSchema("[1]")).toThrow("JSON object");
    expect(() => parseSchema("")).toThrow("empty");
    expect(() => parseSchema("{")).toThrow("not JSON");
  });
});

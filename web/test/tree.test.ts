import { describe, expect, it } from "vitest";
import { add, choose, newConversation, path, remove, siblings, step, titleOf, upTo } from "../src/tree";

const texts = (c: ReturnType<typeof newConversation>): string =>
  path(c)
    .map((n) => n.text)
    .join(" ");

function talk() {
  const c = newConversation();
  const q = add(c, null, "user", "q1");
  const a = add(c, q.id, "assistant", "a1");
  const q2 = add(c, a.id, "user", "q2");
  const a2 = add(c, q2.id, "assistant", "a2");
  return { c, q, a, q2, a2 };
}

describe("a conversation", () => {
  it("shows one path from its first message to its last", () => {
    expect(texts(talk().c)).toBe("q1 a1 q2 a2");
  });

  it("branches where a message is said again, and keeps what followed the other", () => {
    const { c, q, a } = talk();
    const other = add(c, q.id, "assistant", "b1");
    expect(texts(c)).toBe("q1 b1");
    expect(siblings(c, other.id)).toEqual([a.id, other.id]);
    expect(step(c, other.id, -1)).toBe(true);
    expect(texts(c)).toBe("q1 a1 q2 a2");
    expect(step(c, a.id, -1)).toBe(false);
    choose(c, other.id);
    expect(texts(c)).toBe("q1 b1");
  });

  it("branches at its very beginning", () => {
    const { c, q } = talk();
    const other = add(c, null, "user", "other");
    expect(texts(c)).toBe("other");
    expect(siblings(c, q.id)).toEqual([q.id, other.id]);
  });

  it("keeps siblings in the order they were made, whatever the clock says", () => {
    const { c, q } = talk();
    const made = Array.from({ length: 20 }, (_, i) => add(c, q.id, "assistant", String(i)).id);
    expect(siblings(c, made[0]!).slice(1)).toEqual(made);
  });

  it("loses a message with all below it, and shows the one beside it", () => {
    const { c, q, a } = talk();
    const other = add(c, q.id, "assistant", "b1");
    choose(c, a.id);
    remove(c, a.id);
    expect(texts(c)).toBe("q1 b1");
    expect(Object.keys(c.nodes).sort()).toEqual([q.id, other.id].sort());
    remove(c, q.id);
    expect(c.nodes).toEqual({});
    expect(c.chosen).toEqual({});
  });

  it("knows what stands above a message that is not shown", () => {
    const { c, q, a2 } = talk();
    add(c, q.id, "assistant", "b1");
    expect(upTo(c, a2.id).map((n) => n.text)).toEqual(["q1", "a1", "q2", "a2"]);
  });

  it("is called by the first line of its first message", () => {
    expect(talk().c.title).toBe("q1");
    expect(titleOf(`\n${"long ".repeat(30)}\nmore`)).toMatch(/^(long ){11}lo…$/);
  });
});

import { describe, expect, it } from "vitest";
import { bits, odd, percent, shade, shown, visible } from "../src/tokens";

const half = (bytes: number[]) => ({ text: "\ufffd", bytes });

describe("tokens", () => {
  it("show a character whose bytes lie in several of them once, where it is whole", () => {
    expect(shown([{ text: "a" }, half([0xf0, 0x9f]), half([0x98]), half([0x80]), { text: "b" }])).toEqual(["a", "", "", "😀", "b"]);
  });

  it("show together what the text is", () => {
    const text = "Zürich → 東京 😀";
    const bytes = [...new TextEncoder().encode(text)];
    for (let size = 1; size < 6; size++) {
      const pieces = Array.from({ length: Math.ceil(bytes.length / size) }, (_, i) => half(bytes.slice(i * size, (i + 1) * size)));
      expect(shown(pieces).join("")).toBe(text);
    }
  });

  it("end a character that was begun where a special one stands", () => {
    expect(shown([half([0xe2]), { text: "<|end|>", special: true }, { text: "x" }])).toEqual(["", "<|end|>", "x"]);
  });

  it("keep bytes only where the text does not tell them", () => {
    expect(odd("ü", [0xc3, 0xbc])).toEqual({});
    expect(odd("\ufffd", [0xc3])).toEqual({ bytes: [0xc3] });
  });

  it("are as surprising as they are rare", () => {
    expect(bits(Math.log(0.25))).toBeCloseTo(2);
    expect([1, 0.9, 0.5, 0.1, 0.001, 1e-9].map((p) => shade(Math.log(p)))).toEqual([0, 0, 1, 3, 9, 9]);
  });

  it("say their share in figures that tell it apart", () => {
    expect([1, 0.256, 0.0123, 0.00123, 1e-7].map((p) => percent(Math.log(p)))).toEqual(["100 %", "26 %", "1.2 %", "0.12 %", "< 0.01 %"]);
    expect(percent(-9999)).toBe("0 %");
  });

  it("make visible what cannot be seen", () => {
    expect(visible({ text: " a\n" })).toBe("·a↵");
    expect(visible(half([0xe2, 0x82]))).toBe("⟨E2⟩⟨82⟩");
  });
});

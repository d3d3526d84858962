"""What holding an output to a grammar costs: time to make one ready, and per token for the mask and for telling it what came.

    python benchmarks/grammar.py                                  # the shipped model's vocabulary, and one of 152,000 ids
    python benchmarks/grammar.py --tokenizer FOLDER --tokens 500

Drawn uniformly from each mask, which leads a grammar into more of its states than a model would; one thread. The last part runs masks beside a matrix
product, to see whether they hide behind the model's pass: they do where a CPU is left for them.
"""
from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pellucid.engine.grammar import Compiled, Vocabulary, compile_grammar
from pellucid.engine.masks import Masks
from pellucid.tokenizer import load_tokenizer

PERSON = {"type": "object",
          "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 130},
                         "email": {"type": "string", "format": "email"}},
          "required": ["name", "age", "email"], "additionalProperties": False}
NESTED = {"type": "object",
          "properties": {"id": {"type": "string", "format": "uuid"},
                         "items": {"type": "array", "items": {"anyOf": [PERSON, {"$ref": "#/$defs/tree"}]}, "maxItems": 20},
                                           "meta": {"type": "object", "additionalProperties": {"type": ["string", "number", "null"]}}},
          "required": ["id", "items"],
          "$defs": {"tree": {"type": "object",
                             "properties": {"value": {"type": "number"}, "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}}},
                                                          "required": ["value"], "additionalProperties": False}}}
GRAMMARS: dict[str, tuple[str, Any]] = {
    "schema, plain": ("schema", PERSON), "schema, nested": ("schema", NESTED), "any JSON object": ("json", None),
    "regex": ("regex", r"([A-Z][a-z]{2,12} ){3,40}\(\d{4}-\d{2}-\d{2}\)"),
    "choice of 1,000": ("choice", [f"option number {i} of {i * 7919 % 1000}" for i in range(1000)])}


def large(n: int = 152_000) -> Vocabulary:
    """As many ids as the largest tokenizers of 2025 have: words of the shape that byte-level ones learn, an end among them."""
    rng = random.Random(0)
    tokens: dict[bytes, None] = {bytes([b]): None for b in range(256)}
    starts, letters = [b"", b" ", b" ", b"\n", b'"', b"_"], b"etaoinshrdlucmfwypvbgkjqxz"
    while len(tokens) < n - 1:
        word = bytes(rng.choices(letters, weights=range(26, 0, -1), k=rng.randint(2, 9)))
        tokens[rng.choice(starts) + (word.capitalize() if rng.random() < 0.2 else word) + (b'":' if rng.random() < 0.02 else b"")] = None
    return Vocabulary([*tokens, b"<end>"], (), (n - 1,))


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measured(compiled: Compiled, n_tokens: int) -> dict[str, float]:
    """Microseconds for a mask (median, 99th percentile) and for telling the grammar an id, over outputs drawn until there are n_tokens."""
    rng, words_W = random.Random(1), torch.zeros(compiled.vocabulary.n_words, dtype=torch.int32)
    masks, advances, constraint = [], [], compiled.start()
    while len(masks) < n_tokens:
        masks.append(seconds(lambda: constraint.mask(words_W)))  # noqa: B023, run at once
        may = (words_W[:, None] >> torch.arange(32) & 1).flatten().nonzero()[:, 0]
        chosen = int(may[rng.randrange(len(may))])
        advances.append(seconds(lambda: constraint.advance(chosen)))  # noqa: B023
        if constraint.done or len(masks) % 200 == 0:
            constraint = compiled.start()
    microseconds = sorted(1e6 * s for s in masks)
    return {"mask_us": statistics.median(microseconds), "mask_us_99": microseconds[int(0.99 * len(microseconds))],
            "advance_us": 1e6 * statistics.median(advances)}


def beside(compiled: Compiled, n_rows: int, width: int = 1400, steps: int = 40) -> dict[str, float]:
    """Milliseconds of a step: the products that stand for a model's pass alone, the masks alone, and both at once."""
    weight, x, masks, rng = torch.randn(width, width), torch.randn(n_rows, width), Masks(compiled.vocabulary.n_vocab), random.Random(2)
    constraints = [compiled.start() for _ in range(n_rows)]

    def product() -> None:
        for _ in range(12):
            torch.mm(x, weight)

    def fill() -> torch.Tensor:
        masks.begin(constraints)
        words_RW = masks.end().words_RW
        assert words_RW is not None
        return words_RW

    def both() -> None:
        masks.begin(constraints)
        product()
        masks.end()

    times: dict[str, list[float]] = {"model_ms": [], "masks_ms": [], "both_ms": []}
    for _ in range(steps):
        for name, run in (("model_ms", product), ("masks_ms", fill), ("both_ms", both)):
            times[name].append(1e3 * seconds(run))
        for b, words_W in enumerate(fill()):
            may = (words_W[:, None] >> torch.arange(32) & 1).flatten().nonzero()[:, 0]
            constraints[b].advance(int(may[rng.randrange(len(may))]))
            if constraints[b].done:
                constraints[b] = compiled.start()
    masks.close()
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", help="a folder or file with a tokenizer, in place of the shipped model's")
    parser.add_argument("--tokens", type=int, default=600)
    parser.add_argument("--rows", type=int, default=8, help="of the batch whose masks are filled beside a product")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(args.tokenizer or Path(__file__).parent.parent / "pellucid" / "shipped")
    own = Vocabulary.of(tokenizer, tokenizer.n_vocab, [0 if tokenizer.eos_id is None else tokenizer.eos_id])
    rows = []
    for vocabulary in (own, large()):
        made_ms = 1e3 * seconds(lambda: vocabulary.ll)  # noqa: B023, run at once
        for name, (kind, source) in GRAMMARS.items():
            start = time.perf_counter()
            compiled = compile_grammar(kind, source, vocabulary)
            rows.append({"vocabulary": vocabulary.n_vocab, "vocabulary_ms": made_ms, "grammar": name,
                         "compile_ms": 1e3 * (time.perf_counter() - start),
                         "start_us": 1e6 * statistics.median(seconds(compiled.start) for _ in range(20)), **measured(compiled, args.tokens)})
    together = {"rows": args.rows, **beside(compile_grammar("schema", NESTED, vocabulary), args.rows)}
    if args.json:
        print(json.dumps({"machine": platform.processor() or platform.machine(), "grammars": rows, "beside": together}))
        return
    print(f"{'vocabulary':>10}  {'grammar':<16} {'compile':>10} {'start':>9} {'mask, median':>13} {'99th':>10} {'advance':>9}")
    for r in rows:
        print(f"{r['vocabulary']:>10,}  {r['grammar']:<16} {r['compile_ms']:>7.1f} ms {r['start_us']:>6.0f} us {r['mask_us']:>10.0f} us "
              f"{r['mask_us_99']:>7.0f} us "
              f"{r['advance_us']:>6.1f} us")
    print(f"{together['rows']} rows: products {together['model_ms']:.1f} ms, masks {together['masks_ms']:.1f} ms, both at once "
          f"{together['both_ms']:.1f} ms")


if __name__ == "__main__":
    main()

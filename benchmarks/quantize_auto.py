"""Mixes made for the model against mixes by name: the shipped model at the size of each fixed mix, KL on books it never saw.

    python benchmarks/quantize_auto.py ../shared/data/books.tar.xz [--mixes Q4_K_M Q5_K_S] [--windows 4] [--json]

Importance and sensitivities are measured once, on books that were trained on. From them comes a mix for the bytes that the tensors of each fixed mix
take, by the same quantizer and with the same importance. Both files are written, read back, and run by the decoder in float32 on held-out books; the
ratio of their mean KLs has a 95 % interval from resampled blocks of text. `estimated` is what the sensitivities add up to, on the calibration text,
`seen` what the file made by them does there.
"""
from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from quantize import CALIBRATION, HELD_OUT, texts

from pellucid import load
from pellucid.audit.damage import look
from pellucid.audit.held_out import Window
from pellucid.audit.intervals import Resampled
from pellucid.audit.sensitivity import Model, Reference, measure
from pellucid.families._describe import describe_checkpoint
from pellucid.model import importance
from pellucid.model.convert import convert
from pellucid.model.load import load_decoder
from pellucid.weights.allocate import allocate
from pellucid.weights.gguf import open_gguf
from pellucid.weights.hub import resolve
from pellucid.weights.imatrix import write_imatrix

MIXES = ("Q2_K", "Q3_K_M", "IQ4_XS", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K")


def as_windows(texts: list[list[int]]) -> list[Window]:
    return [Window(tuple(ids), 1, 0) for ids in texts]


def run(args: argparse.Namespace) -> dict:
    torch.set_num_threads(1)
    held, calibration = texts(args.books, (HELD_OUT, args.windows), (CALIBRATION, args.calibration))
    held, probes = as_windows(held), as_windows(calibration[:: max(1, len(calibration) // 8)])
    loaded = load("shipped", dtype="float32")
    model = Model(loaded.checkpoint, describe_checkpoint(loaded.checkpoint))
    started = time.perf_counter()
    imatrix = importance.measure(loaded.decoder, calibration)
    choices = measure(model, Reference(loaded.decoder, probes), imatrix)
    seconds, rows = time.perf_counter() - started, []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_imatrix(folder / "imatrix.gguf", imatrix)

        def kl(name: str, text: list[Window], **how: object) -> tuple[torch.Tensor, int, dict[str, str]]:
            file = folder / name
            if not file.exists():
                convert(resolve("shipped"), file, imatrix=folder / "imatrix.gguf", tokenizer=False, **how)  # type: ignore[arg-type]
            tensors = open_gguf(file).tensors
            decoder, _ = load_decoder(file, dtype="float32", activations="exact")
            return look(loaded.decoder, decoder, text).kl, sum(e.n_bytes for _, e in tensors.values()), {n: e.type for n, (_, e) in tensors.items()}
        for mix in args.mixes:
            fixed, n_bytes, _ = kl(f"{mix}.gguf", held, quantize=mix)
            found = allocate(choices, n_bytes - model.fixed_bytes)
            overrides = [(f"^{re.escape(name)}$", choice.format) for name, choice in found.chosen.items()]
            made, made_bytes, types = kl(f"{mix}.auto.gguf", held, quantize="Q4_K", overrides=overrides)
            seen, _, _ = kl(f"{mix}.auto.gguf", probes)
            ratio = Resampled(len(made)).ratio(made, fixed)
            rows.append({"mix": mix, "bytes": n_bytes, "auto_bytes": made_bytes, "kl": fixed.mean().item(), "auto_kl": made.mean().item(),
                         "ratio": ratio.value, "low": ratio.low, "high": ratio.high, "estimated": found.damage, "bound": found.bound,
                         "seen": seen.mean().item(), "types": dict(Counter(types[matrix.name] for matrix in model.matrices).most_common())})
            assert made_bytes <= n_bytes
            if not args.json:
                print(shown(rows[-1]), flush=True)
    return {"rows": rows, "measuring_seconds": seconds, "held_out_tokens": sum(len(each.scored) for each in held),
            "probe_tokens": sum(len(each.scored) for each in probes)}


def shown(row: dict) -> str:
    return (f"| {row['mix']} | {row['bytes'] / 1e6:.3f} | {row['auto_bytes'] / 1e6:.3f} | {row['kl']:.5f} | {row['auto_kl']:.5f} | "
            f"{row['ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f}) | {row['estimated']:.5f} | {row['seen']:.5f} | "
            f"{', '.join(f'{format} {n}' for format, n in row['types'].items())} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("books", type=Path)
    parser.add_argument("--mixes", nargs="+", default=MIXES)
    parser.add_argument("--windows", type=int, default=4, help="of 512 tokens, of each of four held-out books")
    parser.add_argument("--calibration", type=int, default=16, help="windows of each of four books that were trained on")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not args.json:
        print("| mix | MB | auto MB | KL | auto KL | ratio | estimated | seen | auto's formats |\n" + "| --- " * 9 + "|")
    found = run(args)
    print(json.dumps(found) if args.json else f"measuring took {found['measuring_seconds']:.0f} s; {found['held_out_tokens']:,} tokens held out")


if __name__ == "__main__":
    main()

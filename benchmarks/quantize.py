"""What quantizing costs in quality: the shipped model in every mix, by our quantizer and by llama.cpp's, with and without an imatrix, at equal size.

    python benchmarks/quantize.py ../shared/data/books.tar.xz --llama-cpp-python PATH [--mixes Q4_0 Q4_K_M] [--orders 4] [--json]

KL is that of the quantized model's distribution from the bfloat16 original's, nats per token, over windows of 512 tokens of held-out books. Both files are
read back and run by the same decoder in float32, so nothing but the weights differs; types and sizes of all tensors are checked to be equal.

A quantizer's luck with one set of weights is worth a few per cent: blocks are cut where they are. So the same model is quantized with its channels in several
orders (of the residual stream, the feed-forwards, and the heads' values), which computes the same and is cut otherwise; the ratio of two sides is the geometric
mean over the orders, with its standard error. Calibration text is of books that were trained on; the imatrix is ours, and both sides are given the same.

--llama-cpp-python is an interpreter that has llama-cpp-python, as in benchmarks/engine.py.
"""
from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import llama_file
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pellucid import load_tokenizer
from pellucid.model.importance import measure, windows
from pellucid.model.load import load_decoder
from pellucid.ops.quantize.rows import quantize_rows
from pellucid.weights.gguf import open_gguf, read_gguf
from pellucid.weights.gguf_file import GgufFile
from pellucid.weights.gguf_write import copied, planned, write_gguf
from pellucid.weights.hub import resolve
from pellucid.weights.imatrix import Imatrix
from pellucid.weights.mixes import MIXES, Facts, plan_mix

HELD_OUT = ("Joseph Conrad/Nostromo", "L. Frank Baum/The Wonderful Wizard of Oz", "Aldous Huxley/Crome Yellow", "Anna Sewell/Black Beauty")
CALIBRATION = ("Herman Melville/Moby-Dick", "George Eliot/Middlemarch", "Jane Austen/Pride and Prejudice", "Charles Dickens/Great Expectations")
WINDOW, START = 512, 60_000  # tokens; characters of a book that are skipped: its title page and first chapters
SIDES = [(who, important) for important in (False, True) for who in ("llama.cpp", "pellucid")]


def texts(archive: Path, *groups: tuple[tuple[str, ...], int]) -> list[list[list[int]]]:
    """For each group of books so many windows of each, begun as the model was trained."""
    tokenizer, found = load_tokenizer(resolve("shipped")), {}
    with tarfile.open(archive) as tar:
        for member in tar:
            for books, n in groups:
                if (name := member.name.removeprefix("books/").removesuffix(".md")) in books:
                    text = tar.extractfile(member).read().decode("utf8")[START : START + 8 * WINDOW * (n + 2)]
                    found[name] = windows(tokenizer.encode(text), WINDOW, bos=tokenizer.bos_id, most=n)
    return [[window for book in books for window in found[book]] for books, _ in groups]


@torch.inference_mode()
def log_probabilities(path: Path, ids: list[list[int]]) -> Tensor:
    decoder, _ = load_decoder(path, dtype="float32", ops="reference")
    return torch.cat([decoder.unembed(decoder(torch.tensor(each))).float().log_softmax(-1) for each in ids])


def reordered(folder: Path, seed: int) -> Path:
    """The shipped model with its channels in another order: the same function, in other blocks. Seed 0 is the order it has."""
    source = Path(resolve("shipped"))
    config = json.loads((source / "config.json").read_text())
    D, F, H = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    tensors, noise = load_file(source / "model.safetensors"), torch.Generator().manual_seed(seed)

    def order(n: int) -> Tensor:
        return torch.randperm(n, generator=noise) if seed else torch.arange(n)
    stream = order(D)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        inner, values = order(F), torch.cat([h * (D // H) + order(D // H) for h in range(H)])
        for name in ("mlp.gate_proj", "mlp.up_proj"):
            tensors[f"{layer}{name}.weight"] = tensors[f"{layer}{name}.weight"][inner]
        tensors[f"{layer}mlp.down_proj.weight"] = tensors[f"{layer}mlp.down_proj.weight"][:, inner]
        tensors[f"{layer}self_attn.v_proj.weight"] = tensors[f"{layer}self_attn.v_proj.weight"][values]
        tensors[f"{layer}self_attn.o_proj.weight"] = tensors[f"{layer}self_attn.o_proj.weight"][:, values]
    for name, tensor in tensors.items():
        writes = "o_proj" in name or "down_proj" in name  # to the stream, where all others read it
        tensors[name] = (tensor[stream] if writes else tensor[..., stream]).contiguous()
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def ours(source: Path, out: Path, mix: str, imatrix: Imatrix | None, config: dict) -> float:
    """Our file; the seconds it took."""
    start = time.perf_counter()
    header = read_gguf(source)
    file = GgufFile(source, header)
    facts = Facts(architecture="llama", n_layers=config["num_hidden_layers"], n_heads=config["num_attention_heads"], n_kv_heads=config["num_key_value_heads"])
    plan = plan_mix(mix, {name: entry.shape for name, entry in header.tensors.items()}, facts, important=imatrix is not None)

    def rows(name: str) -> list[bytes]:
        weight = file.tensor(name)
        importance = imatrix.importance(name, tuple(weight.shape)) if imatrix else None
        return [quantize_rows(weight if weight.ndim > 1 else weight[None], plan.types[name], importance, name=name).bytes.numpy().tobytes()]
    tensors = [planned(name, plan.types[name], entry.shape, lambda name=name: rows(name)) for name, entry in header.tensors.items()]
    write_gguf(out, copied(open_gguf(source)) | {"general.file_type": plan.file_type}, tensors)
    return time.perf_counter() - start


def run(args: argparse.Namespace) -> dict:
    torch.set_num_threads(1)
    held, calibration = texts(args.books, (HELD_OUT, args.windows), (CALIBRATION, 4))
    found: dict[str, list[dict]] = {mix: [] for mix in args.mixes}
    version = ""
    for seed in range(args.orders):
        with tempfile.TemporaryDirectory() as scratch:
            folder = reordered(Path(scratch) / "model", seed)
            config = json.loads((folder / "config.json").read_text())
            source = llama_file.write(folder, "bf16", Path(scratch) / "model.gguf")
            original = log_probabilities(folder, held)
            imatrix = measure(load_decoder(folder, dtype="float32")[0], calibration)
            np.savez(Path(scratch) / "means.npz", **{name: (each.sums / each.counts[:, None]).flatten().numpy() for name, each in imatrix.entries.items()})
            for mix in args.mixes:
                outs = {side: Path(scratch) / f"{mix}-{side[0]}-{side[1]}.gguf" for side in SIDES}
                theirs = [{"out": str(outs[side]), "file_type": MIXES[mix][1], "imatrix": f"{scratch}/means.npz" if side[1] else None}
                          for side in SIDES if side[0] == "llama.cpp"]
                done = subprocess.run([args.llama_cpp_python, Path(__file__).with_name("llama_quantize_side.py")],
                                      input=json.dumps({"source": str(source), "jobs": theirs}), capture_output=True, text=True, check=True)
                version = json.loads(done.stdout)["version"]
                seconds = ours(source, outs["pellucid", False], mix, None, config)
                ours(source, outs["pellucid", True], mix, imatrix, config)
                found[mix].append(row := {"our_seconds": seconds, "their_seconds": json.loads(done.stdout)["seconds"][0]})
                types = {side: {name: entry.type for name, entry in read_gguf(out).tensors.items()} for side, out in outs.items()}
                assert all(types["pellucid", important] == types["llama.cpp", important] for important in (False, True)), mix
                for side, out in outs.items():
                    lost = (original.exp() * (original - (own := log_probabilities(out, held)))).sum(-1)
                    row[f"{side[0]}{' imatrix' * side[1]}"] = dict(kl=lost.mean().item(), kl_99=lost.quantile(0.99).item(),
                                                                    flips=(own.argmax(-1) != original.argmax(-1)).float().mean().item(),
                                                                    n_bytes=sum(e.n_bytes for e in read_gguf(out).tensors.values()))
                    out.unlink()
                print(f"{mix} in order {seed + 1}/{args.orders} done", file=sys.stderr)
    return dict(mixes=found, n_tokens=sum(map(len, held)), n_calibration=sum(map(len, calibration)), orders=args.orders, llama_cpp_python=version,
                torch=torch.__version__)


def ratio(rows: list[dict], a: str, b: str) -> tuple[float, float]:
    """a's KL over b's: the geometric mean over the orders, and its standard error."""
    logs = [math.log(row[a]["kl"] / row[b]["kl"]) for row in rows]
    return math.exp(statistics.mean(logs)), statistics.stdev(logs) / len(logs) ** 0.5 if len(logs) > 1 else math.nan


def table(result: dict) -> str:
    lines = ["| mix | MB | KL, llama.cpp | KL, ours | ours / llama.cpp | flips | with imatrix: llama.cpp | ours | ours / llama.cpp | flips |",
             "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for mix, rows in result["mixes"].items():
        cells = [mix, f"{rows[0]['pellucid']['n_bytes'] / 1e6:.2f}"]
        for more in ("", " imatrix"):
            theirs, own = f"llama.cpp{more}", f"pellucid{more}"
            mean, error = ratio(rows, own, theirs)
            cells += [f"{statistics.mean(row[side]['kl'] for row in rows):.5f}" for side in (theirs, own)]
            flips = [100 * statistics.mean(row[side]["flips"] for row in rows) for side in (theirs, own)]
            cells += [f"**{mean:.3f}** ± {error:.3f}", f"{flips[0]:.1f} -> {flips[1]:.1f} %"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("books", type=Path)
    parser.add_argument("--llama-cpp-python", required=True)
    parser.add_argument("--mixes", nargs="+", default=[mix for mix in MIXES if mix not in ("F32", "F16", "BF16", "MXFP4_MOE", "Q2_K_S")])
    parser.add_argument("--orders", type=int, default=4)
    parser.add_argument("--windows", type=int, default=1, help="of each held-out book")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    result = run(args)
    print(json.dumps(result) if args.json else table(result))


if __name__ == "__main__":
    main()

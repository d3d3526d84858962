"""What `pellucid plan` predicts beside what is measured: peak memory and decoding speed, run by run, on this machine.

    python benchmarks/plan.py --make                 # random models of two families, bfloat16 and packed, in --scratch
    python benchmarks/plan.py --run 0 --out FILE     # one run in a fresh process, after a second of measuring the machine; its line is added to FILE
    python benchmarks/plan.py --run 8                # 8 and 9: four steps of LoRA, rank 16, rows of 512
    python benchmarks/plan.py --report FILE          # the table of all lines

A run loads a model, computes a prompt and decodes: the peak is the process's own, read from /proc, with everything it ever held. Mapped files count
as far as they were read. Predictions come from the model's config.json alone, and from the machine's bandwidth as it was measured just before.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

FAMILIES = {"llama-1.1b": "random-1.1b", "qwen2-0.5b": "random-qwen2-0.5b"}
QWEN = dict(  # the widths of Qwen2.5-0.5B: pellucid/catalog/shapes.toml
    architectures=["Qwen2ForCausalLM"], model_type="qwen2", vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
    num_attention_heads=14, num_key_value_heads=2, max_position_embeddings=32768, rms_norm_eps=1e-6, rope_theta=1e6, hidden_act="silu",
    tie_word_embeddings=True, use_sliding_window=False, sliding_window=32768, max_window_layers=24, torch_dtype="bfloat16", bos_token_id=1, eos_token_id=2)
RUNS = [(model, format, context) for model in FAMILIES for format in ("bf16", "q4_k_m") for context in (512, 2000)]
RUNS += [("random-30m", "lora", 512), ("random-1.1b", "lora", 512)]
ROWS = {"random-30m": 8, "random-1.1b": 2}  # of a training step
TOKENS = 12  # decoded at the end of the context


def made(model: str, format: str, scratch: Path) -> Path:
    """The checkpoint of a run: a folder in bfloat16, or a GGUF file."""
    return scratch / (FAMILIES[model] if format == "bf16" else f"{FAMILIES[model]}-{format}.gguf")


def make(scratch: Path) -> None:
    from speed import RANDOM, make_random
    for model, name in FAMILIES.items():
        folder = make_random(scratch / name, RANDOM.get(name, QWEN))
        packed = made(model, "q4_k_m", scratch)
        if not packed.exists():
            subprocess.run([sys.executable, "-m", "pellucid", "quantize", str(folder), str(packed), "--to", "Q4_K_M"], check=True)


def peak_bytes() -> int:
    """The most memory this process has held. Not ru_maxrss, in which whoever started it counts too: here one that has read 960 MB to measure the machine."""
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))


def mapped_bytes(path: str) -> int:
    """Of this process's memory, pages of a packed model's file: rows of its table of embeddings are read there. The kernel takes them back when it wants."""
    n, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if not line.split(maxsplit=1)[0].endswith(":"):
            inside = line.endswith(os.path.abspath(path))
        elif inside and line.startswith("Rss:"):
            n += int(line.split()[1]) * 1024
    return n


def worker(path: str, context: int) -> None:
    """Loads, computes a prompt, decodes; the peak of the process and tokens a second."""
    from speed import ids_for, pellucid_side
    n_vocab, run = pellucid_side(path)
    rates = []
    for _ in range(2):
        _, to_first, seconds = run(ids_for(context - TOKENS, n_vocab), TOKENS)
        rates.append((TOKENS - 1) / (seconds - to_first))
    print(json.dumps({"peak_bytes": peak_bytes(), "mapped_bytes": mapped_bytes(path), "decode": statistics.median(rates)}))


def train(path: str, method: str, length: int) -> None:
    """Four steps of tuning as benchmarks/tune.py makes them; the peak of the process."""
    from tune import pellucid_side
    rows = ROWS[Path(path).name]
    pellucid_side(path, argparse.Namespace(batch=rows, steps=4, length=length, method=method, recompute=False))()
    print(json.dumps({"peak_bytes": peak_bytes()}))


def predict_training(model: str, method: str, length: int, scratch: Path) -> dict:
    from pellucid.catalog.footprint import Footprint
    from pellucid.catalog.subject import subject
    parts = Footprint(subject(str(scratch / model)).spec).training_bytes(method, n_tokens=ROWS[model] * length)
    return {"peak_bytes": sum(parts.values()), "parts": parts}


def predict(model: str, format: str, context: int, scratch: Path) -> dict:
    from pellucid.catalog import hardware, planning
    from pellucid.catalog.footprint import Footprint
    from pellucid.catalog.subject import subject
    here = hardware.this_machine(measure=True)
    footprint = Footprint(subject(str(scratch / FAMILIES[model])).spec)
    speed = planning.speed(footprint, here, format=format, prompt=context, context=context)
    return {"bandwidth": here.bandwidth, "rate": here.rates["f32"], "peak_bytes": footprint.peak_bytes(format, context), "decode": speed.decode,
            "looked_up_bytes": footprint.looked_up_bytes(format, context)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, default=Path("out/bench"))
    parser.add_argument("--make", action="store_true")
    parser.add_argument("--run", type=int)
    parser.add_argument("--cold", action="store_true", help="drop the model's file from the page cache before, so that it is read from the disk")
    parser.add_argument("--out", type=Path, default=Path("out/plan.jsonl"))
    parser.add_argument("--report", type=Path)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        path, format, context = args.worker
        return train(path, format, int(context)) if format == "lora" else worker(path, int(context))
    if args.make:
        return make(args.scratch)
    if args.report:
        return report([json.loads(line) for line in args.report.read_text().splitlines()])
    model, format, context = RUNS[args.run]
    training = model in ROWS
    told = (predict_training if training else predict)(model, format, context, args.scratch)
    path = args.scratch / model if training else made(model, format, args.scratch)
    if args.cold:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    done = subprocess.run([sys.executable, __file__, "--worker", str(path), format, str(context)], check=True, stdout=subprocess.PIPE, text=True,
                          env=os.environ)
    measured = json.loads(done.stdout.splitlines()[-1])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a") as out:
        out.write(json.dumps({"model": model, "format": format, "context": context, "predicted": told, "measured": measured}) + "\n")
    return report([{"model": model, "format": format, "context": context, "predicted": told, "measured": measured}])


def report(lines: list[dict]) -> None:
    print("| model | weights | context | peak memory, MB: predicted | measured | of it pages of a packed file | off | off without "
          "| decode, tok/s: predicted | measured | off | read test, GB/s |")
    print("| --- " * 12 + "|")
    for line in lines:
        told, was = line["predicted"], line["measured"]
        start = f"| {line['model']} | {line['format']} | {line['context']:,} | {told['peak_bytes'] / 1e6:,.0f} | {was['peak_bytes'] / 1e6:,.0f} " \
                f"| {(mapped := was.get('mapped_bytes', 0)) / 1e6:,.0f} | {told['peak_bytes'] / was['peak_bytes'] - 1:+.0%} " \
                f"| {(told['peak_bytes'] - told.get('looked_up_bytes', 0)) / (was['peak_bytes'] - mapped) - 1:+.0%} "
        print(start + (f"| {told['decode']:.1f} | {was['decode']:.1f} | {told['decode'] / was['decode'] - 1:+.0%} | {told['bandwidth'] / 1e9:.1f} |"
                       if "decode" in was else "| | | | |"))


if __name__ == "__main__":
    main()

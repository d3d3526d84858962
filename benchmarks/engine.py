"""The engine measured: many requests at once, prefixes that are shared, what Python costs, ten thousand requests, what exactness and int8 cost.

    python benchmarks/engine.py throughput random-1.1b --concurrent 8 --llama-cpp-python PATH   # beside transformers and llama.cpp
    python benchmarks/engine.py prefix random-1.1b
    python benchmarks/engine.py overhead random-1.1b
    python benchmarks/engine.py flat random-30m
    python benchmarks/engine.py modes shipped

Add --json for the machine form. MODEL is 'shipped', a random Llama of benchmarks/speed.py, or a folder. Every measurement is a fresh process; sides
alternate, and a round's ratio compares neighbours in time, because the machines this runs on are noisy. Above 1 means Pellucid is better.

--llama-cpp-python is an interpreter that has llama-cpp-python, which takes ten minutes to build and so is not in the test environment:
python -m venv DIR && DIR/bin/pip install llama-cpp-python. Without it, llama.cpp's rows are missing, and the report says so.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import llama_file
from engine_work import WORK
from speed import RANDOM, common_prefix, find, versions, warm

FEW = 64  # compiled products, more than one step's
BETTER = {"output_tokens_per_second": True, "first_token_seconds": False, "token_ms": False, "peak_memory_mb": False}  # whether more is better


def work(name: str, path: Path, env: dict[str, str] | None = None, **job: object) -> dict:
    """What a fresh process measured, with these variables in its environment."""
    done = subprocess.run([sys.executable, __file__, "--work", json.dumps(dict(job, name=name, path=str(path)))], capture_output=True, text=True, check=False,
                          env=os.environ | (env or {}))
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def alternating(sides: list[str], rounds: int, measure) -> list[dict[str, dict]]:
    """Each round measures every side once, in turned order."""
    out = []
    for i in range(rounds):
        order = sides if i % 2 == 0 else sides[::-1]
        out.append({side: measure(side) for side in order})
        print(f"round {i + 1}/{rounds} done", file=sys.stderr)
    return out


def spread(values: list[float]) -> dict[str, float]:
    return dict(median=statistics.median(values), least=min(values), most=max(values))


# Throughput beside others

def prompts_of(n: int, length: int, n_vocab: int) -> list[list[int]]:
    """Prompts that share no beginning."""
    return [[(i * 7919 + 104729 * row + 13) % (n_vocab - 10) + 5 for i in range(length)] for row in range(n)]


def gguf(args: argparse.Namespace, path: Path, kind: str) -> Path:
    """The model's GGUF file of this kind, made once in the scratch folder."""
    target = args.scratch / f"{path.name}-{kind}.gguf"
    if kind in ("f16", "bf16"):
        return llama_file.write(path, kind, target)
    if not target.exists():
        source = gguf(args, path, "bf16")
        subprocess.run([args.llama_cpp_python, str(Path(__file__).with_name("llama_cpp_side.py")), str(source), "--quantize", kind, str(target)], check=True)
    return target


def throughput(args: argparse.Namespace, path: Path) -> dict:
    """Output tokens per second of n requests at once, prompts included; time to the first token and between two, means over requests."""
    n_vocab = json.loads((path / "config.json").read_text())["vocab_size"]
    job = dict(prompts=prompts_of(args.concurrent, args.prompt, n_vocab), answer=args.answer, repeats=args.repeats, threads=args.threads)
    peer = dict(job, repack=not args.no_repack)
    sides = [f"{library} {dtype}" for dtype in args.dtypes for library in ("pellucid", "transformers")]
    sides += [f"llama.cpp {kind}" for kind in args.gguf] if args.llama_cpp_python else []

    def measure(side: str) -> dict:
        library, kind = side.split()
        warm(path if library != "llama.cpp" else gguf(args, path, kind))
        if library != "llama.cpp":
            return settled(work(library, path, **job, dtype=kind), job)
        done = subprocess.run([args.llama_cpp_python, str(Path(__file__).with_name("llama_cpp_side.py")), str(gguf(args, path, kind))],
                              input=json.dumps(peer), capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{side} failed ({done.returncode}):\n{done.stderr[-3000:]}")
        return settled(json.loads(done.stdout.splitlines()[-1]), job)

    rounds = alternating(sides, args.rounds, measure)
    ours = [side for side in sides if side.startswith("pellucid")]
    out: dict = dict(sides={side: {row: spread([r[side][row] for r in rounds]) for row in BETTER} for side in sides}, ratios={})
    for mine in ours:
        for other in [s for s in sides if s not in ours]:
            ratios = [r[mine]["output_tokens_per_second"] / r[other]["output_tokens_per_second"] for r in rounds]
            same = [statistics.mean(common_prefix(a, b) for a, b in zip(r[mine]["ids"], r[other]["ids"], strict=True)) for r in rounds]
            out["ratios"][f"{mine} / {other}"] = dict(spread(ratios), same_greedy_tokens=min(same))
    out["llama.cpp"] = next((f"llama-cpp-python {r['version']}: {r['features']}" for r in rounds[0].values() if "version" in r),
                            "missing: no --llama-cpp-python was given")
    return out


def settled(told: dict, job: dict) -> dict:
    """A worker's runs as rows: medians over its repeats."""
    n, answer = len(job["prompts"]), job["answer"]
    runs = told["runs"]
    return dict(told, ids=runs[-1]["ids"], output_tokens_per_second=statistics.median(n * answer / r["seconds"] for r in runs),
                first_token_seconds=statistics.median(r["first"] for r in runs),
                token_ms=statistics.median(1e3 * (r["seconds"] - r["first"]) / (answer - 1) for r in runs))


def show_throughput(out: dict, args: argparse.Namespace) -> str:
    lines = ["| | output tok/s | first token, s | between tokens, ms | peak memory, MB |", "| --- | --- | --- | --- | --- |"]
    for side, rows in out["sides"].items():
        best = rows["output_tokens_per_second"]
        lines.append(f"| {side} | **{best['median']:,.1f}** ({best['least']:,.1f} to {best['most']:,.1f}) | {rows['first_token_seconds']['median']:.2f} | "
                     f"{rows['token_ms']['median']:.1f} | {rows['peak_memory_mb']['median']:,.0f} |")
    lines += ["", "| output tok/s | ratio (worst to best round) | greedy tokens alike, mean a request |", "| --- | --- | --- |"]
    lines += [f"| {name} | **{r['median']:.2f}** ({r['least']:.2f} to {r['most']:.2f}) | {r['same_greedy_tokens']:.0f} of {args.answer} |"
              for name, r in out["ratios"].items()]
    return "\n".join([*lines, "", f"llama.cpp: {out['llama.cpp']}"])


# A prefix that all requests share

def prefix(args: argparse.Namespace, path: Path) -> dict:
    """Seconds with and without reuse, and for what follows the prefix alone: its prefill is the difference of the last two."""
    job = dict(threads=args.threads, n=args.concurrent, shared=args.shared, own=args.own, answer=args.answer)
    rounds = alternating(["prefix"], args.rounds, lambda side: work(side, path, **job))
    told = [r["prefix"] for r in rounds]
    return {name: spread([r[name] for r in told]) for name in ("reuse_seconds", "no_reuse_seconds", "own_seconds", "saved_share", "reused_share")}


def show_prefix(out: dict, args: argparse.Namespace) -> str:
    rows = {"with reuse, s": "reuse_seconds", "without, s": "no_reuse_seconds", "the same requests without their prefix, s": "own_seconds",
            "share of the prefix's prefill that is saved": "saved_share", "share of the prefixes' tokens taken over": "reused_share"}
    return "\n".join(["| | median (least to most) |", "| --- | --- |", *(
        f"| {name} | **{out[key]['median']:.3f}** ({out[key]['least']:.3f} to {out[key]['most']:.3f}) |" for name, key in rows.items())])


# What Python costs

def overhead(args: argparse.Namespace, path: Path) -> dict:
    """Milliseconds a decoding step and where they go, for each batch."""
    job = dict(threads=args.threads, batches=args.batches, prompt=args.prompt, steps=args.steps, temperature=args.temperature)
    rounds = alternating(["overhead"], args.rounds, lambda side: work(side, path, **job))
    told = [r["overhead"] for r in rounds]
    return {str(n): {part: spread([r[str(n)][part] for r in told]) for part in told[0][str(n)]} for n in args.batches}


def show_overhead(out: dict, args: argparse.Namespace) -> str:
    parts = list(next(iter(out.values())))
    lines = ["| batch | " + " | ".join(part.replace("_", " ") for part in parts) + " |", "| --- " * (len(parts) + 1) + "|"]
    lines += [f"| {batch} | " + " | ".join(f"{100 * r['median']:.1f} % ({100 * r['least']:.1f} to {100 * r['most']:.1f})" if part.endswith("share") else
                                          f"{r['median']:.2f}" for part, r in rows.items()) + " |" for batch, rows in out.items()]
    return "\n".join(lines)


# Ten thousand short requests

def flat(args: argparse.Namespace, path: Path) -> dict:
    """Memory and speed on the way; the cache is small enough to be full, and so to forget, from the beginning.

    Twice: as torch comes, which keeps compiled products of oneDNN in two caches, and with room for FEW in each, so that what grows with them can be
    told from what the engine keeps.
    """
    job = dict(threads=args.threads, cache_bytes=args.cache_mb << 20, n=args.requests, prompt=args.prompt, answer=args.answer, ahead=args.ahead)
    few = dict.fromkeys(("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"), str(FEW))
    return {"as torch comes": work("flat", path, **job), f"{FEW} products kept": work("flat", path, env=few, **job)}


def show_flat(out: dict, args: argparse.Namespace) -> str:
    lines = [f"{args.requests:,} requests of {args.prompt} + {args.answer} tokens, at most {args.ahead} submitted at a time, pages of {args.cache_mb} MiB.", "",
             "| | " + " | ".join(f"{share} %" for share in range(0, 101, 10)) + " | trimmed |", "| --- " * 13 + "|"]
    for kept, told in out.items():
        lines.append(f"| {kept}: resident, MB | " + " | ".join(f"{mb:,.0f}" for mb in told["memory_mb"]) + f" | {told['trimmed_mb']:,.0f} |")
        lines.append("| malloc has given out, MB | " + " | ".join(f"{mb:,.1f}" for mb in told["in_use_mb"]) + " | |")
        lines.append("| Python's blocks, thousands | " + " | ".join(f"{n / 1e3:,.0f}" for n in told["python_blocks"]) + " | |")
    lines += ["", *(f"{kept}: {r['requests_per_second']:,.0f} requests/s, {r['output_tokens_per_second']:,.0f} output tok/s; at the end {r['pages_used']} of "
                    f"{r['pages']:,} pages are used, {r['pages_missing']} are missing, {r['n_failed']} requests failed." for kept, r in out.items())]
    return "\n".join(lines)


# Exactness and int8

def modes(args: argparse.Namespace, path: Path) -> dict:
    """Speed of each mode, and what int8 pages do to the model's distribution over text it writes itself."""
    job = dict(threads=args.threads, prompt=args.prompt, tokens=args.tokens, batch=args.batch, repeats=args.repeats)
    names = ["plain", "deterministic", "int8"]
    rounds = alternating(names, args.rounds, lambda side: work("mode", path, **job, mode=side))
    rows = list(rounds[0]["plain"])
    out: dict = dict(modes={side: {row: dict(spread([r[side][row] for r in rounds]), ratio=spread([r[side][row] / r["plain"][row] for r in rounds]))
                                   for row in rows} for side in names})
    out["loss"] = work("loss", path, n_texts=args.texts, length=args.length)
    return out


def show_modes(out: dict, args: argparse.Namespace) -> str:
    rows = list(out["modes"]["plain"])
    lines = ["| tok/s | " + " | ".join(row.replace("_", " ") for row in rows) + " |", "| --- " * (len(rows) + 1) + "|"]
    for mode, told in out["modes"].items():
        lines.append(f"| {mode} | " + " | ".join(
            f"{r['median']:,.1f}, **{r['ratio']['median']:.2f}** ({r['ratio']['least']:.2f} to {r['ratio']['most']:.2f})" for r in told.values()) + " |")
    loss = out["loss"]
    text = (f"int8 pages beside the model's own dtype, {loss['n_tokens']:,} positions of text the model wrote at temperature 1: KL {loss['kl_mean']:.2g} nats "
            f"(99 % below {loss['kl_99']:.2g}, largest {loss['kl_most']:.2g}); log-probabilities of the text's tokens off by {loss['logprob_mean']:.2g} in the "
            f"mean, {loss['logprob_most']:.2g} at most; mean loss {loss['nll']:.5f} and {loss['nll_int8']:.5f} nats; another token is the likeliest in "
            f"{loss['flips']:,} places. The model's own dtype beside float32: KL {loss['kl_dtype']:.2g}, another likeliest in {loss['flips_dtype']:,} places.")
    return "\n".join([*lines, "", text])


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, **numbers: int) -> argparse.ArgumentParser:
        sub = commands.add_parser(name)
        sub.add_argument("model", help=f"'shipped', {', '.join(map(repr, RANDOM))} or a folder")
        sub.add_argument("--scratch", type=Path, default=Path("out/bench"), help="where random models and GGUF files are kept")
        sub.add_argument("--json", action="store_true")
        sub.add_argument("--threads", type=int, default=2)
        for option, default in numbers.items():
            sub.add_argument(f"--{option.replace('_', '-')}", type=int, default=default)
        return sub

    sub = command("throughput", concurrent=8, prompt=128, answer=64, rounds=3, repeats=1)
    sub.add_argument("--dtypes", nargs="+", default=["bfloat16"], help="of Pellucid and transformers")
    sub.add_argument("--gguf", nargs="+", default=["bf16", "f16"], help="kinds of files for llama.cpp: f16 bf16 q8_0 q4_0 q4_k_m")
    sub.add_argument("--no-repack", action="store_true", help="packed kinds as llama.cpp computes them in place: its AMX products may crash, "
                     "https://github.com/ggml-org/llama.cpp/issues/20824")
    sub.add_argument("--llama-cpp-python", help="an interpreter that has llama-cpp-python")
    command("prefix", concurrent=16, shared=1000, own=32, answer=1, rounds=3)
    sub = command("overhead", prompt=128, steps=24, rounds=3)
    sub.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    sub.add_argument("--temperature", type=float, default=0.0)
    command("flat", requests=10_000, prompt=40, answer=8, ahead=256, cache_mb=64)
    command("modes", prompt=512, tokens=32, batch=8, rounds=5, repeats=3, texts=16, length=512)
    return parser.parse_args()


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        job = json.loads(sys.argv[2])
        print(json.dumps(WORK[job.pop("name")](**job)))
        return
    args = parsed()
    path = find(args.model, args.scratch)
    measure, show = {"throughput": (throughput, show_throughput), "prefix": (prefix, show_prefix), "overhead": (overhead, show_overhead),
                     "flat": (flat, show_flat), "modes": (modes, show_modes)}[args.command]
    started = time.time()
    out = measure(args, path)
    if args.json:
        settings = {name: str(value) for name, value in vars(args).items()}
        print(json.dumps(dict(command=args.command, model=args.model, versions=versions(), settings=settings, **out), indent=1))
        return
    shown = list(sys.argv[1:])
    if "--llama-cpp-python" in shown:
        shown[shown.index("--llama-cpp-python") + 1] = "PYTHON"
    print(f"`python benchmarks/engine.py {' '.join(shown)}`\n\n{versions()}\n\n{show(out, args)}\n\nTook {time.time() - started:.0f} s.")


if __name__ == "__main__":
    main()

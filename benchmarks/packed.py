"""Packed weights beside llama.cpp, on the same file: prompts, decoding, eight at once, memory, the first token, and whether both say the same.

    python benchmarks/packed.py speed random-1.1b --gguf q4_0 q4_k_m q8_0 --llama-cpp-python PYTHON
    python benchmarks/packed.py first random-1.1b --gguf q4_0 --llama-cpp-python PYTHON
    python benchmarks/packed.py agree shipped --gguf q4_0 --text pellucid/shipped/held_out.txt --llama-cpp-python PYTHON

Add --json for the machine form. Files are made from the model's safetensors by llama.cpp's own quantizer, so that what is compared is arithmetic alone.
Every number is a fresh process, sides alternate, and a ratio compares neighbours in time; above 1 means Pellucid is better. PYTHON is an interpreter
that has llama-cpp-python: see benchmarks/engine.py.
"""
from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from engine import alternating, gguf, prompts_of, spread, work
from speed import RANDOM, find, versions, warm

TASKS = {  # name -> (prompts, tokens of each, tokens generated of each), as the tables of other engines' benchmarks have it
    "prompt of 512": (1, 512, 2), "decode": (1, 128, 65), "8 sequences": (8, 128, 33)}
SIDES = ("pellucid", "llama.cpp")
FIRST = (1, 32, 2)
PAIRS = (("pellucid int8", "llama.cpp"), ("pellucid int8", "pellucid exact"), ("llama.cpp", "pellucid exact"), ("llama.cpp", "llama.cpp in place"))
NEAR = 0.1  # llama.cpp's logits of the shipped model lie 0.04 from exact ones (root mean square), so a difference of two of them 0.06


def rate(task: str, run: dict) -> float:
    """Tokens per second: of the prompt, or of what follows once every sequence has its first token. llama.cpp's side computes all prompts in one call."""
    n, length, answer = TASKS[task]
    if task.startswith("prompt"):
        return n * length / run["first"]
    return (n * (answer - 1) - run.get("early", 0)) / (run["seconds"] - run.get("together", run["first"]))


def peer(args: argparse.Namespace, file: Path, job: dict) -> dict:
    """What llama.cpp measured in a fresh process."""
    done = subprocess.run([args.llama_cpp_python, str(Path(__file__).with_name("llama_cpp_side.py")), str(file)],
                          input=json.dumps(dict(repack=not args.no_repack) | job), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"llama.cpp failed ({done.returncode}) on {file.name}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def one(args: argparse.Namespace, side: str, file: Path, n_vocab: int, shape: tuple[int, int, int], repeats: int) -> dict:
    warm(file)
    n, length, answer = shape
    job = dict(prompts=prompts_of(n, length, n_vocab), answer=answer, repeats=repeats, threads=args.threads, started=time.time())
    return peer(args, file, job) if side == "llama.cpp" else work("pellucid", file, **job, dtype="auto")


def speed(args: argparse.Namespace, path: Path, n_vocab: int) -> dict:
    """Per kind of file and task: tokens per second of both sides and their ratio, round by round; peak memory over all tasks."""
    out = {}
    for kind in args.gguf:
        file = gguf(args, path, kind)

        def measure(side: str, file: Path = file) -> dict:
            told = {task: one(args, side, file, n_vocab, TASKS[task], args.repeats) for task in args.tasks}
            rates = {task: statistics.median(rate(task, run) for run in told[task]["runs"]) for task in args.tasks}
            return dict(rates, memory=max(t["peak_memory_mb"] for t in told.values()), about=(last := told[args.tasks[-1]]).get("features") or last.get("ops"))
        rounds = alternating(list(SIDES), args.rounds, measure)
        rows = {task: dict({side: spread([r[side][task] for r in rounds]) for side in SIDES},
                           ratio=spread([r["pellucid"][task] / r["llama.cpp"][task] for r in rounds])) for task in args.tasks}
        memory = {side: max(r[side]["memory"] for r in rounds) for side in SIDES}
        out[kind] = dict(tasks=rows, peak_memory_mb=memory, about={side: rounds[0][side]["about"] for side in SIDES})
    return out


def show_speed(out: dict) -> str:
    lines = ["| file | | pellucid tok/s | llama.cpp tok/s | ratio (worst to best round) |", "| --- | --- | --- | --- | --- |"]
    for kind, told in out.items():
        for task, row in told["tasks"].items():
            mine, theirs, ratio = row["pellucid"], row["llama.cpp"], row["ratio"]
            lines.append(f"| {kind} | {task} | {mine['median']:,.1f} | {theirs['median']:,.1f} | **{ratio['median']:.2f}** "
                         f"({ratio['least']:.2f} to {ratio['most']:.2f}) |")
        memory = told["peak_memory_mb"]
        lines.append(f"| {kind} | peak memory, MB | {memory['pellucid']:,.0f} | {memory['llama.cpp']:,.0f} | "
                     f"**{memory['llama.cpp'] / memory['pellucid']:.2f}** |")
    return "\n".join([*lines, "", *(f"{side}: {about}" for side, about in next(iter(out.values()))["about"].items())])


def first(args: argparse.Namespace, path: Path, n_vocab: int) -> dict:
    """Seconds from the start of the process to the first token of a prompt of 32."""
    out = {}
    for kind in args.gguf:
        file = gguf(args, path, kind)
        rounds = alternating(list(SIDES), args.rounds, lambda side, file=file: one(args, side, file, n_vocab, FIRST, 0))
        seconds = {side: [r[side]["first_token_seconds"] for r in rounds] for side in SIDES}
        out[kind] = dict({side: spread(seconds[side]) for side in SIDES},
                         ratio=spread([theirs / mine for mine, theirs in zip(*(seconds[side] for side in SIDES), strict=True)]))
    return out


def show_first(out: dict) -> str:
    return "\n".join(["| file | pellucid, s | llama.cpp, s | ratio |", "| --- | --- | --- | --- |", *(
        f"| {kind} | {row['pellucid']['median']:.2f} ({row['pellucid']['least']:.2f} to {row['pellucid']['most']:.2f}) | {row['llama.cpp']['median']:.2f} "
        f"({row['llama.cpp']['least']:.2f} to {row['llama.cpp']['most']:.2f}) | **{row['ratio']['median']:.2f}** |" for kind, row in out.items())])


def agree(args: argparse.Namespace, path: Path, n_vocab: int) -> dict:
    """How often two ways to compute the same file have the same likeliest next token: of a text the original model wrote, and of passages of another.

    Away from near ties too: positions whose two best exact logits are further apart than NEAR. llama.cpp beside itself, with its matrices repacked and
    not, says what rounding alone does to it.
    """
    begin = work("written", path, n=args.positions, threads=args.threads)["ids"]
    read = work("read", path, file=str(args.text), n=args.positions, passages=args.passages, threads=args.threads)["ids"] if args.text else []
    out: dict[str, dict] = {}
    for kind in args.gguf:
        file = gguf(args, path, kind)
        for name, texts in (("its own", begin), ("a book's", read)):
            if not texts:
                continue
            said = [_likeliest(args, file, ids) for ids in texts]
            far = [gap > NEAR for each in said for gap in each["gaps"]]
            row: dict = dict(n=len(far), near_ties=far.count(False), pairs={})
            for pair in PAIRS:
                if pair[1] in said[0]:
                    equal = [x == y for each in said for x, y in zip(*(each[side] for side in pair), strict=True)]
                    away = [x for x, counts in zip(equal, far, strict=True) if counts]
                    row["pairs"][" / ".join(pair)] = dict(all=statistics.mean(equal), away=statistics.mean(away))
            out[f"{kind}, {name}"] = row
    return out


def _likeliest(args: argparse.Namespace, file: Path, ids: list[int]) -> dict[str, list]:
    """Of every way the likeliest token after each, and how far apart the two best exact logits are."""
    job = dict(likeliest=ids, threads=args.threads, prompts=[ids], answer=1, repeats=0)
    out = {"llama.cpp": peer(args, file, job)["likeliest"]}
    if not args.no_repack:
        out["llama.cpp in place"] = peer(args, file, dict(job, repack=False))["likeliest"]
    for activations in ("int8", "exact"):
        told = work("likeliest", file, ids=ids, activations=activations, threads=args.threads)
        out[f"pellucid {activations}"], out["gaps"] = told["likeliest"], told["gaps"]
    return out


def show_agree(out: dict) -> str:
    names = list(next(iter(out.values()))["pairs"])
    lines = [f"| file, text | positions (near ties) | {' | '.join(names)} |", f"| --- | --- |{' --- |' * len(names)}"]
    for which, row in out.items():
        shares = (f"{100 * row['pairs'][name]['all']:.1f} % ({100 * row['pairs'][name]['away']:.1f})" for name in names)
        lines.append(f"| {which} | {row['n']:,} ({row['near_ties']:,}) | {' | '.join(shares)} |")
    return "\n".join([*lines, "", f"In parentheses: away from near ties, whose two best exact logits are less than {NEAR} apart."])


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["speed", "first", "agree"])
    parser.add_argument("model", help=f"'shipped', {', '.join(map(repr, RANDOM))} or a folder")
    parser.add_argument("--gguf", nargs="+", default=["q4_0", "q4_k_m", "q8_0"], help="kinds of files")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS, help="of `speed`")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of processes")
    parser.add_argument("--repeats", type=int, default=3, help="measurements inside a process, of which the median counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--positions", type=int, default=512, help="of each text that agreement is asked over")
    parser.add_argument("--text", type=Path, help="a file with a text that people wrote, in plain letters")
    parser.add_argument("--passages", type=int, default=3, help="of that text")
    parser.add_argument("--scratch", type=Path, default=Path("out/bench"), help="where random models and GGUF files are kept")
    parser.add_argument("--no-repack", action="store_true", help="llama.cpp computes packed kinds in place: its AMX products may crash, "
                        "https://github.com/ggml-org/llama.cpp/issues/20824")
    parser.add_argument("--llama-cpp-python", required=True, metavar="PYTHON")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    args = parsed()
    path = find(args.model, args.scratch)
    n_vocab = json.loads((path / "config.json").read_text())["vocab_size"]
    measure, show = {"speed": (speed, show_speed), "first": (first, show_first), "agree": (agree, show_agree)}[args.command]
    started = time.time()
    out = measure(args, path, n_vocab)
    if args.json:
        settings = {name: str(value) for name, value in vars(args).items()}
        print(json.dumps(dict(command=args.command, model=args.model, versions=versions(), settings=settings, **out), indent=1))
        return
    shown = list(sys.argv[1:])
    shown[shown.index("--llama-cpp-python") + 1] = "PYTHON"
    print(f"`python benchmarks/packed.py {' '.join(shown)}`\n\n{versions()}\n\n{show(out)}\n\nTook {time.time() - started:.0f} s.")


if __name__ == "__main__":
    main()

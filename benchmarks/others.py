"""Packed weights beside engines that read other files than GGUF: CTranslate2, OpenVINO GenAI, ONNX Runtime GenAI, transformers. A model of the same sizes each.

    python benchmarks/others.py random-1.1b --gguf q4_0 --side ctranslate2 PYTHON FOLDER --side openvino PYTHON FOLDER --side onnxruntime PYTHON FOLDER

PYTHON is an interpreter that has the engine, FOLDER the model as it reads it, made by its own tool from one of the same sizes with a tokenizer (these
tools ask for one):

    ct2-transformers-converter --model MODEL --quantization int8 --output_dir FOLDER
    optimum-cli export openvino -m MODEL --task text-generation-with-past --weight-format int4 FOLDER
    python -m onnxruntime_genai.models.builder -m MODEL -i MODEL -o FOLDER -p int4 -e cpu

Every number is a fresh process, sides alternate with Pellucid's, and a ratio compares neighbours in time; above 1 means Pellucid is better.
"""
from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from engine import alternating, gguf, prompts_of, spread
from packed import TASKS, one, rate
from speed import RANDOM, find, versions


def other(engine: str, python: str, folder: str, job: dict) -> dict:
    """What another engine measured in a fresh process."""
    done = subprocess.run([python, str(Path(__file__).with_name("others_side.py")), engine, folder], input=json.dumps(job), capture_output=True, text=True,
                          check=False)
    if done.returncode:
        raise SystemExit(f"{engine} failed ({done.returncode}):\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def beside(args: argparse.Namespace, engine: str, python: str, folder: str, file: Path, n_vocab: int) -> dict:
    """Of each task both sides' tokens per second and their ratio, round by round; peak memory over all tasks."""
    def measure(side: str) -> dict:
        told = {}
        for task in args.tasks:
            n, length, answer = TASKS[task]
            job = dict(prompts=prompts_of(n, length, n_vocab), answer=answer, repeats=args.repeats, threads=args.threads)
            told[task] = other(engine, python, folder, job) if side == engine else one(args, side, file, n_vocab, TASKS[task], args.repeats)
        return dict({task: statistics.median(rate(task, run) for run in told[task]["runs"]) for task in args.tasks},
                    memory=max(t["peak_memory_mb"] for t in told.values()), version=told[args.tasks[-1]].get("version"))
    rounds = alternating(["pellucid", engine], args.rounds, measure)
    rows = {task: {**{side: spread([r[side][task] for r in rounds]) for side in ("pellucid", engine)},
                   "ratio": spread([r["pellucid"][task] / r[engine][task] for r in rounds])} for task in args.tasks}
    memory = {side: max(r[side]["memory"] for r in rounds) for side in ("pellucid", engine)}
    return dict(tasks=rows, peak_memory_mb=memory, version=rounds[0][engine]["version"])


def show(out: dict) -> str:
    lines = ["| beside | | pellucid tok/s | its tok/s | ratio (worst to best round) |", "| --- | --- | --- | --- | --- |"]
    for name, told in out.items():
        engine = name.split()[0]
        for task, row in told["tasks"].items():
            ratio = row["ratio"]
            lines.append(f"| {name} {told['version']} | {task} | {row['pellucid']['median']:,.1f} | {row[engine]['median']:,.1f} | **{ratio['median']:.2f}** "
                         f"({ratio['least']:.2f} to {ratio['most']:.2f}) |")
        memory = told["peak_memory_mb"]
        lines.append(f"| | peak memory, MB | {memory['pellucid']:,.0f} | {memory[engine]:,.0f} | **{memory[engine] / memory['pellucid']:.2f}** |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help=f"{', '.join(map(repr, RANDOM))} or a folder: ours")
    parser.add_argument("--gguf", default="q4_0", help="the kind of our file")
    parser.add_argument("--side", nargs=3, action="append", required=True, metavar=("ENGINE", "PYTHON", "FOLDER"))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scratch", type=Path, default=Path("out/bench"))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    path = find(args.model, args.scratch)
    n_vocab = json.loads((path / "config.json").read_text())["vocab_size"]
    file = gguf(args, path, args.gguf)
    out = {f"{engine} {Path(folder).name}": beside(args, engine, python, folder, file, n_vocab) for engine, python, folder in args.side}
    print(json.dumps(dict(model=args.model, versions=versions(), **out), indent=1) if args.json else f"{versions()}\n\n{show(out)}", file=sys.stdout)


if __name__ == "__main__":
    main()

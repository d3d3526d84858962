"""Tokens per second and peak memory of tuning, beside transformers + peft + trl on the same weights, rows, dtype, optimizer and batch.

    python benchmarks/tune.py random-30m full                      # a random Llama of 30 M parameters, made in --scratch; 8 rows of 512 tokens a step
    python benchmarks/tune.py random-30m lora --length 2048 --batch 2
    python benchmarks/tune.py random-1.1b qlora --batch 2 --steps 3 --rounds 3

Every measurement is a fresh process, and the two sides alternate. A side's speed is that of its median step without the first, and beside it that
of its fastest one: what a busy machine adds to some steps and not to others is not in it. Rows are of one length and
all of their tokens are learned. Both sides begin with the same weights and rows, so that the losses of their first steps must agree.
Full: bfloat16 products with float32 masters here, autocast over float32 weights there (trl's default). LoRA: rank 16 on every linear layer, over bfloat16
weights, or over the same NF4 file (qlora). The peer is trl's SFTTrainer as its documentation has it, but for what its user would change on a CPU: frozen
weights in bfloat16 and no activation checkpointing (--recompute leaves it as trl has it, and asks the same of this side).
"""
from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from speed import RANDOM, find, versions, warm

SIDES = ("pellucid", "trl")
LR, RANK, ALPHA = 1e-4, 16, 32.0


def rows_for(args: argparse.Namespace, n_vocab: int) -> list[list[int]]:
    import torch
    return torch.randint(5, n_vocab, (args.batch * args.steps, args.length), generator=torch.Generator().manual_seed(0)).tolist()


def pellucid_side(path: str, args: argparse.Namespace) -> Callable[[], tuple[list[float], list[float]]]:
    """Loads, and returns what trains: (seconds of each step, losses)."""
    from pellucid.data.example import Example
    from pellucid.model.load import load_decoder
    from pellucid.train.loop import Run, Stepped, train
    from pellucid.train.optim import Optimizer
    from pellucid.train.recipe import read_recipe
    from pellucid.train.sft import NextToken
    from pellucid.train.trainable import trained
    recipe = read_recipe({
        "model": {"path": path, "dtype": "bfloat16", "gradient_checkpointing": args.recompute}, "data": {"sources": [{"path": "random"}]},
        "out": {"folder": "none"}, "batch": args.batch, "micro_tokens": args.batch * args.length,
        "tune": {"kind": "full" if args.method == "full" else "lora", "rank": RANK, "alpha": ALPHA}, "optim": {"lr": LR, "schedule": "constant", "warmup": 0}})
    decoder, _ = load_decoder(path, dtype="bfloat16", ops="training", activations="exact", device="cpu")
    decoder.recomputed = recipe.model.gradient_checkpointing
    what = trained(decoder, recipe.tune, recipe.seed)
    rows = rows_for(args, decoder.spec.n_vocab)
    items = [Example(tuple(ids), (False,) + (True,) * (args.length - 1), f"row {i}") for i, ids in enumerate(rows)]
    seconds, losses = [], []

    def observe(event) -> None:
        if isinstance(event, Stepped):
            seconds.append(event.seconds)
            losses.append(event.loss)

    run = Run(decoder=decoder, trained=what, method=NextToken(), optimizer=Optimizer(what.parameters, recipe.optim), recipe=recipe, steps=args.steps,
              items=lambda step: items[step * args.batch : (step + 1) * args.batch], observe=observe)

    def go() -> tuple[list[float], list[float]]:
        train(run)
        return seconds, losses
    return go


def trl_side(path: str, args: argparse.Namespace) -> Callable[[], tuple[list[float], list[float]]]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets
    from peft import LoraConfig
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer
    n_vocab = json.loads((Path(path) / "config.json").read_text())["vocab_size"]
    words = Tokenizer(models.WordLevel({str(i): i for i in range(n_vocab)}, unk_token="0"))  # nothing is tokenized: the trainer wants to see one
    seconds, losses = [], []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **more) -> None:
            self.begun = time.perf_counter()

        def on_step_end(self, *args, **more) -> None:
            seconds.append(time.perf_counter() - self.begun)

        def on_log(self, args, state, control, logs=None, **more) -> None:
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))

    how = {} if args.method == "full" else {"peft_config": LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")}
    folder = tempfile.TemporaryDirectory()
    config = SFTConfig(folder.name, per_device_train_batch_size=args.batch, max_steps=args.steps, gradient_checkpointing=args.recompute, learning_rate=LR,
                       lr_scheduler_type="constant", logging_steps=1, report_to="none", save_strategy="no", max_length=args.length, use_cpu=True, bf16=True,
                       train_sampling_strategy="sequential", disable_tqdm=True, packing=False,
                       model_init_kwargs={"dtype": "float32" if args.method == "full" else "bfloat16"})
    trainer = SFTTrainer(path, args=config, train_dataset=datasets.Dataset.from_dict({"input_ids": rows_for(args, n_vocab)}), callbacks=[Clock()],
                         processing_class=PreTrainedTokenizerFast(tokenizer_object=words, eos_token="2", pad_token="0"), **how)

    def go() -> tuple[list[float], list[float]]:
        trainer.train()
        folder.cleanup()
        return seconds, losses
    return go


def worker(side: str, path: str, args: argparse.Namespace) -> None:
    go = {"pellucid": pellucid_side, "trl": trl_side}[side](path, args)
    loaded = memory("VmRSS")
    seconds, losses = go()
    n = args.batch * args.length
    print(json.dumps(dict(tokens_per_second=n / statistics.median(seconds[1:]), fastest_step_tokens_per_second=n / min(seconds[1:]),
                          seconds=seconds, losses=losses, peak_memory_mb=memory("VmHWM"), loaded_mb=loaded)))


def memory(name: str) -> float:
    """MB of this process, as Linux counts them."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)) / 1024


def in_nf4(path: Path, python: str) -> Path:
    """The checkpoint with its matrices in NF4, written once by transformers and bitsandbytes."""
    out = path.with_name(f"{path.name}-nf4")
    if not (out / "model.safetensors").exists():
        code = ("import sys, torch, transformers as t; q = t.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4', "
                "bnb_4bit_compute_dtype=torch.bfloat16); "
                "t.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16, quantization_config=q).save_pretrained(sys.argv[2])")
        subprocess.run([python, "-c", code, str(path), str(out)], check=True, capture_output=True)
    return out


def measure(side: str, path: Path, args: argparse.Namespace) -> dict:
    warm(path)
    python = args.peer_python if side == "trl" else sys.executable
    command = [*shlex.split(args.through), python, __file__, str(path), args.method, "--worker", side, "--length", str(args.length), "--batch", str(args.batch),
               "--steps", str(args.steps), *(["--recompute"] if args.recompute else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def report(rounds: list[dict[str, dict]]) -> dict:
    out = {}
    for row, more in (("tokens_per_second", True), ("fastest_step_tokens_per_second", True), ("peak_memory_mb", False)):
        ratios = [r["pellucid"][row] / r["trl"][row] if more else r["trl"][row] / r["pellucid"][row] for r in rounds]
        out[row] = dict(**{side: statistics.median(r[side][row] for r in rounds) for side in SIDES},
                        ratio=statistics.median(ratios), ratio_min=min(ratios), ratio_max=max(ratios))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help=f"{', '.join(map(repr, RANDOM))} or a folder")
    parser.add_argument("method", choices=("full", "lora", "qlora"))
    parser.add_argument("--length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--batch", type=int, default=8, help="rows of a step")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3, help="pairs of processes")
    parser.add_argument("--recompute", action="store_true", help="both sides compute activations again in backward")
    parser.add_argument("--scratch", type=Path, default=Path("out/bench"), help="where a random model is kept")
    parser.add_argument("--peer-python", default=sys.executable, help="an interpreter with transformers, peft, trl, and for qlora bitsandbytes")
    parser.add_argument("--through", default="", help="a command that each measurement is run by, such as taskset -c 0,1")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args.worker, args.model, args)
    path = find(args.model, args.scratch)
    if args.method == "qlora":
        path = in_nf4(path, args.peer_python)
    rounds = []
    for i in range(args.rounds):
        rounds.append({side: measure(side, path, args) for side in (SIDES if i % 2 == 0 else SIDES[::-1])})
        print(f"round {i + 1}/{args.rounds}: " + ", ".join(f"{side} {rounds[-1][side]['tokens_per_second']:,.0f} tok/s" for side in SIDES), file=sys.stderr)
    apart = max(abs(ours - theirs) for r in rounds for ours, theirs in zip(r["pellucid"]["losses"], r["trl"]["losses"], strict=True))
    if args.json:
        print(json.dumps(dict(model=args.model, method=args.method, versions=versions(), losses_apart=apart, rows=report(rounds), rounds=rounds), indent=1))
        return None
    print(f"`python benchmarks/tune.py {' '.join(sys.argv[1:])}`\n\n{versions()}\n")
    print("| | pellucid | trl | ratio (worst to best round) |\n| --- | --- | --- | --- |")
    for row, r in report(rounds).items():
        print(f"| {row.replace('_', ' ')} | {r['pellucid']:,.0f} | {r['trl']:,.0f} | **{r['ratio']:.2f}** ({r['ratio_min']:.2f} to {r['ratio_max']:.2f}) |")
    print(f"\n{args.method}, {args.batch} rows of {args.length} tokens a step, {args.steps} steps, {args.rounds} rounds. "
          f"Losses of the same step apart by at most {apart:.1e}.")
    return None


if __name__ == "__main__":
    main()

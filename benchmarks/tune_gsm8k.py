"""Fine-tuning of the shipped model on GSM8K's training answers, beside transformers and trl: the same weights, rows, order and settings, in float32.

    python benchmarks/tune_gsm8k.py ../shared/data/eval/gsm8k            (needs trl; 2 minutes on two cores)
    python benchmarks/tune_gsm8k.py ../shared/data/eval/gsm8k --json out.json

Prints the loss of every step from both, their greatest difference, and the loss of the test's answers before and after. Fails where a step differs by 1e-3.
"""
from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import pellucid
from pellucid.data.example import Example
from pellucid.train.loop import Evaluated, Event, Stepped
from pellucid.train.recipe import read_recipe
from pellucid.train.tuning import Tuning, prepare

STEPS, BATCH, HELD_OUT = 50, 8, 100
RATE, CLIP, DECAY, BETAS = 5e-4, 1.0, 0.01, (0.9, 0.999)
AGREE = 1e-3


def rows(folder: Path, out: Path) -> None:
    """Questions and answers as conversations: as many as the steps learn from, and some of the test's."""
    for name, n in (("train", STEPS * BATCH), ("test", HELD_OUT)):
        read = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()[:n]]
        talks = [[{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}] for row in read]
        (out / f"{name}.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks), "utf-8")


def ours(folder: Path) -> tuple[Tuning, list[Event], float]:
    events: list[Event] = []
    tuning = prepare(read_recipe({
        "model": {"path": "shipped", "dtype": "float32"}, "tune": {"kind": "full"}, "batch": BATCH, "steps": STEPS, "out": {"folder": str(folder / "out")},
        "data": {"sources": [{"path": str(folder / "train.jsonl")}], "held_out": str(folder / "test.jsonl"), "shuffle": False},
        "optim": {"lr": RATE, "weight_decay": DECAY, "betas": list(BETAS), "schedule": "cosine", "warmup": 0, "clip": CLIP}}), observe=events.append)
    started = time.perf_counter()
    tuning.train()
    return tuning, events, time.perf_counter() - started


def theirs(examples: list[Example], folder: Path) -> tuple[list[float], float]:
    """The losses of trl's SFTTrainer on the same ids, whose answers alone are learned."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer
    place = Path(pellucid.__file__).with_name("shipped")
    model = AutoModelForCausalLM.from_pretrained(place, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(place)
    tokenizer.pad_token = tokenizer.eos_token
    args = SFTConfig(output_dir=str(folder / "trl"), per_device_train_batch_size=BATCH, num_train_epochs=1, learning_rate=RATE, weight_decay=DECAY,
                     adam_beta1=BETAS[0], adam_beta2=BETAS[1], lr_scheduler_type="cosine", warmup_steps=0, max_grad_norm=CLIP, logging_steps=1,
                     logging_strategy="steps", save_strategy="no", train_sampling_strategy="sequential", completion_only_loss=True, report_to=[], use_cpu=True,
                     bf16=False, gradient_checkpointing=False, disable_tqdm=True, max_length=None)
    data = Dataset.from_dict({"input_ids": [list(e.ids) for e in examples], "completion_mask": [[int(flag) for flag in e.learned] for e in examples]})
    trainer = SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)
    started = time.perf_counter()
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gsm8k", type=Path)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows(asked.gsm8k, folder)
        tuning, events, seconds = ours(folder)
        examples: list[Any] = [item for step in range(STEPS) for item in tuning.run.items(step)]
        expected, their_seconds = theirs(examples, folder)
    found = [event.loss for event in events if isinstance(event, Stepped)]
    held = [event.loss for event in events if isinstance(event, Evaluated)]
    apart = [abs(a - b) for a, b in zip(found, expected, strict=True)]
    for step, (a, b, d) in enumerate(zip(found, expected, apart, strict=True), 1):
        print(f"step {step:>2}  pellucid {a:.5f}  trl {b:.5f}  apart {d:.1e}")
    print(f"greatest difference {max(apart):.1e} at step {apart.index(max(apart)) + 1} · held out: loss {held[0]:.4f} before, {held[-1]:.4f} after · "
          f"{seconds:.1f} s beside {their_seconds:.1f} s")
    if asked.json is not None:
        asked.json.write_text(json.dumps({"pellucid": found, "trl": expected, "held_out": held, "seconds": [seconds, their_seconds]}) + "\n", "utf-8")
    if max(apart) >= AGREE:
        raise SystemExit(f"a step differs by {max(apart):.1e}, and less than {AGREE:g} was expected")


if __name__ == "__main__":
    main()

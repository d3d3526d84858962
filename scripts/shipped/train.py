"""Trains the shipped model with the package's own decoder. Second of three steps; resumable after a kill at any moment.

    nice -n 19 python scripts/shipped/train.py out/shipped --minutes 100

A plain loop: Muon for the matrices of the blocks, AdamW for the rest, one pass over shuffled windows of the books, a rate that
warms up, stays, and falls over the last part. The budget is time, because that is what a CPU gives; `log.jsonl` records what it bought.
"""
from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pellucid.families import family
from pellucid.families._config import Config
from pellucid.model.decoder import Decoder, Rows
from pellucid.ops.choose import choose

CONFIG = dict(
    architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=8192, hidden_size=256, intermediate_size=768, num_hidden_layers=6,
    num_attention_heads=4, num_key_value_heads=4, head_dim=64, max_position_embeddings=1024, rms_norm_eps=1e-5, rope_theta=10000.0,
    hidden_act="silu", attention_bias=False, mlp_bias=False, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, torch_dtype="bfloat16")

LEARNING_RATE = 3e-3
WARMUP_STEPS = 100
DECAY_FROM = 0.65  # of the budget: then the rate falls linearly to a twentieth
LONG_FROM = 0.85  # of the budget: then windows are twice as long, up to the context that is shipped
TOKENS_PER_STEP = 8192
SAVE_EVERY_SECONDS = 120
LOSS_CHUNK = 2048  # tokens unembedded at a time: (2048, 8192) float32 logits stay near the caches


def initialize(decoder: Decoder) -> None:
    """Normal of deviation 0.02; what writes to the residual stream is smaller by sqrt(2 layers), as GPT-2 has it."""
    for name, p in decoder.named_parameters():
        if p.ndim == 1:
            nn.init.ones_(p)
        else:
            writes = name.endswith(("attn.o.weight", "mlp.down.weight"))
            nn.init.normal_(p, std=0.02 / math.sqrt(2 * len(decoder.spec.layers)) if writes else 0.02)


def windows(ids: np.ndarray, seed: int, start: int) -> Iterator[tuple[int, int]]:
    """(number, first token) of every 512-token window once, shuffled, from number `start` on; then a new shuffle."""
    n = (len(ids) - 1) // 512
    for epoch in range(start // n, 1000):
        order = np.random.default_rng(seed + epoch).permutation(n)
        for k in range(start % n if epoch == start // n else 0, n):
            yield epoch * n + k, int(order[k]) * 512


def losses(decoder: Decoder, ids: Tensor, rows: Rows, targets: Tensor) -> Tensor:
    """Sum of the negative log-likelihoods (nats) of the targets."""
    pairs = zip(decoder(ids, None, rows).split(LOSS_CHUNK), targets.split(LOSS_CHUNK), strict=True)
    return torch.stack([F.cross_entropy(decoder.unembed(h).float(), t, reduction="sum") for h, t in pairs]).sum()


def batch(ids: np.ndarray, starts: list[int], length: int) -> tuple[Tensor, Rows, Tensor]:
    inputs = np.concatenate([ids[s:s + length] for s in starts]).astype(np.int64)
    targets = np.concatenate([ids[s + 1:s + length + 1] for s in starts]).astype(np.int64)
    return torch.from_numpy(inputs), Rows.of(*[length] * len(starts)), torch.from_numpy(targets)


@torch.no_grad()
def heldout_loss(decoder: Decoder, ids: np.ndarray, n_windows: int = 48) -> float:
    """Nats per token over windows spread evenly through the held-out books."""
    starts: list[int] = np.linspace(0, len(ids) - 1025, n_windows).astype(int).tolist()
    total = 0.0
    for i in range(0, n_windows, 8):
        with torch.autocast("cpu", torch.bfloat16):
            total += losses(decoder, *batch(ids, starts[i:i + 8], 1024)).item()
    return total / (n_windows * 1024)


def rate(progress: float, step: int) -> float:
    """The learning rate's factor at this share of the budget."""
    fall = 1.0 if progress < DECAY_FROM else max(0.05, 1 - 0.95 * (progress - DECAY_FROM) / (1 - DECAY_FROM))
    return min(1.0, (step + 1) / WARMUP_STEPS) * fall


class Run:
    """The model, its optimizers and how far they are; everything that a resumption needs."""

    def __init__(self, path: Path) -> None:
        self.path, self.step, self.n_seen, self.spent = path, 0, 0, 0.0
        self.decoder = Decoder(family("llama").spec(Config(CONFIG)), choose())
        initialize(self.decoder)
        named = dict(self.decoder.named_parameters())
        matrices = [p for n, p in named.items() if p.ndim == 2 and n.startswith("blocks.")]
        rest = [p for n, p in named.items() if not (p.ndim == 2 and n.startswith("blocks."))]
        self.optimizers = [torch.optim.Muon(matrices, lr=LEARNING_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
                           torch.optim.AdamW(rest, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)]

    def load(self) -> None:
        state = torch.load(self.path, weights_only=True)
        self.decoder.load_state_dict(state["decoder"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.n_seen, self.spent = state["step"], state["n_seen"], state["spent"]

    def save(self) -> None:
        """Whole or not at all: written beside, then renamed."""
        beside = self.path.with_suffix(".tmp")
        torch.save(dict(decoder=self.decoder.state_dict(), optimizers=[o.state_dict() for o in self.optimizers], step=self.step,
                        n_seen=self.n_seen, spent=self.spent), beside)
        beside.replace(self.path)

    def update(self, loss: Tensor, factor: float) -> None:
        """One step down the gradient of `loss`, at this factor of the learning rate."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * factor
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1


def take(stream: Iterator[tuple[int, int]], run: Run, n_ids: int, length: int) -> list[int]:
    """First tokens of the next step's windows; those that would run past the last book are passed over."""
    starts: list[int] = []
    while len(starts) < TOKENS_PER_STEP // length:
        number, first = next(stream)
        run.n_seen = number + 1
        if first + length + 1 <= n_ids:
            starts.append(first)
    return starts


def train(run: Run, train_ids: np.ndarray, heldout_ids: np.ndarray, bytes_per_token: float, budget: float, seed: int, log: TextIO) -> None:
    """Trains until `budget` seconds are spent, over every resumption; a line to stdout and to the log every 25 steps."""
    compiled = torch.compile(losses)  # twice as fast here: the elementwise work between the products is fused
    stream, saved = windows(train_ids, seed, run.n_seen), run.spent
    started, before, recent = time.monotonic(), run.spent, []
    while run.spent < budget:
        progress = run.spent / budget
        length = 1024 if progress >= LONG_FROM else 512
        starts, factor = take(stream, run, len(train_ids), length), rate(progress, run.step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = compiled(run.decoder, *batch(train_ids, starts, length)) / TOKENS_PER_STEP
        if not torch.isfinite(loss):
            raise SystemExit(f"loss is {loss.item()} at step {run.step}, windows {starts}")
        run.update(loss, factor)
        run.spent = before + time.monotonic() - started
        recent.append(loss.item())
        if run.step % 25 == 0:
            line = dict(step=run.step, tokens=run.step * TOKENS_PER_STEP, loss=round(sum(recent) / len(recent), 4), rate=round(LEARNING_RATE * factor, 6),
                        minutes=round(run.spent / 60, 2), tokens_per_second=round(run.step * TOKENS_PER_STEP / run.spent))
            recent = []
            if run.step % 250 == 0:
                line |= heldout(run.decoder, heldout_ids, bytes_per_token)
            print(json.dumps(line), flush=True)
            print(json.dumps(line), file=log, flush=True)
        if run.spent - saved > SAVE_EVERY_SECONDS:
            run.save()
            saved = run.spent
    run.save()


def heldout(decoder: Decoder, ids: np.ndarray, bytes_per_token: float, n_windows: int = 48) -> dict[str, float]:
    nats = heldout_loss(decoder, ids, n_windows)
    return dict(heldout_nats_per_token=round(nats, 4), heldout_bits_per_byte=round(nats / math.log(2) / bytes_per_token, 4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, required=True, help="training time in all, over every resumption")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    train_ids, heldout_ids = (np.memmap(args.folder / f"{part}.bin", dtype="<u2", mode="r") for part in ("train", "heldout"))
    facts = json.loads((args.folder / "data.json").read_text())["heldout"]
    bytes_per_token = facts["bytes"] / facts["tokens"]
    run = Run(args.folder / "state.pt")
    if run.path.exists():
        run.load()
        print(f"resumed at step {run.step}, {run.spent / 60:.1f} min spent", flush=True)
    with (args.folder / "log.jsonl").open("a") as log:
        train(run, train_ids, heldout_ids, bytes_per_token, args.minutes * 60, args.seed, log)
    print(json.dumps(dict(step=run.step, final=True) | heldout(run.decoder, heldout_ids, bytes_per_token, 192)), flush=True)


if __name__ == "__main__":
    main()

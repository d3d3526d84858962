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

    decoder = Decoder(family("llama").spec(Config(CONFIG)), choose())
    initialize(decoder)
    matrices = [p for n, p in decoder.named_parameters() if p.ndim == 2 and n.startswith("blocks.")]
    rest = [p for n, p in decoder.named_parameters() if not (p.ndim == 2 and n.startswith("blocks."))]
    optimizers = [torch.optim.Muon(matrices, lr=LEARNING_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
                  torch.optim.AdamW(rest, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)]
    step = n_seen = 0
    spent, path = 0.0, args.folder / "state.pt"
    if path.exists():
        state = torch.load(path, weights_only=True)
        decoder.load_state_dict(state["decoder"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, n_seen, spent = state["step"], state["n_seen"], state["spent"]
        print(f"resumed at step {step}, {spent / 60:.1f} min spent", flush=True)

    def save() -> None:
        torch.save(dict(decoder=decoder.state_dict(), optimizers=[o.state_dict() for o in optimizers], step=step, n_seen=n_seen, spent=spent), path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    compiled = torch.compile(losses)  # twice as fast here: the elementwise work between the products is fused
    stream, last_save, budget = windows(train_ids, args.seed, n_seen), spent, args.minutes * 60
    started, before, shown = time.monotonic(), spent, [0.0, 0]
    with (args.folder / "log.jsonl").open("a") as log:
        while spent < budget:
            length = 1024 if spent / budget >= LONG_FROM else 512
            starts: list[int] = []
            while len(starts) < TOKENS_PER_STEP // length:
                number, first = next(stream)
                n_seen = number + 1
                if first + length + 1 <= len(train_ids):
                    starts.append(first)
            factor = rate(spent / budget, step)
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = LEARNING_RATE * factor
            with torch.autocast("cpu", torch.bfloat16):
                loss = compiled(decoder, *batch(train_ids, starts, length)) / TOKENS_PER_STEP
            if not torch.isfinite(loss):
                raise SystemExit(f"loss is {loss.item()} at step {step}, windows {starts}")
            loss.backward()
            torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            step += 1
            spent = before + time.monotonic() - started
            shown = [shown[0] + loss.item(), shown[1] + 1]
            if step % 25 == 0:
                line = dict(step=step, tokens=step * TOKENS_PER_STEP, loss=round(shown[0] / shown[1], 4), rate=round(LEARNING_RATE * factor, 6),
                            minutes=round(spent / 60, 2), tokens_per_second=round((step * TOKENS_PER_STEP) / spent))
                shown = [0.0, 0]
                if step % 250 == 0 or spent >= budget:
                    nats = heldout_loss(decoder, heldout_ids)
                    line |= dict(heldout_nats_per_token=round(nats, 4), heldout_bits_per_byte=round(nats / math.log(2) / bytes_per_token, 4))
                print(json.dumps(line), flush=True)
                log.write(json.dumps(line) + "\n")
                log.flush()
            if spent - last_save > SAVE_EVERY_SECONDS:
                save()
                last_save = spent
        save()
        nats = heldout_loss(decoder, heldout_ids, 192)
        print(json.dumps(dict(step=step, final=True, heldout_nats_per_token=nats, heldout_bits_per_byte=nats / math.log(2) / bytes_per_token)), flush=True)


if __name__ == "__main__":
    main()

"""A run that is killed: -9, in the middle of a line of the loop, of a state being written, or of an old one being deleted."""
from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch._dynamo  # which the first step of an optimizer imports: two seconds of every life
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from pellucid.data.batch import Batch
from pellucid.data.stock import Source, Stock
from pellucid.model.decoder import Decoder
from pellucid.model.parts import Rows
from pellucid.ops.fused import Fused
from pellucid.train import checkpoint, loop
from pellucid.train.loop import Event, Run, Stepped, train
from pellucid.train.loss import cross_entropy
from pellucid.train.optim import Optimizer
from pellucid.train.sft import NextToken
from pellucid.train.trainable import trained
from tests.train.test_loop import recipe, rows
from tests.train.tiny import tiny_decoder

STEPS = 9
LOOP, STATES = loop.__file__, checkpoint.__file__


class Forgetful(NextToken):
    """Drops some of the hidden states: what a step comes to depends on which numbers are drawn."""

    def loss(self, decoder: Decoder, batch: Batch, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        hidden_TD = decoder(batch.tokens_T, rows=rows)
        return cross_entropy(decoder, F.dropout(hidden_TD, 0.2, training=decoder.training), batch.target_T, rows), {}


def live(folder: Path, settings: dict[str, Any], lines: int | None, function: str | None = None) -> None:
    """Goes on from the newest state, or begins, and dies before the line of that number, counting those of the loop and of states, or of one function of
    states. At the end it says in `end.safetensors` and
    `end.json` what there is to compare; every step is appended to `steps.jsonl`."""
    torch.set_num_threads(1)
    os.fsync = lambda handle: None  # waits for the disk, tens of milliseconds each; a process that is killed leaves its files to the system, unlike a power cut
    if lines is not None:
        sys.settrace(_dying(lines, function))
    torch.manual_seed(0)
    of = recipe(batch=4, save={"every": 1, "keep": 2}, eval={"every": 2, "best": True}, **settings)
    decoder, data = tiny_decoder(Fused()), rows(23)
    what = trained(decoder, of.tune, 0)
    stock = Stock([Source("a", data[:8]), Source("b", data[8:20], 2.0)], batch=4, seed=5)
    run = Run(decoder=decoder, trained=what, method=Forgetful(), optimizer=Optimizer(what.parameters, of.optim), recipe=of, steps=STEPS, items=stock.step,
              held_out=data[20:], observe=lambda event: _tell(folder, run, event))
    run.save = lambda best: checkpoint.save(folder, run, {"settings": str(settings)}, keep=of.save.keep, best=best) and None
    if states := checkpoint.states(folder):
        checkpoint.load(states[-1], run, {"settings": str(settings)})
    train(run)
    kept = {f"trained {name}": p.detach() for name, p in what.parameters.items()} | {f"optimizer {name}": t for name, t in run.optimizer.state().items()}
    best = checkpoint.best(folder)
    assert best is not None
    checkpoint.put(best, what.parameters)
    kept |= {f"best {name}": p.detach() for name, p in what.parameters.items()} | {"random": torch.get_rng_state(), "drawn": torch.rand(3)}
    save_file({name: tensor.clone() for name, tensor in kept.items()}, folder / "end.safetensors")
    (folder / "end.json").write_text(json.dumps([repr(run.progress), best.name, sorted(place.name for place in (folder / checkpoint.FOLDER).iterdir())]))


def _tell(folder: Path, run: Run, event: Event) -> None:
    if isinstance(event, Stepped):
        told = {"step": event.step, "loss": event.loss, "norm": event.norm, "rows": [item.origin for item in run.items(event.step - 1)]}
        with (folder / "steps.jsonl").open("a") as file:
            file.write(json.dumps(told) + "\n")


def _dying(lines: int, function: str | None) -> Any:
    left = [lines]

    def line(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            left[0] -= 1
            if left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return line

    def call(frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        whole = code.co_name[0] != "<"  # a comprehension's line is counted once, not for each of its elements
        return line if whole and code.co_filename in (LOOP, STATES) and function in (None, code.co_name) else None

    return call

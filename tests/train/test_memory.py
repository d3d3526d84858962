"""What a run takes is known before it begins, and what would fit is said where it does not."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import pellucid
from pellucid.errors import OutOfMemoryBudget
from pellucid.ops.fused import Fused
from pellucid.train import memory
from pellucid.train.memory import need
from pellucid.train.optim import Optimizer
from pellucid.train.trainable import trained
from pellucid.train.tuning import load_model
from tests.train.test_loop import recipe
from tests.train.tiny import tiny_decoder

SHIPPED = Path(pellucid.__file__).with_name("shipped")
LENGTHS = [500] * 4 + [3] * 20


def asked(available: int | None, monkeypatch: pytest.MonkeyPatch, *, model: dict[str, Any] | None = None, **facts: Any) -> memory.Need:
    monkeypatch.setattr(memory, "available_bytes", lambda device: available)
    of = recipe(model={"path": "m", **(model or {})}, micro_tokens=1200, **facts)
    decoder = tiny_decoder(Fused(), n_ctx=1024)
    return need(decoder, trained(decoder, of.tune, 0), of, LENGTHS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_gradients_and_optimizer_are_those_of_a_step(monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype) -> None:
    of = recipe(optim={"name": name, "lr": 1e-3}, micro_tokens=100)
    decoder = tiny_decoder(Fused(), d_model=96, n_vocab=600).to(dtype)
    what = trained(decoder, of.tune, 0)
    told = need(decoder, what, of, [60])
    optimizer = Optimizer(what.parameters, of.optim)
    for p in what.parameters.values():
        p.grad = torch.ones_like(p)
    assert told.gradients == sum(p.numel() * 4 if dtype == torch.float32 else p.numel() * 6 for p in what.parameters.values())
    optimizer.step(1.0)
    assert told.optimizer == pytest.approx(optimizer.n_bytes, rel=0.03)


def test_blocks_are_recomputed_where_memory_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plenty = asked(None, monkeypatch)
    assert not plenty.recomputed
    tight = asked(plenty.total - 1, monkeypatch)
    assert tight.recomputed
    assert tight.activations < 0.7 * plenty.activations
    assert asked(None, monkeypatch, model={"gradient_checkpointing": True}).recomputed
    with pytest.raises(OutOfMemoryBudget, match=r"gradients \+ .* free\. It fits with model.gradient_checkpointing=true"):
        asked(plenty.total - 1, monkeypatch, model={"gradient_checkpointing": False})


def test_what_would_fit_does(monkeypatch: pytest.MonkeyPatch) -> None:
    again = asked(None, monkeypatch, model={"gradient_checkpointing": True})
    fixed = again.total - again.activations
    with pytest.raises(OutOfMemoryBudget, match=r"It fits with micro_tokens=500$"):
        asked(fixed + int(0.6 * again.activations), monkeypatch)
    with pytest.raises(OutOfMemoryBudget, match=r"It fits with data.max_length=128 and micro_tokens=128; the longest row has 500 tokens") as raised:
        asked(fixed + int(0.15 * again.activations), monkeypatch)
    assert raised.value.available_bytes < raised.value.needed_bytes
    with pytest.raises(OutOfMemoryBudget, match=r"Train an adapter.*tune.kind=lora.*optim.name=adamw8bit"):
        asked(1000, monkeypatch)
    with pytest.raises(OutOfMemoryBudget, match=r"smaller model.*model.quantize=nf4"):
        asked(1000, monkeypatch, tune={"kind": "lora", "rank": 2})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_plan_counts_what_backward_keeps(kind: str, dtype: str) -> None:
    """`pellucid plan --train` from the spec alone, beside what torch keeps of a real pass."""
    from pellucid.catalog.footprint import _kept
    of = recipe(model={"path": str(SHIPPED), "dtype": dtype}, tune={"kind": kind, **({} if kind == "full" else {"rank": 16})})
    model = load_model(of)
    width = 4 if dtype == "float32" else 2
    told = sum(_kept(model.spec, layer, width, 0 if kind == "full" else 16) for layer in model.spec.layers) + 2 * width * model.spec.d_model
    kept = memory.activation_bytes(model.decoder, [512], trained(model.decoder, of.tune, 0).adapter) / 512
    assert told == pytest.approx(kept, rel=0.03)

"""Steps are those of the papers; what is kept goes out and comes back by name; 8 bits are a quarter and still learn."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from pellucid.train.optim import SMALL, Optimizer
from pellucid.train.recipe import OptimPart

SIZES = {"embed.weight": (11, 7), "blocks.0.attn.q.weight": (96, 80), "blocks.0.attn_norm.weight": (7,)}


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return {name: nn.Parameter(torch.randn(size, generator=generator).to(dtype)) for name, size in SIZES.items()}


def learn(own: dict[str, nn.Parameter], optimizer: Optimizer, steps: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in own.values():
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step(0.5)


def test_adamw_is_torchs_and_vectors_do_not_decay() -> None:
    own, theirs = parameters(), parameters()
    optimizer = Optimizer(own, OptimPart(lr=2e-3, weight_decay=0.1))
    peer = torch.optim.AdamW([{"params": [p for p in theirs.values() if p.ndim > 1], "weight_decay": 0.1},
                              {"params": [p for p in theirs.values() if p.ndim == 1], "weight_decay": 0.0}], lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    learn(own, optimizer, 5)
    for _ in range(5):
        for p in theirs.values():
            p.grad = torch.randn(p.shape, generator=generator)
        peer.step()
    for name, p in own.items():
        torch.testing.assert_close(p, theirs[name], rtol=1e-6, atol=1e-7)


def test_small_steps_of_16_bit_weights_add_up_in_their_masters() -> None:
    own = {"w": nn.Parameter(torch.full((4, 4), 100.0, dtype=torch.bfloat16))}
    optimizer = Optimizer(own, OptimPart(lr=0.02, betas=(0.0, 0.0)))  # each step moves 0.01, a fiftieth of what bfloat16 tells apart there
    for _ in range(200):
        own["w"].grad = torch.ones(4, 4, dtype=torch.bfloat16)
        optimizer.step(0.5)
    assert own["w"].dtype == torch.bfloat16
    assert own["w"].float().mean().item() == pytest.approx(98.0, abs=0.3)


def test_the_8_bit_state_is_a_quarter_and_its_steps_are_nearly_the_same() -> None:
    assert torch.tensor(SIZES["blocks.0.attn.q.weight"]).prod() > SMALL
    whole, packed = parameters(), parameters()
    exact, small = Optimizer(whole, OptimPart(lr=1e-2)), Optimizer(packed, OptimPart(lr=1e-2, name="adamw8bit"))
    begin = parameters()
    learn(whole, exact, 30)
    learn(packed, small, 30)
    name = "blocks.0.attn.q.weight"
    moved, apart = whole[name] - begin[name], whole[name] - packed[name]
    assert apart.norm() < 0.05 * moved.norm()
    kept = {n: sum(t.nbytes for key, t in o.state().items() if key.endswith(name)) for n, o in (("whole", exact), ("small", small))}
    assert kept["small"] < 0.27 * kept["whole"]


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "muon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_kept_goes_out_and_comes_back_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    optim = OptimPart(lr=1e-2, name=name, weight_decay=0.01)
    straight = parameters(dtype)
    learn(straight, optimizer := Optimizer(straight, optim), 3)
    learn(straight, optimizer, 4, seed=1)
    stopped = parameters(dtype)
    learn(stopped, optimizer := Optimizer(stopped, optim), 3)
    state = {key: value.clone() for key, value in optimizer.state().items()}
    going = {key: nn.Parameter(p.detach().clone()) for key, p in stopped.items()}
    again = Optimizer(going, optim)
    again.load(state)
    learn(going, again, 4, seed=1)
    for key, p in straight.items():
        assert torch.equal(p, going[key]), key


def test_muon_takes_hidden_matrices_and_adamw_the_rest() -> None:
    own = parameters()
    learn(own, optimizer := Optimizer(own, OptimPart(name="muon", lr=1e-3)), 1)
    assert {key.split(".", 1)[1] for key in optimizer.state() if key.startswith("momentum_buffer")} == {"blocks.0.attn.q.weight"}
    assert {key.split(".", 1)[1] for key in optimizer.state() if key.startswith("exp_avg.")} == {"embed.weight", "blocks.0.attn_norm.weight"}


def test_gradients_are_clipped_together() -> None:
    own = parameters()
    optimizer = Optimizer(own, OptimPart())
    for p in own.values():
        p.grad = torch.ones_like(p)
    n = sum(p.numel() for p in own.values())
    assert optimizer.clip(2.0) == pytest.approx(n**0.5, rel=1e-5)
    assert sum(p.grad.square().sum() for p in own.values()).sqrt().item() == pytest.approx(2.0, rel=1e-4)

"""Optimizers over named parameters: torch's AdamW and Muon, and AdamW whose state takes a quarter. Weights in 16 bits have float32 masters."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.train.distributed import like, whole
from pellucid.train.recipe import OptimPart

BLOCK = 256  # numbers that share a scale in an 8-bit state; https://arxiv.org/abs/2110.02861 has 2,048, and later releases of its authors 256
SMALL = 4096  # numbers: below it a state stays float32, as theirs does


class Optimizer:
    """Steps all parameters at a share of the recipe's rate. What it keeps is found and put back by name: `state`, `load`.

    A parameter of fewer bits than float32 is rounded from a master that the steps add up in: a step smaller than its rounding is not lost.
    Matrices alone decay; norms, biases and other vectors do not.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], optim: OptimPart) -> None:
        self.parameters, self.optim = dict(parameters), optim
        self.masters = {name: p if p.dtype in (torch.float32, torch.float64) else nn.Parameter(p.detach().float()) for name, p in self.parameters.items()}
        self.each = list(_made(self.masters, optim))

    def step(self, share: float) -> None:
        """One step; the gradients are used up."""
        for name, p in self.parameters.items():
            master = self.masters[name]
            if master is not p:
                master.grad = None if p.grad is None else p.grad.float()
                p.grad = None
        for optimizer in self.each:
            for group in optimizer.param_groups:
                group["lr"] = self.optim.lr * share
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, p in self.parameters.items():
                if self.masters[name] is not p:
                    p.copy_(self.masters[name])

    def clip(self, most: float | None) -> float:
        """The norm of all gradients together, which are scaled down to `most` where it is more."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm(gradients))
        if most is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), most, norm)
        return float(norm)

    def state(self) -> dict[str, Tensor]:
        """Every tensor that it goes on from, by name: masters and moments."""
        out = {f"master.{name}": master.detach() for name, master in self.masters.items() if master is not self.parameters[name]}
        for optimizer in self.each:
            for name, kept in self._named(optimizer):
                out |= {f"{key}.{name}": torch.as_tensor(value) for key, value in optimizer.state[kept].items() if value is not None}
        return out

    def load(self, state: Mapping[str, Tensor]) -> None:
        """What `state` gave. The parameters are put back by whoever wrote them."""
        with torch.no_grad():
            for name, master in self.masters.items():
                if master is not self.parameters[name]:
                    master.copy_(like(state[f"master.{name}"], master))
        for optimizer in self.each:
            for name, kept in self._named(optimizer):
                found = {key.partition(".")[0]: value.clone() for key, value in state.items() if key.partition(".")[2] == name}
                found.pop("master", None)
                if found:
                    optimizer.state[kept] = {key: like(value, kept) for key, value in found.items()}

    @property
    def n_bytes(self) -> int:
        """That it keeps beside the parameters, now."""
        return sum(tensor.nbytes for tensor in self.state().values())

    def _named(self, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, nn.Parameter]]:
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return ((name, master) for name, master in self.masters.items() if id(master) in own)


def _made(masters: Mapping[str, nn.Parameter], optim: OptimPart) -> Iterator[torch.optim.Optimizer]:
    at_border = ("embed.", "unembed.", "pos_embed.")
    hidden = {name for name, p in masters.items() if optim.name == "muon" and p.ndim == 2 and not name.startswith(at_border)}
    if hidden:  # the table of tokens and the head are no maps between hidden states: https://kellerjordan.github.io/posts/muon/
        yield torch.optim.Muon([masters[name] for name in masters if name in hidden], lr=optim.lr, weight_decay=optim.weight_decay, momentum=optim.momentum,
                               adjust_lr_fn="match_rms_adamw")  # one rate fits both: https://arxiv.org/abs/2502.16982, section 2.2
    rest = {name: p for name, p in masters.items() if name not in hidden}
    groups: list[dict[str, Any]] = [{"params": [p for p in rest.values() if (p.ndim > 1) == matrix], "weight_decay": optim.weight_decay * matrix}
                                    for matrix in (True, False)]
    groups = [group for group in groups if group["params"]]
    if groups and optim.name == "adamw8bit":
        yield AdamW8bit(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps)
    elif groups:
        yield torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)


class AdamW8bit(torch.optim.Optimizer):
    """AdamW whose two moments are kept in 8 bits a number, a scale for every BLOCK of them. https://arxiv.org/abs/2110.02861

    The first moment is kept as its signed square root and the second as its fourth root, in whole steps of each block's largest: small numbers keep more of
    their digits than in steps of the number itself, which is what the paper's dynamic code is for. A second moment rounds up, so that none becomes zero
    under a first one that is not.
    """

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=0.0))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._one(p, group)

    def _one(self, p: nn.Parameter, group: Mapping[str, Any]) -> None:
        state, (beta1, beta2) = self.state[p], group["betas"]
        small = p.numel() < SMALL
        if not state:
            state["step"] = torch.zeros(())
            for name in ("exp_avg", "exp_avg_sq"):
                state |= {name: torch.zeros_like(p)} if small else dict(zip((name, f"{name}_scale"), _packed(torch.zeros_like(p), name), strict=True))
        state["step"] += 1
        first, second = (state[name] if small else _unpacked(state[name], state[f"{name}_scale"], p, name) for name in ("exp_avg", "exp_avg_sq"))
        first.lerp_(p.grad, 1 - beta1)
        second.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
        n = state["step"].item()
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.addcdiv_(first, (second.sqrt() / (1 - beta2**n) ** 0.5).add_(group["eps"]), value=-group["lr"] / (1 - beta1**n))
        if not small:
            for name, moment in (("exp_avg", first), ("exp_avg_sq", second)):
                state[name], state[f"{name}_scale"] = _packed(moment, name)


def _packed(x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """(n, BLOCK) codes in 8 bits and the largest root of each block."""
    flat = torch.nn.functional.pad(x.flatten(), (0, -x.numel() % BLOCK)).view(-1, BLOCK)
    root = flat.sqrt().sqrt() if name == "exp_avg_sq" else flat.abs().sqrt().copysign(flat)
    scale = root.abs().amax(1, keepdim=True).clamp_min(1e-30)
    if name == "exp_avg_sq":
        return (root / scale * 255).ceil_().to(torch.uint8), scale
    return (root / scale * 127).round_().to(torch.int8), scale


def _unpacked(codes: Tensor, scale: Tensor, like: Tensor, name: str) -> Tensor:
    root = codes.float() * (scale / (255 if name == "exp_avg_sq" else 127))
    flat = root.square_().square_() if name == "exp_avg_sq" else root.square().copysign_(root)
    return flat.flatten()[: like.numel()].view_as(like)

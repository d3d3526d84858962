"""How much memory a run will take beside the model's weights, before its first step: what it keeps for backward is measured on short rows, the rest counted."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from pellucid.catalog.footprint import CHUNK_BYTES
from pellucid.errors import OutOfMemoryBudget
from pellucid.model.decoder import Decoder
from pellucid.model.memory import available_bytes
from pellucid.model.parts import Rows
from pellucid.model.report import size
from pellucid.train.distributed import ALONE, Group
from pellucid.train.optim import BLOCK, SMALL
from pellucid.train.recipe import Recipe
from pellucid.train.trainable import Trained

_PROBES = 32, 64  # tokens of a row; two lengths tell what grows with the tokens from what grows with their pairs
_CHUNKS = 3  # of logits at a time, at the most: they, their gradient, and a product's float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Bytes. activations: kept for backward, by the largest part of a step. available: None where nothing says. recomputed: blocks are, in backward."""

    gradients: int
    optimizer: int
    activations: int
    logits: int
    available: int | None
    recomputed: bool

    @property
    def total(self) -> int:
        return self.gradients + self.optimizer + self.activations + self.logits

    @property
    def fits(self) -> bool:
        return self.available is None or self.total <= self.available

    def __str__(self) -> str:
        again = " · blocks are computed again in backward" if self.recomputed else ""
        free = "" if self.available is None else f" · {size(self.available)} free"
        each = (f"{size(getattr(self, name))} {name}" for name in ("gradients", "optimizer", "activations", "logits"))
        return f"{' + '.join(each)}{free}{again}"


def need(decoder: Decoder, trained: Trained, recipe: Recipe, lengths: Sequence[int], together: int = 1, group: Group = ALONE) -> Need:
    """What a run of rows of these lengths takes, at least so many of them together; blocks are recomputed where the recipe says so or leaves it to memory.

    group: each of its processes has a share of gradients and optimizer, and those of one machine share its memory.

    Raises OutOfMemoryBudget for more than there is, with what would fit.
    """
    asked = recipe.model.gradient_checkpointing
    part = _largest_part(lengths, recipe.micro_tokens, together)
    n = [(p.numel(), p.element_size()) for p in trained.parameters.values()]
    whole = Need(gradients=sum(count * (each if each >= 4 else each + 4) for count, each in n) // group.n,  # of 16 bits: and in float32, while a step is made
                 optimizer=int(sum(count * (_moments(count, recipe.optim.name) + 4 * (each < 4)) for count, each in n)) // group.n,
                 activations=activation_bytes(decoder, part, trained.adapter), logits=_CHUNKS * min(CHUNK_BYTES, 4 * sum(part) * decoder.spec.n_vocab),
                 available=group.own(available_bytes(decoder.embed.weight.device), decoder.embed.weight.device), recomputed=False)
    again = _again(whole, decoder, part)
    chosen = again if asked is True or (asked == "auto" and not whole.fits) else whole
    if not chosen.fits:
        raise OutOfMemoryBudget(f"a step needs {chosen}. {_advice(again, trained, recipe, len(part) * part[0], part[0])}", needed_bytes=chosen.total,
                                available_bytes=chosen.available or 0)
    return chosen


def _moments(n: int, optimizer: str) -> float:
    """Bytes a number of a tensor of n. Muon's 4 for matrices are counted as the 8 of the rest."""
    return 2 + 8 / BLOCK if optimizer == "adamw8bit" and n >= SMALL else 8


def _again(whole: Need, decoder: Decoder, part: Sequence[int]) -> Need:
    """The same with blocks that keep what they read, and one at a time that keeps all."""
    n, width = len(decoder.blocks), decoder.spec.d_model * torch.finfo(decoder.embed.weight.dtype).bits // 8
    return replace(whole, activations=whole.activations // n + n * sum(part) * width, recomputed=True)


def _largest_part(lengths: Sequence[int], micro_tokens: int, together: int) -> list[int]:
    """The longest row, and as many more of its length as a part has room for."""
    longest = max(lengths)
    return [longest] * max(together, min(len(lengths), micro_tokens // longest))


def _advice(again: Need, trained: Trained, recipe: Recipe, tokens: int, longest: int) -> str:
    """Settings that would fit; else what takes the most. again: what `tokens` in rows of `longest` take where blocks are recomputed."""
    if again.fits:
        return "It fits with model.gradient_checkpointing=true"
    fixed = again.gradients + again.optimizer + again.logits
    room = int(((again.available or 0) - fixed) / max(1.0, again.activations / tokens))
    if room >= longest:
        return f"It fits with micro_tokens={room // longest * longest}"
    if room >= 64:
        return f"It fits with data.max_length={room // 64 * 64} and micro_tokens={room // 64 * 64}; the longest row has {longest:,} tokens"
    if trained.adapter is None:
        smaller = "" if recipe.optim.name == "adamw8bit" else ", or try optim.name=adamw8bit"
        return f"Train an adapter, whose gradients and optimizer are small (tune.kind=lora){smaller}"
    packed = ", or packed weights (model.quantize=nf4)" if recipe.model.quantize is None else ""
    return f"Take a smaller model, a smaller tune.rank{packed}"


def activation_bytes(decoder: Decoder, lengths: Sequence[int], adapter: str | None) -> int:
    """What a forward pass of rows of these lengths keeps for backward without recomputing, weights aside: measured on short rows, and drawn out."""
    short, longer = (_kept(decoder, n, adapter) for n in _PROBES)
    n, m = _PROBES
    by_pair = max(0.0, (longer - short * m / n) / (m * m - m * n))
    by_token = (short - by_pair * n * n) / n
    return int(sum(by_token * length + by_pair * length * length for length in lengths))


def _kept(decoder: Decoder, n: int, adapter: str | None) -> int:
    """Bytes that one row of n tokens leaves for backward. Tensors of one memory count once, and weights never."""
    weights = {p.untyped_storage().data_ptr() for p in decoder.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}  # held on to, so that no memory is given out twice

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            kept[place] = tensor.untyped_storage().nbytes(), tensor
        return tensor

    tokens_T = torch.arange(n, device=decoder.embed.weight.device) % decoder.spec.n_vocab
    trained = decoder.training
    drawn = torch.get_rng_state()
    try:
        with torch.enable_grad(), saved_tensors_hooks(pack, lambda tensor: tensor):
            decoder.train()(tokens_T, rows=Rows.of(n, adapter=adapter))
    finally:
        decoder.train(trained)
        torch.set_rng_state(drawn)
    return sum(size for size, _ in kept.values())

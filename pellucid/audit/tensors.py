"""Which tensors changed most between two checkpoints of one model: numbers against numbers, by our names, a piece at a time."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from pellucid.families._describe import describe_checkpoint
from pellucid.model.on_demand import Tensors
from pellucid.ops.unpack import unpack
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.packed_rows import PackedWeight

PIECE = 1 << 20  # numbers compared at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """One tensor in both. error: sum of squares of B - A, in sums of squares of A: 0 is equal, 1 as far off as zeros would be."""

    name: str
    shape: tuple[int, ...]
    error: float
    format_a: str
    format_b: str
    bytes_a: int
    bytes_b: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """All tensors that both have, the most changed first; of the others, why each is not compared."""

    changed: tuple[Changed, ...]
    left_out: dict[str, str]


def compare_tensors(a: Checkpoint, b: Checkpoint, accept_unread: Sequence[Sequence[str]] = ((), ()), *, started: Callable[[int], None] = lambda n: None,
                    report: Callable[[int], None] = lambda n: None) -> Comparison:
    """Holds the stored weights of one against the other's. started: is told how many tensors there are; report: of every one, as a count of 1."""
    mine, other = (Tensors(each, describe_checkpoint(each, accepted)) for each, accepted in zip((a, b), accept_unread, strict=True))
    changed, left_out = [], {}
    names = sorted(mine.shapes.keys() | other.shapes.keys())
    started(len(names))
    for name in names:
        shapes = [each.shapes.get(name) for each in (mine, other)]
        if None in shapes:
            left_out[name] = f"only {'B' if shapes[0] is None else 'A'} has it"
        elif shapes[0] != shapes[1]:
            left_out[name] = f"{shapes[0]} in A, {shapes[1]} in B"
        else:
            [x], [y] = (each.read([name]).values() for each in (mine, other))
            if x.shape != y.shape:
                left_out[name] = "one of them is stored turned"
            else:
                changed.append(Changed(name=name, shape=tuple(x.shape), error=relative_error(x, y), format_a=mine.stored[name], format_b=other.stored[name],
                                       bytes_a=x.nbytes, bytes_b=y.nbytes))
            mine.release()
            other.release()
        report(1)
    return Comparison(tuple(sorted(changed, key=lambda each: (-each.error, each.name))), left_out)


def relative_error(a: Tensor | PackedWeight, b: Tensor | PackedWeight) -> float:
    """sum((b - a)^2) / sum(a^2); 0 for equal tensors, also of zeros."""
    lost = whole = 0.0
    for x, y in zip(_pieces(a), _pieces(b), strict=True):
        lost += (y - x).square().sum().item()
        whole += x.square().sum().item()
    return lost / whole if whole else float("inf") if lost else 0.0


def _pieces(weight: Tensor | PackedWeight) -> Iterator[Tensor]:
    """Its rows in float64, some at a time; how many depends on the shape alone."""
    if isinstance(weight, PackedWeight):
        yield from (unpack(part).double() for part in weight.parts(PIECE))
        return
    flat = weight.reshape(1, -1) if weight.ndim < 2 else weight
    rows = max(1, PIECE // flat.shape[-1])
    yield from (flat[start : start + rows].double() for start in range(0, len(flat), rows))

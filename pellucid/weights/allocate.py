"""Which tensor gets which format so that a model fits a budget and loses least: a choice for each, damages that add up. No torch here.

Of a tensor's choices only those matter that no mixture of two others beats, the lower convex hull of damage over bytes. Beginning with the smallest choice of
every tensor, the step that saves most damage a byte is taken, again and again, while it fits. Up to the first that does not, that is the best there is for the
bytes it uses; with that step cut to fit it is a bound, below which no allocation of these damages within the budget can be.
This is the Lagrangian method for discrete choices: Y. Shoham, A. Gersho, Efficient bit allocation for an arbitrary set of quantizers, IEEE Transactions
on Acoustics, Speech, and Signal Processing 36 (1988), 1445-1453.
"""
from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pellucid.errors import BadRequest

LARGEST = 2  # tensors: embedding and unembedding, in most models


@dataclass(frozen=True, slots=True)
class Choice:
    """A format for a tensor: what it weighs, and what it costs in quality (of whatever adds up over tensors)."""

    format: str
    n_bytes: int
    damage: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """Name -> choice. bound: no allocation that fits has less damage than this."""

    chosen: Mapping[str, Choice]
    bound: float

    @property
    def n_bytes(self) -> int:
        return sum(choice.n_bytes for choice in self.chosen.values())

    @property
    def damage(self) -> float:
        return sum(choice.damage for choice in self.chosen.values())


def allocate(choices: Mapping[str, Sequence[Choice]], budget: int) -> Allocation:
    """The allocation within `budget` bytes. Raises BadRequest where even the smallest choices are larger, with how large they are."""
    least = sum(min(choice.n_bytes for choice in each) for each in choices.values())
    if least > budget:
        raise BadRequest(f"no mix fits {budget:,} bytes: with every matrix in its smallest format they are {least:,} bytes. Give a larger --fit, or "
                         f"a smaller model", field="fit")
    hulls = {name: hull(each) for name, each in choices.items()}
    # A step of a large table is a good part of a small budget, and what it leaves unused is lost: each of its formats is tried.
    tried = sorted(hulls, key=lambda name: hulls[name][0].n_bytes - hulls[name][-1].n_bytes)[:LARGEST]
    found = [_filled(dict(taken[0]), choices, taken[1]) for fixed in itertools.product(*(choices[name] for name in tried))
             if (taken := _greedy(hulls | {name: [choice] for name, choice in zip(tried, fixed, strict=True)}, budget)) is not None]
    return Allocation(chosen=min(found, key=lambda each: sum(choice.damage for choice in each.values())), bound=_bound(hulls, budget))


def _greedy(hulls: Mapping[str, Sequence[Choice]], budget: int) -> tuple[dict[str, Choice], int] | None:
    """The steps that save most a byte, while they fit, and the room that is left; None where the first choices do not fit."""
    at = dict.fromkeys(hulls, 0)
    room = budget - sum(steps[0].n_bytes for steps in hulls.values())
    if room < 0:
        return None
    for name, i in _steps(hulls):
        size = hulls[name][i + 1].n_bytes - hulls[name][i].n_bytes
        if at[name] == i and size <= room:  # past a step that does not fit nothing of the tensor is taken, and another's smaller one may be
            room, at[name] = room - size, i + 1
    return {name: steps[at[name]] for name, steps in hulls.items()}, room


def _bound(hulls: Mapping[str, Sequence[Choice]], budget: int) -> float:
    """The damage if a step could be taken in part."""
    left, damage = budget - sum(steps[0].n_bytes for steps in hulls.values()), sum(steps[0].damage for steps in hulls.values())
    for name, i in _steps(hulls):
        size = hulls[name][i + 1].n_bytes - hulls[name][i].n_bytes
        part = min(size, left)
        damage, left = damage + _slope(hulls[name][i], hulls[name][i + 1]) * part, left - part
    return damage


def _steps(hulls: Mapping[str, Sequence[Choice]]) -> list[tuple[str, int]]:
    """Every step of every hull, what saves most a byte first; those of one tensor come in their order."""
    found = [(_slope(a, b), name, i) for name, steps in hulls.items() for i, (a, b) in enumerate(itertools.pairwise(steps))]
    return [(name, i) for _, name, i in sorted(found, key=lambda each: (each[0], each[2], each[1]))]


def hull(choices: Sequence[Choice]) -> list[Choice]:
    """The choices no mixture of two others beats, from the smallest to the least damage; each next byte saves less than the one before."""
    kept: list[Choice] = []
    for choice in sorted(choices, key=lambda each: (each.n_bytes, each.damage)):
        if kept and choice.damage >= kept[-1].damage:
            continue
        while len(kept) > 1 and _slope(kept[-2], kept[-1]) >= _slope(kept[-1], choice):
            kept.pop()
        kept.append(choice)
    return kept


def _filled(chosen: dict[str, Choice], choices: Mapping[str, Sequence[Choice]], room: int) -> dict[str, Choice]:
    """What is left of the room is given to the choice, hull or not, that saves most in it, as long as there is one."""
    while True:
        best = max(((chosen[name].damage - choice.damage, name, choice) for name, each in choices.items() for choice in each
                    if choice.n_bytes - chosen[name].n_bytes <= room), key=lambda found: found[:2], default=(0.0, "", None))
        if best[2] is None or best[0] <= 0:
            return chosen
        room -= best[2].n_bytes - chosen[best[1]].n_bytes
        chosen[best[1]] = best[2]


def _slope(a: Choice, b: Choice) -> float:
    """Damage a byte, below zero: what going from a to b saves."""
    return (b.damage - a.damage) / (b.n_bytes - a.n_bytes)

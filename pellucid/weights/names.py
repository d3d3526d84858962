"""Checkpoint tensor names <-> ours, both directions from one table. No torch here: names and shapes only.

A family's WEIGHTS maps a name in the files to where it goes:

    "model.layers.{i}.self_attn.q_proj.weight": "blocks.{i}.attn.q.weight"             one tensor, as it is
    "transformer.h.{i}.attn.c_attn.weight": to("blocks.{i}.attn.q.weight", ..., transpose=True)   several of ours, stacked by rows
    "transformer.h.{i}.attn.bias": left_out("causal mask, a buffer")                   known, not needed, and said at load

`{i}` is the layer, `{e}` the expert, `{h}` the head; `{*}` matches anything, in names that are left out. A part in square brackets,
`[transformer.]wte.weight`, is a prefix that some repositories drop; saving writes it.
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class To:
    """One checkpoint tensor that holds one or more of ours, stacked along its output rows.

    transpose: stored (in, out), as GPT-2's Conv1D does.
    stacked:   "whole" = all rows of the first, then the second; "by_kv_head" = [q… k v] for the first kv head, then the next.
    index:     for a pattern with {h}: this checkpoint tensor is row h of ours (a gain a head, saved head by head).
    """

    names: tuple[str, ...]
    transpose: bool = False
    stacked: Literal["whole", "by_kv_head"] = "whole"
    index: bool = False


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A checkpoint tensor that is known and not used; `why` is what the load report says."""

    why: str


Rule = str | To | LeftOut
Table = Mapping[str, Rule]


def to(*names: str, transpose: bool = False, stacked: Literal["whole", "by_kv_head"] = "whole", index: bool = False) -> To:
    return To(names, transpose, stacked, index)


def left_out(why: str) -> LeftOut:
    return LeftOut(why)


@dataclass(frozen=True, slots=True)
class Place:
    """Where one checkpoint tensor goes: the rule, with the layer, expert and head of this tensor filled in."""

    rule: To
    names: tuple[str, ...]
    head: int | None = None


class NameTable:
    """A family's WEIGHTS, compiled."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._rules = [(_pattern(name), rule if isinstance(rule, To | LeftOut) else To((rule,))) for name, rule in table.items()]

    def place(self, name: str) -> Place | LeftOut | None:
        """What becomes of the checkpoint tensor of this name; None when the family has no rule for it."""
        for pattern, rule in self._rules:
            if match := pattern.fullmatch(name):
                if isinstance(rule, LeftOut):
                    return rule
                at = match.groupdict()
                head = int(at["h"]) if rule.index else None
                return Place(rule, tuple(ours.format_map(at) for ours in rule.names), head)
        return None

    def saved(self, have: Iterable[str], n_rows: Mapping[str, int]) -> dict[str, Place]:
        """Checkpoint name -> place, for every tensor that saving writes, given the names of ours that exist.

        n_rows: the first dimension of each of ours; rules with {h} write that many tensors.
        """
        have, out = set(have), {}
        coordinates: dict[str, list[dict[str, str]]] = {}
        for name, rule in self.table.items():
            if isinstance(rule, LeftOut):
                continue
            rule = rule if isinstance(rule, To) else To((rule,))
            first = rule.names[0]
            if first not in coordinates:
                shape = _pattern(first)
                coordinates[first] = [match.groupdict() for ours in have if (match := shape.fullmatch(ours))]
            for at in coordinates[first]:
                names = tuple(ours.format_map(at) for ours in rule.names)
                if not have.issuperset(names):
                    continue
                for head in range(n_rows[names[0]]) if rule.index else (None,):
                    theirs = name.replace("[", "").replace("]", "").format_map({**at, "h": head})
                    out[theirs] = Place(rule, names, head)
        return out


def _pattern(name: str) -> re.Pattern[str]:
    """The regular expression of a table's key."""
    regex = re.escape(name)
    for letter in "ieh":
        group = re.escape(f"{{{letter}}}")
        regex = regex.replace(group, f"(?P<{letter}>\\d+)", 1).replace(group, f"(?P={letter})")
    regex = regex.replace(re.escape("{*}"), ".*")
    return re.compile(regex.replace(r"\[", "(?:").replace(r"\]", ")?"))

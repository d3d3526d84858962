"""Checkpoint tensor names <-> ours, both directions from one table. No torch here: names and shapes only.

A family's WEIGHTS maps a name in the files to where it goes:

    "model.layers.{i}.self_attn.q_proj.weight": "blocks.{i}.attn.q.weight"             one tensor, as it is
    "transformer.h.{i}.attn.c_attn.weight": to("blocks.{i}.attn.q.weight", ..., transpose=True)   several of ours, stacked by rows
    "transformer.h.{i}.attn.bias": left_out("causal mask, a buffer")                   known, not needed, and said at load
    "model.language_model.{i}.mlp.up.weight": old("blocks.{i}.mlp.up.weight")          another spelling: read, never written

`{i}` is the layer, `{e}` the expert, `{h}` the head; `{*}` matches anything, in names that are left out. A part in square brackets,
`[transformer.]wte.weight`, is a prefix that some repositories drop; saving writes it.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from pellucid.spec import DecoderSpec

Stacked = Literal["whole", "by_kv_head", "interleaved"] | int


@dataclass(frozen=True, slots=True)
class To:
    """One checkpoint tensor that holds one or more of ours, stacked along its output rows.

    transpose:   stored (in, out), as GPT-2's Conv1D does.
    stacked:     "whole" = all rows of the first, then the second; "by_kv_head" = [q… k v] for the first kv head, then the next;
                 "interleaved" = the first row of each, then the second of each; a number = as many shards, each holding its share of the rows of all.
    all_experts: the checkpoint tensor holds every expert along its first axis; its own name has no {e}. "rows": the axis is flattened into the
                 next one, so that one expert's rows follow the last one's.
    index:       for a pattern with {h}: this checkpoint tensor is row h of ours (a gain a head, saved head by head).
    lone:        stored with one axis more, of length one, before those of ours.
    paired:      of so many of ours, the first ones, the rows of each head alternate between its first half and its second, as GGUF's llama has queries
                 and keys.
    offset:      stored with so much added to every number: a gain without the one that the norm adds.
    by_head:     stored (heads, rows of a head, columns); "turned": each head's matrix transposed, as GGUF's deepseek2 has what brings latents to keys.
    flat:        stored with its axes of length one or without them; written with them.
    parameter:   what transformers' module calls the tensor where the files do otherwise: peft's adapters have that name. Rules of single experts with
                 the same one are held there together: all experts, and of each the rows of these rules in the table's order.
    turned:      peft takes its inputs for outputs, because transformers' module does not say that it is stored (in, out).
    written:     saving uses this name; false for other spellings of a name that the table has already.
    when:        the specs whose checkpoints use this name, where a family calls one tensor by several; None = all.
    """

    names: tuple[str, ...]
    transpose: bool = False
    stacked: Stacked = "whole"
    all_experts: Literal[False, True, "rows"] = False
    index: bool = False
    lone: bool = False
    paired: int = 0
    offset: float = 0.0
    by_head: Literal[False, True, "turned"] = False
    flat: bool = False
    written: bool = True
    when: Callable[[DecoderSpec], bool] | None = None
    parameter: str = ""
    turned: bool = False

    def holds(self, spec: DecoderSpec) -> bool:
        return self.when is None or self.when(spec)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A checkpoint tensor that is known and not used; `why` is what the load report says."""

    why: str


Rule = str | To | LeftOut
Table = Mapping[str, Rule]


def to(*names: str, transpose: bool = False, stacked: Stacked = "whole", all_experts: Literal[False, True, "rows"] = False, index: bool = False,
       lone: bool = False, paired: int = 0, offset: float = 0.0, by_head: Literal[False, True, "turned"] = False, flat: bool = False,
       when: Callable[[DecoderSpec], bool] | None = None, parameter: str = "", turned: bool = False) -> To:
    return To(names, transpose, stacked, all_experts, index, lone, paired, offset, by_head, flat, when=when, parameter=parameter, turned=turned)


def left_out(why: str) -> LeftOut:
    return LeftOut(why)


def old(rule: Rule) -> Rule:
    """The same rule for another spelling of the name: read, never written."""
    return rule if isinstance(rule, LeftOut) else replace(rule if isinstance(rule, To) else To((rule,)), written=False)


def for_adapters(table: Table, *, stacked: bool = True) -> Table:
    """The same table with the names that peft's adapters have: of experts with one parameter for all, that one's rule.

    Not `stacked`: where the files have experts one by one, with their names, which were those of transformers 4's modules.
    """
    if not stacked and any("{e}" in name for name in table):
        return table
    out: dict[str, Rule] = {}
    together: dict[str, tuple[str, ...]] = {}
    for name, rule in table.items():
        if not isinstance(rule, To) or not rule.parameter:
            out[name] = rule
        elif "{e}" in name:
            together[rule.parameter] = together.get(rule.parameter, ()) + rule.names
        else:
            out[rule.parameter] = rule
    return out | {parameter: To(names, all_experts=True) for parameter, names in together.items()}


def one_by_one(table: Table) -> dict[str, Rule]:
    """The table for a family whose own code has a module for each expert, and no class in transformers."""
    return {name: replace(rule, parameter="") if isinstance(rule, To) else rule for name, rule in table.items()}


@dataclass(frozen=True, slots=True)
class Place:
    """Where one checkpoint tensor goes: the rule, with the layer, expert and head of this tensor filled in.

    Of a tensor that holds all experts, `place` leaves their {e} open, since the name does not say how many there are; in what saving writes
    `names` has every expert's, one expert after another.
    """

    rule: To
    names: tuple[str, ...]
    head: int | None = None


class NameTable:
    """A family's WEIGHTS, compiled.

    Args:
        past_last: what becomes of tensors of layers that follow the `n_layers` of the model, as (n_layers, how many, reason);
            DeepSeek and GLM append their multi-token-prediction layers that way, under the names of ordinary ones.
        spare: tensors that this model has no use for though its family has a place for them, as the beginning of our name -> reason.
    """

    def __init__(self, table: Table, *, past_last: tuple[int, int, LeftOut] | None = None, spare: Mapping[str, LeftOut] | None = None) -> None:
        self.table = table
        self._rules = [(_pattern(name), _whole(rule)) for name, rule in table.items()]
        self._past_last, self._spare = past_last, spare or {}

    def place(self, name: str) -> Place | LeftOut | None:
        """What becomes of the checkpoint tensor of this name; None when the family has no rule for it."""
        for pattern, rule in self._rules:
            if match := pattern.fullmatch(name):
                if isinstance(rule, LeftOut):
                    return rule
                if past := self._appended(name):
                    return past
                at = {"e": "{e}", **match.groupdict()}
                names = tuple(ours.format_map(at) for ours in rule.names)
                if why := next((why for start, why in self._spare.items() if names[0].startswith(start)), None):
                    return why
                return Place(rule, names, int(at["h"]) if rule.index else None)
        return self._appended(name)

    def saved(self, have: Iterable[str], n_rows: Mapping[str, int]) -> dict[str, Place]:
        """Checkpoint name -> place, for every tensor that saving writes, given the names of ours that exist.

        n_rows: the first dimension of each of ours; rules with {h} write that many tensors.
        """
        have, out = set(have), {}
        coordinates: dict[str, list[dict[str, str]]] = {}
        for name, rule in self._written():
            first = rule.names[0]
            if first not in coordinates:
                shape = _pattern(first)
                coordinates[first] = [match.groupdict() for ours in have if (match := shape.fullmatch(ours))]
            for at, names in _filled(rule, coordinates[first]):
                if not have.issuperset(names):
                    continue
                for head in range(n_rows[names[0]]) if rule.index else (None,):
                    out[_spelled(name, {**at, "h": head})] = Place(rule, names, head)
        return out

    def theirs(self, ours: str) -> str:
        """The name in the files of the tensor that holds ours; `{h}` stays, where there is one a head. Ours where the table has none."""
        for name, rule in self._written():
            for mine in rule.names:
                if match := _pattern(mine).fullmatch(ours):
                    return _spelled(name, {"h": "{h}", **match.groupdict()})
        return ours

    def _written(self) -> Iterator[tuple[str, To]]:
        return ((name, whole) for name, rule in self.table.items() if isinstance(whole := _whole(rule), To) and whole.written)

    def _appended(self, name: str) -> LeftOut | None:
        if self._past_last and (match := _LAYER.search(name)):
            n_layers, n_more, why = self._past_last
            return why if n_layers <= int(match[1]) < n_layers + n_more else None
        return None


_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blk)\.(\d+)\.")


def _filled(rule: To, coordinates: Iterable[Mapping[str, str]]) -> Iterator[tuple[Mapping[str, str], tuple[str, ...]]]:
    """(what to fill into the checkpoint's name, our names), once for each tensor of this rule."""
    if not rule.all_experts:
        yield from ((at, tuple(ours.format_map(at) for ours in rule.names)) for at in coordinates)
        return
    n_experts: dict[str, int] = {}
    for at in coordinates:
        n_experts[at["i"]] = max(n_experts.get(at["i"], 0), int(at["e"]) + 1)
    yield from (({"i": i}, tuple(ours.format_map({"i": i, "e": e}) for e in range(n) for ours in rule.names)) for i, n in n_experts.items())


def family_name(model_type: str) -> str:
    """The name of a model_type's file in families/: hyphens as underscores, words run together apart (PanguProMoE is pangu_pro_moe)."""
    return re.sub("(?<=[a-z])(?=[A-Z][a-z])", "_", model_type).replace("-", "_").lower()


def _whole(rule: Rule) -> To | LeftOut:
    return To((rule,)) if isinstance(rule, str) else rule


def _spelled(name: str, at: Mapping[str, object]) -> str:
    return name.replace("[", "").replace("]", "").format_map(at)


def _pattern(name: str) -> re.Pattern[str]:
    """The regular expression of a table's key."""
    regex = re.escape(name)
    for letter in "ieh":
        group = re.escape(f"{{{letter}}}")
        regex = regex.replace(group, f"(?P<{letter}>\\d+)", 1).replace(group, f"(?P={letter})")
    regex = regex.replace(re.escape("{*}"), ".*")
    return re.compile(regex.replace(r"\[", "(?:").replace(r"\]", ")?"))

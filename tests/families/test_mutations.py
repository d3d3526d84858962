"""A parity test is worth what it notices: every fact of every spec, changed, is refused or moves the logits."""
from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch

from pellucid.spec import DecoderSpec, FeedForward, Layer
from tests.families.build import TOLERANCE, Built, assembled, build, error, logits, ours, refused
from tests.families.cases import CASES
from tests.families.mutants import Change, Refused, changes, essence, mutants


def outcome(built: Built, spec: DecoderSpec, extra: int = 0) -> torch.Tensor | str:
    """The logits of the case's files under this spec, or why they were refused."""
    found: list[torch.Tensor] = []

    def run() -> None:
        tokens_T = torch.cat([built.tokens_T, built.tokens_T[:extra]])
        found.append(logits(ours(spec, assembled(built.module, built.files, spec), ops="fused"), tokens_T))

    return refused(run) or found[0]


def differ(a: torch.Tensor | str, b: torch.Tensor | str) -> bool:
    """One was refused and the other was not, or the logits moved. NaN has moved."""
    if isinstance(a, str) or isinstance(b, str):
        return isinstance(a, str) != isinstance(b, str)
    return not error(a, b) <= TOLERANCE


def telling(built: Built) -> Iterator[Change]:
    """The mutants that have to be noticed: those of another essence."""
    essential = essence(built.spec, built.case.length)
    return ((label, mutant) for label, mutant in mutants(built.spec)
            if isinstance(mutant, Refused) or essence(mutant, built.case.length) != essential)


def notice(built: Built) -> tuple[int, list[str]]:
    """(mutants tried, those nobody noticed)."""
    base, tried, missed = outcome(built, built.spec), 0, []
    for label, mutant in telling(built):
        tried += 1
        if isinstance(mutant, Refused):
            continue
        # A limit shows one token later.
        if not differ(outcome(built, mutant), base) and not differ(outcome(built, mutant, 1), outcome(built, built.spec, 1)):
            missed.append(label)
    return tried, missed


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_changed_fact_is_noticed(case):
    tried, missed = notice(build(case))
    assert tried > 50
    assert not missed


def test_a_field_of_an_unknown_kind_fails_the_walk():
    @dataclasses.dataclass(frozen=True)
    class Later(FeedForward):
        schedule: complex = 0j

    later = Later(d_ff=3)
    with pytest.raises(TypeError, match=r"schedule is a .*complex.*, which the mutants do not know how to change: teach"):
        list(changes(later, Later, ""))


def test_an_alternative_without_a_sample_fails_the_walk():
    @dataclasses.dataclass(frozen=True)
    class Later(FeedForward):
        extra: Layer | None = None

    with pytest.raises(TypeError, match=r"extra may be a .*Layer.*, of which the mutants have no sample: teach"):
        list(changes(Later(d_ff=3), Later, ""))


def test_every_fact_of_a_spec_is_changed_and_told_in_some_case():
    """Field by field: some case has a mutant of it that must be noticed. The two that no pass depends on are named."""
    told = {re.sub(r"\[.*", "", name) for case in CASES for label, _ in telling(build(case)) for name in label.split(":")[0].split(".")}
    facts = {f.name for kind in _dataclasses(DecoderSpec) for f in dataclasses.fields(kind)}
    assert facts - told == {"family", "n_ctx"}


def test_every_named_alternative_of_a_spec_occurs_in_some_case():
    """Every value of every Literal, and every kind of rope scaling and feed-forward: proven against transformers, not only told apart."""
    def walk(value: Any) -> Iterator[Any]:
        if dataclasses.is_dataclass(value):
            yield type(value)
            for f in dataclasses.fields(value):
                yield f.name, getattr(value, f.name)
                yield from walk(getattr(value, f.name))
        elif isinstance(value, tuple):
            for item in value:
                yield from walk(item)

    met = {seen for case in CASES for seen in walk(build(case).spec) if isinstance(seen, type) or isinstance(seen[1], str)}
    for kind in _dataclasses(DecoderSpec):
        assert kind in met
        for name, hint in get_type_hints(kind).items():
            if get_origin(hint) is Literal:
                assert {(name, choice) for choice in get_args(hint)} <= met


def _dataclasses(kind: Any) -> set[type]:
    """A dataclass and all dataclasses its fields mention."""
    out, stack = set(), [kind]
    while stack:
        kind = stack.pop()
        if dataclasses.is_dataclass(kind) and kind not in out:
            out.add(kind)
            stack += get_type_hints(kind).values()
        stack += get_args(kind) if not isinstance(kind, str) else ()
    return out

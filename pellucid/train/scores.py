"""The recipe's exact match before and after: the model as it was beside what was written, free and held to the schema."""
from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict

import pellucid
from pellucid.api import Model
from pellucid.train.exact import Exact, exact_match
from pellucid.train.made import schema_of
from pellucid.train.outcome import ADAPTER, Outcome
from pellucid.train.report import Score
from pellucid.train.tuning import Tuning

FILE = "exact_match.json"
_NAMES = {"free": "exact match", "schema": "exact match, held to the schema"}


def scores(tuning: Tuning, outcome: Outcome, told: Callable[[str], None] = lambda line: None) -> list[Score]:
    """Shares of held-out rows that are answered with the row's own answer; every answer lies in exact_match.json. None where the recipe asks for none."""
    asked = tuning.recipe.eval.exact_match
    if asked is None:
        return []
    items = tuning.data.held_out[: asked.rows]
    ways = [None] if asked.schema is None else [None, schema_of(asked.schema)]
    part, adapter = tuning.recipe.model, "tuned" if outcome.kind == ADAPTER else None
    base = pellucid.load(part.path, accept_unread=part.accept_unread, quantize=part.quantize, adapters={"tuned": outcome.out} if adapter else {})

    def score(model: Model, name: str | None) -> list[Exact]:
        return [exact_match(model, items, schema=schema, max_tokens=asked.max_tokens, adapter=name) for schema in ways]

    before, after = score(base, None), score(base if adapter else pellucid.load(outcome.out), adapter)
    rows = {when: {one.how: [asdict(answer) for answer in one.answers] for one in found} for when, found in (("before", before), ("after", after))}
    (tuning.folder / FILE).write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    found = [Score(_NAMES[b.how], b.share, a.share, _about(b, a)) for b, a in zip(before, after, strict=True)]
    for each in found:
        told(f"{each.name}: {each.before:.1%} before, {each.after:.1%} after · {each.about}")
    return found


def _about(before: Exact, after: Exact) -> str:
    counts: Sequence[str] = [f"{before.hits:,} and {after.hits:,} of {len(after.answers):,} answers"]
    valid = [] if before.valid is None or after.valid is None else [f"{before.valid:,} and {after.valid:,} of them JSON"]
    return ", ".join([*counts, *valid])

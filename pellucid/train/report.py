"""A tuning as one HTML page that needs nothing beside it: curves, answers before and after, what the data is, which tokens were learned, the record."""
from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import yaml

from pellucid.audit import plots
from pellucid.data.example import Example, examples
from pellucid.data.statistics import Statistics
from pellucid.model.report import count, size
from pellucid.tokenizer import Tokenizer
from pellucid.train.tuning import Tuning
from pellucid.train.watch import read_log

FILE = "report.html"
POINTS, BINS, SHOWN, MOST = 400, 40, 4, 600  # points of a curve, bars of lengths, examples with their masks, tokens of each


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt and what the model made of it before and after."""

    prompt: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Score:
    """A number before and after, such as the share of answers that are right."""

    name: str
    before: float
    after: float
    about: str = ""


def write_report(tuning: Tuning, outcome: Mapping[str, Any], samples: Sequence[Sample], scores: Sequence[Score] = ()) -> Path:
    """Writes report.html into the run's folder."""
    path = tuning.folder / FILE
    path.write_text(page(tuning, read_log(tuning.folder), outcome, samples, scores), encoding="utf-8")
    return path


def page(tuning: Tuning, events: Sequence[Mapping[str, Any]], outcome: Mapping[str, Any], samples: Sequence[Sample], scores: Sequence[Score]) -> str:
    """The whole document."""
    steps = [event for event in events if event["event"] == "stepped"]
    judged = [event for event in events if event["event"] == "evaluated"]
    recipe, tokenizer = tuning.recipe, tuning.model.tokenizer
    rate = sum(e["tokens"] for e in steps) / max(1e-9, sum(e["seconds"] for e in steps))
    cards = [("steps", f"{len(steps):,}", f"of {recipe.batch} item{'s' * (recipe.batch != 1)}"),
             ("tokens per second", plots.number(rate), f"{sum(e['tokens'] for e in steps):,} tokens"),
             ("peak memory", size(max((e["memory_bytes"] for e in steps), default=0)), "of the process"),
             ("trained", count(tuning.trained.n_parameters), f"of {count(tuning.model.report.n_parameters)} parameters")]
    if len(judged) > 1:
        cards.insert(0, ("held-out loss", plots.number(judged[-1]["loss"]), f"before: {plots.number(judged[0]['loss'])}"))
    cards = [(each.name, _percent(each.after), f"before: {_percent(each.before)}") for each in scores] + cards
    sections = [
        _section("Loss", _curve(steps, "loss", judged), "Of the steps, averaged over stretches where there are many; the dashed line is what is held out."),
        _section("Rate and gradients", _curve(steps, "lr") + _curve(steps, "norm"), "The learning rate, and the norm of all gradients before it is clipped."),
        _section("Before and after", "".join(map(_sample, samples)) or _none("Name prompts under eval.samples, and they stand here."),
                 "The same prompts, the likeliest answer each."),
        *([_section("Scores", _scores(scores), "On rows that were never learned from.")] if scores else []),
        _section("The data", _data(tuning), "Lengths are in tokens; only learned tokens have a loss."),
        _section("What is learned", "".join(_masked(each, tokenizer) for each in _first(tuning)), "The first examples as the model sees them: colored tokens "
                 "are learned, the others only read."),
        _section("The recipe", f"<pre>{escape(yaml.safe_dump(_plain(recipe.plain()), sort_keys=False, allow_unicode=True))}</pre>",
                 "Everything that was in force."),
        _section("The record", _facts({**outcome, **{name: fact for name, fact in tuning.facts.items() if name not in recipe.facts()}}),
                 "What went in, by content: pellucid replay makes the same of it.")]
    loaded = tuning.model.report
    return _PAGE.substitute(title=escape(f"{loaded.name}, tuned"), about=escape(f"{recipe.method} · {recipe.tune.kind} · {loaded.name} · {loaded.dtype}"),
                            cards="".join(_card(*each) for each in cards), sections="".join(sections))


def _card(name: str, value: str, about: str) -> str:
    return f"<div class=card><div>{escape(name)}</div><strong>{escape(value)}</strong><div>{escape(about)}</div></div>"


def _curve(steps: Sequence[Mapping[str, Any]], name: str, judged: Sequence[Mapping[str, Any]] = ()) -> str:
    if not steps:
        return _none("No step was made.")
    width = -(-len(steps) // POINTS)
    parts = [steps[i : i + width] for i in range(0, len(steps), width)]
    at, values = [p[-1]["step"] for p in parts], [max(1e-12, statistics.fmean(e[name] for e in p)) for p in parts]
    if len(at) == 1:
        at, values = [0, *at], [values[0], *values]
    series: list[tuple[str, Sequence[float]]] = [("mean", values)]
    if len(judged) > 1:  # drawn as a line of its own over the same places
        held = [(e["step"], e["loss"]) for e in judged]
        series.append(("held", [_between(held, step) for step in at]))
    return plots.lines(series, x="step", y={"lr": "rate", "norm": "gradient norm"}.get(name, name), at=at)


def _between(points: Sequence[tuple[int, float]], step: int) -> float:
    """The value at a step on the line through these points."""
    for (a, before), (b, after) in itertools.pairwise(points):
        if a <= step <= b:
            return before + (after - before) * (step - a) / max(1, b - a)
    return points[-1][1] if step > points[-1][0] else points[0][1]


def _sample(sample: Sample) -> str:
    return (f"<blockquote><b>{escape(sample.prompt)}</b><div class=two><div><span>before</span>{escape(sample.before) or '<i>nothing</i>'}</div>"
            f"<div><span>after</span>{escape(sample.after) or '<i>nothing</i>'}</div></div></blockquote>")


def _scores(scores: Sequence[Score]) -> str:
    rows = "".join(f"<tr><th>{escape(s.name)}</th><td>{_percent(s.before)}</td><td>{_percent(s.after)}</td><td>{escape(s.about)}</td></tr>" for s in scores)
    return f"<table><tr><th></th><th>before</th><th>after</th><th></th></tr>{rows}</table>"


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _data(tuning: Tuning) -> str:
    data = tuning.data.learned
    rows = [("items", f"{data.n_items:,} ({', '.join(tuning.data.shapes)})"), ("held out", f"{len(tuning.data.held_out):,}"),
            ("tokens", f"{data.n_tokens:,}, of which {data.learned_share:.1%} are learned"), ("the same twice", f"{data.n_duplicates:,}"),
            ("asked alike, answered otherwise", f"{data.n_conflicting:,}"), ("too long", f"{len(tuning.data.too_long):,}")]
    table = "".join(f"<tr><th>{name}</th><td>{escape(text)}</td></tr>" for name, text in rows)
    return f"<table>{table}</table>{_lengths(data)}"


def _lengths(data: Statistics) -> str:
    longest = max(data.lengths, default=1)
    width = max(1, -(-longest // BINS))
    counts = [0] * (longest // width + 1)
    for length in data.lengths:
        counts[length // width] += 1
    titles = [f"{n:,} of {i * width:,} to {(i + 1) * width - 1:,} tokens" for i, n in enumerate(counts)]
    return plots.bars(counts, x="tokens", y="sequences", span=(0, len(counts) * width), titles=titles)


def _first(tuning: Tuning) -> list[Example]:
    return [each for item in tuning.run.items(0) for each in examples(item)][:SHOWN]


def _masked(example: Example, tokenizer: Tokenizer) -> str:
    """The text in runs of tokens that are learned and that are not."""
    runs: list[tuple[bool, list[int]]] = []
    for token, flag in list(zip(example.ids, example.learned, strict=True))[:MOST]:
        if not runs or runs[-1][0] != flag:
            runs.append((flag, []))
        runs[-1][1].append(token)
    before: list[int] = []
    parts = []
    for flag, ids in runs:
        text = escape(tokenizer.decode(ids, special=True, after=before))
        parts.append(f"<mark>{text}</mark>" if flag else text)
        before = ids
    more = f" … {len(example.ids) - MOST:,} tokens more" if len(example.ids) > MOST else ""
    about = f"{escape(example.origin)} · {len(example.ids):,} tokens, {example.n_learned:,} learned{more}"
    return f"<blockquote class=masked>{''.join(parts)}<footer>{about}</footer></blockquote>"


def _facts(facts: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><th>{escape(str(name))}</th><td><code>{escape(str(value))}</code></td></tr>" for name, value in facts.items())
    return f"<table>{rows}</table>"


def _plain(value: Any) -> Any:
    """Lists for tuples, which YAML has no word for."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _section(name: str, body: str, about: str) -> str:
    return f"<section><h2>{name}</h2><p>{about}</p>{body}</section>"


def _none(text: str) -> str:
    return f"<p class=note>{text}</p>"


_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>$title</title>
<style>
:root{color-scheme:light dark;--text:#1c2430;--soft:#66707f;--back:#fff;--card:#f4f6f9;--rule:#dde2ea;--main:#2f6fde;--held:#d97706;--learn:#d7e5ff}
@media (prefers-color-scheme:dark){
:root{--text:#e6e9ef;--soft:#98a2b3;--back:#12161d;--card:#1b212b;--rule:#2c3442;--main:#6ea0f8;--held:#f0a94a;--learn:#1f3a68}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--text);background:var(--back);max-width:860px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .2rem}p{color:var(--soft);margin:.2rem 0 .6rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:.7rem;margin:1.2rem 0}
.card{background:var(--card);border-radius:10px;padding:.7rem .9rem;color:var(--soft);font-size:.85rem}
.card strong{display:block;font-size:1.5rem;color:var(--text)}
table{border-collapse:collapse;width:100%;font-size:.85rem}th,td{padding:.3rem .5rem;text-align:left;border-bottom:1px solid var(--rule);overflow-wrap:anywhere}
th{font-weight:600;white-space:nowrap}svg{width:100%;height:auto}.axis{stroke:var(--soft)}.grid{stroke:var(--rule)}
text{fill:var(--soft);font-size:11px;font-family:inherit}.bar{fill:var(--main)}polyline{fill:none;stroke-width:1.6}.mean{stroke:var(--main)}
.held{stroke:var(--held);stroke-dasharray:5 4}
blockquote{background:var(--card);border-radius:10px;margin:.7rem 0;padding:.7rem .9rem;white-space:pre-wrap}
blockquote{max-height:30rem;overflow:auto;overflow-wrap:anywhere}.two>div{max-height:16rem;overflow:auto}
blockquote footer{font-size:.8rem;color:var(--soft);white-space:normal;margin-top:.4rem}
mark{background:var(--learn);color:inherit;border-radius:3px}.masked{font-family:ui-monospace,monospace;font-size:.85rem}
.two{display:grid;grid-template-columns:1fr 1fr;gap:1rem;margin-top:.5rem}.two span{display:block;color:var(--soft);font-size:.8rem}
@media (max-width:600px){.two{grid-template-columns:1fr}}pre{background:var(--card);border-radius:10px;padding:.7rem .9rem;overflow:auto;font-size:.85rem}
.note{font-size:.85rem}
</style></head><body>
<h1>$title</h1><p>$about</p>
<div class="cards">$cards</div>
$sections
</body></html>
""")

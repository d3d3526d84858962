"""`pellucid models`: what exists, filtered and sorted; one row in full; what is on this disk."""
from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from pellucid.catalog import models as catalog
from pellucid.catalog.models import Row
from pellucid.cli import _options as o
from pellucid.cli._frame import Json, emit, next_step, note
from pellucid.errors import BadRequest, did_you_mean, nearest
from pellucid.model.report import count, size

BITS = {"bf16": 16, "q8_0": 8.5, "q4_k_m": 4.9}  # about, of a whole model; `pellucid plan` has it to the byte
_FITS_TOKENS = 4096  # of cache that --fits leaves room for, beside the weights
_SORTS = ("name", "size", "released", "context", "tokens", "maker")
_ADDED = " You may add rows of your own: {file} (docs/catalog.md)"


def command(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One model, in full: a name of the catalog or a repository.")] = None,
    license: Annotated[str | None, typer.Option("--license", metavar="ID|USE", help="Under this license, or allowing a use, such as commercial.")] = None,
    hosting: Annotated[bool, typer.Option("--hosting", help="That may be offered to others as a service.")] = False,
    fits: Annotated[str | None, typer.Option("--fits", metavar="SIZE", help="Weights and 4,096 tokens of cache in so much memory, such as 8GB.")] = None,
    kind: Annotated[list[str] | None, typer.Option("--kind", metavar="KIND", help=f"{', '.join(catalog.KINDS)}; may be repeated.")] = None,
    context: Annotated[str | None, typer.Option("--context", metavar="TOKENS", help="At least so many, such as 32k.")] = None,
    open: Annotated[list[str] | None, typer.Option("--open", metavar="PART", help=f"May be had: {', '.join(catalog.OPEN)}; may be repeated.")] = None,
    min: Annotated[list[str] | None, typer.Option("--min", metavar="SCORE=N", help="At least so much, such as mmlu=60; may be repeated.")] = None,
    family: Annotated[str | None, typer.Option("--family", help="Of this family.")] = None,
    maker: Annotated[str | None, typer.Option("--maker", help="Of these makers.")] = None,
    language: Annotated[str | None, typer.Option("--language", metavar="CODE", help="That its makers say it was made for, such as de.")] = None,
    runs: Annotated[bool, typer.Option("--runs", help="Of a family that Pellucid runs, with its widths known.")] = False,
    sort: Annotated[str | None, typer.Option("--sort", metavar="BY", help=f"{', '.join(_SORTS)}, or a score such as mmlu.")] = None,
    local: Annotated[bool, typer.Option("--local", help="The models on this disk.")] = False,
    families: Annotated[bool, typer.Option("--families", help="The families of models that can be run, and how closely each was proven.")] = False,
    json: Json = False,
) -> None:
    """List what exists: filtered, sorted, each fact with its source; offline. A name shows one model in full. What nobody read of a
    model counts as not so: a filter never lets the unknown pass.

    \b
    pellucid models --kind code --context 16k --fits 8GB
    pellucid models --min mmlu=60 --sort size
    pellucid models llama-3.1-8b
    pellucid models --local
    """
    asked = [name, license, hosting or None, fits, kind, context, open, min, family, maker, language, runs or None, sort]
    if ((local or families) and any(each is not None for each in asked)) or (local and families):
        raise BadRequest("--local and --families list other things than the catalog: give one of them alone", field="local")
    if local or families:
        from pellucid.cli import _local
        return _local.print_local(json) if local else _local.print_families(json)
    rows = catalog.table()
    if name is not None:
        return _one(catalog.find(name, rows), rows, json)
    least = dict(_score(text, rows) for text in min or ())
    _known("--kind", kind or (), catalog.KINDS)
    _known("--open", open or (), catalog.OPEN)
    uses = frozenset({"hosting"}) if hosting else frozenset()
    if license is not None and license not in (under := {row.license for row in rows.values()}):
        uses |= _use(license, under)
        license = None
    for option, value in (("--maker", maker), ("--family", family)):
        _known(option, [value] if value is not None else (), {getattr(row, option[2:]) for row in rows.values()} - {None})
    _known("--language", [language] if language is not None else (), {code for row in rows.values() for code in row.languages})
    found = catalog.chosen(rows.values(), kinds=kind or (), context=tokens(context, "--context"), opened=open or (), least=least, license=license,
                           family=family, maker=maker, language=language, runs=runs)
    if uses:
        found = _allowed(found, rows, uses)
    room = o.n_bytes(fits, "--fits")
    needs = {row.name: need for row in found if (need := _fitting(row, room)) is not None} if room is not None else {}
    found = _sorted([row for row in found if room is None or row.name in needs], sort, rows)
    if json:
        emit({"as_of": catalog.as_of(), "models": [_plain(row) | ({"fits": needs[row.name]} if room is not None else {}) for row in found]})
        return None
    scores = tuple(dict.fromkeys([*least, *([sort] if sort in _scores(rows) else [])]))
    for line in _lines(found, needs, scores):
        print(line)
    if uses and found:
        note(f"{', '.join(sorted(uses))}: allowed, with the duties that `pellucid license NAME` lists, to whoever passes no limit of users or revenue; "
             f"this is not legal advice")
    note(f"{len(found)} of {len(rows)} models, as of {catalog.as_of()}.{_ADDED.format(file=catalog.own_file()) if len(found) == len(rows) else ''}")
    if found:
        next_step("pellucid", "plan", found[0].name)
    else:
        note("nothing is known to be all of that; what nobody read of a model counts as not so")
        next_step("pellucid", "models")
    return None


def _use(asked: str, under: set[str | None]) -> frozenset[str]:
    """The uses in a phrase, such as "commercial". Raises BadRequest for what is neither a use nor a license of the catalog."""
    from pellucid.catalog import uses
    from pellucid.catalog.licenses import BASE
    try:
        return uses.words(asked)
    except BadRequest:
        known = {each for each in under if each}
        raise BadRequest(f"--license {asked!r} is neither a license of the catalog ({len(known)} are) nor a use, such as commercial."
                         f"{did_you_mean(nearest(asked, {*known, *BASE}))}", field="license") from None


def _allowed(found: Sequence[Row], rows: dict[str, Row], asked: frozenset[str]) -> list[Row]:
    """Those whose licenses, and those of what they were made from, allow the use, with or without duties; the unknown is not allowed."""
    from pellucid.catalog import lineage, uses, verdict
    use = uses.Use(uses=asked)
    return [row for row in found if verdict.judge(lineage.of_row(row, rows), use).answer in ("allowed", "allowed with duties")]


def _fitting(row: Row, room: int) -> dict[str, Any] | None:
    """The widest format whose weights fit, with what it needs, about; None where none does or no memory is known to be needed."""
    for format, bits in BITS.items():
        need = int(row.count * bits / 8) + 2 * row.cache_numbers(_FITS_TOKENS)
        if need <= room:
            return {"format": format, "n_bytes": need}
    return None


def _sorted(rows: Sequence[Row], by: str | None, all_rows: dict[str, Row]) -> list[Row]:
    """The rows by what was named: names and makers by letters, all else the largest first, the unknown last."""
    by = (by or "maker").lower()
    scores = _scores(all_rows)
    _known("--sort", [by], (*_SORTS, *scores))
    if by == "name":
        return sorted(rows, key=lambda row: row.name)
    if by == "maker":
        return sorted(rows, key=lambda row: (row.maker, row.family or "", row.released or datetime.date.min, row.count, row.name))
    value = {"size": lambda row: row.count, "released": lambda row: row.released and row.released.toordinal()}.get(
        by, lambda row: row.scores.get(by) if by in scores else getattr(row, by))
    return sorted(rows, key=lambda row: (value(row) is None, -(value(row) or 0), row.name))


def _scores(rows: dict[str, Row]) -> tuple[str, ...]:
    return tuple(sorted({name for row in rows.values() for name in row.scores}))


def _score(text: str, rows: dict[str, Row]) -> tuple[str, float]:
    found = re.fullmatch(r"\s*([\w-]+)\s*=\s*(\d+(?:\.\d+)?)\s*%?\s*", text)
    if found is None:
        raise BadRequest(f"--min {text!r} is not SCORE=N, such as mmlu=60", field="min")
    _known("--min", [found[1].lower()], _scores(rows))
    if float(found[2]) > 100:
        raise BadRequest(f"--min {text!r}: scores are percent, 100 at most", field="min")
    return found[1].lower(), float(found[2])


def tokens(text: str | None, option: str, *, kilo: int = 1024) -> int | None:
    """Tokens such as 32k, 1M or 4096; k is 1,024 of a context, `kilo` says otherwise. Raises BadRequest."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmbt]?)\s*", text, re.IGNORECASE)
    if found is None or not float(found[1]):
        raise BadRequest(f"{option} {text!r} is no number of tokens, such as 4096 or 32k", field=option.removeprefix("--"))
    return int(float(found[1]) * kilo ** ("", "k", "m", "b", "t").index(found[2].lower()))


def _known(option: str, values: Sequence[str], known: Any) -> None:
    for value in values:
        if value not in known:
            listed = ", ".join(sorted(known)) if len(known) < 12 else f"{len(known)} are known"
            raise BadRequest(f"{option} {value!r} is nothing the catalog knows ({listed}).{did_you_mean(nearest(value, known))}",
                             field=option.removeprefix("--"))


def _lines(rows: Sequence[Row], needs: dict[str, dict[str, Any]], scores: Sequence[str]) -> list[str]:
    """A table of eighty columns: name, size, context, kind, a date or what was asked for, license."""
    asked = [*(["memory"] if needs else []), *scores] or ["date"]
    wide = {each: 12 if each == "memory" else max(7, len(each)) for each in asked}
    head = f"{'model':31} {'size':>7} {'ctx':>5} {'kind':9} " + " ".join(f"{each:>{wide[each]}}" for each in asked)
    room = 80 - len(head) - 1  # for the license, which goes where other columns need it
    lines = [f"{head} license" if room >= 7 else head] if rows else []
    for row in rows:
        cells = [f"{row.name:31} {count(row.count):>7} {_short(row.context):>5} {_kind(row):9}"]
        for each in asked:
            if each == "memory":
                cells.append(f"{size(needs[row.name]['n_bytes']):>7} {needs[row.name]['format'].partition('_')[0]:>4}")
            elif each == "date":
                cells.append(f"{row.released:%Y-%m}" if row.released else f"{'-':>7}")
            else:
                cells.append(f"{row.scores[each]:{wide[each]}.1f}" if each in row.scores else f"{'-':>{wide[each]}}")
        told = row.license or "-"
        cells += [told if len(told) <= room else told[:room - 1] + "…"] * (room >= 7)
        lines.append(" ".join(cells))
    return lines


def _kind(row: Row) -> str:
    """What it is, in a word: a distill is one before it is anything else."""
    return "distill" if row.distills else next((kind for kind in ("vision", "audio", "code", "math", "reasoning", "chat") if kind in row.kinds), "base")


def _short(n: int | None) -> str:
    return "-" if n is None else f"{n / 2**20:.0f}M" if n >= 2**20 else f"{n / 2**10:.0f}k" if n >= 2**10 else str(n)


def _plain(row: Row) -> dict[str, Any]:
    """A row as JSON has it, with where its facts were read."""
    return {key: value for key, value in asdict(row).items() if value not in (None, (), {})}


def _one(row: Row, rows: dict[str, Row], as_json: bool) -> None:
    told = catalog.sources() if not row.mine else {}
    if as_json:
        emit({"as_of": catalog.as_of(), "model": _plain(row), "sources": {key: told[key] for key in row.sources if key in told}})
        return
    idle = row.active is not None and row.parameters is not None and row.parameters - row.active > row.parameters // 2
    facts: list[tuple[str, str]] = [
        ("model", f"{row.name}   {row.repo or 'no repository'}{' (yours)' if row.mine else ''}"),
        ("kind", ", ".join(row.kinds) + ("" if row.family else "; Pellucid knows no widths of it")),
        ("parameters", count(row.count) + (f", {count(row.active)} of them for a token" if idle and row.active else "") + f" (published: {row.size})"),
        ("family", row.family or "-"), ("context", f"{row.context:,} tokens" if row.context else "-"),
        ("cache", f"{size(2 * row.cache_numbers(1))} a token in 16 bits" if row.cache else "-"),
        ("trained on", f"{row.tokens / 1e12:g} T tokens" if row.tokens and row.tokens >= 1e11 else f"{row.tokens / 1e9:g} B tokens" if row.tokens else "-"),
        ("data", {None: "unknown", "open": "open: it may be had", "described": "described, not given", "undisclosed": "undisclosed"}[row.data]
         + (f"; under {', '.join(row.data_licenses)}" if row.data_licenses else "")),
        ("open", ", ".join(row.open) or "-"), ("languages", ", ".join(row.languages) or "-"), ("released", f"{row.released or '-'}"),
        ("license", row.license or "unknown"), ("made from", row.base or "-"),
        *([("distill", f"it learned outputs of {row.distills}, and is not {row.distills}")] if row.distills else []),
        *([("scores", " · ".join(f"{name} {value:g}" for name, value in row.scores.items()))] if row.scores else []),
        *([("note", row.note)] if row.note else [])]
    children = [other.name for other in rows.values() if other.base == row.name]
    facts += [("made of it", ", ".join(children))] * bool(children)
    for label, text in facts:
        print(f"{label:11} {text}")
    for key, what in row.sources.items():
        print(f"{'read' if key == next(iter(row.sources)) else '':11} {', '.join(what)}: {told.get(key, key)}")
    next_step("pellucid", "plan", row.name)

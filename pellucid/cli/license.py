"""`pellucid license`: whether a use of a model is allowed, by its license and those of all it was made from."""
from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pellucid.catalog import gate, lineage, uses, verdict
from pellucid.catalog.licenses import BASE
from pellucid.cli._frame import Json, emit, next_step
from pellucid.cli._shown import show

_COUNT = "such as 2e9 or 800M"


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name or repository of the catalog, a folder, a .gguf file, or a license's id.")],
    use: Annotated[list[str] | None, typer.Option("--use", metavar="WORDS", help='What for: "commercial api", "medical advice"; may be repeated.')] = None,
    users: Annotated[str | None, typer.Option("--users", metavar="N", help=f"Monthly users today, {_COUNT}.")] = None,
    users_at_release: Annotated[str | None, typer.Option("--users-at-release", metavar="N", help="Those of the month before the model's release.")] = None,
    daily_users: Annotated[str | None, typer.Option("--daily-users", metavar="N", help="Users a day.")] = None,
    revenue: Annotated[str | None, typer.Option("--revenue", metavar="N", help="US dollars a year.")] = None,
    monthly_revenue: Annotated[str | None, typer.Option("--monthly-revenue", metavar="N", help="US dollars a month.")] = None,
    territory: Annotated[str | None, typer.Option("--territory", metavar="CODE", help="Where you are: DE, GB, US, or EU.")] = None,
    into: Annotated[str | None, typer.Option("--into", metavar="MODEL", help="What learns from its outputs, for licenses that spare their own.")] = None,
    trained_on: Annotated[list[str] | None, typer.Option("--trained-on", metavar="DATA", help="Judge a tune of it on this data: a dataset's name, or a "
                                                                                             "license; may be repeated.")] = None,
    json: Json = False,
) -> None:
    """Say whether a use is allowed, with the clause of each license it comes from: allowed, allowed with duties, not allowed, or unknown.
    What is not known is never allowed. Without --use, what pellucid.toml declares, or every use in turn. This is not legal advice.

    \b
    pellucid license llama-2-7b --use "commercial api" --users 2e9
    pellucid license bloom-7b1 --use "medical advice"
    pellucid license ./model
    pellucid license mistral-7b-v0.1 --trained-on tatsu-lab/alpaca --use "sell"
    """
    node = gate.tree(model)
    if trained_on:
        node = gate.tuned(node, trained_on)
    asked = [("--users", users), ("--users-at-release", users_at_release), ("--daily-users", daily_users), ("--revenue", revenue),
             ("--monthly-revenue", monthly_revenue)]
    numbers = {option.strip("-").replace("-", "_"): uses.number(said, option) for option, said in asked}
    more = {"territory": uses.territory(territory), "into": gate.weights_of(into) if into else ()}
    declared = gate.declared(Path.cwd()) if not use else None
    if use:
        told = [uses.Use(uses=frozenset().union(*map(uses.words, use)), **numbers, **more)]  # type: ignore[arg-type]
    elif declared is not None:
        told = [declared.with_(**{key: value for key, value in {**numbers, **more}.items() if value not in (None, ())})]
    else:
        told = [uses.Use(uses=frozenset({each}), **numbers, **more) for each in BASE]  # type: ignore[arg-type]
    answers = [verdict.judge(node, each) for each in told]
    if json:
        emit({"model": model, "lineage": lineage.plain(node), "license_of_result": verdict.result_license(node), "answers": [each.plain() for each in answers],
              "advice": verdict.ADVICE})
        return
    show("\n".join([*lineage.drawn(node), ""]) + "\n")
    for each in answers:
        show("\n".join(_lines(each, brief=len(answers) > 1)) + "\n")
    for text in answers[0].conflicts:
        show(f"conflict  {text}\n")
    show(f"{verdict.ADVICE}\n")
    if not use:
        next_step("pellucid", "license", model, "--use", "commercial api", "--users", "1e6")


def _lines(answer: verdict.Verdict, brief: bool) -> list[str]:
    decisive = [each for each in answer.reasons if each.does != "allows"] or list(answer.reasons)
    if brief:
        return [f"{answer.use.shown:12}{answer.answer}", *(f"            {each.shown}" for each in decisive if each.does != "allows")]
    permits = [f" · {each.permission} may permit it" if each.permission else "" for each in decisive]
    lines = [f"{answer.answer}   {answer.use.shown}", *(f"  {each.shown}{permit}" for each, permit in zip(decisive, permits, strict=True))]
    return [*lines, *(f"  [ ] {each.shown}" for each in answer.duties), ""] if answer.answer != "not allowed" else [*lines, ""]

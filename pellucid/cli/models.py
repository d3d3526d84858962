"""`pellucid models`: what is on this disk."""
from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated

import typer

from pellucid.cli._frame import Json, emit, next_step, note
from pellucid.model.report import size
from pellucid.weights import hub, hub_cache


def command(
    local: Annotated[bool, typer.Option("--local", help="The models on this disk, which are all this command knows so far.")] = False,
    json: Json = False,
) -> None:
    """List the models on this disk: those that were pulled, here or by another program, last used first, and
    the model in the package.

    \b
    pellucid models --local
    """
    pulled, shipped = hub.local_models(), hub_cache.shipped_model()
    models = [*pulled, shipped] if shipped else pulled
    if json:
        emit([{**asdict(model), "last_used": _date(model.last_used)} for model in models])
        return
    for model in models:
        print(_line(model, max(len(each.repo) for each in models)))
    note(f"{len(pulled)} downloaded, {size(sum(model.n_bytes for model in pulled))}, in {hub_cache.cache_folder()}")
    usable = [model.repo for model in models if not model.interrupted]
    if usable:
        next_step("pellucid", "show", usable[0])
    else:
        next_step("pellucid", "pull", models[0].repo if models else "OWNER/NAME")


def _line(model: hub.LocalModel, width: int) -> str:
    commit = "interrupted" if model.interrupted else model.commit[:12] if model.commit else "in the package"
    return f"{model.repo:{width}}  {size(model.n_bytes):>9}  {_date(model.last_used)[:10]}  {' '.join([commit, *model.revisions])}"


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))

"""`pellucid rm`: delete a downloaded model."""
from __future__ import annotations

import sys
from typing import Annotated

import typer

from pellucid.cli._frame import Json, emit, next_step, note
from pellucid.errors import BadRequest
from pellucid.model.report import size
from pellucid.weights import hub, hub_cache


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="owner/name, or owner/name@revision for that revision alone.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: Json = False,
) -> int | None:
    """Delete a downloaded model from this disk, after asking. Files that another revision shares stay.

    \b
    pellucid rm Qwen/Qwen3-0.6B
    pellucid rm Qwen/Qwen3-0.6B@c1899de --yes
    """
    parsed = hub_cache.parse(model)
    if parsed is None:
        raise BadRequest(f"{model!r} is not a downloaded repository: expected owner/name or owner/name@revision. "
                         "A folder of your own is yours to delete", "model")
    held = hub_cache.held_bytes(*parsed)
    if not yes and not _confirmed(f"{model} ({size(held)})"):
        note("nothing was deleted")
        return 1
    freed = hub.remove(*parsed)
    if json:
        emit({"repo": parsed[0], "revision": parsed[1], "freed_bytes": freed})
    else:
        print(f"deleted {model}, {size(freed)} are free again")
    next_step("pellucid", "models", "--local")
    return None


def _confirmed(what: str) -> bool:
    if not sys.stdin.isatty():
        raise BadRequest(f"nobody is at the terminal to confirm the deletion of {what}. Add --yes", "yes")
    note(f"Delete {what} from {hub_cache.cache_folder()}? [y/N] ")
    return sys.stdin.readline().strip().lower() in ("y", "yes")

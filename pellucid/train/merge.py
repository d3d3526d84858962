"""A base and an adapter -> one checkpoint, held against base and adapter together before it is kept."""
from __future__ import annotations

import os
from pathlib import Path

import pellucid
from pellucid import cost
from pellucid.api import Model
from pellucid.catalog import ancestry
from pellucid.data.example import Example
from pellucid.errors import BadData, BadRequest
from pellucid.families._describe import describe_checkpoint
from pellucid.model.adapters import projects
from pellucid.model.convert import Change, Watch
from pellucid.records import input_file
from pellucid.train.export import MOST, ROWS, Survived, held_against, write_merged
from pellucid.weights.adapter import open_adapter
from pellucid.weights.checkpoint import open_checkpoint
from pellucid.weights.hub import resolve

NAME = "merging"
SMALL = 2_000_000_000  # parameters


def merge(base: str, adapter: str, out: Path, text: str, *, dtype: str | None = None, quantize: str | None = None, permission: str | None = None,
          overwrite: bool = False, any_base: bool = False, accept_unread: tuple[str, ...] = (), watch: Watch) -> Survived:
    """Writes W + scale B A of every matrix that the adapter changes; all else as the base has it.

    text: what base and adapter together are asked about, and the result, some thousand tokens. Raises LostTuning where the result has lost what the adapter
    changed (nothing is kept then), BadData for a text too short, and what loading an adapter and `convert` raise.
    """
    if out.exists() and not overwrite and (not out.is_dir() or any(out.iterdir())):
        raise BadRequest(f"{out} is there, and nothing was written. Give another name, or --force to replace it", field="out")
    described = describe_checkpoint(open_checkpoint(resolve(base)), accept_unread)
    # In float32 where that costs little: 16 bits round every activation, which hides small changes and looks like a loss.
    model = pellucid.load(base, dtype="float32" if cost.parameters(described.spec) <= SMALL else "auto", activations="exact", ops="fused",
                          accept_unread=accept_unread)
    model.load_adapter(NAME, adapter, any_base=any_base)
    parts = {name: part for name, matrix in projects(model.decoder).items() if matrix.adapters is not None and (part := matrix.adapters.get(NAME)) is not None}
    place, attached = Path(resolve(adapter)), model.decoder.adapters[NAME]
    change = Change(
        of={name: part.merged for name, part in parts.items()},
        kind="merge", inputs={f"adapter/{path.name}": input_file(path) for path in open_adapter(place).files}, settings={"adapter": os.path.abspath(place)},
        parents=(("weights", ancestry.of_path(place)),), licenses={attached.source: attached.license})
    return write_merged(str(resolve(base)), out, change, dtype=dtype, quantize=quantize, accept_unread=accept_unread, permission=permission,
                        overwrite=overwrite, check=held_against(model, rows_of(model, text), NAME), watch=watch)


def rows_of(model: Model, text: str) -> list[Example]:
    """A text as sequences to compare on."""
    ids = model.prompt_ids(text)
    length = min(MOST, model.spec.n_ctx)
    parts = [tuple(ids[at : at + length]) for at in range(0, min(len(ids), ROWS * length), length)]
    if sum(map(len, parts)) < 32:
        raise BadData(f"the text has {len(ids)} tokens, and 32 at least are needed to say whether a merge has lost something. Give a longer one: --text FILE")
    return [Example(part, (False,) * len(part), "text") for part in parts if len(part) > 1]

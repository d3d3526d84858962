"""A tuning's record, run again: are the weights the same, byte for byte."""
from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pellucid.errors import BadRecord
from pellucid.records import Record, sha256_of
from pellucid.train.loop import Event
from pellucid.train.outcome import finish
from pellucid.train.recipe import read_recipe
from pellucid.train.tuning import prepare

WEIGHTS = (".safetensors", ".gguf")


@dataclass(frozen=True, slots=True)
class Replayed:
    """files: name -> (sha256 recorded, sha256 now)."""

    files: dict[str, tuple[str, str | None]]

    @property
    def same(self) -> bool:
        return all(was == now for was, now in self.files.values())


def replay(record: Record, observe: Callable[[Event], None] = lambda event: None) -> Replayed:
    """Trains again into a folder that goes when it is done. Raises BadRecord for a record of something else, and what `prepare` raises where a file is gone."""
    plain = record.settings.get("recipe")
    recorded = {Path(path).name: str(facts["sha256"]) for path, facts in record.output.get("files", {}).items() if Path(path).suffix in WEIGHTS}
    if record.kind != "tune" or not isinstance(plain, dict) or not recorded:
        raise BadRecord(f"a record of kind {record.kind!r} is no tuning's, or says nothing of its recipe and its files")
    if (n := int(record.measured.get("processes", 1))) > 1:
        raise BadRecord(f"{n} processes trained this together, and their sums round otherwise than those of the one that replays: it would not come out the "
                        f"same. Train again as it was trained: torchrun --nproc-per-node {n} -m pellucid tune RECIPE")
    with tempfile.TemporaryDirectory() as folder:
        recipe = read_recipe({**plain, "out": {**plain["out"], "folder": folder, "tensorboard": False}})
        tuning = prepare(recipe, observe=observe)
        tuning.train()
        out = finish(tuning, permission="a replay").out
        found = {path.name: path for path in (out.iterdir() if out.is_dir() else [out])}
        return Replayed({name: (was, sha256_of(found[name]) if name in found else None) for name, was in recorded.items()})

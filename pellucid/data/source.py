"""A set of rows -> its items, in one pass: files of this disk or of the hub, in the shape that their columns have."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pellucid.data.example import Item
from pellucid.data.kept import Kept
from pellucid.data.render import Rendering
from pellucid.data.rows import read_rows
from pellucid.data.shapes import check_shape, detect, said
from pellucid.errors import BadData


@dataclass(frozen=True, slots=True)
class Found:
    """shape: as asked for, or as detected. n_rows: that were read."""

    items: Kept
    shape: str
    n_rows: int


def items_of(files: Sequence[Path], how: Rendering, *, shape: str = "auto", columns: Mapping[str, str] | None = None, folder: Path | None = None) -> Found:
    """Every item of these files, in order. folder: where what does not fit in memory lies.

    Raises BadData for the first row that nothing can be learned from.
    """
    columns = columns or {}
    check_shape(shape, columns)
    n_rows = 0

    def items() -> Iterator[Item]:
        nonlocal shape, n_rows
        for file in files:
            for read in read_rows(file):
                n_rows += 1
                if shape == "auto":
                    shape = detect([*read.row, *columns], str(file))
                for one in said(read, shape, columns):
                    yield from how.items(one)

    kept = Kept(items(), folder)
    if not kept:
        raise BadData(f"nothing of {', '.join(map(str, files[:3]))}{', ...' * (len(files) > 3)} is left to learn from: {len(how.too_long_rows)} rows are "
                      f"longer than {how.max_length:,} tokens. Give a larger data.max_length, or say data.too_long: cut", how.too_long_rows)
    return Found(kept, shape, n_rows)

"""Rows of files: JSONL, JSON, CSV and Parquet, plain or gzipped, each with where it was read. Read one at a time, whatever the file's size."""
from __future__ import annotations

import csv
import glob
import gzip
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from pellucid.data.json_rows import rows_of
from pellucid.errors import BadData, BadRequest, MissingExtra

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Read:
    """A row and where it stands: file and line, or file and number of the row."""

    row: Row
    origin: str


def files_of(path: str) -> list[Path]:
    """The files that a path, a folder or a glob stands for, sorted. Raises BadRequest where there is none, or one nobody reads.

    Beside files of rows a folder's texts are no data: its README, its license.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        found = sorted(file for file in place.rglob("*") if file.is_file() and _kind(file) in _READERS)
        found = [file for file in found if _READERS[_kind(file)] is not _documents] or found
    elif place.is_file():
        found = [place]
    else:
        found = sorted(map(Path, glob.glob(str(place), recursive=True)))
    if not found:
        raise BadRequest(f"no data at {path!r}: neither a file, nor a folder with {', '.join(_READERS)}, nor a glob that finds some", field="data")
    for file in found:
        if _kind(file) not in _READERS:
            raise BadRequest(f"{file} is not read: its name ends in none of {', '.join(_READERS)} (each also with .gz)", field="data")
    return found


def read_rows(path: Path) -> Iterator[Read]:
    """The rows of one file, in order. Raises BadData that says where a file stops being what its name says."""
    empty = True
    for read in _READERS[_kind(path)](path):
        empty = False
        yield read
    if empty:
        raise BadData(f"{path} has no rows. Is it the right file, and whole?", [str(path)])


def _kind(path: Path) -> str:
    return next((suffix for suffix in reversed(path.suffixes) if suffix != ".gz"), "")


@contextmanager
def _text(path: Path) -> Iterator[TextIO]:
    """The file's text. Raises BadData for what is no UTF-8 or no whole gzip file, wherever that shows."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
            yield text
    except UnicodeDecodeError as error:
        raise BadData(f"{path} is not UTF-8 text: byte 0x{error.object[error.start]:02x}. Save it as UTF-8", [str(path)]) from None
    except (gzip.BadGzipFile, EOFError) as error:
        raise BadData(f"{path} is not a whole gzip file: {error}", [str(path)]) from None
    except OSError as error:
        raise BadRequest(f"{path} cannot be read: {error.strerror}", field="data") from None


def _lines(path: Path) -> Iterator[Read]:
    with _text(path) as text:
        for n, line in enumerate(text, 1):
            if line.strip():
                yield Read(_object(line, f"{path.name}:{n}"), f"{path.name}:{n}")


def _object(line: str, origin: str) -> Row:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        at = f" (column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        what = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise BadData(f"{origin} is not JSON: {what}{at}: {line.strip()!r:.80}. Mend the line, or take it out", [origin]) from None
    if not isinstance(value, dict):
        raise BadData(f"{origin} holds {type(value).__name__}, and an object with columns was expected: {line.strip()!r:.80}", [origin])
    return value


def _whole(path: Path) -> Iterator[Read]:
    with _text(path) as text:
        for n, row in enumerate(rows_of(text, str(path)), 1):
            if not isinstance(row, dict):
                raise BadData(f"row {n} of {path} is {row!r:.60}, and an object with columns was expected", [f"{path.name}:{n}"])
            yield Read(row, f"{path.name}:{n}")


def _table(path: Path) -> Iterator[Read]:
    csv.field_size_limit(2**31 - 1)  # Python's own limit of 131,072 characters would refuse a document
    with _text(path) as text:
        reader = csv.DictReader(text, strict=True, restkey="", delimiter="\t" if _kind(path) == ".tsv" else ",")
        try:
            if reader.fieldnames and len(set(reader.fieldnames)) < len(reader.fieldnames):
                raise BadData(f"{path} names a column twice: {', '.join(reader.fieldnames)}", [str(path)])
            for row in reader:
                origin = f"{path.name}:{reader.line_num}"
                if None in row.values() or "" in row:
                    raise BadData(f"{origin} has {'more' if '' in row else 'fewer'} cells than the {len(reader.fieldnames or ())} columns of its header. Is a "
                                  f"text with commas or quotes not quoted?", [origin])
                yield Read(dict(row), origin)
        except csv.Error as error:
            raise BadData(f"{path.name}:{reader.line_num} is not CSV: {error}", [f"{path.name}:{reader.line_num}"]) from None


def _parquet(path: Path) -> Iterator[Read]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtra("reading Parquet", "data") from None
    try:
        with parquet.ParquetFile(path) as file:
            n = 0
            for group in file.iter_batches(batch_size=1024):
                for row in group.to_pylist():
                    n += 1
                    yield Read(row, f"{path.name}:{n}")
    except pyarrow.ArrowInvalid as error:
        raise BadData(f"{path} is not a whole Parquet file: {error}", [str(path)]) from None


def _documents(path: Path) -> Iterator[Read]:
    """A text file is one row: a document."""
    with _text(path) as text:
        whole = text.read()
    if whole.strip():
        yield Read({"text": whole}, path.name)


_READERS: dict[str, Callable[[Path], Iterator[Read]]] = {
    ".jsonl": _lines, ".ndjson": _lines, ".json": _whole, ".csv": _table, ".tsv": _table, ".parquet": _parquet, ".txt": _documents, ".md": _documents}
READ = tuple(_READERS)  # how the names of files end that are read, each also with .gz

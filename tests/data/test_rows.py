"""Rows of every format, one at a time, each with where it stands; half a file says where it stops being one."""
from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from pellucid.data.rows import files_of, read_rows
from pellucid.errors import BadData, BadRequest

ROWS = [{"text": "one"}, {"text": "zwei, ü\nnext"}]


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "a.jsonl").write_text("\ufeff" + lines, encoding="utf-8")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "c.json").write_text(json.dumps(ROWS))
    (tmp_path / "d.json").write_text(json.dumps({"version": 1, "data": ROWS}))
    (tmp_path / "e.csv").write_text('text\none\n"zwei, ü\nnext"\n', encoding="utf-8")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "f.parquet")
    for file in files_of(str(tmp_path)):
        assert [read.row for read in read_rows(file)] == ROWS, file
    assert [read.origin for read in read_rows(tmp_path / "a.jsonl")] == ["a.jsonl:1", "a.jsonl:2"]
    assert [f.name for f in files_of(str(tmp_path / "*.json"))] == ["c.json", "d.json"]


@pytest.mark.parametrize(("name", "content", "words"), [
    ("a.jsonl", b'{"text": "a"}\n{"text": "b', r"a.jsonl:2 is not JSON.*column"),
    ("a.jsonl", b'[1]\n', "an object with columns was expected"),
    ("a.jsonl", b'', "has no rows"),
    ("a.jsonl", b'{"text": "\xff"}\n', "not UTF-8"),
    ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 50)[:-9], "not a whole gzip file"),
    ("a.json", b'[{"text": "a"}, {"te', r"not JSON: line 1 column"),
    ("a.json", b'{"text": "a"}\n{"text": "b"}', "call it .jsonl"),
    ("a.json", b'{"a": [{}], "b": [{}]}', "two lists of objects, a and b"),
    ("a.json", b'[1]', "row 1 of"),
    ("a.csv", b'text,n\n"a",1,2\n', "more cells than the 2 columns"),
    ("a.csv", b'text,n\na\n', "fewer cells than the 2 columns"),
    ("a.csv", b'text,text\na,b\n', "a column twice"),
    ("a.csv", b'text\n"a', "is not CSV"),
    ("a.parquet", b'PAR1', "not a whole Parquet file"),
])
def test_a_file_that_is_not_what_its_name_says_tells_where(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadData, match=words):
        list(read_rows(tmp_path / name))


def test_no_data_is_an_error_that_says_what_is_read(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="no data at"):
        files_of(str(tmp_path))
    (tmp_path / "x.docx").write_text("x")
    with pytest.raises(BadRequest, match=r"is not read: its name ends in none of \.jsonl"):
        files_of(str(tmp_path / "x.docx"))


def test_a_folders_readme_is_no_row_beside_files_of_rows(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# About")
    assert [file.name for file in files_of(str(tmp_path))] == ["README.md"]
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    assert [file.name for file in files_of(str(tmp_path))] == ["rows.jsonl"]


def test_a_cell_of_a_table_may_be_a_long_document(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f'text\n"{"long, " * 50_000}"\n')
    assert [len(read.row["text"]) for read in read_rows(tmp_path / "a.csv")] == [300_000]

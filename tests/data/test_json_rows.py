"""A JSON file of any size is read a piece at a time, and says the same whatever the pieces are; where it is broken, the place is told."""
from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.data.json_rows import rows_of
from pellucid.errors import BadData

_VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
                       lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=6)
_ROWS = st.lists(st.dictionaries(st.text(), _VALUES, max_size=3), max_size=5)


def read(text: str, piece: int) -> list[Any]:
    return list(rows_of(io.StringIO(text), "x.json", piece))


@settings(max_examples=150, deadline=None)
@given(rows=_ROWS, facts=st.dictionaries(st.text(), st.integers() | st.lists(st.integers()), max_size=2), piece=st.integers(1, 60),
       indent=st.sampled_from([None, 1]), plain=st.booleans())
def test_rows_are_what_json_reads_whatever_the_pieces_are(rows: list[Any], facts: dict[str, Any], piece: int, indent: int | None, plain: bool) -> None:
    assert read(f" {json.dumps(rows, indent=indent, ensure_ascii=plain)}\n", piece) == rows
    if rows:
        assert read(json.dumps({**facts, "the rows": rows, "n": 1.5}, indent=indent), piece) == rows


@pytest.mark.parametrize(("text", "words"), [
    ('[{"a": 1},\n {"a": tru}]', "line 2 column 8: expecting value, found 'tru}]'. Mend it there"),
    ('[{"a": 1},\n {"a": "x', "line 2 column 8: unterminated string starting at"),
    ('[{"a": 1},\n {"a": 1', "line 2 column 9: expecting ',' delimiter, found the end of the file. Is the file whole?"),
    ('[{"a": 1},\n', "line 2 column 1: expecting value, found the end of the file"),
    ('[{"a": 1} {"a": 2}]', r"line 1 column 11: ',' was expected"),
    ('[{"a": 1},]', "a row was expected after the comma"),
    ('{"rows": [{"a": 1}], }', "a key was expected after the comma"),
    ('{"a": 1}\n', "without a list of objects"),
    ('{"a": 1}\n{"a": 2}', "several JSON values one after another, the second in line 2 column 1. If it has one a line, call it .jsonl"),
    ('[{"a": 1}]\n[{"a": 2}]', "several JSON values one after another, the second in line 2 column 1. If it has one a line, call it .jsonl"),
    ('{"x": [{}], "y": [{}]}', "two lists of objects, x and y"),
    ("7", "holds int"),
    (" ", "is empty"),
])
@pytest.mark.parametrize("piece", [1, 3, 1 << 20])
def test_a_broken_file_says_where(text: str, words: str, piece: int) -> None:
    with pytest.raises(BadData) as raised:
        read(text, piece)
    assert words.replace("\\", "") in str(raised.value)


def test_a_fault_near_the_beginning_is_told_before_the_rest_is_read() -> None:
    text = io.StringIO('[{"a": nothing}, ' + '{"a": 1}, ' * 100_000)
    with pytest.raises(BadData, match="line 1 column 8"):
        list(rows_of(text, "x.json", 1000))
    assert text.tell() <= 2000


def test_rows_come_before_the_file_is_read_to_its_end() -> None:
    text = io.StringIO("[" + ", ".join('{"a": 1}' for _ in range(100_000)) + "]")
    rows = rows_of(text, "x.json", 1000)
    assert [next(rows) for _ in range(50)] == [{"a": 1}] * 50
    assert text.tell() <= 2000

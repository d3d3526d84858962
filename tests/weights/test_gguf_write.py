"""The GGUF writer: byte for byte what the gguf package writes, in parts, and whole or not at all."""
from __future__ import annotations

import errno
import hashlib
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pellucid.errors import BadCheckpoint, BadRequest, DiskFull
from pellucid.weights.drafts import Planned
from pellucid.weights.gguf import Items, open_gguf, read_gguf
from pellucid.weights.gguf_write import Typed, copied, encode, planned, write_gguf
from tests.weights.test_gguf import PLAIN, written

METADATA: dict[str, Any] = {"general.architecture": "llama", **{f"x.{kind}": Typed(kind, value) for kind, value in {
    "uint8": 255, "int8": -128, "uint16": 65535, "int16": -5, "uint32": 1 << 31, "int32": -6, "float32": 0.5, "bool": True,
    "string": "é", "uint64": 1 << 63, "int64": -(1 << 62), "float64": 0.1}.items()},
    "x.texts": ["a", "", "ü"], "x.numbers": [1, -2, 3], "x.bools": [True, False]}
PACKED = np.arange(2 * 2 * 34, dtype=np.uint8).reshape(2, 68)
TYPES = {"float32": "F32", "float16": "F16"}


def of(name: str, array: np.ndarray) -> Planned:
    """The tensor, its bytes in pieces of seven."""
    raw = array.tobytes()
    return planned(name, TYPES[str(array.dtype)], array.shape, lambda: (raw[i : i + 7] for i in range(0, len(raw), 7)))


TENSORS = [*(of(name, array) for name, array in PLAIN.items()), planned("d.weight", "Q8_0", (2, 64), lambda: [memoryview(PACKED)])]


def test_the_file_is_byte_for_byte_the_packages(tmp_path: Path) -> None:
    counted: list[int] = []
    [mine] = write_gguf(tmp_path / "m.gguf", METADATA, TENSORS, report=counted.append)
    content = (tmp_path / "m.gguf").read_bytes()
    assert content == written(tmp_path / "theirs.gguf").read_bytes()
    assert (mine.path, mine.n_bytes, mine.sha256) == (tmp_path / "m.gguf", len(content), hashlib.sha256(content).hexdigest())
    assert sum(counted) == len(content)
    assert sorted(os.listdir(tmp_path)) == ["m.gguf", "theirs.gguf"]


def test_parts_hold_no_more_than_asked_for_and_are_read_as_one_model(tmp_path: Path) -> None:
    tensors = [of(f"t.{i}", np.full(100 + i, i, np.float32)) for i in range(7)]
    files = write_gguf(tmp_path / "m.gguf", METADATA, tensors, max_bytes=1500)
    n = len(files)
    assert n > 2
    assert [file.path.name for file in files] == [f"m-{i:05d}-of-{n:05d}.gguf" for i in range(1, n + 1)]
    assert all(file.n_bytes == file.path.stat().st_size <= 1500 for file in files)
    model = open_gguf(files[-1].path)
    assert list(model.tensors) == [tensor.name for tensor in tensors]
    for i, file in enumerate(files):
        theirs = gguf.GGUFReader(file.path)
        assert [theirs.fields[f"split.{key}"].contents() for key in ("no", "count", "tensors.count")] == [i, n, 7]
        assert [int(theirs.fields[f"split.{key}"].types[0]) for key in ("no", "count", "tensors.count")] == [2, 2, 5]  # what gguf-split writes
        for tensor in theirs.tensors:
            assert (tensor.data == int(tensor.name[2:])).all()
    assert "x.texts" not in gguf.GGUFReader(files[1].path).fields
    assert list(copied(model)) == list(METADATA)


def test_a_tensor_larger_than_a_part_has_one_to_itself(tmp_path: Path) -> None:
    sizes = (4, 500, 4)
    files = write_gguf(tmp_path / "m.gguf", {}, [of(f"t.{i}", np.ones(n, np.float32)) for i, n in enumerate(sizes)], max_bytes=700)
    assert [len(read_gguf(file.path).tensors) for file in files] == [1, 1, 1]
    [one] = write_gguf(tmp_path / "n.gguf", {}, [of("t", np.ones(4, np.float32))], max_bytes=700)
    assert one.path.name == "n.gguf"


def test_metadata_is_copied_bit_for_bit(tmp_path: Path) -> None:
    source = written(tmp_path / "a.gguf", alignment=64)
    model = open_gguf(source)
    write_gguf(tmp_path / "b.gguf", copied(model), TENSORS)
    assert list(copied(model)) == [key for key in model.metadata if key != "general.alignment"]
    again, theirs = read_gguf(tmp_path / "b.gguf"), gguf.GGUFReader(tmp_path / "b.gguf")
    for key, value in again.metadata.items():
        was = gguf.GGUFReader(source).fields[key]
        assert (theirs.fields[key].contents(), theirs.fields[key].types) == (was.contents(), was.types)
        assert not isinstance(value, Items) or value.values() == was.contents()


VALUES = (st.integers(-2**63, 2**63 - 1) | st.booleans() | st.text(max_size=5) | st.floats(width=32, allow_nan=False)
          | st.lists(st.integers(-2**62, 2**62)) | st.lists(st.text(max_size=4)) | st.lists(st.lists(st.booleans(), max_size=3), max_size=3))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(VALUES, max_size=5))
def test_any_metadata_is_read_as_it_was_written(tmp_path: Path, values: list[Any]) -> None:
    write_gguf(tmp_path / "m.gguf", {f"k.{i}": value for i, value in enumerate(values)}, [], overwrite=True)
    found = [value.values() if isinstance(value, Items) else value for value in read_gguf(tmp_path / "m.gguf").metadata.values()]
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


def test_whole_numbers_take_the_type_the_converter_gives_them() -> None:
    kinds = {1: "uint32", -1: "int32", 1 << 40: "uint64", -(1 << 40): "int64"}
    for value, kind in kinds.items():
        assert encode(value) == encode(Typed(kind, value))
    assert encode([1, 2]) == encode(Typed("int32", [1, 2]))
    assert encode([1 << 40]) == encode(Typed("int64", [1 << 40]))
    assert encode(encode("x")) == encode("x")


# whole or not at all

def test_what_is_there_stays_unless_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_text("mine")
    with pytest.raises(BadRequest, match=r"m\.gguf is there, and nothing was written\. Give another name, or --force to replace it"):
        write_gguf(path, {}, TENSORS)
    assert path.read_text() == "mine"
    write_gguf(path, {}, TENSORS, overwrite=True)
    assert len(read_gguf(path).tensors) == 4
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadRequest, match=r"folder is there and is no regular file; it stays what it is"):
        write_gguf(tmp_path / "folder", {}, TENSORS, overwrite=True)
    with pytest.raises(BadRequest, match=r"there is no folder .*nowhere to write m\.gguf to\. Make it first"):
        write_gguf(tmp_path / "nowhere/m.gguf", {}, TENSORS)


def test_the_disk_is_asked_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n = len(written(tmp_path / "theirs.gguf").read_bytes())
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 0, n - 1))
    with pytest.raises(DiskFull, match=rf"\({n:,} bytes\) are to be written, and .* \({n - 1:,} bytes\) are free in .* Nothing was written: make room") as full:
        write_gguf(tmp_path / "m.gguf", METADATA, TENSORS)
    assert (full.value.needed_bytes, full.value.free_bytes) == (n, n - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 0, n))
    write_gguf(tmp_path / "m.gguf", METADATA, TENSORS)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")])
def test_what_stops_midway_loses_nothing_and_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def fails() -> Iterator[bytes]:
        yield bytes(30)
        raise error

    tensors = [of(f"t.{i}", np.ones(200, np.float32)) for i in range(3)] + [planned("last", "F32", (20,), fails)]
    before = [file.path for file in write_gguf(tmp_path / "m.gguf", {}, [*tensors[:3], of("last", np.ones(20, np.float32))], max_bytes=1000)]
    contents = [path.read_bytes() for path in before]
    with pytest.raises(DiskFull if getattr(error, "errno", None) == errno.ENOSPC else type(error)) as raised:
        write_gguf(tmp_path / "m.gguf", {"k": 1}, tensors, max_bytes=1000, overwrite=True)
    assert [path.read_bytes() for path in before] == contents
    assert sorted(os.listdir(tmp_path)) == [path.name for path in before]
    if isinstance(raised.value, DiskFull):
        assert "It did not fit while it was written (No space left on device), and was taken away again" in str(raised.value)


def test_a_name_that_llama_cpp_would_refuse_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", {}, [planned("n" * 63, "F32", (1,), lambda: [bytes(4)])])
    with pytest.raises(BadCheckpoint, match=r"n{64} of shape \(1,\) cannot be written: llama\.cpp takes names of 63 bytes and 4 dimensions at most"):
        write_gguf(tmp_path / "n.gguf", {}, [planned("n" * 64, "F32", (1,), lambda: [bytes(4)])])
    assert os.listdir(tmp_path) == ["m.gguf"]


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path) -> None:
    alive = itertools.count()
    open_now: list[int] = []

    def read() -> Iterator[bytes]:
        assert not open_now, "the one before is not done"
        open_now.append(next(alive))
        yield bytes(8)
        open_now.clear()

    write_gguf(tmp_path / "m.gguf", {}, [planned(f"t.{i}", "F32", (2,), read) for i in range(4)])
    assert next(alive) == 4, "each is read once"

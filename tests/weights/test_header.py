"""The header reader against the safetensors library, and every way a file can be wrong."""
from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from pellucid.errors import BadHeader, PellucidError, TruncatedFile
from pellucid.weights.header import read_header

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.arange(5, dtype=torch.int64), "c": torch.tensor(True), "empty": torch.empty(0, 4)}


def file(folder: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """A file of this header, as JSON unless it is bytes, whose length field may lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(start: int, stop: int, shape: Any = None, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [stop - start] if shape is None else shape, "data_offsets": [start, stop]}


def message(path: Path, error: type[PellucidError]) -> str:
    with pytest.raises(error) as raised:
        read_header(path)
    return str(raised.value)


def test_it_reads_what_the_library_wrote(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"format": "pt", "note": "é"})
    header = read_header(tmp_path / "x.safetensors")
    assert header.metadata == {"format": "pt", "note": "é"}
    with safetensors.safe_open(tmp_path / "x.safetensors", "pt") as theirs:
        assert set(header.tensors) == set(theirs.keys())
        for name, mine in header.tensors.items():
            assert list(mine.shape) == theirs.get_slice(name).get_shape()
            assert mine.dtype == theirs.get_slice(name).get_dtype()
    raw = (tmp_path / "x.safetensors").read_bytes()
    for name, tensor in TENSORS.items():
        mine = header.tensors[name]
        assert raw[mine.start : mine.stop] == tensor.numpy().tobytes()
        assert mine.n_bytes == tensor.nbytes


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 400), byte=st.integers(0, 255), cut=st.integers(0, 40))
def test_what_it_accepts_the_library_accepts(tmp_path: Path, at: int, byte: int, cut: int) -> None:
    raw = bytearray(save(TENSORS))
    raw[at % len(raw)] = byte
    raw = raw[: len(raw) - cut] if cut < 20 else raw
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw)
    try:
        mine = read_header(path)
    except PellucidError:
        return
    theirs = dict(safetensors.deserialize(bytes(raw)))
    assert {name: list(e.shape) for name, e in mine.tensors.items()} == {name: t["shape"] for name, t in theirs.items()}
    assert all(bytes(raw[e.start : e.stop]) == bytes(theirs[name]["data"]) for name, e in mine.tensors.items())


@pytest.mark.parametrize("length", [10**6, 2**63])
def test_a_header_that_lies_about_its_length(tmp_path: Path, length: int) -> None:
    text = message(file(tmp_path, {}, b"1234", length=length), BadHeader)
    assert text.startswith(f"x.safetensors says that its header is {length:,} bytes long, and the file has 6 after that number")
    assert text.endswith("Is it a safetensors file, and whole?")


def test_a_git_lfs_pointer_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 99\n")
    assert message(path, BadHeader) == ("x.safetensors is a Git LFS pointer of 65 bytes, not the weights themselves. Fetch them with: git lfs pull")


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").touch()
    assert "has 0 bytes, and a safetensors file starts with 8" in message(tmp_path / "x.safetensors", TruncatedFile)


def test_a_file_cut_short_names_both_sizes(tmp_path: Path) -> None:
    raw = save({"a": torch.zeros(100)})
    (tmp_path / "x.safetensors").write_bytes(raw[:-1])
    text = message(tmp_path / "x.safetensors", TruncatedFile)
    assert text == f"x.safetensors has {len(raw) - 1:,} bytes, and its header describes {len(raw):,}. The download was cut short: fetch it again."


# In the expected words, {n} is the n-th byte of the data, counted from the beginning of the file.
WRONG = [
    (b"{nonsense", b"", "the header is not JSON"),
    (b"\xff\xfe", b"", "the header is not JSON"),
    (b"[" * 60_000, b"", "the header is not JSON"),
    ([], b"", "the header is a list, and an object of tensor names was expected"),
    ({"__metadata__": {"a": 1}}, b"", "__metadata__ of the header must map names to strings"),
    ({"a": 3}, b"", "a must have dtype, shape and data_offsets, found 3"),
    ({"a": entry(0, 2, dtype="F7")}, b"12", "a has the unknown dtype 'F7' (known: BOOL, "),
    ({"a": entry(0, 2, shape="2")}, b"12", "a has shape '2' and data_offsets [0, 2]; lists of counts"),
    ({"a": entry(0, 2, shape=[-2])}, b"12", "a has shape [-2] and data_offsets [0, 2]; lists of counts"),
    ({"a": entry(0, 2, shape=[True, 2])}, b"12", "a has shape [True, 2]"),
    ({"a": entry(2, 0, shape=[2])}, b"12", "a is U8 of shape (2,), which takes 2 bytes, and its data_offsets span -2"),
    ({"a": entry(0, 7, shape=[2], dtype="F32")}, b"1234567", "a is F32 of shape (2,), which takes 8 bytes, and its data_offsets span 7"),
    ({"a": entry(0, 1, shape=[3], dtype="F4")}, b"1", "a is F4 of shape (3,), which takes 1.5 bytes"),
    ({"a": entry(0, 3), "b": entry(2, 5)}, b"12345", "b starts at byte {2} and overlaps a, which ends at {3}"),
    ({"a": entry(0, 3), "b": entry(4, 5)}, b"12345", "b starts at byte {4} and leaves a gap after a, which ends at {3}"),
    ({"a": entry(0, 3)}, b"12345", "has {5} bytes, and its header describes only {3}. What the rest is, nothing says."),
    (b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1", "the header names 'a' twice"),
]


@pytest.mark.parametrize(("header", "data", "expected"), WRONG, ids=[text[-40:] for _, _, text in WRONG])
def test_a_header_that_contradicts_itself(tmp_path: Path, header: Any, data: bytes, expected: str) -> None:
    path = file(tmp_path, header, data)
    text = message(path, BadHeader)
    assert text.startswith("x.safetensors")
    start = path.stat().st_size - len(data)
    for n in range(6):
        expected = expected.replace(f"{{{n}}}", f"{start + n:,}")
    assert expected in text

"""The GGUF header reader against the gguf package, and every way a file can be wrong."""
from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pellucid.errors import BadCheckpoint, BadHeader, MissingShard, PellucidError, TruncatedFile, UnsupportedModel
from pellucid.weights.gguf import FORMATS, Items, open_gguf, read_gguf

PLAIN = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b.weight": np.arange(8, dtype=np.float16).reshape(1, 2, 4),
         "c": np.ones(5, np.float32)}


def written(path: Path, tensors: dict[str, np.ndarray] = PLAIN, alignment: int | None = None, **split: Any) -> Path:
    """A file by the gguf package: metadata of every type, plain tensors and a packed one."""
    writer = gguf.GGUFWriter(path, "llama", **split)
    if alignment:
        writer.add_custom_alignment(alignment)
    for kind, value in {"uint8": 255, "int8": -128, "uint16": 65535, "int16": -5, "uint32": 1 << 31, "int32": -6, "float32": 0.5, "bool": True,
                        "string": "é", "uint64": 1 << 63, "int64": -(1 << 62), "float64": 0.1}.items():
        getattr(writer, f"add_{kind}")(f"x.{kind}", value)
    writer.add_array("x.texts", ["a", "", "ü"])
    writer.add_array("x.numbers", [1, -2, 3])
    writer.add_array("x.bools", [True, False])
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    packed = np.arange(2 * 2 * 34, dtype=np.uint8).reshape(2, 68)
    writer.add_tensor("d.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    """`shape` as the file has it: the columns first."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def raw(pairs: Sequence[bytes] = (), tensors: Sequence[bytes] = (), data: bytes = b"", version: int = 3, n: tuple[int, int] | None = None) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, *(n or (len(tensors), len(pairs)))) + b"".join([*pairs, *tensors])
    return head + bytes(-len(head) % 32) + data if data else head


def message(path: Path, content: bytes, error: type[PellucidError]) -> str:
    path.write_bytes(content)
    with pytest.raises(error) as raised:
        read_gguf(path)
    return str(raised.value)


@pytest.mark.parametrize("alignment", [None, 64])
def test_it_reads_what_the_package_wrote(tmp_path: Path, alignment: int | None) -> None:
    path = written(tmp_path / "m.gguf", alignment=alignment)
    header, theirs = read_gguf(path), gguf.GGUFReader(path)
    assert header.version == 3
    assert header.alignment == (alignment or 32)
    assert {key for key in theirs.fields if not key.startswith("GGUF.")} == set(header.metadata)
    for key, value in header.metadata.items():
        assert (value.values() if isinstance(value, Items) else value) == theirs.fields[key].contents(), key
    assert isinstance(header.metadata["x.bool"], bool)
    texts = header.metadata["x.texts"]
    assert isinstance(texts, Items)
    assert (texts.kind, len(texts)) == ("string", 3)
    content = path.read_bytes()
    assert [each.name for each in theirs.tensors] == list(header.tensors)
    for each in theirs.tensors:
        mine = header.tensors[each.name]
        assert (mine.type, mine.start, mine.n_bytes) == (each.tensor_type.name, each.data_offset, each.n_bytes)
        assert mine.shape == tuple(reversed(each.shape.tolist()))
        assert content[mine.start : mine.stop] == each.data.tobytes()


def test_the_formats_are_those_of_the_package() -> None:
    theirs = {kind.value: (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType}
    # The package counts two float32 in it, and block_q8_1 of ggml-common.h has two halves; no file holds it.
    assert theirs.pop(9) == ("Q8_1", 32, 40)
    assert {number: tuple(format) for number, format in FORMATS.items() if format.name != "Q8_1"} == theirs


def test_version_2_is_read_alike(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf")
    three = read_gguf(path)
    path.write_bytes(path.read_bytes()[:4] + struct.pack("<I", 2) + path.read_bytes()[8:])
    two = read_gguf(path)
    assert (two.version, two.tensors, list(two.metadata)) == (2, three.tensors, list(three.metadata))


def test_arrays_inside_arrays(tmp_path: Path) -> None:
    inner = [struct.pack("<IQ", 8, 2) + text("a") + text("b"), struct.pack("<IQ", 5, 1) + struct.pack("<i", -7), struct.pack("<IQ", 9, 0)]
    path = tmp_path / "m.gguf"
    path.write_bytes(raw([pair("x", 9, struct.pack("<IQ", 9, 3) + b"".join(inner)), pair("y", 0, b"\5")]))
    metadata = read_gguf(path).metadata
    assert isinstance(metadata["x"], Items)
    assert metadata["x"].values() == [["a", "b"], [-7], []]
    assert metadata["y"] == 5


def test_a_broken_text_in_an_array_is_met_when_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(raw([pair("tokens", 9, struct.pack("<IQ", 8, 1) + text(b"\xff"))]))
    tokens = read_gguf(path).metadata["tokens"]
    assert isinstance(tokens, Items)
    with pytest.raises(BadHeader, match=r"m\.gguf: tokens is not UTF-8 \(invalid start byte at byte 62\)"):
        tokens.values()


def test_no_tensors_and_a_last_one_without_padding(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(raw([pair("y", 0, b"\5")]))
    assert read_gguf(path).tensors == {}
    path.write_bytes(raw(tensors=[tensor("a", (3,), 24, 0)], data=b"123"))
    assert read_gguf(path).tensors["a"].n_bytes == 3


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 1200), byte=st.integers(0, 255), cut=st.integers(0, 400))
def test_a_corrupted_file_is_an_error_or_reads_as_the_package_reads_it(tmp_path: Path, at: int, byte: int, cut: int) -> None:
    whole = tmp_path / "whole.gguf"
    content = bytearray((whole if whole.exists() else written(whole)).read_bytes())
    content[at % len(content)] = byte
    path = tmp_path / "m.gguf"
    path.write_bytes(content[: len(content) - cut] if cut < 200 else content)
    try:
        header = read_gguf(path)
        metadata = {key: value.values() if isinstance(value, Items) else value for key, value in header.metadata.items()}
    except PellucidError:
        return
    theirs = gguf.GGUFReader(path)
    assert {t.name: (t.tensor_type.name, t.data_offset, t.n_bytes) for t in theirs.tensors} == \
        {name: (e.type, e.start, e.n_bytes) for name, e in header.tensors.items()}
    for key, value in metadata.items():
        np.testing.assert_equal(value, theirs.fields[key].contents() if value != [] else [])  # numbers may be NaN


WRONG: list[tuple[bytes, type[PellucidError], str]] = [
    (b"PK\3\4" + bytes(99), BadHeader, "m.gguf starts with b'PK\\x03\\x04', and a GGUF file with b'GGUF'. Is it one?"),
    (b"", BadHeader, "m.gguf starts with b''"),
    (b"version https://git-lfs.github.com/spec/v1\n", BadHeader, "is a Git LFS pointer of 43 bytes, not the weights themselves. Fetch"),
    (b"GGUF\3\0\0\0", TruncatedFile, "m.gguf has 8 bytes, and a GGUF file starts with 24"),
    (raw(version=1), UnsupportedModel, "m.gguf is GGUF version 1, and versions 2 and 3 are read. Make it again with a newer llama.cpp."),
    (raw(version=4), UnsupportedModel, "m.gguf is GGUF version 4, and versions 2 and 3 are read. Is there a newer Pellucid?"),
    (raw(version=3 << 24), UnsupportedModel, "m.gguf is a big-endian GGUF file, and little-endian ones are read. Convert it"),
    (raw(n=(1 << 60, 0)), BadHeader, f"says that it describes {1 << 60:,} tensors, and 24 bytes have no room for them"),
    (raw(n=(0, 5)), BadHeader, "says that it describes 5 pairs of metadata, and 24 bytes have no room for them"),
    (raw([pair("a", 0, b"\1")], n=(1, 1)), TruncatedFile, "its header goes on past them, in the name of tensor 1: 8 more were expected at byte 38"),
    (raw([text(bytes(40))[:20]]), TruncatedFile, "in key 1 of the metadata: 40 more were expected at byte 32"),
    (raw([struct.pack("<Q", 1 << 62) + bytes(9)]), TruncatedFile, f"{1 << 62:,} more were expected"),
    (raw([pair("a", 13, bytes(8))]), BadHeader, "a has the unknown type 13 (known: uint8, int8"),
    (raw([pair("a", 9, struct.pack("<IQ", 13, 1) + bytes(8))]), BadHeader, "a has the unknown type 13"),
    (raw([pair("a", 9, struct.pack("<IQ", 4, 1 << 61))]), TruncatedFile, f"in a: {1 << 63:,} more were expected"),
    (raw([pair("a", 9, struct.pack("<IQ", 8, 1 << 61))]), BadHeader, f"a says that it has {1 << 61:,} items, and 0 bytes are left of the file"),
    (raw([pair("a", 9, struct.pack("<IQ", 9, 1) * 50)]), BadHeader, "a nests arrays more than 8 deep"),
    (raw([pair("a", 7, b"\2")]), BadHeader, "a is a bool, and holds 2 where 0 or 1 was expected"),
    (raw([pair("a", 8, text(b"\xff"))]), BadHeader, "a is not UTF-8 (invalid start byte at byte "),
    (raw([pair("", 0, b"\1")]), BadHeader, "key 1 of the metadata is empty"),
    (raw([pair("a", 0, b"\1"), pair("a", 0, b"\2")]), BadHeader, "key 2 of the metadata is 'a' a second time"),
    (raw([pair("general.alignment", 4, struct.pack("<I", 48))]), BadHeader, "general.alignment is 48, and a power of two was expected"),
    (raw([pair("general.alignment", 4, bytes(4))]), BadHeader, "general.alignment is 0, and a power of two"),
    (raw([pair("general.alignment", 8, text("32"))]), BadHeader, "general.alignment is '32', and a power of two"),
    (raw(tensors=[tensor("t", (1,) * 5, 0, 0)]), BadHeader, "t has 5 dimensions, and at most 4 were expected"),
    (raw(tensors=[tensor("t", (1,), 42, 0)]), UnsupportedModel, "t has the unknown type 42 (known: F32, F16, BF16, "),
    (raw(tensors=[tensor("t", (32,), 31, 0)]), UnsupportedModel, "t has type Q4_0_4_4, which ggml has given up. Make the file again"),
    (raw(tensors=[tensor("t", (33, 2), 2, 0)]), BadHeader, "t is Q4_0 of shape (2, 33), and its rows must be a multiple of 32 numbers long"),
    (raw(tensors=[tensor("t", (), 2, 0)]), BadHeader, "t is Q4_0 of shape (), and its rows must be a multiple of 32"),
    (raw(tensors=[tensor("t", (8,), 0, 0), tensor("t", (8,), 0, 32)], data=bytes(64)), BadHeader, "the header names 't' twice"),
    (raw(tensors=[tensor("t", (9,), 0, 0), tensor("u", (8,), 0, 32)], data=bytes(64)), BadHeader, "u starts at byte 128 and overlaps t"),
    (raw(tensors=[tensor("t", (8,), 0, 0), tensor("u", (8,), 0, 64)], data=bytes(96)), BadHeader, "u starts at byte 160 and leaves a gap after t"),
    (raw(tensors=[tensor("t", (8,), 0, 32)], data=bytes(64)), BadHeader, "t starts at byte 96 and leaves a gap after the header, which ends at 64"),
    (raw(tensors=[tensor("t", (8,), 0, 0)], data=bytes(31)), TruncatedFile, "m.gguf has 95 bytes, and its header describes 96. The download was"),
    (raw(tensors=[tensor("t", (1 << 63, 1 << 63, 1 << 63, 1 << 63), 0, 0)], data=bytes(32)), TruncatedFile, "bytes, and its header describes "),
    (raw(tensors=[tensor("t", (8,), 0, 0)], data=bytes(65)), BadHeader, "m.gguf has 129 bytes, and its header describes only 96. What the rest is"),
]


@pytest.mark.parametrize(("content", "error", "expected"), WRONG, ids=[expected[-40:] for _, _, expected in WRONG])
def test_a_file_that_lies(tmp_path: Path, content: bytes, error: type[PellucidError], expected: str) -> None:
    found = message(tmp_path / "m.gguf", content, error)
    assert found.startswith("m.gguf")
    assert expected in found


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    written(tmp_path / "m.gguf", split_max_tensors=2)
    return sorted(tmp_path.glob("m-*.gguf"))


def test_a_split_model_is_opened_by_any_of_its_parts(parts: list[Path], tmp_path: Path) -> None:
    assert [part.name for part in parts] == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    whole = open_gguf(written(tmp_path / "whole.gguf"))
    assert len(whole.files) == 1
    for part in parts:
        model = open_gguf(part)
        assert model.files == tuple(parts)
        assert model.metadata["x.string"] == "é"
        found, expected = ({name: (e.type, e.shape) for name, (_, e) in which.tensors.items()} for which in (model, whole))
        assert found == expected
        assert [i for i, _ in model.tensors.values()] == [0, 0, 1, 1]


def test_a_missing_part(parts: list[Path]) -> None:
    parts[1].unlink()
    with pytest.raises(MissingShard, match=r"1 of the 2 parts of m-00001-of-00002\.gguf are not there, first: m-00002-of-00002\.gguf\."):
        open_gguf(parts[0])


def test_a_part_of_another_name(parts: list[Path]) -> None:
    with pytest.raises(BadCheckpoint, match=r"other\.gguf says that it is part 2 of 2, .* it must be called NAME-00002-of-00002\.gguf"):
        open_gguf(parts[1].rename(parts[1].with_name("other.gguf")))


def test_a_part_twice(parts: list[Path]) -> None:
    parts[1].write_bytes(parts[0].read_bytes())
    with pytest.raises(BadCheckpoint, match=r"m-00002-of-00002\.gguf says that it is part 1 of 2\. Its name is that of another part"):
        open_gguf(parts[0])


def changed(path: Path, before: bytes, after: bytes) -> None:
    content = path.read_bytes()
    assert content.count(before) == 1
    path.write_bytes(content.replace(before, after))


def test_a_tensor_in_two_parts(parts: list[Path]) -> None:
    changed(parts[1], text("d.weight"), text("a.weight"))
    with pytest.raises(BadCheckpoint, match=r"a\.weight is in both m-00001-of-00002\.gguf and m-00002-of-00002\.gguf"):
        open_gguf(parts[0])


def test_parts_that_hold_fewer_tensors_than_the_first_counts(parts: list[Path]) -> None:
    changed(parts[0], pair("split.tensors.count", 5, struct.pack("<i", 4)), pair("split.tensors.count", 5, struct.pack("<i", 5)))
    with pytest.raises(BadCheckpoint, match=r"m-00001-of-00002\.gguf counts 5 tensors in all parts, and they hold 4"):
        open_gguf(parts[0])


def test_a_count_of_parts_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(raw([pair("split.count", 8, text("2"))]))
    with pytest.raises(BadHeader, match=r"m\.gguf: split\.count is '2', and a count was expected"):
        open_gguf(tmp_path / "m.gguf")

"""Importance matrices: both formats, against bytes laid out by hand and the gguf package, and what is refused."""
from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.errors import BadCheckpoint, BadHeader, BadRequest, ModelNotFound, PellucidError, TruncatedFile
from pellucid.weights.imatrix import Imatrix, Squares, read_imatrix, write_imatrix

Q, E = "blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"
IMATRIX = Imatrix({Q: Squares(torch.tensor([[2.0, 4.0, 8.0]]), torch.tensor([1024.0])),
                   E: Squares(torch.tensor([[3.0, 6.0], [0.0, 0.0], [5.0, 5.0]]), torch.tensor([3.0, 0.0, 1.0]))}, ("a.txt", "b.txt"), 2, 512)


def same(a: Imatrix, b: Imatrix) -> bool:
    return a.entries.keys() == b.entries.keys() and all(torch.equal(a.entries[name].sums, each.sums) and torch.equal(a.entries[name].counts, each.counts)
                                                        for name, each in b.entries.items())


def legacy(path: Path, *, tail: bytes = b"") -> Path:
    """Laid out by hand: one matrix of three columns, measured in two calls."""
    name = Q.encode()
    path.write_bytes(struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii3f", 2, 3, 1.0, 2.0, 6.0) + tail)
    return path


def theirs(path: Path, **tensors: np.ndarray) -> Path:
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["wiki.txt"])
    writer.add_uint32("imatrix.chunk_count", 7)
    writer.add_uint32("imatrix.chunk_size", 256)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_gguf_package_reads_what_is_written(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "a.gguf", IMATRIX)
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert {name: tensor.shape.tolist() for name, tensor in tensors.items()} == {  # columns first, and no more dimensions than ggml writes
        f"{Q}.in_sum2": [3], f"{Q}.counts": [1], f"{E}.in_sum2": [2, 3], f"{E}.counts": [1, 3]}
    assert tensors[f"{Q}.in_sum2"].data.tolist() == [2.0, 4.0, 8.0]
    assert tensors[f"{E}.counts"].data.ravel().tolist() == [3.0, 0.0, 1.0]
    facts = {key: reader.fields[key].contents() for key in ("general.type", "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size")}
    assert facts == {"general.type": "imatrix", "imatrix.datasets": ["a.txt", "b.txt"], "imatrix.chunk_count": 2, "imatrix.chunk_size": 512}


def test_what_the_gguf_package_writes_is_read(tmp_path: Path) -> None:
    sums = np.arange(6, dtype=np.float32).reshape(2, 3)
    path = theirs(tmp_path / "a.gguf", **{f"{E}.in_sum2": sums, f"{E}.counts": np.array([[2.0], [4.0]], np.float32), f"{E}.in_sum": sums})
    found = read_imatrix(path)
    assert (found.datasets, found.n_chunks, found.chunk) == (("wiki.txt",), 7, 256)
    assert found.importance(E, (2, 5, 3)).tolist() == [[0.0, 0.5, 1.0], [0.75, 1.0, 1.25]]


def test_a_round_trip_is_exact(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "a.gguf", IMATRIX)
    found = read_imatrix(tmp_path / "a.gguf")
    assert same(found, IMATRIX)
    assert (found.datasets, found.n_chunks, found.chunk) == (("a.txt", "b.txt"), 2, 512)


@pytest.mark.parametrize(("tail", "n_chunks", "datasets"), [(b"", 2, ()), (struct.pack("<ii", 9, 5) + b"w.txt", 9, ("w.txt",))])
def test_the_older_format_is_read_with_and_without_its_end(tmp_path: Path, tail: bytes, n_chunks: int, datasets: tuple[str, ...]) -> None:
    found = read_imatrix(legacy(tmp_path / "a.dat", tail=tail))
    assert found.importance(Q, (7, 3)).tolist() == [0.5, 1.0, 3.0]
    assert (found.n_chunks, found.datasets) == (n_chunks, datasets)


def test_the_older_format_is_written_as_laid_out(tmp_path: Path) -> None:
    imatrix = Imatrix({Q: Squares(torch.tensor([[512.0, 1024.0, 3072.0]]), torch.tensor([1024.0]))}, ("x.txt", "w.txt"), 9, 512)
    write_imatrix(tmp_path / "a.dat", imatrix)
    assert (tmp_path / "a.dat").read_bytes() == legacy(tmp_path / "b.dat", tail=struct.pack("<ii", 9, 5) + b"w.txt").read_bytes()


def test_experts_of_the_older_format_are_told_apart_by_the_matrix(tmp_path: Path) -> None:
    """Those that no token chose are written as ones, as llama.cpp does."""
    write_imatrix(tmp_path / "a.dat", IMATRIX)
    found = read_imatrix(tmp_path / "a.dat")
    assert found.importance(E, (3, 4, 2)).tolist() == [[1.0, 2.0], [1.0, 1.0], [5.0, 5.0]]


def test_experts_that_no_token_chose_count_like_the_others() -> None:
    assert IMATRIX.importance(E, (3, 4, 2)).tolist() == [[1.0, 2.0], [3.0, 3.5], [5.0, 5.0]]
    assert IMATRIX.n_unseen == 1
    nobody = Imatrix({E: Squares(torch.zeros(2, 2), torch.zeros(2))})
    assert nobody.importance(E, (2, 4, 2)) is None


def test_what_was_not_measured_has_no_importance() -> None:
    assert IMATRIX.importance("blk.9.attn_q.weight", (7, 3)) is None


@pytest.mark.parametrize("shape", [(7, 4), (2, 7, 4), (7, 1)])
def test_an_imatrix_of_another_model_is_refused(shape: tuple[int, ...]) -> None:
    told = " x ".join(map(str, shape))
    with pytest.raises(BadCheckpoint, match=rf"the imatrix: blk.0.attn_q.weight has 1 x 3 numbers, and the matrix is {told}. Was it made from this model\?"):
        IMATRIX.importance(Q, shape)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_what_is_no_sum_of_squares_is_refused(value: float) -> None:
    for broken in (Squares(torch.tensor([[1.0, value]]), torch.ones(1)), Squares(torch.ones(1, 2), torch.tensor([value]))):
        with pytest.raises(BadCheckpoint, match=r"the imatrix: blk.0.attn_q.weight holds what is no sum of squares. Make it again: pellucid imatrix"):
            Imatrix({Q: broken}).importance(Q, (4, 2))


def test_no_file_and_no_format(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no such file: .*a.gguf. An imatrix is made with: pellucid imatrix MODEL --text FILE -o a.gguf"):
        read_imatrix(tmp_path / "a.gguf")
    with pytest.raises(BadRequest, match=r"a.bin says no format: an imatrix is written as .gguf, or as .dat"):
        write_imatrix(tmp_path / "a.bin", IMATRIX)
    write_imatrix(tmp_path / "a.dat", IMATRIX)
    with pytest.raises(BadRequest, match=r"a.dat is there, and nothing was written"):
        write_imatrix(tmp_path / "a.dat", IMATRIX)
    write_imatrix(tmp_path / "a.dat", IMATRIX, overwrite=True)


ROW, COUNT = np.ones((2, 3), np.float32), np.ones((2, 1), np.float32)


@pytest.mark.parametrize(("tensors", "message"), [
    ({f"{E}.in_sum2": ROW}, r"a.gguf has blk.0.ffn_up_exps.weight.in_sum2 and no blk.0.ffn_up_exps.weight.counts. Is the file whole\?"),
    ({f"{E}.in_sum2": ROW, f"{E}.counts": COUNT.astype(np.float16)}, r"weight.in_sum2 and .*weight.counts are not both F32"),
    ({f"{E}.in_sum2": ROW, f"{E}.counts": np.ones((3, 1), np.float32)}, r"has 2 rows of sums and 3 counts, and one for each was expected"),
    ({f"{E}.counts": COUNT}, r"says that it is an imatrix, and holds no sums: no tensor's name ends with .in_sum2")])
def test_gguf_files_that_contradict_themselves(tmp_path: Path, tensors: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(BadHeader, match=message):
        read_imatrix(theirs(tmp_path / "a.gguf", **tensors))


def test_a_model_is_no_imatrix(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(BadHeader, match=r"a.gguf is of general.type None, and an imatrix was expected"):
        read_imatrix(tmp_path / "a.gguf")


@pytest.mark.parametrize(("raw", "error", "message"), [
    (b"", TruncatedFile, r"a.dat has 0 bytes, and 4 more were expected at byte 0, for the number of entries. Is it an imatrix, and whole\?"),
    (struct.pack("<i", 0), BadHeader, r"a.dat has 0 entries, and some were expected"),
    (struct.pack("<ii", 1, 2**31 - 1), TruncatedFile, r"2,147,483,647 more were expected at byte 8, for a name"),
    (struct.pack("<ii", 1, -5), TruncatedFile, r"-5 more were expected"),
    (struct.pack("<ii1sii", 1, 1, b"q", 0, 4), BadHeader, r"a.dat: q has 4 numbers of 0 calls, and some of each were expected"),
    (struct.pack("<ii1sii", 1, 1, b"q", 1, 400), TruncatedFile, r"1,600 more were expected at byte 17, for the numbers of q")])
def test_older_files_that_are_none(tmp_path: Path, raw: bytes, error: type[PellucidError], message: str) -> None:
    (tmp_path / "a.dat").write_bytes(raw)
    with pytest.raises(error, match=message):
        read_imatrix(tmp_path / "a.dat")


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 200), byte=st.integers(0, 255), cut=st.integers(0, 200), kind=st.sampled_from(["a.dat", "a.gguf"]))
def test_a_corrupted_file_is_an_error_or_read(tmp_path_factory: pytest.TempPathFactory, at: int, byte: int, cut: int, kind: str) -> None:
    path = tmp_path_factory.mktemp("imatrix") / kind
    write_imatrix(path, IMATRIX)
    raw = bytearray(path.read_bytes())
    raw[at % len(raw)] = byte
    path.write_bytes(raw[: len(raw) - cut] if cut < len(raw) else raw)
    try:
        found = read_imatrix(path)
    except PellucidError:
        return
    assert all(entry.sums.ndim == 2 and len(entry.counts) == len(entry.sums) for entry in found.entries.values())

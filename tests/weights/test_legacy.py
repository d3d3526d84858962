"""Legacy pickles: tensors come out, programs do not run."""
from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from pellucid.errors import BadCheckpoint, PellucidError, TruncatedFile, UnsafePickle
from pellucid.weights.legacy import read_pickle

W = torch.arange(12.0).view(4, 3)


class Program:
    """Unpickled by an unguarded loader, this writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def message(path: Path, error: type[PellucidError]) -> str:
    with pytest.raises(error) as raised:
        read_pickle(path)
    assert type(raised.value) is error
    return str(raised.value)


@pytest.mark.parametrize("zipped", [True, False], ids=["torch 1.6 and later", "before"])
def test_tensors_and_what_they_share(tmp_path: Path, zipped: bool) -> None:
    state = OrderedDict(a=W, tied=W, part=W[1:], turned=W.T, half=W.bfloat16(), parameter=torch.nn.Parameter(W + 1))
    torch.save(state, tmp_path / "x.bin", _use_new_zipfile_serialization=zipped)
    mine = read_pickle(tmp_path / "x.bin")
    assert list(mine) == list(state)
    for name, tensor in state.items():
        assert mine[name].equal(tensor)
        assert not mine[name].requires_grad
    assert mine["a"].data_ptr() == mine["tied"].data_ptr() == mine["turned"].data_ptr()
    assert mine["part"].data_ptr() == mine["a"].data_ptr() + 3 * 4


def test_writing_to_a_tensor_changes_no_file(tmp_path: Path) -> None:
    torch.save({"a": W}, tmp_path / "x.bin")
    before = (tmp_path / "x.bin").read_bytes()
    read_pickle(tmp_path / "x.bin")["a"].fill_(7.0)
    assert (tmp_path / "x.bin").read_bytes() == before


@pytest.mark.parametrize("zipped", [True, False])
def test_a_program_is_refused_and_does_not_run(tmp_path: Path, zipped: bool) -> None:
    torch.save({"a": W, "b": Program(tmp_path / "ran")}, tmp_path / "x.bin", _use_new_zipfile_serialization=zipped)
    text = message(tmp_path / "x.bin", UnsafePickle)
    assert text.startswith("x.bin asks to load posix.system, which is not a tensor, and was refused.")
    assert text.endswith("Ask for the same weights as safetensors, or convert the file on a machine you can lose.")
    assert not (tmp_path / "ran").exists()


def test_a_module_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.nn.Linear(2, 2)}, tmp_path / "x.bin")
    assert message(tmp_path / "x.bin", UnsafePickle).startswith("x.bin asks to load torch.nn.modules.linear.Linear, which is not a tensor")


def test_a_plain_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(pickle.dumps(Program(tmp_path / "ran")))
    assert message(tmp_path / "x.bin", UnsafePickle).startswith("x.bin asks for more than tensors and was refused (Unsupported operand 149)")
    assert not (tmp_path / "ran").exists()


def test_a_file_cut_short(tmp_path: Path) -> None:
    torch.save({"a": W}, tmp_path / "x.bin")
    raw = (tmp_path / "x.bin").read_bytes()
    (tmp_path / "x.bin").write_bytes(raw[:-300])
    text = message(tmp_path / "x.bin", TruncatedFile)
    assert text.startswith(f"x.bin ({len(raw) - 300:,} bytes) is not a whole torch file: PytorchStreamReader failed")
    assert text.endswith("failed finding central directory. Fetch it again.")


@pytest.mark.parametrize(("content", "expected"), [
    (b"", "x.bin (0 bytes) does not start as a torch file does, but with b'': is it the right file, and whole?"),
    (b"<html>not found</html>", "x.bin (22 bytes) does not start as a torch file does, but with b'<html>no': is it the right file, and whole?"),
    (b"version https://git-lfs", "x.bin (23 bytes) does not start as a torch file does, but with b'version ': a Git LFS pointer: fetch the file itself "
                                 "with git lfs pull")])
def test_something_else_altogether(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "x.bin").write_bytes(content)
    assert message(tmp_path / "x.bin", TruncatedFile) == expected


@pytest.mark.parametrize(("content", "expected"), [
    ([W], "x.bin holds a list, and a dict of tensors was expected"),
    ({"a": W, "epoch": 3, 4: W}, "x.bin holds 2 entries that are not tensors, first: 'epoch' (int), 4 (Tensor). Is it a training checkpoint? "
                                 "The model's own state dict is what is expected.")])
def test_something_other_than_a_state_dict(tmp_path: Path, content: Any, expected: str) -> None:
    torch.save(content, tmp_path / "x.bin")
    assert message(tmp_path / "x.bin", BadCheckpoint) == expected


@pytest.mark.parametrize(("tensor", "kind"), [
    (W.to(torch.complex128), "torch.complex128"),
    (W.to_sparse(), "torch.sparse_coo torch.float32"),
    (torch.empty(2, device="meta"), "meta torch.float32"),
], ids=["complex", "sparse", "meta"])
def test_tensors_that_are_not_plain_numbers_are_refused_by_name(tmp_path: Path, tensor: torch.Tensor, kind: str) -> None:
    torch.save({"a": W, "odd": tensor}, tmp_path / "x.bin")
    assert message(tmp_path / "x.bin", BadCheckpoint) == (
        f"x.bin holds 1 tensors that are not plain numbers, first: odd ({kind}). "
        f"Fetch the weights as they were before they were packed, or as safetensors.")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # torch means to drop them
def test_quantized_tensors_are_refused_by_name(tmp_path: Path) -> None:
    torch.save({"a": torch.quantize_per_tensor(W, 0.1, 0, torch.qint8)}, tmp_path / "x.bin")
    assert "1 tensors that are not plain numbers, first: a (torch.qint8)" in message(tmp_path / "x.bin", BadCheckpoint)

"""Tensors of GGUF files against the gguf package's reader."""
from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from pellucid.weights.gguf import BY_NAME
from pellucid.weights.gguf_file import DTYPES, GgufFile
from pellucid.weights.packed_rows import PackedRows
from tests.weights.test_gguf import pair, raw, tensor


def written(path: Path, formats: list[str], shape: tuple[int, ...]) -> Path:
    """Random bytes in each of the formats, as the gguf package lays them out."""
    writer, random = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    for name in formats:
        of = BY_NAME[name]
        content = random.integers(0, 256, (*shape[:-1], shape[-1] // of.n_numbers * of.n_bytes), dtype=np.uint8)
        writer.add_tensor(f"{name}.weight", content, raw_dtype=gguf.GGMLQuantizationType[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("shape", [(3, 512), (2, 3, 256), (256,)], ids=str)
def test_tensors_are_those_of_the_package(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = written(tmp_path / "m.gguf", sorted(set(BY_NAME) - {"Q8_1"}), shape)
    ours = GgufFile(path)
    theirs = {each.name: each for each in gguf.GGUFReader(path).tensors}
    assert set(theirs) == set(ours.header.tensors)
    for name, each in theirs.items():
        mine = ours.tensor(name)
        assert mine.shape == shape
        content = mine.bytes if isinstance(mine, PackedRows) else mine.contiguous().view(torch.uint8)
        assert content.numpy().tobytes() == each.data.tobytes()
        assert isinstance(mine, PackedRows) == (each.tensor_type.name not in DTYPES)


def test_a_tensor_is_read_where_it_lies_and_again_after_its_memory_was_given_back(tmp_path: Path) -> None:
    file = GgufFile(written(tmp_path / "m.gguf", ["Q4_0", "F32"], (64, 4096)))
    one, two = (file.tensor("Q4_0.weight") for _ in range(2))
    assert isinstance(one, PackedRows)
    assert isinstance(two, PackedRows)
    assert one.bytes.data_ptr() == two.bytes.data_ptr()
    before = one.bytes.clone()
    file.release("Q4_0.weight")
    assert torch.equal(one.bytes, before)


def test_numbers_that_lie_anywhere_and_tensors_without_any(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    tensors = [tensor("a", (1,), 25, 0), tensor("b", (2,), 0, 2), tensor("e", (0, 3), 0, 10)]
    head = raw([pair("general.alignment", 4, b"\2\0\0\0")], tensors)
    path.write_bytes(head + bytes(len(head) % 2) + np.int16(7).tobytes() + np.array([1.5, -2], np.float32).tobytes())
    file = GgufFile(path)
    assert file.header.tensors["b"].start % 4
    assert file.tensor("a").tolist() == [7]
    assert file.tensor("b").tolist() == [1.5, -2.0]
    assert file.tensor("e").shape == (3, 0)

"""Mapped tensors against the safetensors library's own."""
from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pellucid.errors import UnsupportedModel
from pellucid.weights.safetensors import DTYPES, SafetensorsFile, write


def some(dtype: torch.dtype) -> torch.Tensor:
    raw = torch.randint(0, 2 if dtype is torch.bool else 100, (3, 4 * dtype.itemsize), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return raw.view(dtype)


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_dtype_is_read_bit_for_bit(tmp_path: Path, name: str) -> None:
    tensor = some(DTYPES[name])
    save_file({"x": tensor, "scalar": tensor[0, 0].clone(), "empty": tensor[:0].clone()}, tmp_path / "f")
    file, theirs = SafetensorsFile(tmp_path / "f"), load_file(tmp_path / "f")
    for key, expected in theirs.items():
        mine = file.tensor(key)
        assert (mine.dtype, mine.shape) == (expected.dtype, expected.shape)
        assert mine.contiguous().view(-1).view(torch.uint8).equal(expected.contiguous().view(-1).view(torch.uint8))


def test_a_tensor_is_a_view_of_the_map(tmp_path: Path) -> None:
    save_file({"x": torch.arange(10.0)}, tmp_path / "f")
    file = SafetensorsFile(tmp_path / "f")
    a, b = file.tensor("x"), file.tensor("x")
    assert a.data_ptr() == b.data_ptr()
    a[3] = 99.0
    assert b[3] == 99.0


def test_writing_to_a_tensor_changes_no_file(tmp_path: Path) -> None:
    save_file({"x": torch.arange(10.0)}, tmp_path / "f")
    before = (tmp_path / "f").read_bytes()
    SafetensorsFile(tmp_path / "f").tensor("x").fill_(7.0)
    assert (tmp_path / "f").read_bytes() == before


def test_a_tensor_outlives_its_file_object(tmp_path: Path) -> None:
    save_file({"x": torch.arange(10.0)}, tmp_path / "f")
    tensor = SafetensorsFile(tmp_path / "f").tensor("x")
    (tmp_path / "f").unlink()
    assert tensor.equal(torch.arange(10.0))


def test_a_tensor_that_starts_between_numbers_is_read_too(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
                         "x": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]}}).encode()
    (tmp_path / "f").write_bytes(struct.pack("<Q", len(header)) + header + b"\7" + struct.pack("<ff", 1.5, -2.0))
    tensor = SafetensorsFile(tmp_path / "f").tensor("x")
    assert tensor.tolist() == [1.5, -2.0]
    assert tensor.data_ptr() % 4 == 0


def test_a_number_format_without_tensors_is_refused_by_name(tmp_path: Path) -> None:
    header = json.dumps({"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "f").write_bytes(struct.pack("<Q", len(header)) + header + b"\7")
    with pytest.raises(UnsupportedModel, match=r"^x in f is stored as F4, which Pellucid does not read \(reads: BOOL, "):
        SafetensorsFile(tmp_path / "f").tensor("x")


def resident(address: int) -> int:
    """Kilobytes in memory of the mapping that holds this address, as Linux counts them."""
    at_it = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            start, stop = (int(x, 16) for x in head.split("-"))
            at_it = start <= address < stop
        elif at_it and head == "Rss:":
            return int(line.split()[1])
    raise AssertionError("no mapping holds this address")


@pytest.mark.linux
def test_released_memory_goes_back_and_the_values_stay(tmp_path: Path) -> None:
    x = torch.arange(1 << 20, dtype=torch.float32)  # 4 MiB
    save_file({"x": x, "y": x + 1}, tmp_path / "f")
    file = SafetensorsFile(tmp_path / "f")
    tensor = file.tensor("x")
    assert resident(tensor.data_ptr()) < 256, "mapping alone reads next to nothing"
    tensor.sum(), file.tensor("y").sum()
    assert resident(tensor.data_ptr()) > 8000
    file.release("x")
    assert 4000 < resident(tensor.data_ptr()) < 4400
    file.release()
    assert resident(tensor.data_ptr()) < 256
    assert tensor.equal(x)
    assert file.tensor("y").equal(x + 1)


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    write(tmp_path / "f", {"x": torch.arange(3.0)}, {"note": "n"})
    assert load_file(tmp_path / "f")["x"].tolist() == [0.0, 1.0, 2.0]
    assert SafetensorsFile(tmp_path / "f").header.metadata == {"format": "pt", "note": "n"}

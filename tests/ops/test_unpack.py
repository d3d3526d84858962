"""Every packed format against the gguf package, over random bits."""
from __future__ import annotations

import gguf
import gguf.quants
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from pellucid.errors import UnsupportedModel
from pellucid.ops.codebooks import grid
from pellucid.ops.unpack import UNPACK, unpack
from pellucid.weights.gguf import BY_NAME, FORMATS
from pellucid.weights.packed_rows import PackedRows


def random_rows(name: str, n_rows: int, n_blocks: int, seed: int = 0) -> PackedRows:
    """Rows of random bytes: every bit pattern is a block, though its scale may be infinite or none."""
    raw = np.random.default_rng(seed).integers(0, 256, (n_rows, n_blocks * BY_NAME[name].n_bytes), dtype=np.uint8)
    return PackedRows(torch.from_numpy(raw), name)


def theirs(rows: PackedRows) -> torch.Tensor:
    with np.errstate(all="ignore"):  # infinite scales
        return torch.from_numpy(gguf.quants.dequantize(rows.bytes.numpy(), GGMLQuantizationType[rows.format]).reshape(rows.shape))


def same_bits(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal to the last bit, signs of zero too; which NaN is not told apart."""
    return found.dtype == expected.dtype == torch.float32 and bool(((found.view(torch.int32) == expected.view(torch.int32))
                                                                   | (found.isnan() & expected.isnan())).all())


@pytest.mark.parametrize("name", UNPACK)
def test_any_bits_mean_what_the_package_says(name: str) -> None:
    rows = random_rows(name, 7, 60)
    found = unpack(rows)
    assert same_bits(found, theirs(rows))
    assert found.isfinite().float().mean() > 0.9  # so it was numbers that were compared


def test_the_formats_are_all_that_the_package_unpacks() -> None:
    known = {"F32", "F16", *(kind.name for kind in gguf.quants._type_traits)}
    assert set(UNPACK) == known


@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S"])
def test_the_grids_are_the_published_ones(name: str) -> None:
    cls = getattr(gguf.quants, name)
    cls.init_grid()
    assert torch.equal(grid(name, torch.device("cpu")), torch.from_numpy(cls.grid[0, 0]))


@pytest.mark.parametrize("name", ["Q4_0", "MXFP4", "NVFP4"])
def test_every_byte_of_a_scale(name: str) -> None:
    """Zeros, subnormals, the largest and what is no number among them."""
    raw = torch.arange(256, dtype=torch.uint8)[:, None].expand(-1, BY_NAME[name].n_bytes).contiguous()
    assert same_bits(unpack(PackedRows(raw, name)), theirs(PackedRows(raw, name)))


def test_experts_in_one_tensor_are_unpacked_together() -> None:
    rows = random_rows("Q4_K", 6, 2)
    stacked = PackedRows(rows.bytes.view(2, 3, -1), "Q4_K")
    assert stacked.shape == (2, 3, 512)
    assert same_bits(unpack(stacked).view(6, 512), unpack(rows))


@pytest.mark.parametrize("name", sorted({format.name for format in FORMATS.values()} - set(UNPACK)))
def test_other_formats_are_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedModel, match=rf"weights in the format {name} are not read \(read: F32, F16, BF16, Q4_0, .*NVFP4\)"):
        unpack(random_rows(name, 1, 1))


def test_rows_are_cut_without_copying_and_picked_by_copying() -> None:
    rows = random_rows("Q6_K", 5, 1)
    assert rows.shape == (5, 256)
    assert rows[1:3].bytes.data_ptr() == rows.bytes[1].data_ptr()
    assert same_bits(unpack(rows[1:3]), unpack(rows)[1:3])
    picked = rows[torch.tensor([4, 0, 4])]
    assert same_bits(unpack(picked), unpack(rows)[[4, 0, 4]])

"""Small checkpoints whose matrices are packed by these tests themselves, in numpy, from what the formats' authors say of them."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.errors import PellucidError
from pellucid.model.decoder import Decoder
from pellucid.model.load import load_decoder
from pellucid.model.report import LoadReport
from pellucid.ops.unpack import unpack
from pellucid.weights.packed_rows import PackedWeight
from tests.weights.build import llama, write

# Every width a multiple of 32, as the packers want it, and no two alike.
SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16}
IDS = torch.randint(3, 50, (31,), generator=torch.Generator().manual_seed(1))
Files = dict[str, Tensor]
Packer = Callable[[str, int, int, int], tuple[Files, Tensor]]  # module, rows, columns, seed -> its tensors, and the numbers they mean


def drawn(low: int, high: int, *shape: int, seed: int) -> NDArray[np.int64]:
    """Whole numbers from low to high - 1."""
    return np.random.default_rng(seed).integers(low, high, shape)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scales(*shape: int, seed: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return (noise(*shape, seed=seed).abs() / 60 + 0.004).to(dtype)


def words(codes: NDArray[np.int64], bits: int) -> NDArray[np.int32]:
    """Codes (n, m) one after another in a row of bits, the lowest first, as words: (n, m * bits / 32)."""
    row_bytes = codes.shape[1] * bits // 8
    rows = [sum(int(code) << bits * i for i, code in enumerate(row)).to_bytes(row_bytes, "little") for row in codes]
    return np.array([np.frombuffer(row, dtype="<i4") for row in rows])


def spell(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def files(packer: Packer, *, packed: Callable[[str], bool] = lambda module: "proj" in module, base: Files | None = None) -> tuple[Files, Files]:
    """(tensors of a packed checkpoint, the same with each matrix as the numbers it means); the rest is plain and in float32."""
    theirs, plain = {}, {}
    for i, (name, tensor) in enumerate((llama(**SIZES) if base is None else base).items()):
        module = name.removesuffix(".weight")
        if not packed(module):
            theirs[name] = plain[name] = tensor
            continue
        parts, plain[name] = packer(module, tensor.shape[0], tensor.shape[1], i)
        theirs |= parts
    return theirs, plain


def logits(folder: Path, dtype: str = "float32", *, wide: bool = False) -> Tensor:
    """wide: computed in float64 by the reference operations."""
    decoder, _ = load_decoder(folder, dtype=dtype, activations="exact", ops="reference" if wide else "auto")
    with torch.no_grad():
        return (decoder.double() if wide else decoder).unembed(decoder(IDS))


def weight(decoder: Decoder, name: str) -> PackedWeight:
    """The packed weight of one of our modules."""
    found = decoder.get_submodule(name).weight
    assert isinstance(found, PackedWeight)
    return found


def runs_as(tmp_path: Path, packed: Files, plain: Files, quantization: dict[str, Any] | None, **config: Any) -> LoadReport:
    """The packed checkpoint computes what its plain numbers compute, holds exactly those, and keeps its matrices packed: the report of loading it."""
    config = SIZES | config
    named = {} if quantization is None else {"quantization_config": quantization}
    folder, dense = write(tmp_path / "packed", packed, **config, **named), write(tmp_path / "plain", plain, **config)
    theirs, ours = logits(dense), logits(folder)
    assert (ours - theirs).abs().max() < 2e-5 * theirs.abs().max()
    decoder, report = load_decoder(folder, dtype="float32", activations="exact")
    expected, _ = load_decoder(dense, dtype="float32")
    n_packed = 0
    for name, module in decoder.named_modules():
        held = getattr(module, "weight", None)
        if isinstance(held, PackedWeight):
            n_packed += 1
            assert torch.equal(unpack(held), expected.get_submodule(name).weight), name
    assert n_packed
    return report


def refused(tmp_path: Path, kind: type[PellucidError], message: str, tensors: Files, quantization: dict[str, Any], **config: Any) -> None:
    folder = write(tmp_path / "m", {name: tensor.contiguous() for name, tensor in tensors.items()}, quantization_config=quantization, **(SIZES | config))
    with pytest.raises(kind) as refusal:
        load_decoder(folder)
    assert message in str(refusal.value)

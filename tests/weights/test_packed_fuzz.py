"""Settings may say anything and tensors may be of any size: what comes of it is a matrix, or an error of our own."""
from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pellucid.errors import PellucidError
from pellucid.weights.checkpoint import Stored
from pellucid.weights.packed import find_packed
from pellucid.weights.safetensors import SPELLED
from tests.weights import test_awq as awq
from tests.weights import test_bitsandbytes as bitsandbytes
from tests.weights import test_compressed_tensors as compressed
from tests.weights import test_fp8 as fp8
from tests.weights import test_gptq as gptq

NUMBERS = st.integers() | st.sampled_from([0, 1, -1, 2, 3, 4, 8, 16, 32, 64, 10**12, 2**63]) | st.floats()
JSON = st.recursive(st.none() | st.booleans() | NUMBERS | st.text(max_size=5)
                    | st.sampled_from(["gptq", "awq", "group", "block", "re:(", "re:.*", "Linear", "float", "+:(", "gemv", "pack-quantized", "static"]),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.sampled_from(["x.y", "+:.*", "+:(", "weights"]),
                                                                                inner, max_size=3), max_leaves=5)
CASES = {"gptq": (gptq.packer(ordered=True), gptq.CONFIG | {"desc_act": True, "dynamic": {"+:z": {"bits": 4}}}), "awq": (awq.packer(), awq.CONFIG),
         "gemv": (awq.packer(version="gemv"), awq.CONFIG | {"version": "gemv"}), "nf4": (bitsandbytes.packer(nested=64), bitsandbytes.CONFIG),
         "int8": (bitsandbytes.eight, bitsandbytes.EIGHT), "fp8": (fp8.packer(), fp8.CONFIG),
         "packed": (compressed.packer(symmetric=False), compressed.config(symmetric=False)),
         "blocks": (compressed.packer("float-quantized", 8, "block", kind="float"),
                    compressed.config("float-quantized", num_bits=8, type="float", strategy="block", group_size=None, block_structure=[48, 24]))}


def places(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every key of nested settings."""
    return [each for key, inner in value.items() for each in ((*path, key), *places(inner, (*path, key)))] if isinstance(value, dict) else []


def attempt(config: Any, tensors: dict[str, Tensor], folder: Path) -> None:
    """Everything there is to find and to build."""
    stored = {name: Stored("m", SPELLED[t.dtype], tuple(t.shape), t.nbytes) for name, t in tensors.items()}

    def peek(name: str) -> bytes:
        return tensors[name].reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()

    try:
        found = find_packed({"quantization_config": config}, folder, stored, peek)
        for packed in found.matrices.values() if found else ():
            assert packed.build({role: tensors[part] for role, part in packed.parts.items()}).shape == packed.shape
    except PellucidError:
        return


@pytest.mark.parametrize("name", CASES)
def test_any_value_of_any_setting_is_read_or_refused(name: str, tmp_path: Path) -> None:
    packer, whole = CASES[name]
    tensors, _ = packer("x", 96, 64, 1)

    @settings(max_examples=150, deadline=None, database=None)
    @given(st.sampled_from(places(whole)), JSON)
    def check(path: tuple[str, ...], value: Any) -> None:
        config = copy.deepcopy(whole)
        inner = config
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        attempt(config, tensors, tmp_path)

    check()


@pytest.mark.parametrize("name", CASES)
def test_any_part_of_any_shape_dtype_or_content_is_read_or_refused(name: str, tmp_path: Path) -> None:
    packer, config = CASES[name]
    tensors, _ = packer("x", 96, 64, 1)
    sizes = st.lists(st.sampled_from([0, 1, 2, 8, 16, 24, 64, 96]), max_size=3)
    dtypes = st.sampled_from([torch.float32, torch.float16, torch.int32, torch.int64, torch.uint8, torch.int8, torch.float8_e4m3fn])

    @settings(max_examples=150, deadline=None, database=None)
    @given(st.sampled_from(sorted(tensors)), st.none() | sizes, dtypes, st.integers(0, 2**32))
    def check(part: str, shape: list[int] | None, dtype: torch.dtype, seed: int) -> None:
        if shape is None:  # other numbers in the same place
            like = tensors[part]
            raw = torch.randint(0, 256, (like.nbytes,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
            made = raw.view(like.dtype).view(like.shape)
        else:
            made = torch.zeros(shape, dtype=dtype)
        attempt(config, tensors | {part: made}, tmp_path)
        attempt(config, {name: tensor for name, tensor in tensors.items() if name != part}, tmp_path)

    check()


@pytest.mark.parametrize("state", [b"[" * 100_000, b"{}", b"7", json.dumps({"quant_type": "nf4", "blocksize": 2**62, "shape": [96, 64]}).encode(),
                                   json.dumps({"quant_type": "nf4", "blocksize": 64, "shape": [96, True]}).encode(),
                                   json.dumps({"quant_type": ["nf4"], "blocksize": 64, "shape": [96, 64]}).encode()])
def test_any_quant_state_is_read_or_refused(state: bytes, tmp_path: Path) -> None:
    tensors, _ = bitsandbytes.packer()("x", 96, 64, 1)
    tensors["x.weight.quant_state.bitsandbytes__nf4"] = torch.frombuffer(bytearray(state), dtype=torch.uint8)
    attempt(bitsandbytes.CONFIG, tensors, tmp_path)

"""bitsandbytes' NF4, FP4 and int8 mean the numbers its own formulas make of them, double quantization included."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pellucid.errors import BadCheckpoint, BadConfig, MisshapenTensor, MissingTensors, PellucidError, UnsupportedModel
from pellucid.model.load import load_decoder
from tests.weights.build import llama, write
from tests.weights.quantized import SIZES, Files, Packer, drawn, files, noise, refused, runs_as, scales, spell, weight

CONFIG: dict[str, Any] = {"quant_method": "bitsandbytes", "_load_in_4bit": True, "_load_in_8bit": False, "load_in_4bit": True, "load_in_8bit": False,
                          "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "bfloat16",
                          "bnb_4bit_quant_storage": "uint8", "llm_int8_threshold": 6.0, "llm_int8_skip_modules": None,
                          "llm_int8_has_fp16_weight": False, "llm_int8_enable_fp32_cpu_offload": False}  # as transformers writes it
EIGHT = CONFIG | {"load_in_4bit": False, "_load_in_4bit": False, "load_in_8bit": True, "_load_in_8bit": True}
MODULE = "model.layers.1.mlp.gate_proj"
STATE = f"{MODULE}.weight.quant_state.bitsandbytes__nf4"


def state(facts: dict[str, Any]) -> Tensor:
    return torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)


def packer(kind: str = "nf4", block: int = 64, *, nested: int = 0, storage: torch.dtype = torch.uint8) -> Packer:
    """All numbers of a matrix in one row, two codes a byte, the first one high; `nested` scales share a scale of their own."""
    def pack(module: str, rows: int, columns: int, seed: int) -> tuple[Files, Tensor]:
        code_N = drawn(0, 16, rows * columns, seed=seed)
        book = torch.sort(noise(16, seed=3)).values
        n_scales = -(-rows * columns // block)
        facts: dict[str, Any] = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": [rows, columns]}
        parts = {"": spell((code_N[::2] << 4 | code_N[1::2]).astype(np.uint8)).view(storage)[:, None], ".quant_map": book}
        if nested:
            small, nested_book = drawn(0, 256, n_scales, seed=seed + 1), noise(256, seed=4) / 300
            own = scales(-(-n_scales // nested), seed=seed, dtype=torch.float32)
            scale = nested_book[spell(small)] * own[torch.arange(n_scales) // nested] + 0.0625
            parts |= {".absmax": spell(small.astype(np.uint8)), ".nested_absmax": own, ".nested_quant_map": nested_book}
            facts |= {"nested_blocksize": nested, "nested_dtype": "float32", "nested_offset": 0.0625}
        else:
            scale = parts[".absmax"] = scales(n_scales, seed=seed, dtype=torch.float32)
        parts[f".quant_state.bitsandbytes__{kind}"] = state(facts)
        number = book[spell(code_N)] * scale[torch.arange(rows * columns) // block]
        return {f"{module}.weight{name}": tensor for name, tensor in parts.items()}, number.view(rows, columns)

    return pack


def eight(module: str, rows: int, columns: int, seed: int) -> tuple[Files, Tensor]:
    code, largest = spell(drawn(-127, 128, rows, columns, seed=seed).astype(np.int8)), scales(rows, seed=seed, dtype=torch.float32) * 100
    parts = {"weight": code, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return {f"{module}.{name}": tensor for name, tensor in parts.items()}, code.float() * (largest * (1 / 127))[:, None]


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize(("block", "nested"), [(64, 0), (64, 7), (32, 0), (128, 256)])
def test_four_bits_run_as_their_numbers(tmp_path: Path, kind: str, block: int, nested: int) -> None:
    """Blocks of 64 and 128 end inside of rows of 96 and 160 numbers, and of other rows they hold two."""
    packed, plain = files(packer(kind, block, nested=nested))
    report = runs_as(tmp_path, packed, plain, CONFIG | {"bnb_4bit_quant_type": kind})
    too = ", packed too" if nested else ""
    assert report.notes[0] == f"14 matrices stay packed: bitsandbytes: {kind}, a scale for {block} numbers{too}"
    assert set(report.stored) == {kind, "f32"}


def test_bytes_may_be_stored_as_numbers_of_another_kind(tmp_path: Path) -> None:
    """bnb_4bit_quant_storage: what FSDP shards must be floats."""
    packed, plain = files(packer(storage=torch.bfloat16))
    runs_as(tmp_path, packed, plain, CONFIG | {"bnb_4bit_quant_storage": "bfloat16"})


def test_int8_rows_run_as_their_numbers(tmp_path: Path) -> None:
    packed, plain = files(eight)
    report = runs_as(tmp_path, packed, plain, EIGHT)
    assert report.notes[:2] == ("14 matrices stay packed: bitsandbytes: int8, a scale for each row",
                                "its authors run it with activations in 8-bit numbers, but for those that stand out; here --activations decides")


def test_modules_that_were_skipped_are_plain(tmp_path: Path) -> None:
    base = {name: tensor.bfloat16() for name, tensor in llama(**SIZES).items()}
    packed, plain = files(packer(), packed=lambda module: "mlp" in module, base=base)
    report = runs_as(tmp_path, packed, plain, CONFIG | {"llm_int8_skip_modules": ["lm_head", "self_attn"]}, dtype="bfloat16")
    assert report.notes[0].startswith("6 matrices stay packed")
    decoder, report = load_decoder(tmp_path / "packed")
    assert (report.dtype, set(report.stored)) == ("bf16", {"nf4", "bf16"})
    assert weight(decoder, "blocks.0.mlp.up").dtype == torch.bfloat16


def test_a_packed_matrix_takes_half_a_byte_a_number_and_a_scale_a_block(tmp_path: Path) -> None:
    decoder, _ = load_decoder(write(tmp_path, files(packer(nested=256))[0], **SIZES, quantization_config=CONFIG))
    assert weight(decoder, "blocks.0.mlp.up").nbytes == 160 * 64 // 2 + 160 * 64 // 64 * 4 + 16 * 4


FACTS = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [160, 64]}


@pytest.mark.parametrize(("change", "config", "kind", "message"), [
    ({}, {"llm_int9": 1}, BadConfig, "has 1 key that nobody reads: llm_int9=1"),
    ({f"{MODULE}.weight": None}, {}, MissingTensors, f"{STATE} is there, and {MODULE}.weight is not"),
    ({f"{MODULE}.weight": torch.zeros(5119, 1, dtype=torch.uint8)}, {}, MisshapenTensor,
     f"{MODULE}.weight is U8 of shape (5119, 1), 5,119 bytes, and its quant_state of (160, 64) makes it 5,120"),
    ({f"{MODULE}.weight.absmax": torch.zeros(159)}, {}, MisshapenTensor, f"{MODULE}.weight.absmax has shape (159,)"),
    ({f"{MODULE}.weight.absmax": torch.zeros(160, dtype=torch.uint8)}, {}, UnsupportedModel, f"{MODULE}.weight.absmax is U8"),
    ({f"{MODULE}.weight.quant_map": None}, {}, MissingTensors, f"{MODULE}.weight.quant_map is not there"),
    ({STATE: state(FACTS | {"quant_type": "int4"})}, {}, UnsupportedModel, "says quant_type 'int4' (read: 'nf4' and 'fp4'"),
    ({STATE: state(FACTS | {"shape": [64, 161]})}, {}, UnsupportedModel, "is of a matrix with 161 columns; an even number is read"),
    ({STATE: state(FACTS | {"shape": [64]})}, {}, BadCheckpoint, f"{STATE} is no quant_state as bitsandbytes writes it (ValueError"),
    ({STATE: state(FACTS | {"blocksize": -64})}, {}, BadCheckpoint, "and positive sizes were expected"),
    ({STATE: state(FACTS | {"nested_blocksize": 256, "nested_offset": float("nan")})}, {}, BadCheckpoint, "and positive sizes were expected"),
    ({STATE: torch.tensor([255, 1], dtype=torch.uint8)}, {}, BadCheckpoint, f"{STATE} is no quant_state as bitsandbytes writes it"),
    ({STATE: state(FACTS | {"nested_blocksize": 256, "nested_offset": 0.0}), f"{MODULE}.weight.absmax": torch.zeros(160, dtype=torch.uint8)}, {},
     MissingTensors, f"{MODULE}.weight.nested_absmax is not there"),
])
def test_what_does_not_go_together_is_refused(tmp_path: Path, change: dict[str, Tensor | None], config: dict[str, Any], kind: type[PellucidError],
                                              message: str) -> None:
    packed, _ = files(packer())
    refused(tmp_path, kind, message, {name: tensor for name, tensor in (packed | change).items() if tensor is not None}, CONFIG | config)


@pytest.mark.parametrize(("change", "kind", "message"), [
    ({f"{MODULE}.weight_format": torch.tensor(2, dtype=torch.uint8)}, UnsupportedModel, f"{MODULE}.weight_format is 2, an order of the numbers"),
    ({f"{MODULE}.SCB": torch.zeros(159)}, MisshapenTensor, f"{MODULE}.SCB has shape (159,), and {MODULE}.weight of (160, 64) makes it (160,)"),
    ({f"{MODULE}.weight": torch.zeros(160, 64)}, UnsupportedModel, f"{MODULE}.weight is F32"),
    ({f"{MODULE}.weight": None}, MissingTensors, f"{MODULE}.SCB is there, and {MODULE}.weight is not"),
    ({f"{MODULE}.weight": torch.zeros(160 * 64, dtype=torch.int8)}, MisshapenTensor, "and a matrix was expected"),
])
def test_int8_that_does_not_go_together_is_refused(tmp_path: Path, change: dict[str, Tensor | None], kind: type[PellucidError], message: str) -> None:
    packed, _ = files(eight)
    refused(tmp_path, kind, message, {name: tensor for name, tensor in (packed | change).items() if tensor is not None}, EIGHT)

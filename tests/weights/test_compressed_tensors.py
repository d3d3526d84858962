"""compressed-tensors in every format and strategy that is read means the numbers its own formulas make of it."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pellucid.errors import BadConfig, MisshapenTensor, MissingTensors, PellucidError, UnsupportedModel
from pellucid.model.load import load_decoder
from pellucid.weights.group_rows import Affine, Reordered
from pellucid.weights.packed_rows import PackedRows
from tests.weights.build import llama, write
from tests.weights.quantized import SIZES, Files, Packer, drawn, files, noise, refused, runs_as, scales, spell, weight, words

MODULE = "model.layers.1.mlp.gate_proj"


def config(format: str = "pack-quantized", group: dict[str, Any] | None = None, top: dict[str, Any] | None = None, **weights: Any) -> dict[str, Any]:
    """As llm-compressor writes it."""
    of = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32, "block_structure": None, "dynamic": False,
          "actorder": None, "observer": "minmax", "observer_kwargs": {}} | weights
    one = {"targets": ["Linear"], "weights": of, "input_activations": None, "output_activations": None} | (group or {})
    return {"quant_method": "compressed-tensors", "format": format, "config_groups": {"group_0": one}, "ignore": ["lm_head"],
            "kv_cache_scheme": None, "quantization_status": "compressed", "global_compression_ratio": 1.9, "version": "0.12.2", "sparsity_config": {},
            "transform_config": {}} | (top or {})


def filled(codes: Any, bits: int) -> Any:
    """Columns up to a whole number of words, as pack_to_int32 pads them."""
    return np.pad(codes, ((0, 0), (0, -codes.shape[1] % (32 // bits))))


def packer(format: str = "pack-quantized", bits: int = 4, strategy: str = "group", group: int = 32, *, symmetric: bool = True, ordered: bool = False,
           kind: str = "int", block: tuple[int, int] = (48, 24), dtype: torch.dtype = torch.bfloat16, beside: bool = False) -> Packer:
    def pack(module: str, rows: int, columns: int, seed: int) -> tuple[Files, Tensor]:
        grid = {"tensor": (1, 1), "channel": (rows, 1), "group": (rows, columns // group), "block": (-(-rows // block[0]), -(-columns // block[1]))}[strategy]
        row = {"tensor": np.zeros(rows, dtype=int), "block": np.arange(rows) // block[0]}.get(strategy, np.arange(rows))
        column = {"group": np.arange(columns) // group, "block": np.arange(columns) // block[1]}.get(strategy, np.zeros(columns, dtype=int))
        if ordered:
            column = column[np.random.default_rng(seed).permutation(columns)]
        scale = scales(*grid, seed=seed, dtype=dtype)
        low = -(1 << bits - 1)
        zero = np.zeros(grid, dtype=int) if symmetric else drawn(low, -low, *grid, seed=seed + 1)
        if kind == "float":
            code = (noise(rows, columns, seed=seed) * 8).to(torch.float8_e4m3fn)
            value = code.double().numpy()
        else:
            value = drawn(low, -low, rows, columns, seed=seed)
            code = spell(value.astype(np.int8))
        number = (value - zero[row][:, column]) * scale.double().numpy()[row][:, column]
        parts = {"weight_scale": scale.view(1) if strategy == "tensor" else scale}
        if format == "pack-quantized":
            parts |= {"weight_packed": spell(words(filled(value - low, bits), bits)), "weight_shape": torch.tensor([rows, columns])}
            if not symmetric:
                parts["weight_zero_point"] = spell(words(filled((zero - low).T, bits), bits).T)
        else:
            parts["weight"] = code
            if not symmetric:
                parts["weight_zero_point"] = spell(zero.astype(np.int8)).view(parts["weight_scale"].shape)
        if ordered:
            parts["weight_g_idx"] = spell(column.astype(np.int32))
        if beside:
            parts["input_scale"] = torch.tensor([0.25])
        return {f"{module}.{name}": tensor for name, tensor in parts.items()}, spell(number).float()

    return pack


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("strategy", "group"), [("group", 32), ("group", 16), ("channel", None)])
@pytest.mark.parametrize("bits", [4, 8])
def test_pack_quantized(tmp_path: Path, bits: int, strategy: str, group: int | None, symmetric: bool, dtype: torch.dtype) -> None:
    packed, plain = files(packer(bits=bits, strategy=strategy, group=group or 32, symmetric=symmetric, dtype=dtype))
    report = runs_as(tmp_path, packed, plain, config(num_bits=bits, strategy=strategy, group_size=group, symmetric=symmetric))
    reach = f"a scale for {group} columns" if group else "a scale for each row"
    assert report.notes == (f"14 matrices stay packed: compressed-tensors: int{bits}, {reach}",)
    assert set(report.stored) == {f"int{bits}", "f32"}


def test_rows_that_end_inside_a_word(tmp_path: Path) -> None:
    """59 rows of 44 columns: neither codes nor zeros fill their last words."""
    sizes = {"hidden_size": 44, "intermediate_size": 59, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10}
    packed, plain = files(packer(strategy="channel", symmetric=False), base=llama(**sizes))
    runs_as(tmp_path, packed, plain, config(strategy="channel", group_size=None, symmetric=False), **sizes)


@pytest.mark.parametrize(("actorder", "symmetric"), [("group", True), ("dynamic", False), (True, True)])
def test_columns_in_the_order_of_activation(tmp_path: Path, actorder: str | bool, symmetric: bool) -> None:
    packed, plain = files(packer(ordered=True, symmetric=symmetric))
    report = runs_as(tmp_path, packed, plain, config(actorder=actorder, symmetric=symmetric))
    assert report.notes[0].endswith("a scale for 32 columns, columns in the order of activation")
    decoder, _ = load_decoder(tmp_path / "packed", activations="exact")
    held = weight(decoder, "blocks.0.mlp.up")
    assert isinstance(held, Reordered)
    assert type(held.rows) is (PackedRows if symmetric else Affine)


def test_an_index_of_minus_one_says_that_columns_stand_in_their_own_order(tmp_path: Path) -> None:
    packed, plain = files(packer())
    packed |= {name.replace("_packed", "_g_idx"): torch.full((int(packed[name.replace("_packed", "_shape")][1]),), -1, dtype=torch.int32)
               for name in list(packed) if name.endswith("_packed")}
    runs_as(tmp_path, packed, plain, config(actorder="weight"))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("strategy", "group"), [("channel", None), ("tensor", None), ("group", 32)])
def test_int_quantized(tmp_path: Path, strategy: str, group: int | None, symmetric: bool) -> None:
    packed, plain = files(packer("int-quantized", 8, strategy, group or 32, symmetric=symmetric))
    activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True, "observer": None}
    report = runs_as(tmp_path, packed, plain, config("int-quantized", {"input_activations": activations}, num_bits=8, strategy=strategy, group_size=group,
                                                     symmetric=symmetric))
    assert report.notes[1] == "its authors run it with activations in 8-bit numbers, a scale for each token; here --activations decides"


def test_int8_rows_whose_scales_are_float16_become_q8_0(tmp_path: Path) -> None:
    for name, dtype, kind in (("f16", torch.float16, PackedRows), ("f32", torch.float32, Affine)):
        packed, _ = files(packer("int-quantized", 8, "channel", dtype=dtype))
        quantization = config("int-quantized", num_bits=8, strategy="channel", group_size=None)
        decoder, _ = load_decoder(write(tmp_path / name, packed, **SIZES, quantization_config=quantization), activations="exact")
        assert type(weight(decoder, "blocks.0.mlp.up")) is kind


@pytest.mark.parametrize("format", ["float-quantized", "naive-quantized"])
@pytest.mark.parametrize("strategy", ["tensor", "channel", "block"])
def test_float_quantized(tmp_path: Path, strategy: str, format: str) -> None:
    packed, plain = files(packer(format, 8, strategy, kind="float", beside=True))
    activations = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False, "observer": "minmax"}
    report = runs_as(tmp_path, packed, plain, config(format, {"input_activations": activations}, num_bits=8, type="float", strategy=strategy,
                                                     group_size=None, block_structure=[48, 24] if strategy == "block" else None))
    assert report.notes[1] == "its authors run it with activations in 8-bit floats, one scale for all; here --activations decides"
    assert report.left_out == {"scales of activations, which are rounded in another way here or not at all": 14}


def test_groups_are_found_by_name_then_by_pattern_then_by_class(tmp_path: Path) -> None:
    eight, four, floats = packer("int-quantized", 8, "channel"), packer(), packer("float-quantized", 8, "channel", kind="float")
    packed, plain = files(lambda module, *sizes: (floats if module == MODULE else eight if "attn" in module else four)(module, *sizes))

    def one(targets: list[str], format: str, **of: Any) -> dict[str, Any]:
        return {"targets": targets, "format": format, "weights": {"type": "int", "symmetric": True, "dynamic": False} | of}

    groups = {"group_0": one(["Linear"], "pack-quantized", num_bits=4, group_size=32),
              "group_1": one(["re:.*self_attn.*"], "int-quantized", num_bits=8, strategy="channel"),
              "group_2": one([MODULE], "float-quantized", num_bits=8, type="float", group_size=-1), "cache": {"targets": ["re:.*attn$"]}}
    report = runs_as(tmp_path, packed, plain, config("mixed-precision", top={"config_groups": groups}))
    assert set(report.stored) == {"int4", "int8", "fp8", "f32"}
    assert report.notes == ("14 matrices stay packed: compressed-tensors: int4, a scale for 32 columns and int8, a scale for each row and fp8, a scale "
                            "for each row",)


def test_a_cache_in_eight_bits_is_said(tmp_path: Path) -> None:
    packed, plain = files(packer())
    packed |= {f"model.layers.{i}.self_attn.{x}_scale": torch.tensor([1.0]) for i in range(2) for x in "kv"}
    report = runs_as(tmp_path, packed, plain, config(top={"kv_cache_scheme": {"num_bits": 8, "type": "float"}}))
    assert report.notes[1] == "its authors keep its cache in 8 bits; here it is kept as --cache says"
    assert report.left_out == {"scales of a cache in eight bits, which is not kept so here": 4}


def test_the_key_it_had_at_first_is_read(tmp_path: Path) -> None:
    packed, plain = files(packer())
    runs_as(tmp_path, packed, plain, None, compression_config=config())


SMALL = torch.zeros(160, 8, dtype=torch.int32)


@pytest.mark.parametrize(("change", "how", "kind", "message"), [
    ({}, {"format": "nvfp4-pack-quantized"}, UnsupportedModel, "group_0 of quantization_config of config.json has a setting that is not read: "
     "format='nvfp4-pack-quantized' (read: 'pack-quantized', 'int-quantized', 'float-quantized', 'naive-quantized')"),
    ({}, {"num_bits": 3}, UnsupportedModel, "weights of group_0 of quantization_config of config.json has a setting that is not read: num_bits=3 (read: 4, 8)"),
    ({}, {"strategy": "tensor_group"}, UnsupportedModel, "strategy='tensor_group' (read: 'tensor', 'channel', 'group', 'block')"),
    ({}, {"dynamic": True}, UnsupportedModel, "dynamic=True (only False)"),
    ({}, {"actorder": "sideways"}, UnsupportedModel, "actorder='sideways' (read: group, weight, static, dynamic)"),
    ({}, {"group_size": 48}, UnsupportedModel, "has groups of 48 columns, and model.layers.0.mlp.down_proj.weight_packed has 160"),
    ({}, {"group_size": 16}, MisshapenTensor, "weight_scale has shape (64, 5), and model.layers.0.mlp.down_proj.weight_packed of (64, 20) makes it (64, 10)"),
    ({}, {"strategy": "block", "group_size": None}, BadConfig, "block_structure is None, and two sizes were expected, as [128, 128]"),
    ({}, {"mirrored": True}, BadConfig, "weights of group_0 of quantization_config of config.json has 1 key that nobody reads: mirrored=True"),
    ({}, {"group": {"targets": ["Conv2d"]}}, BadConfig, "is packed, and no group of config_groups has it among its targets (Conv2d)"),
    ({}, {"group": {"targets": "Linear"}}, BadConfig, "targets is 'Linear', and a list of names was expected"),
    ({}, {"top": {"sparsity_config": {"format": "sparse-bitmask"}}}, UnsupportedModel,
     "sparsity_config={'format': 'sparse-bitmask'} (only the format 'dense')"),
    ({}, {"top": {"transform_config": {"R1": {}}}}, UnsupportedModel, "transform_config={'R1': {}} (only {}): weights that were turned cannot be multiplied"),
    ({}, {"top": {"quantization_status": "calibration"}}, UnsupportedModel, "quantization_status='calibration' (read: 'compressed', 'frozen')"),
    ({}, {"top": {"config_groups": []}}, BadConfig, "config_groups is [], and an object of groups was expected"),
    ({}, {"format": "int-quantized"}, UnsupportedModel,
     "down_proj.weight is I32, and quantization_config of config.json makes it int4. Do the two belong together?"),
    ({f"{MODULE}.weight_scale": None}, {}, MissingTensors, f"{MODULE}.weight_packed is packed, and {MODULE}.weight_scale is not there"),
    ({f"{MODULE}.weight_shape": None}, {}, MissingTensors, f"{MODULE}.weight_shape is not there"),
    ({f"{MODULE}.weight_shape": torch.tensor([160, 65])}, {}, MisshapenTensor,
     f"{MODULE}.weight_packed has shape (160, 8), and {MODULE}.weight_shape of (160, 65) makes it (160, 9)"),
    ({f"{MODULE}.weight_shape": torch.tensor([160, 64, 1])}, {}, MisshapenTensor, f"{MODULE}.weight_shape has shape (3,)"),
    ({f"{MODULE}.weight_zero_point": SMALL}, {"symmetric": False}, MisshapenTensor, f"{MODULE}.weight_zero_point has shape (160, 8)"),
    ({f"{MODULE}.weight_g_idx": torch.zeros(63, dtype=torch.int32)}, {}, MisshapenTensor, f"{MODULE}.weight_g_idx has shape (63,)"),
    ({f"{MODULE}.weight_g_idx": torch.full((64,), 2, dtype=torch.int32)}, {"actorder": "group"}, MisshapenTensor,
     f"{MODULE}.weight_g_idx names groups 2 to 2, and there are scales of 2"),
    ({f"{MODULE}.weight_g_idx": (torch.arange(64) % 2).int()}, {"actorder": "weight"}, MisshapenTensor, f"{MODULE}.weight_g_idx puts columns in another order"),
    ({"lm_head.weight": torch.zeros(53, 64, dtype=torch.int8)}, {}, UnsupportedModel,
     "lm_head.weight is I8, and quantization_config of config.json calls it pack-quantized: lm_head.weight_packed was expected"),
])
def test_what_does_not_go_together_is_refused(tmp_path: Path, change: dict[str, Tensor | None], how: dict[str, Any], kind: type[PellucidError],
                                              message: str) -> None:
    packed, _ = files(packer())
    refused(tmp_path, kind, message, {name: tensor for name, tensor in (packed | change).items() if tensor is not None}, config(**how))

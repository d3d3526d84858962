"""FP8 in blocks, in rows and whole means every number times its scale: by formula, by transformers' own function, and through whole checkpoints."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

from pellucid.errors import BadConfig, MisshapenTensor, MissingTensors, PellucidError, UnsupportedModel
from pellucid.families import family
from pellucid.families._describe import describe
from pellucid.model.load import load_decoder
from pellucid.ops.unpack import unpack
from pellucid.weights import fp8
from pellucid.weights.checkpoint import open_checkpoint
from pellucid.weights.packed_rows import PackedWeight
from pellucid.weights.save import save_checkpoint
from tests.weights.build import llama, write
from tests.weights.quantized import Files, Packer, files, logits, noise, refused, runs_as, scales, weight

CONFIG: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [48, 24]}  # DeepSeek's says [128, 128]
DYNAMIC = "its authors run it with activations in 8-bit floats, scales found as they come; here --activations decides"
STATIC = "its authors run it with activations in 8-bit floats, one scale for all; here --activations decides"


def packer(block: tuple[int, int] | None = (48, 24), *, scale: str = "weight_scale_inv", shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float32,
           beside: str = "") -> Packer:
    """Rows and columns of most matrices are no whole number of blocks."""
    def pack(module: str, rows: int, columns: int, seed: int) -> tuple[Files, Tensor]:
        numbers = (noise(rows, columns, seed=seed) * 8).to(torch.float8_e4m3fn)
        size = tuple(rows if n < 0 else n for n in shape) if block is None else (-(-rows // block[0]), -(-columns // block[1]))
        scale_of = scales(*size, seed=seed, dtype=torch.float32).to(dtype)
        plain = _dequantize_fp8_weight(numbers, scale_of.float(), None if block is None else list(block), torch.float32)
        out = {f"{module}.weight": numbers, f"{module}.{scale}": scale_of}
        return out | ({f"{module}.{beside}": torch.tensor(0.5)} if beside else {}), plain

    return pack


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu])
def test_a_number_is_the_float_times_the_scale_of_its_block(scale_dtype: torch.dtype) -> None:
    numbers, scale = (noise(40, 28) * 50).to(torch.float8_e4m3fn), (noise(3, 4, seed=1).abs() + 0.1).to(scale_dtype)
    found = unpack(fp8._build((16, 8), {"numbers": numbers, "scales": scale}))
    for r in range(40):
        for c in range(28):
            assert found[r, c] == (numbers[r, c].double() * scale[r // 16, c // 8].double()).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu])
def test_blocks_run_as_their_numbers(tmp_path: Path, dtype: torch.dtype) -> None:
    packed, plain = files(packer(dtype=dtype))
    report = runs_as(tmp_path, packed, plain, CONFIG)
    assert report.notes[:2] == ("14 matrices stay packed: fp8 in blocks of 48 x 24", DYNAMIC)
    assert set(report.stored) == {"fp8", "f32"}
    assert report.stored["fp8"] == sum(tensor.nbytes for name, tensor in packed.items() if "proj" in name)


@pytest.mark.parametrize(("how", "config", "notes"), [
    ({"shape": (), "beside": "activation_scale", "dtype": torch.bfloat16}, {"activation_scheme": "static", "weight_block_size": None}, STATIC),  # Mistral's
    ({"scale": "weight_scale", "shape": (1,), "beside": "input_scale"}, {"activation_scheme": "static", "ignored_layers": ["lm_head"]}, STATIC),  # AutoFP8's
    ({"scale": "weight_scale", "shape": ()}, {"activation_scheme": "dynamic", "kv_cache_scheme": "static"}, DYNAMIC),
    ({"scale": "weight_scale", "shape": (-1, 1)}, {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": []}, DYNAMIC),
])
def test_a_scale_for_a_whole_matrix_or_for_each_row(tmp_path: Path, how: dict[str, Any], config: dict[str, Any], notes: str) -> None:
    packed, plain = files(packer(None, **how))
    report = runs_as(tmp_path, packed, plain, {"quant_method": "fp8"} | config)
    reach = "a scale for each row" if how["shape"] == (-1, 1) else "a scale for each matrix"
    assert report.notes[:2] == (f"14 matrices stay packed: fp8 {reach}", notes)
    assert report.left_out == ({"scales of activations, which are rounded in another way here or not at all": 14} if "beside" in how else {})


def test_scales_of_a_cache_are_left_out_and_said(tmp_path: Path) -> None:
    packed, plain = files(packer())
    packed |= {f"model.layers.{i}.self_attn.{x}_scale": torch.tensor(1.0) for i in range(2) for x in "kv"}
    report = runs_as(tmp_path, packed, plain, CONFIG)
    assert report.left_out == {"scales of a cache in eight bits, which is not kept so here": 4}


def test_a_packed_matrix_takes_a_byte_a_number_and_is_used_where_it_is_mapped(tmp_path: Path) -> None:
    packed, _ = files(packer())
    decoder, report = load_decoder(write(tmp_path, {name: tensor.bfloat16() if tensor.dtype == torch.float32 and "scale" not in name else tensor
                                                    for name, tensor in packed.items()}, hidden_size=64, intermediate_size=160, num_attention_heads=6,
                                         head_dim=16, quantization_config=CONFIG, dtype="bfloat16"))
    assert (report.dtype, set(report.stored)) == ("bf16", {"fp8", "bf16"})
    assert ", computed in bf16, " in report.lines()[1]
    held = weight(decoder, "blocks.1.mlp.up")
    assert (held.dtype, held.nbytes) == (torch.bfloat16, 160 * 64 + 160 * 3 * 4)


def test_packed_layers_that_are_left_out_are_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSeek-V3's drafting layer is 2 % of its numbers."""
    packed, _ = files(packer(), base=llama())
    packed |= {name.replace("layers.1.", "layers.2."): tensor.clone() for name, tensor in packed.items() if "layers.1." in name}
    folder = write(tmp_path, packed, quantization_config=CONFIG, dtype="bfloat16", num_nextn_predict_layers=1)
    built, really = [], fp8._build

    def watched(*args: Any) -> Any:
        built.append(args)
        return really(*args)

    monkeypatch.setattr(fp8, "_build", watched)
    _, report = load_decoder(folder)
    assert len(built) == 14
    assert list(report.left_out.values()) == [9]  # seven matrices and two norms


def test_a_plain_model_is_saved_from_packed_files_and_says_so(tmp_path: Path) -> None:
    packed, _ = files(packer(), base=llama())
    folder = write(tmp_path / "packed", packed, quantization_config=CONFIG)
    decoder, _ = load_decoder(folder, dtype="float32")
    ours = {f"{name}.weight": unpack(held) for name, module in decoder.named_modules() if isinstance(held := getattr(module, "weight", None), PackedWeight)}
    described = describe(open_checkpoint(folder).config)
    save_checkpoint(tmp_path / "plain", decoder.spec, family("llama").WEIGHTS, decoder.state_dict() | ours, described.config)
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    theirs = logits(folder)
    assert (logits(tmp_path / "plain") - theirs).abs().max() < 2e-5 * theirs.abs().max()
    assert not load_decoder(tmp_path / "plain")[1].notes


MATRIX = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(("change", "config", "kind", "message"), [
    ({f"{MATRIX}_scale_inv": None}, {}, MissingTensors, f"{MATRIX} is packed, and {MATRIX}_scale_inv is not there. Is a shard missing?"),
    ({f"{MATRIX}_scale_inv": torch.zeros(3, 2)}, {}, MisshapenTensor, f"{MATRIX}_scale_inv has shape (3, 2), and {MATRIX} of (160, 64) makes it (4, 3)"),
    ({f"{MATRIX}_scale_inv": torch.zeros(4, 3, dtype=torch.int32)}, {}, UnsupportedModel,
     f"{MATRIX}_scale_inv is I32, and beside {MATRIX} F32 or BF16 or F16 or F8_E8M0 is read"),
    ({}, {"weight_block_size": None}, MisshapenTensor, "makes it () or (1,) or (64, 1)"),
    ({}, {"weight_block_size": [128]}, BadConfig, "weight_block_size is [128], and two sizes were expected, as [128, 128]"),
    ({}, {"activation_scheme": "none"}, UnsupportedModel, "activation_scheme='none' (read: 'dynamic', 'static')"),
    ({}, {"fmt": "e5m2"}, UnsupportedModel, "fmt='e5m2' (read: 'e4m3', 'float8_e4m3fn')"),
    ({}, {"expert_dtype": "fp4"}, UnsupportedModel, "expert_dtype='fp4' (read: 'fp8')"),
    ({}, {"rotated": 1}, BadConfig, "quantization_config of config.json has 1 key that nobody reads: rotated=1."),
    ({MATRIX: torch.zeros(160, 64).to(torch.float8_e5m2)}, {}, UnsupportedModel, f"holds packed weights (fp8): {MATRIX} is F8_E5M2"),
])
def test_what_does_not_go_together_is_refused(tmp_path: Path, change: dict[str, Tensor | None], config: dict[str, Any], kind: type[PellucidError],
                                              message: str) -> None:
    packed, _ = files(packer())
    if MATRIX in change:
        del packed[f"{MATRIX}_scale_inv"]
    refused(tmp_path, kind, message, {name: tensor for name, tensor in (packed | change).items() if tensor is not None}, CONFIG | config)

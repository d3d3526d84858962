"""Packed weights are unpacked to the numbers they mean: by formula, by transformers' own functions, and through whole checkpoints."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from pellucid.errors import BadCheckpoint, MisshapenTensor, MissingTensors, PellucidError, UnsupportedModel
from pellucid.families import family
from pellucid.families._describe import describe
from pellucid.model.load import load_decoder
from pellucid.weights import packed
from pellucid.weights.checkpoint import open_checkpoint
from pellucid.weights.packed import Packed
from pellucid.weights.save import save_checkpoint
from tests.weights.build import llama, write

FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [16, 8]}  # DeepSeek's says [128, 128]
IDS = torch.randint(3, 50, (31,), generator=torch.Generator().manual_seed(1))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def logits(folder: Path, dtype: str = "float32") -> Tensor:
    decoder, _ = load_decoder(folder, dtype=dtype)
    with torch.no_grad():
        return decoder.unembed(decoder(IDS))


def fp8_files(scale_dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The small llama with its seven matrices a layer in blocks of FP8, most of them not a whole number of blocks."""
    out = {}
    for i, (name, tensor) in enumerate(llama(torch.bfloat16).items()):
        if "proj" not in name:
            out[name] = tensor
            continue
        rows, columns = tensor.shape
        scales = (noise(-(-rows // 16), -(-columns // 8), seed=i).abs() / 20 + 0.01).to(scale_dtype)
        out |= {name: (tensor.float() * 8).to(torch.float8_e4m3fn), f"{name}_scale_inv": scales}
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu])
def test_fp8_is_every_number_times_the_scale_of_its_block(scale_dtype: torch.dtype, dtype: torch.dtype) -> None:
    numbers, scales = (noise(40, 28) * 50).to(torch.float8_e4m3fn), (noise(3, 4, seed=1).abs() + 0.1).to(scale_dtype)
    found = Packed("fp8", "x", "y", (40, 28), (16, 8)).unpack(numbers, scales, dtype)
    assert found.dtype == dtype
    for r in range(40):
        for c in range(28):
            assert found[r, c] == (numbers[r, c].double() * scales[r // 16, c // 8].double()).float().to(dtype)
    if scale_dtype == torch.float32 == dtype:
        assert torch.equal(found, _dequantize_fp8_weight(numbers, scales, [16, 8], torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mxfp4_is_exact_and_what_transformers_unpacks(dtype: torch.dtype) -> None:
    bits = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 10, 2, 16), dtype=torch.uint8, generator=bits)
    scales = torch.randint(90, 160, (3, 10, 2), dtype=torch.uint8, generator=bits)
    found = Packed("mxfp4", "x", "y", (3, 64, 10)).unpack(blocks, scales, dtype)
    assert (found.dtype, found.shape) == (dtype, (3, 64, 10))
    assert torch.equal(found, convert_moe_packed_tensors(blocks, scales, dtype=dtype))
    for e, row, group, at in ((0, 0, 0, 0), (1, 7, 1, 31), (2, 9, 0, 16), (2, 3, 1, 5)):
        byte, exponent = int(blocks[e, row, group, at // 2]), int(scales[e, row, group]) - 127
        four = byte >> 4 if at % 2 else byte & 15  # sign, two bits of exponent, one of mantissa
        size, low = (four >> 1) & 3, four & 1
        value = (low / 2 if size == 0 else (1 + low / 2) * 2.0 ** (size - 1)) * (-1 if four & 8 else 1)
        assert found[e, 32 * group + at, row] == value * 2.0 ** exponent


def test_an_fp8_checkpoint_runs_as_its_unpacked_numbers(tmp_path: Path) -> None:
    files = fp8_files()
    plain = {}
    for name, tensor in files.items():
        if name.endswith("_scale_inv"):
            continue
        scales = files.get(f"{name}_scale_inv")
        plain[name] = tensor if scales is None else _dequantize_fp8_weight(tensor, scales, [16, 8], torch.float32)
    folder = write(tmp_path / "packed", files, quantization_config=FP8, dtype="bfloat16")
    assert torch.equal(logits(folder), logits(write(tmp_path / "plain", plain)))
    decoder, report = load_decoder(folder)
    assert (report.dtype, set(report.stored)) == ("bf16", {"fp8", "bf16"})
    assert report.stored["fp8"] == sum(t.nbytes for name, t in files.items() if "proj" in name)
    assert report.notes[0] == "14 packed matrices (fp8 in blocks of 16 x 8) are unpacked: each number times its scale, rounded once"
    assert "safetensors bf16 + fp8, loaded as bf16" in report.lines()[1] or "safetensors fp8 + bf16, loaded as bf16" in report.lines()[1]
    assert torch.equal(decoder.blocks[1].mlp.up.weight, plain["model.layers.1.mlp.up_proj.weight"].to(torch.bfloat16))


def test_packed_layers_that_are_left_out_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSeek-V3's drafting layer is 2 % of its numbers."""
    files = fp8_files()
    files |= {name.replace("layers.1.", "layers.2."): tensor.clone() for name, tensor in files.items() if "layers.1." in name}
    folder = write(tmp_path, files, quantization_config=FP8, dtype="bfloat16", num_nextn_predict_layers=1)
    unpacked, really = [], packed._fp8

    def watched(*args: Any) -> Tensor:
        unpacked.append(args)
        return really(*args)

    monkeypatch.setattr(packed, "_fp8", watched)
    _, report = load_decoder(folder)
    assert len(unpacked) == 14
    assert list(report.left_out.values()) == [9]  # seven matrices and two norms


def test_a_published_gpt_oss_layout_runs_as_transformers_runs_it(tmp_path: Path) -> None:
    """Blocks and scales beside bfloat16, as openai/gpt-oss-20b has them; transformers unpacks them from the same files."""
    config = transformers.GptOssConfig(
        vocab_size=101, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=3, head_dim=14,
        max_position_embeddings=29, num_local_experts=5, num_experts_per_tok=3, sliding_window=11,
        rope_parameters={"rope_type": "yarn", "rope_theta": 50.0, "factor": 4.0, "original_max_position_embeddings": 13, "truncate": False})
    theirs: Any = transformers.GptOssForCausalLM(config)
    for i, p in enumerate(theirs.parameters()):
        p.data = noise(*p.shape, seed=i) * (1.5 * p.shape[-1] ** -0.5 if p.ndim > 1 else 0.4)
    theirs.to(torch.bfloat16).save_pretrained(tmp_path)
    files, bits = load_file(tmp_path / "model.safetensors"), torch.Generator().manual_seed(0)
    for name in [name for name in files if name.endswith(("gate_up_proj", "down_proj"))]:
        n_experts, columns, rows = files.pop(name).shape
        files[f"{name}_blocks"] = torch.randint(0, 256, (n_experts, rows, columns // 32, 16), dtype=torch.uint8, generator=bits)
        files[f"{name}_scales"] = torch.randint(121, 125, (n_experts, rows, columns // 32), dtype=torch.uint8, generator=bits)
    save_file(files, tmp_path / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((tmp_path / "config.json").read_text())
    raw["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    unpacking = transformers.Mxfp4Config(dequantize=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=unpacking, dtype=torch.bfloat16, attn_implementation="eager")
    with torch.no_grad():
        expected_TV = theirs.float()(IDS[None]).logits[0]
    found_TV = logits(tmp_path)
    assert (found_TV - expected_TV).abs().max() < 2e-5 * expected_TV.abs().max()
    _, report = load_decoder(tmp_path)
    assert (report.dtype, set(report.stored)) == ("bf16", {"mxfp4", "bf16"})
    assert report.notes[0] == "4 packed matrices (mxfp4) are unpacked: each number times its scale, rounded once"


def test_a_plain_model_is_saved_from_packed_files_and_says_so(tmp_path: Path) -> None:
    folder = write(tmp_path / "packed", fp8_files(), quantization_config=FP8, dtype="bfloat16")
    decoder, _ = load_decoder(folder)
    described = describe(open_checkpoint(folder).config)
    save_checkpoint(tmp_path / "plain", decoder.spec, family("llama").WEIGHTS, decoder.state_dict(), described.config)
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert torch.equal(logits(tmp_path / "plain", "bfloat16"), logits(folder, "bfloat16"))
    assert not load_decoder(tmp_path / "plain")[1].notes


MATRIX = "model.layers.0.mlp.up_proj.weight"
BLOCKS, SCALES = torch.zeros(2, 3, 4, 16, dtype=torch.uint8), torch.zeros(2, 3, 4, dtype=torch.uint8)


@pytest.mark.parametrize(("files", "quantization", "kind", "message"), [
    ({MATRIX: torch.zeros(40, 24).to(torch.float8_e4m3fn)}, FP8, MissingTensors,
     f"{MATRIX} is packed, and its scales {MATRIX}_scale_inv are not there. Is a shard missing?"),
    ({MATRIX: torch.zeros(40, 24).to(torch.float8_e4m3fn), f"{MATRIX}_scale_inv": torch.zeros(3, 2)}, FP8, MisshapenTensor,
     f"{MATRIX}_scale_inv has shape (3, 2), and {MATRIX} of (40, 24) makes it (3, 3)"),
    ({MATRIX: torch.zeros(40, 24).to(torch.float8_e4m3fn), f"{MATRIX}_scale_inv": torch.zeros(3, 3, dtype=torch.int32)}, FP8, UnsupportedModel,
     f"{MATRIX}_scale_inv is I32, and scales of {MATRIX} are read as F32 or BF16 or F8_E8M0"),
    ({MATRIX: torch.zeros(40, 24).to(torch.float8_e4m3fn)}, {"quant_method": "fp8"}, UnsupportedModel, "holds packed weights (fp8)"),
    ({"x_blocks": BLOCKS[..., :15], "x_scales": SCALES}, {"quant_method": "mxfp4"}, MisshapenTensor,
     "x_blocks has shape (2, 3, 4, 15), and (experts, rows, groups, 16) was expected: 32 numbers of 4 bits a group"),
    ({"x_blocks": BLOCKS}, {"quant_method": "mxfp4"}, MissingTensors, "x_blocks is packed, and its scales x_scales are not there"),
    ({"x_blocks": BLOCKS, "x_scales": SCALES}, {"quant_method": "mxfp4"}, BadCheckpoint, "no place in family 'llama' with these settings, first: x."),
    ({"x_blocks": BLOCKS, "x_scales": SCALES}, {"quant_method": "awq"}, UnsupportedModel, "holds packed weights (awq): x_blocks is U8"),
])
def test_packed_weights_that_do_not_go_together_are_refused(tmp_path: Path, files: dict[str, Tensor], quantization: dict[str, Any],
                                                            kind: type[PellucidError], message: str) -> None:
    folder = write(tmp_path / "m", {name: tensor.contiguous() for name, tensor in (llama() | files).items()}, quantization_config=quantization)
    with pytest.raises(kind) as refusal:
        load_decoder(folder)
    assert message in str(refusal.value)

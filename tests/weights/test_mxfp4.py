"""MXFP4 as gpt-oss publishes it: exact, packed as GGUF's blocks, and what transformers makes of the same files."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from pellucid.errors import BadCheckpoint, BadConfig, MisshapenTensor, MissingTensors, PellucidError
from pellucid.model.load import load_decoder
from pellucid.ops.unpack import unpack
from pellucid.weights import mxfp4
from pellucid.weights.packed_rows import PackedRows
from tests.weights.build import llama
from tests.weights.quantized import IDS, logits, noise, refused, weight


def test_numbers_are_exact_and_what_transformers_unpacks() -> None:
    bits = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 10, 2, 16), dtype=torch.uint8, generator=bits)
    exponents = torch.randint(90, 160, (3, 10, 2), dtype=torch.uint8, generator=bits)
    packed = mxfp4._build({"codes": blocks, "exponents": exponents})
    assert isinstance(packed, PackedRows)
    assert (packed.format, packed.shape) == ("MXFP4", (3, 10, 64))
    found = unpack(packed)
    assert torch.equal(found, convert_moe_packed_tensors(blocks, exponents, dtype=torch.float32).transpose(1, 2))
    for e, row, group, at in ((0, 0, 0, 0), (1, 7, 1, 31), (2, 9, 0, 16), (2, 3, 1, 5)):
        byte, exponent = int(blocks[e, row, group, at // 2]), int(exponents[e, row, group]) - 127
        four = byte >> 4 if at % 2 else byte & 15  # sign, two bits of exponent, one of mantissa
        size, low = (four >> 1) & 3, four & 1
        value = (low / 2 if size == 0 else (1 + low / 2) * 2.0 ** (size - 1)) * (-1 if four & 8 else 1)
        assert found[e, row, 32 * group + at] == value * 2.0**exponent


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
    decoder, report = load_decoder(tmp_path, activations="exact")
    assert (report.dtype, set(report.stored)) == ("bf16", {"mxfp4", "bf16"})
    assert report.notes[0] == "4 matrices stay packed: mxfp4, a power of two for 32 columns"
    for part, shape in (("gate", (96, 64)), ("up", (96, 64)), ("down", (64, 96))):
        held = weight(decoder, f"blocks.1.mlp.experts.4.{part}")
        assert (held.shape, held.nbytes) == (shape, 96 * 64 // 32 * 17)


CONFIG = {"quant_method": "mxfp4"}
BLOCKS, SCALES = torch.zeros(2, 3, 4, 16, dtype=torch.uint8), torch.zeros(2, 3, 4, dtype=torch.uint8)


@pytest.mark.parametrize(("files", "config", "kind", "message"), [
    ({"x_blocks": BLOCKS[..., :15], "x_scales": SCALES}, {}, MisshapenTensor,
     "x_blocks has shape (2, 3, 4, 15), and (experts, rows, groups, 16) was expected: 32 numbers of 4 bits a group"),
    ({"x_blocks": BLOCKS}, {}, MissingTensors, "x_blocks is packed, and x_scales is not there"),
    ({"x_blocks": BLOCKS, "x_scales": SCALES[:, :2]}, {}, MisshapenTensor, "x_scales has shape (2, 2, 4), and x_blocks of (2, 3, 4, 16) makes it (2, 3, 4)"),
    ({"x_blocks": BLOCKS, "x_scales": SCALES}, {}, BadCheckpoint, "no place in family 'llama' with these settings, first: x."),
    ({"x_blocks": BLOCKS, "x_scales": SCALES}, {"turned": 1}, BadConfig, "quantization_config of config.json has 1 key that nobody reads: turned=1."),
])
def test_what_does_not_go_together_is_refused(tmp_path: Path, files: dict[str, Tensor], config: dict[str, Any], kind: type[PellucidError],
                                              message: str) -> None:
    refused(tmp_path, kind, message, llama(hidden_size=64, intermediate_size=160, num_attention_heads=6, head_dim=16) | files, CONFIG | config)

"""A folder in NF4: what is written, what our own reader makes of it, what is refused."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pellucid.errors import BadCheckpoint, BadRequest
from pellucid.model.convert import convert
from pellucid.model.load import load_decoder
from pellucid.ops.quantize import nf4
from tests.families.build import build
from tests.families.cases import CASES
from tests.weights.build import llama, write

MATRIX = "model.layers.1.mlp.down_proj.weight"


def packed_numbers(files: dict[str, Any], name: str) -> torch.Tensor:
    codes, absmax = files[name], files[f"{name}.absmax"]
    flat = torch.cat([codes >> 4, codes & 15], 1).flatten().long()
    shape = json.loads(bytes(files[f"{name}.quant_state.bitsandbytes__nf4"].tolist()))["shape"]
    return (files[f"{name}.quant_map"][flat] * absmax[torch.arange(len(flat)) // 64]).view(shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrices_of_the_blocks_are_packed_and_the_rest_stays(tmp_path: Path, dtype: torch.dtype) -> None:
    plain = llama(dtype)
    done = convert(write(tmp_path / "in", plain), tmp_path / "out", quantize="nf4")
    files = load_file(tmp_path / "out/model.safetensors")
    matrices = [name for name, tensor in plain.items() if tensor.ndim == 2 and "layers" in name]
    assert files.keys() == plain.keys() | {f"{name}.{end}" for name in matrices for end in ("absmax", "quant_map", "quant_state.bitsandbytes__nf4")}
    for name, tensor in plain.items():
        if name in matrices:
            assert torch.equal(files[name], nf4.codes(tensor, nf4.scales(tensor)))
            near = packed_numbers(files, name)
            assert (near - tensor.float()).square().sum() < 0.012 * tensor.float().square().sum()
        else:
            assert torch.equal(files[name], tensor)
    said = json.loads((tmp_path / "out/config.json").read_text())
    assert said["quantization_config"] == {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": False,
        "bnb_4bit_compute_dtype": str(dtype).removeprefix("torch."), "bnb_4bit_quant_storage": "uint8", "llm_int8_skip_modules": ["lm_head"]}
    assert done.rounded == {f"{'F32' if dtype == torch.float32 else 'BF16'} -> NF4": len(matrices)}


def test_it_runs_as_its_numbers_say(tmp_path: Path) -> None:
    convert(write(tmp_path / "in"), tmp_path / "out", quantize="NF4")
    files = load_file(tmp_path / "out/model.safetensors")
    numbers = {name: packed_numbers(files, name) if f"{name}.absmax" in files else files[name] for name in llama()}
    ids = torch.arange(20)
    with torch.no_grad():
        found, expected = (decoder.unembed(decoder(ids)) for decoder in (load_decoder(path)[0] for path in (
            tmp_path / "out", write(tmp_path / "again", numbers))))
    assert torch.allclose(found, expected, atol=1e-5 * expected.abs().max().item())


def test_shards_keep_a_matrix_and_its_scales_together(tmp_path: Path) -> None:
    convert(write(tmp_path / "in"), tmp_path / "out", quantize="NF4", max_bytes=4000)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 2
    assert index[MATRIX] == index[f"{MATRIX}.absmax"] == index[f"{MATRIX}.quant_state.bitsandbytes__nf4"]
    for file in set(index.values()):
        with safe_open(tmp_path / "out" / file, "pt") as opened:
            assert set(opened.keys()) == {name for name, at in index.items() if at == file}
    load_decoder(tmp_path / "out")


def test_stacked_rows_are_packed_as_the_files_stack_them(tmp_path: Path) -> None:
    built = build(next(case for case in CASES if case.model_type == "phi3"))
    (tmp_path / "in").mkdir()
    (tmp_path / "in/config.json").write_text(json.dumps(built.raw))
    save_file(built.files, tmp_path / "in/model.safetensors")
    convert(tmp_path / "in", tmp_path / "out", quantize="NF4")
    name, files = "model.layers.0.self_attn.qkv_proj.weight", load_file(tmp_path / "out/model.safetensors")
    assert torch.equal(files[name], nf4.codes(built.files[name], nf4.scales(built.files[name])))


def broken(folder: Path) -> Path:
    tensors = llama()
    tensors[MATRIX][3, 5] = float("nan")
    return write(folder, tensors)


def of_family(name: str, folder: Path) -> Path:
    built = build(next(case for case in CASES if case.model_type == name))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(built.raw))
    save_file(built.files, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(("source", "how", "error", "message"), [
    (write, {"out": "a.gguf"}, BadRequest, r"--quantize NF4 is a format of safetensors, and .*a.gguf is a GGUF file. Write a folder"),
    (write, {"imatrix": "i.gguf"}, BadRequest, r"no such file|--imatrix and --tensor-type name tensors of GGUF"),
    (write, {"overrides": [("a", "Q8_0")]}, BadRequest, r"--imatrix and --tensor-type name tensors of GGUF, and a folder of safetensors is written"),
    (broken, {}, BadCheckpoint, rf"{MATRIX} holds nan in row 3, column 5, which NF4 cannot say"),
    (lambda path: of_family("qwen3_moe", path), {}, BadRequest, r"family 'qwen3_moe' here has experts, .* Write a GGUF file: --quantize Q4_K_M"),
    (lambda path: of_family("gpt2", path), {}, BadRequest, r"weight is stored with its columns first, .* Write a GGUF file"),
    (lambda path: write(path, hidden_size=25), {}, BadRequest, r"has rows of 25 numbers, and two share a byte. Write a GGUF file: --quantize Q8_0")])
def test_what_cannot_be_packed_leaves_nothing(tmp_path: Path, source: Any, how: dict[str, Any], error: type[Exception], message: str) -> None:
    path = source(tmp_path / "in")
    with pytest.raises(error, match=message):
        convert(path, tmp_path / how.pop("out", "out"), quantize="NF4", **how)
    assert [each.name for each in tmp_path.iterdir()] == ["in"]

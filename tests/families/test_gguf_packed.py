"""Packed tensors of every shape of GGUF: experts side by side, several matrices in one, permuted rows, turned heads. They stay packed, and mean the same."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import gguf.quants
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from pellucid.families._gguf_write import architecture_of, factors, metadata
from pellucid.model.cache import Cache
from pellucid.model.load import load_decoder
from pellucid.ops.panels import Panels
from pellucid.weights.assemble import assemble, disassemble
from pellucid.weights.names import NameTable
from pellucid.weights.packed_rows import PackedRows, PackedWeight
from tests.families.build import TOLERANCE, Built, build, logits, ours, shapes
from tests.families.case import Case, rope

SIZES: dict[str, Any] = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
                         "num_key_value_heads": 2, "max_position_embeddings": 128}
LATENT: dict[str, Any] = SIZES | {
    "num_key_value_heads": 4, "q_lora_rank": 96, "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32, "n_routed_experts": 8,
    "num_experts_per_tok": 3, "moe_intermediate_size": 32, "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2, "n_shared_experts": 2}
CASES = {case.family: case for case in [
    Case("mixtral", "packed", "experts, rows of q and k permuted", SIZES | {
        "head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    Case("gpt_oss", "packed", "experts with biases, sinks", SIZES | {
        "head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 64, "swiglu_limit": 7.0,
        "rope_parameters": rope("yarn", 150_000.0, factor=4.0, original_max_position_embeddings=32, beta_fast=32.0, beta_slow=1.0, truncate=False)}),
    Case("phi3", "packed", "q, k and v in one, gate and up in another", SIZES, without=("head_dim",)),
    Case("deepseek_v3", "packed", "turned heads, shared experts", LATENT, without=("head_dim",)),
    Case("gemma", "packed", "gains with one added, a tied table", SIZES | {"head_dim": 32}),
    Case("gpt2", "packed", "what was transposed, learned positions", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 96},
         without=(*SIZES, "head_dim")),
]}


def file(path: Path, built: Built, kind: Kind) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Writes the case with its matrices in this format; (what the tensors then mean, dense, by their names there; the names that are packed)."""
    there = disassemble(NameTable(architecture_of(built.spec).table), built.tensors, built.spec)
    writer = gguf.GGUFWriter(path, architecture_of(built.spec).name)
    shapes_there = {name: tuple(tensor.shape) for name, tensor in there.items()} | {name: (len(f),) for name, f in factors(built.spec).items()}
    for key, value in metadata(built.spec, shapes_there).items():
        if key == "general.architecture":
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)](key, value)  # type: ignore[operator]
    means, packed = {}, {}
    for name, tensor in there.items():
        data = tensor.numpy()
        fits = data.ndim > 1 and "norm" not in name and "gate_inp" not in name and "position" not in name and name.endswith("weight")
        raw = gguf.quants.quantize(data, kind) if fits else data
        writer.add_tensor(name, raw, raw_dtype=kind if fits else None)
        means[name] = torch.from_numpy(np.array(gguf.quants.dequantize(raw, kind).reshape(data.shape) if fits else data))
        if fits:
            packed[name] = tensor
    for name, values in factors(built.spec).items():
        writer.add_tensor(name, np.array(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return means, packed


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.MXFP4], ids=lambda kind: kind.name)
@pytest.mark.parametrize("family", CASES)
def test_packed_tensors_stay_packed_and_mean_what_they_say(tmp_path: Path, family: str, kind: Kind) -> None:
    built = build(CASES[family])
    means, packed = file(tmp_path / "m.gguf", built, kind)
    table = NameTable(architecture_of(built.spec).table)
    plain, _ = assemble(table, means.items(), shapes(built.spec), built.spec)
    expected = logits(ours(built.spec, plain), built.tokens_T)
    decoder, _ = load_decoder(tmp_path / "m.gguf", device="cpu", dtype="float32", activations="exact")
    found = logits(decoder, built.tokens_T)
    assert (found - expected).abs().max() < TOLERANCE * expected.abs().max()
    kept = {name: module.weight for name, module in decoder.named_modules() if isinstance(getattr(module, "weight", None), PackedRows)}
    named = {name for theirs in packed for name in table.saved(dict.fromkeys(plain, 0), dict.fromkeys(plain, 0))[theirs].names}
    assert {f"{name}.weight" for name in kept} == named | ({"unembed.weight"} if built.spec.tied else set())
    assert {weight.format for weight in kept.values()} == {kind.name}
    cache = Cache(built.spec)
    steps = torch.cat([logits(decoder, part_T, cache=cache) for part_T in (built.tokens_T[:-3], *built.tokens_T[-3:].split(1))])
    assert (steps - expected).abs().max() < TOLERANCE * expected.abs().max()


@pytest.mark.native
@pytest.mark.parametrize("family", CASES)
def test_the_kernels_read_them_as_the_reference_does(tmp_path: Path, family: str) -> None:
    """With activations of 8 bits: turned heads, which are no matrix of rows, stay as they are, and every other matrix lies in panels."""
    built = build(CASES[family])
    file(tmp_path / "m.gguf", built, Kind.Q8_0)
    found = {}
    for ops, activations in (("native", "int8"), ("reference", "int8"), ("reference", "exact")):
        decoder, _ = load_decoder(tmp_path / "m.gguf", device="cpu", dtype="float32", ops=ops, activations=activations)
        kinds = {type(weight) for name, weight in decoder.weights().items() if isinstance(weight, PackedWeight) and not name.endswith("embed.weight")}
        turned = {PackedRows} if family == "deepseek_v3" else set()
        assert kinds == ({Panels} | turned if ops == "native" else {PackedRows})
        found[ops, activations] = logits(decoder, built.tokens_T)
    exact = found["reference", "exact"]
    off = (found["reference", "int8"] - exact).norm()
    assert (found["native", "int8"] - found["reference", "int8"]).norm() < 0.3 * off  # a sum rounded otherwise may move a later activation
    assert 0 < off < 0.2 * exact.norm()

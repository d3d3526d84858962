"""GPTQ: every width of code, groups, orders of columns and dialect of settings means the numbers that AutoGPTQ's formula makes of it."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pellucid.errors import BadConfig, MisshapenTensor, MissingTensors, PellucidError, UnknownTensors, UnsupportedModel
from pellucid.families._describe import describe_checkpoint
from pellucid.model.load import load_decoder
from pellucid.weights.checkpoint import open_checkpoint
from pellucid.weights.group_rows import Affine, GroupRows, Reordered, inner
from pellucid.weights.inputs import input_files
from pellucid.weights.packed_rows import PackedRows
from tests.weights.build import llama, write
from tests.weights.quantized import SIZES, Files, Packer, drawn, files, refused, runs_as, scales, spell, weight, words

CONFIG: dict[str, Any] = {"bits": 4, "group_size": 32, "damp_percent": 0.01, "desc_act": False, "sym": True, "true_sequential": True,
                          "model_name_or_path": None, "model_file_base_name": "model", "quant_method": "gptq"}  # as TheBloke's repositories have it
MODULE = "model.layers.0.mlp.up_proj"


def packer(bits: int = 4, group: int = 32, *, symmetric: bool = True, ordered: bool = False, stored_less: int = 1, bias: bool = False,
           dtype: torch.dtype = torch.float16) -> Packer:
    """One number after another by AutoGPTQ's formula, codes and zeros as one row of bits each."""
    def pack(module: str, rows: int, columns: int, seed: int) -> tuple[Files, Tensor]:
        size = columns if group == -1 else group
        n_groups = -(-columns // size)
        code_DF = drawn(0, 1 << bits, columns, rows, seed=seed)
        zero_GF = np.full((n_groups, rows), 1 << bits - 1) if symmetric else drawn(0, 1 << bits, n_groups, rows, seed=seed + 1)
        scale_GF = scales(n_groups, rows, seed=seed, dtype=dtype)
        g_idx = np.arange(columns) // size
        if ordered:
            g_idx = g_idx[np.random.default_rng(seed).permutation(columns)]
        number_DF = (code_DF - zero_GF[g_idx]) * scale_GF.double().numpy()[g_idx]
        out = {f"{module}.qweight": spell(words(code_DF.T, bits).T), f"{module}.qzeros": spell(words((zero_GF - stored_less) % (1 << bits), bits)),
               f"{module}.scales": scale_GF, f"{module}.g_idx": spell(g_idx.astype(np.int32))}
        return out | ({f"{module}.bias": torch.zeros(rows, dtype=torch.float16)} if bias else {}), spell(number_DF.T).float()

    return pack


@pytest.mark.parametrize("group", [32, 16, -1])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_width_runs_as_its_numbers(tmp_path: Path, bits: int, group: int, symmetric: bool) -> None:
    packed, plain = files(packer(bits, group, symmetric=symmetric))
    report = runs_as(tmp_path, packed, plain, CONFIG | {"bits": bits, "group_size": group, "sym": symmetric})
    reach = "a scale for each row" if group == -1 else f"a scale for {group} columns"
    assert report.notes[0] == f"14 matrices stay packed: gptq: int{bits}, {reach}"
    assert report.stored[f"int{bits}"] == sum(tensor.nbytes for name, tensor in packed.items() if "proj" in name)
    assert f", computed in {report.dtype}, " in report.lines()[1]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_columns_in_the_order_of_activation(tmp_path: Path, bits: int, symmetric: bool) -> None:
    packed, plain = files(packer(bits, ordered=True, symmetric=symmetric))
    report = runs_as(tmp_path, packed, plain, CONFIG | {"bits": bits, "desc_act": True, "sym": symmetric})
    assert report.notes[0].endswith("a scale for 32 columns, columns in the order of activation")


def test_codes_become_blocks_of_gguf_where_groups_are_whole_blocks(tmp_path: Path) -> None:
    for name, how, config, kind, format in (("q4", {}, {}, PackedRows, "Q4_0"), ("q8", {"bits": 8}, {"bits": 8}, PackedRows, "Q8_0"),
                                            ("q3", {"bits": 3}, {"bits": 3}, PackedRows, "Q4_0"),
                                            ("asymmetric", {"symmetric": False}, {"sym": False}, Affine, "Q4_0"),
                                            ("narrow", {"group": 16}, {"group_size": 16}, GroupRows, None),
                                            ("ordered", {"ordered": True}, {"desc_act": True}, Reordered, "Q4_0")):
        decoder, _ = load_decoder(write(tmp_path / name, files(packer(**how))[0], **SIZES, quantization_config=CONFIG | config), activations="exact")
        held = weight(decoder, "blocks.1.mlp.down")
        assert type(held) is kind, name
        assert format is None or inner(held).format == format


def test_gptq_v2_stores_the_zeros_themselves(tmp_path: Path) -> None:
    packed, plain = files(packer(symmetric=False, stored_less=0))
    runs_as(tmp_path, packed, plain, CONFIG | {"checkpoint_format": "gptq_v2", "sym": False})


def test_scales_in_bfloat16_and_a_missing_g_idx(tmp_path: Path) -> None:
    packed, plain = files(packer(dtype=torch.bfloat16))
    runs_as(tmp_path, {name: tensor for name, tensor in packed.items() if not name.endswith("g_idx")}, plain, CONFIG)


def test_a_last_group_may_be_shorter(tmp_path: Path) -> None:
    packed, plain = files(packer(group=48))
    runs_as(tmp_path, packed, plain, CONFIG | {"group_size": 48})


def test_dynamic_settings_hold_for_the_modules_they_name(tmp_path: Path) -> None:
    narrow, wide = packer(), packer(8, 16)
    packed, plain = files(lambda module, *sizes: (wide if "mlp" in module else narrow)(module, *sizes),
                          packed=lambda module: "proj" in module and "o_proj" not in module)
    dynamic = {r"-:.*\.o_proj": {}, r"+:.*\.mlp\.": {"bits": 8, "group_size": 16}, r".*\.mlp\.": {"bits": 2}}
    report = runs_as(tmp_path, packed, plain, CONFIG | {"dynamic": dynamic})
    assert set(report.stored) == {"int4", "int8", "f32"}
    assert report.notes[0].startswith("12 matrices stay packed: gptq: int4 and int8")


def test_gptqmodels_own_settings_are_read(tmp_path: Path) -> None:
    """The keys of BaseQuantizeConfig.to_dict in GPTQModel at f4c327a1."""
    packed, plain = files(packer())
    runs_as(tmp_path, packed, plain, {"bits": 4, "group_size": 32, "desc_act": False, "lm_head": False, "method": "gptq", "quant_method": "gptq",
                                      "format": "gptq", "checkpoint_format": "gptq", "pack_dtype": "int32", "sym": True,
                                      "meta": {"quantizer": ["gptqmodel:5.0.0"]}})


def test_settings_in_a_file_of_their_own(tmp_path: Path) -> None:
    """Older repositories have quantize_config.json, which names no method, and config.json says nothing."""
    own = {"bits": 4, "group_size": 32, "damp_percent": 0.1, "desc_act": False, "sym": True, "true_sequential": True}
    packed, plain = files(packer())
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "quantize_config.json").write_text(json.dumps(own))
    runs_as(tmp_path, packed, plain, None)
    checkpoint = open_checkpoint(tmp_path / "packed")
    assert "quantize_config.json" in input_files(checkpoint)
    assert checkpoint.quantization is not None
    checkpoint.config["quantization_config"] = CONFIG | {"bits": 8}
    del checkpoint.__dict__["quantization"]
    with pytest.raises(BadConfig, match=r"quantize_config.json and quantization_config of config.json disagree on bits \(4 and 8\). Remove the wrong one."):
        _ = checkpoint.quantization


def test_biases_of_zeros_are_left_out_and_others_are_not(tmp_path: Path) -> None:
    packed, plain = files(packer(bias=True))
    report = runs_as(tmp_path, packed, plain, CONFIG)
    assert report.left_out == {"a bias of zeros that quantizing added": 14}
    packed[f"{MODULE}.bias"][3] = 0.5
    refused(tmp_path, UnknownTensors, f"1 tensor in the checkpoint has no place in family 'llama' with these settings, first: {MODULE}.bias", packed, CONFIG)


def test_a_quantized_unembedding_and_a_tied_one(tmp_path: Path) -> None:
    base = llama(**SIZES, vocab_size=64)
    packed, plain = files(packer(), packed=lambda module: "proj" in module or module == "lm_head", base=base)
    report = runs_as(tmp_path, packed, plain, CONFIG | {"lm_head": True}, vocab_size=64)
    assert report.notes[0].startswith("15 matrices stay packed")
    refused(tmp_path, MisshapenTensor, "lm_head.weight differs from the embedding, but config.json says tie_word_embeddings=true", packed, CONFIG,
            vocab_size=64, tie_word_embeddings=True)
    del base["lm_head.weight"]
    packed, plain = files(packer(), base=base)
    (tmp_path / "tied").mkdir()
    runs_as(tmp_path / "tied", packed, plain, CONFIG, vocab_size=64, tie_word_embeddings=True)


def test_headers_alone_say_how_a_checkpoint_is_packed(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path / "m", files(packer(ordered=True))[0], **SIZES, quantization_config=CONFIG | {"desc_act": True}))
    found = checkpoint.quantization
    assert found is not None
    assert (found.method, found.facts) == ("gptq", {"bits": 4, "group_size": 32, "desc_act": True, "symmetric": True, "format": "gptq"})
    assert checkpoint.unpacked[f"{MODULE}.weight"].shape == (160, 64)
    assert checkpoint.unpacked[f"{MODULE}.weight"].n_bytes == 160 * 64 // 2 + 2 * 160 // 2 + 2 * 160 * 2 + 64 * 4
    assert not [name for name in checkpoint.unpacked if "qweight" in name]
    assert describe_checkpoint(checkpoint).spec.d_model == 64


ZEROS = torch.zeros(2, 160, dtype=torch.int32)


@pytest.mark.parametrize(("change", "config", "kind", "message"), [
    ({}, {"bits": 5}, UnsupportedModel, "quantization_config of config.json has a setting that is not read: bits=5 (read: 2, 3, 4, 8)"),
    ({}, {"bits": "4"}, BadConfig, "quantization_config of config.json: bits is '4', and a whole number was expected"),
    ({}, {"bits": None}, BadConfig, "quantization_config of config.json has no 'bits', which this method needs"),
    ({}, {"group_size": 0}, BadConfig, "group_size is 0, and a number of columns was expected, or -1 for all"),
    ({}, {"group_size": 64}, MisshapenTensor, "down_proj.scales has shape (5, 64), and model.layers.0.mlp.down_proj.qweight of (20, 64) makes it (3, 64)"),
    ({}, {"desc_act": "no"}, BadConfig, "desc_act is 'no', and true or false was expected"),
    ({}, {"checkpoint_format": "marlin"}, UnsupportedModel, "checkpoint_format='marlin' (read: 'gptq', 'gptq_v2')"),
    ({}, {"is_marlin_format": True}, UnsupportedModel, "is_marlin_format=True (only False)"),
    ({}, {"pack_dtype": "int64"}, UnsupportedModel, "pack_dtype='int64' (only 'int32')"),
    ({}, {"outliers": 3, "rotated": True}, BadConfig, "has 2 keys that nobody reads: outliers=3, rotated=True."),
    ({}, {"dynamic": {r"-:.*up_proj": {}}}, BadConfig, f"dynamic says by '-:.*up_proj' that {MODULE} is not packed, and {MODULE}.qweight is there"),
    ({}, {"dynamic": {r".*up_proj": {"bits": 4, "scheme": 1}}}, BadConfig,
     "dynamic['.*up_proj'] of quantization_config of config.json has 1 key that nobody reads"),
    ({}, {"dynamic": []}, BadConfig, "dynamic is [], and an object from patterns to settings was expected"),
    ({f"{MODULE}.qweight": torch.zeros(8, 160)}, {}, UnsupportedModel, f"{MODULE}.qweight is F32"),
    ({f"{MODULE}.qweight": torch.zeros(7, 160, dtype=torch.int32)}, {"bits": 3}, MisshapenTensor,
     f"{MODULE}.qweight has shape (7, 160), and (columns * 3 / 32, rows) was expected: 3 bits a number"),
    ({f"{MODULE}.qweight": torch.zeros(4, 160, dtype=torch.int32)}, {}, MisshapenTensor, f"{MODULE}.scales has shape (2, 160)"),
    ({f"{MODULE}.scales": None}, {}, MissingTensors, f"{MODULE}.qweight is packed, and {MODULE}.scales is not there. Is a shard missing?"),
    ({f"{MODULE}.scales": torch.zeros(2, 159, dtype=torch.float16)}, {}, MisshapenTensor, f"{MODULE}.scales has shape (2, 159)"),
    ({f"{MODULE}.scales": ZEROS}, {}, UnsupportedModel, f"{MODULE}.scales is I32, and beside {MODULE}.qweight F32 or BF16 or F16 is read"),
    ({f"{MODULE}.qzeros": ZEROS}, {}, MisshapenTensor, f"{MODULE}.qzeros has shape (2, 160), and {MODULE}.qweight of (8, 160) makes it (2, 20)"),
    ({f"{MODULE}.g_idx": None}, {"desc_act": True}, MissingTensors, f"{MODULE}.g_idx is not there"),
    ({f"{MODULE}.g_idx": torch.full((64,), 2, dtype=torch.int32)}, {}, MisshapenTensor, f"{MODULE}.g_idx names groups 2 to 2, and there are scales of 2"),
    ({f"{MODULE}.g_idx": torch.full((64,), -1, dtype=torch.int32)}, {}, MisshapenTensor, f"{MODULE}.g_idx names groups -1 to -1"),
    ({f"{MODULE}.g_idx": (torch.arange(64) % 2).int()}, {}, MisshapenTensor, f"{MODULE}.g_idx puts columns in another order"),
    ({f"{MODULE}.g_idx": (torch.arange(64) > 20).int()}, {"desc_act": True}, UnsupportedModel,
     f"{MODULE}.g_idx makes groups of [21, 43] columns, and 32 each were expected"),
    ({f"{MODULE}.weight": torch.zeros(160, 64)}, {}, UnknownTensors, f"{MODULE}.weight is there, and {MODULE}.qweight packs it too"),
    ({f"{MODULE}.qscales": ZEROS}, {}, UnsupportedModel, f"{MODULE}.qscales is I32"),
])
def test_what_does_not_go_together_is_refused(tmp_path: Path, change: dict[str, Tensor | None], config: dict[str, Any], kind: type[PellucidError],
                                              message: str) -> None:
    packed, _ = files(packer(config.get("bits") if config.get("bits") == 3 else 4))
    refused(tmp_path, kind, message, {name: tensor for name, tensor in (packed | change).items() if tensor is not None}, CONFIG | config)

"""Conversions of llama.cpp's own converter, recorded: the tensors it made, by checksums, and the metadata it wrote, against what the tables say.

recorded_gguf.json holds, for each of our cases that the converter can express, the checkpoint's config.json, the metadata and the factors of the rope in the
file, and shape and CRC-32 of every tensor (float32). Their numbers follow from their names (`filled`), so that no checkpoint need be kept. It was made
once, by convert_hf_to_gguf.py and conversion/ of llama.cpp as llama-cpp-python 0.3.36 carries it, with --outtype f32 and without a tokenizer; where that
asks for a key which transformers 5 no longer writes (rotary_pct, n_ctx, scoring_func, ...), the key was given to it. No file of it is here.
"""
from __future__ import annotations

import dataclasses
import json
import math
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pellucid.errors import PellucidError
from pellucid.families._describe import describe
from pellucid.families._gguf import check, config, facts_of, numbers
from pellucid.families._gguf_keys import KEYS, Free, same
from pellucid.families._gguf_write import _differences, architecture_of, as_written, factors, metadata
from pellucid.spec import DecoderSpec
from pellucid.weights.assemble import _with_experts, joined, layout
from pellucid.weights.names import NameTable, Place
from tests.families.build import shapes

# What the converter makes up where the config.json that it reads says something else, or nothing.
MADE_UP = {"falcon": {"context_length": 2048}, "glm": {"context_length": 48}}
# What only the converter writes: it is read by nobody, says again what another key says, or says what its absence says.
MORE = {"tensor_data_layout", "router_logit_softcapping", "nextn_predict_layers", "rope.scaling.type", "rope.scaling.factor",
        "attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"}
RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "recorded_gguf.json").read_text(encoding="utf8"))


def filled(name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers that follow from the tensor's name (ours) and their place, each exact in float16."""
    n = int(np.prod(shape))
    at = np.arange(n, dtype=np.int64) * 40503 + zlib.crc32(name.encode())
    return torch.from_numpy(((at % 4093 - 2046) / 4096).astype(np.float32).reshape(shape))


@cache
def described(name: str) -> tuple[DecoderSpec, dict[str, Tensor]]:
    spec = describe(RECORDED[name]["config"]).spec
    return spec, {ours: filled(ours, shape) for ours, shape in shapes(spec).items()}


def shape_of(said: str) -> tuple[int, ...]:
    return tuple(map(int, said.split("x")))


def read(name: str) -> Any:
    """Facts of the recorded file, its config.json and architecture."""
    case = RECORDED[name]
    shapes_there = {tensor: shape_of(said) for tensor, (said, _) in case["tensors"].items()} | {tensor: (len(f),) for tensor, f in case["factors"].items()}
    facts = facts_of("recorded", case["metadata"], shapes_there, case["factors"].__getitem__)
    return facts, *config(facts)


@pytest.mark.parametrize("name", RECORDED)
def test_every_tensor_is_what_the_table_makes_of_ours(name: str) -> None:
    spec, ours = described(name)
    facts, _, architecture = read(name)
    table, seen = NameTable(architecture.table), set()
    for theirs, (said, crc) in RECORDED[name]["tensors"].items():
        place = _with_experts(table.place(theirs), spec)
        assert isinstance(place, Place), theirs
        tensor = joined(ours, place, spec)
        assert (tuple(tensor.shape), f"{zlib.crc32(tensor.contiguous().numpy().tobytes()):08x}") == (shape_of(said), crc), theirs
        seen |= set(place.names)
    for key, number in numbers(facts, architecture, len(spec.layers)).items():
        place = table.place(key)
        assert isinstance(place, Place)
        assert number == pytest.approx(float(ours[place.names[0]]), rel=1e-6)
        seen |= set(place.names)
    assert seen == set(ours) - ({"unembed.weight"} if spec.tied else set())


@pytest.mark.parametrize("name", RECORDED)
def test_the_metadata_makes_the_same_spec(name: str) -> None:
    spec, _ = described(name)
    facts, raw, architecture = read(name)
    found = describe(raw, where="recorded").spec
    check(facts, architecture, found)
    expected = dataclasses.replace(as_written(spec), n_ctx=MADE_UP.get(spec.family, {}).get("context_length", spec.n_ctx))
    assert [(path, a, b) for path, a, b in _differences(expected, found, "") if path != "family"] == []


@pytest.mark.parametrize("name", RECORDED)
def test_what_is_written_says_the_same(name: str) -> None:
    spec, ours = described(name)
    architecture = architecture_of(spec)
    places = layout(NameTable(architecture.table), ours, spec)
    there = {theirs: tuple(joined(ours, place, spec).shape) for theirs, place in places.items()} | {t: (len(f),) for t, f in factors(spec).items()}
    said = metadata(spec, there, {ours_: float(tensor) for ours_, tensor in ours.items() if tensor.numel() == 1})
    facts, *_ = read(name)
    recorded = {key: value for key, value in facts.said.items() if key not in architecture.inert and key not in MADE_UP.get(spec.family, {})}
    if more := recorded.get("nextn_predict_layers", 0):  # the converter counts them though it was given none
        recorded["block_count"] -= more
    made = {key: (architecture.of.get(key) or KEYS.get(key, lambda _: Free(None)))(as_written(spec)) for key in recorded}
    assert {key: (value, made[key]) for key, value in recorded.items() if not same(value, made[key])} == {}
    assert {key for key, value in recorded.items() if f"{facts.name}.{key}" not in said and key not in said and value} <= MORE
    assert factors(spec).keys() == RECORDED[name]["factors"].keys()
    for tensor, values in factors(spec).items():
        assert values == pytest.approx(RECORDED[name]["factors"][tensor], rel=1e-5)


ONE_EACH = {RECORDED[name]["metadata"]["general.architecture"]: name for name in RECORDED}
COUNTS = {"block_count", "embedding_length", "attention.head_count", "expert_used_count", "vocab_size", "attention.key_length"}
WRONG: list[Any] = [-1, 0.5, "x", True, [], [1, 2], math.nan, 1e300]


def refusal(said: Mapping[str, Any], case: Mapping[str, Any]) -> str:
    """The message with which the case is refused when its metadata says this; empty where it is read."""
    shapes_there = {tensor: shape_of(shape) for tensor, (shape, _) in case["tensors"].items()} | {tensor: (len(f),) for tensor, f in case["factors"].items()}
    try:
        facts = facts_of("m.gguf", said, shapes_there, case["factors"].__getitem__)
        raw, architecture = config(facts)
        spec = describe(raw, where="m.gguf").spec
        check(facts, architecture, spec)
        numbers(facts, architecture, len(spec.layers))
    except PellucidError as e:
        return str(e)
    return ""


@pytest.mark.parametrize("name", ONE_EACH.values(), ids=list(ONE_EACH))
def test_any_value_anywhere_is_read_or_refused_by_name(name: str) -> None:
    case, arch = RECORDED[name], RECORDED[name]["metadata"]["general.architecture"]
    for key in sorted(set(case["metadata"]) - {"general.architecture"}):
        for wrong in WRONG:
            message = refusal(case["metadata"] | {key: wrong}, case)
            assert not message or "m.gguf" in message
            assert message or key.removeprefix(f"{arch}.") not in COUNTS or wrong == case["metadata"][key], f"{key}={wrong!r} was taken for a count"


def test_what_older_files_carry_is_read_and_what_another_model_says_is_refused() -> None:
    llama, granite = RECORDED["llama-llama3_rope"], RECORDED["granite-gguf"]
    assert refusal(llama["metadata"] | {"llama.tensor_data_layout": "Meta AI original pth", "llama.rope.scaling.attn_factor": 1.0,
                                        "llama.rope.scaling.finetuned": False, "llama.expert_count": 0, "llama.expert_used_count": 0}, llama) == ""
    assert refusal(llama["metadata"] | {"llama.rope.scaling.attn_factor": 1.2}, llama).startswith("m.gguf says llama.rope.scaling.attn_factor=1.2, and the")
    assert refusal(granite["metadata"] | {"granite.rope.scaling.finetuned": False}, granite) == (
        "m.gguf says granite.rope.scaling.finetuned=False, and the rest of its metadata makes it True. Which is right?")
    assert "llama.nextn_predict_layers is 9, and it counts some of the 4 blocks" in refusal(llama["metadata"] | {"llama.nextn_predict_layers": 9}, llama)

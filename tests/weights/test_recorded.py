"""Real checkpoints as they are: their config.json and every tensor name, recorded from the files of their repositories.

`{0-31}` in a recorded name stands for each of these numbers. A `note` says where a list was not taken from an index file.
"""
from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from pellucid import families
from pellucid.families._describe import describe
from pellucid.model.decoder import Decoder
from pellucid.ops.choose import choose
from pellucid.weights.names import LeftOut, NameTable

RECORDED = sorted((Path(__file__).parent / "recorded").glob("*.json"))
LEFT_OUT = {  # what each leaves out: a word of the reason -> how many tensors
    "gemma3": {"vision": 439}, "gpt2": {"causal mask": 12}, "gpt_neox": {"causal mask": 64, "rope frequencies": 32}, "gptj": {"causal mask": 56},
    "llama_first": {"rope frequencies": 32}, "llama_tuned": {"rope frequencies": 60}, "mimo": {"multi-token-prediction": 16}, "mistral3": {"vision": 222}}


def read(path: Path) -> tuple[dict[str, Any], list[str]]:
    recorded = json.loads(path.read_text())
    return recorded["config"], [name for compact in recorded["names"] for name in spread(compact)]


def spread(name: str) -> list[str]:
    """`a.{0-1}.b` -> a.0.b, a.1.b."""
    parts = re.split(r"\{(\d+)(?:-(\d+))?\}", name)
    ranges = [range(int(first), int(last or first) + 1) for first, last in zip(parts[1::3], parts[2::3], strict=True)]
    return ["".join(itertools.chain(*zip(parts[0::3], [*map(str, at), ""], strict=True))) for at in itertools.product(*ranges)]


def test_a_compact_name_spreads() -> None:
    assert spread("a.{0-1}.b.{3}.c") == ["a.0.b.3.c", "a.1.b.3.c"]
    assert spread("a.b") == ["a.b"]


@pytest.mark.parametrize("path", RECORDED, ids=lambda p: p.stem)
def test_every_tensor_has_a_place_or_a_reason_and_every_weight_a_tensor(path: Path) -> None:
    config, names = read(path)
    assert len(names) == len(set(names))
    described = describe(config)
    with torch.device("meta"):
        decoder = Decoder(described.spec, choose("reference"))
    needed = {name for name, _ in decoder.named_parameters()}
    left: Counter[str] = Counter()
    filled: Counter[str] = Counter()
    for name in names:
        place = described.names.place(name)
        assert place is not None, f"{name} has no place"
        if isinstance(place, LeftOut):
            left[place.why] += 1
        else:
            assert needed.issuperset(place.names), f"{name} goes to {place.names}, which the decoder has not"
            filled.update((*place.names,) if place.head is None else (f"{place.names[0]}[{place.head}]",))
    assert {name.split("[")[0] for name in filled} == needed
    assert set(filled.values()) == {1}, "two tensors for one place"
    expected = LEFT_OUT.get(path.stem, {})
    assert {word: n for why, n in left.items() for word in expected if word in why} == expected
    assert sum(left.values()) == sum(expected.values())


def test_recorded_checkpoints_cover_every_kind_of_thing_left_out() -> None:
    assert {word for words in LEFT_OUT.values() for word in words} == {"vision", "causal mask", "rope frequencies", "multi-token-prediction"}
    assert {path.stem for path in RECORDED} >= LEFT_OUT.keys()


def test_deepseek_appends_its_draft_layer_under_ordinary_names() -> None:
    """Names of deepseek-ai/DeepSeek-V3's layer 61, after layers 0 to 60, placed by a table that knows their like."""
    config = {"model_type": "llama", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 61, "num_attention_heads": 1,
              "max_position_embeddings": 8, "num_nextn_predict_layers": 1}
    names = describe(config).names
    for name in ("input_layernorm", "post_attention_layernorm", "embed_tokens", "enorm", "hnorm", "eh_proj", "shared_head.norm", "shared_head.head"):
        place = names.place(f"model.layers.61.{name}.weight")
        assert isinstance(place, LeftOut)
        assert place.why.startswith("multi-token-prediction layers")
    assert names.place("model.layers.62.enorm.weight") is None
    assert not isinstance(names.place("model.layers.60.input_layernorm.weight"), LeftOut)
    without = describe({key: value for key, value in config.items() if key != "num_nextn_predict_layers"}).names
    assert without.place("model.layers.61.enorm.weight") is None


def test_a_family_that_keeps_its_attention_bias_leaves_none_out() -> None:
    """The rule for saved masks, `...attn.bias`, must not swallow a real bias of any family."""
    for name in families.NAMES:
        table = families.family(name).WEIGHTS
        for theirs, rule in table.items():
            if isinstance(rule, LeftOut):
                continue
            example = theirs.replace("[", "").replace("]", "").format(i=0, e=0, h=0)
            assert not isinstance(NameTable(table).place(example), LeftOut), f"{name}: {example}"

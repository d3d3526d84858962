"""Gemma 4: what is refused by name, and what the parametrised tests cannot see."""
from __future__ import annotations

from typing import Any

import pytest
import torch

from pellucid.errors import BadRequest, PellucidError
from pellucid.families._describe import describe
from pellucid.model.cache import Cache
from pellucid.weights.assemble import assemble
from tests.families.build import build, error, logits, ours, read_spec, shapes
from tests.families.case import Json
from tests.families.cases_gemma4 import CASES

CASE = {str(case): case for case in CASES}


def changed(case: str, **settings: Any) -> Json:
    """The config.json of a case with these settings; ... drops a key."""
    return {k: v for k, v in (build(CASE[case]).raw | settings).items() if v is not ...}


@pytest.mark.parametrize(("case", "settings", "message"), [
    ("gemma4_text-31b", {"num_kv_shared_layers": 3}, "num_kv_shared_layers=3 and layer_types leave none of 4 layers that makes keys and values of 'full_att"),
    ("gemma4_text-31b", {"per_layer_config": {"04": {"head_dim": 16}}}, "per_layer_config speaks of layer 4, and num_hidden_layers says 4. Which is right?"),
    ("gemma4_text-26b", {"top_k_experts": 9}, "9 of 8 experts cannot be active"),
    ("gemma4_unified_text-12b", {"hidden_size_per_layer_input": 256}, "hidden_size_per_layer_input=256 (only 0)"),
    ("gemma4_unified_text-12b", {"enable_moe_block": True}, "enable_moe_block=True (only False)"),
    ("gemma4_text-31b", {"per_layer_config": {"1": {"head_dim": 16, "intermediate_size": 9}}}, "does not read: intermediate_size=9"),
])
def test_a_setting_that_is_not_implemented_is_refused_by_name(case, settings, message):
    with pytest.raises(PellucidError) as refusal:
        read_spec(changed(case, **settings))
    assert message in str(refusal.value)


def test_a_released_file_says_the_widths_of_its_full_layers_once():
    raw = changed("gemma4_text-31b", per_layer_config=..., global_head_dim=16, num_global_key_value_heads=2)
    assert read_spec(raw) == build(CASE["gemma4_text-31b"]).spec
    assert read_spec(raw | {"layer_types": ["sliding_attention"] * 4}).layers[-1].mixer.window is None


def test_a_layer_shares_with_the_last_of_its_kind_that_makes_keys_and_values():
    spec = build(CASE["gemma4_text-e2b"]).spec
    assert [layer.mixer.shares for layer in spec.layers] == [None, None, None, None, 2, 3, 3]
    assert [layer.mixer.window is None for layer in spec.layers] == [False, True, False, True, False, True, True]
    assert [layer.mlp.d_ff for layer in spec.layers] == [72] * 4 + [144] * 3


def test_what_is_shared_is_cached_once():
    built, kept = build(CASE["gemma4_text-e2b"]), []

    class Watched(Cache):
        def extend(self, layer, *args):
            kept.append(layer)
            return super().extend(layer, *args)

    cache = Watched(built.spec)
    logits(ours(built.spec, built.tensors), built.tokens_T, cache=cache)
    assert kept == [0, 1, 2, 3]


def test_keys_and_values_that_a_file_holds_of_sharing_layers_are_left_out_and_said():
    """Google's files of E2B and E4B hold them: 20 and 18 layers' k_proj, v_proj and k_norm, which no pass reads."""
    built = build(CASE["gemma4_text-e2b"])
    unread = {f"model.layers.{i}.self_attn.{name}.weight": torch.ones(3) for i in (4, 5, 6) for name in ("k_proj", "v_proj", "k_norm")}
    tensors, left_out = assemble(describe(built.raw).names, (built.files | unread).items(), shapes(built.spec), built.spec)
    assert left_out == {"keys and values of layers that read another layer's instead": sorted(unread, key=list(unread).index)}
    assert error(logits(ours(built.spec, tensors), built.tokens_T), logits(ours(built.spec, built.tensors), built.tokens_T)) == 0


def test_embeddings_cannot_stand_in_for_ids_that_are_looked_up_again():
    built = build(CASE["gemma4_text-e4b"])
    with pytest.raises(BadRequest, match=r"^embeddings were given in place of token ids, and this model looks its layers' inputs up by id\. Give the ids\."):
        logits(ours(built.spec, built.tensors), torch.ones(3, 48))

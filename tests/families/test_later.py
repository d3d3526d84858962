"""Llama's later descendants: what is refused by name, and what the parametrised tests cannot see."""
from __future__ import annotations

from typing import Any

import pytest
import torch

from pellucid.errors import PellucidError
from pellucid.model.load import load_decoder
from tests.families.build import build, randomized, read_spec
from tests.families.case import Json
from tests.families.cases_later import CASES, block

CASE = {str(case): case for case in CASES}


def changed(case: str, **settings: Any) -> Json:
    """The config.json of a case with these settings; ... drops a key."""
    return {k: v for k, v in (build(CASE[case]).raw | settings).items() if v is not ...}


@pytest.mark.parametrize(("case", "settings", "message"), [
    ("dots1-groups", {"topk_group": 1}, "n_routed_experts, num_experts_per_tok, n_group and topk_group do not go together: "
     "3 active experts are more than 1 groups of 2 have. Which one is wrong?"),
    ("dots1-groups", {"scoring_func": "softmax"}, "scoring_func='softmax' (only 'sigmoid')"),
    ("minimax_m2-released", {"attn_type_list": [0, 1]}, "attn_type_list=[0, 1] (only [1, 1])"),
    ("minimax_m2-released", {"shared_intermediate_size": 8}, "shared_intermediate_size=8 (only 0)"),
    ("dbrx-released", {"attn_config": {"kv_n_heads": 3, "rope_theta": 5e5}}, "attn_config says rope_theta=500000, and the file says 10000 outside of it"),
    ("dbrx-released", {"ffn_config": {"moe_normalize_expert_weights": 2.0}}, "moe_normalize_expert_weights=2.0 (only 1.0)"),
    ("dbrx-released", {"ffn_config": {"ffn_act_fn": {"name": "silu", "alpha": 2}}}, "ffn_act_fn of ffn_config of config.json has 1 key"),
    ("dbrx-released", {"tie_word_embeddings": True}, "tie_word_embeddings=True (only False)"),
    ("apertus-released", {"rope_parameters": ..., "rope_theta": 500.0}, "rope_theta=500.0 (only 12000000.0)"),
    ("ministral3-released", {"rope_parameters": ..., "rope_theta": 500.0}, "rope_theta=500.0 (only 1000000.0)"),
    ("hunyuan_v1_moe-released", {"moe_intermediate_size": [20, 24]}, "moe_intermediate_size=[20, 24] (only 20)"),
    ("hunyuan_v1_moe-released", {"num_shared_expert": 2}, "num_shared_expert=2 (only 1)"),
    ("nemotron_nas-biases", {"num_hidden_layers": 3}, "block_configs names 2 layers and num_hidden_layers says 3. Which one is right?"),
    ("nemotron_nas-biases", {"block_configs": [{**block(3, 2.5), "attention": {"n_heads_in_group": 3, "window_length": 8}}] * 2}, "window_length=8 (only"),
    ("nemotron_nas-biases", {"block_configs": [{**block(3, 2.5), "ffn": {"ffn_mult": 2.5, "moe": 4}}] * 2}, "does not read: moe=4"),
    ("deci-released", {"num_key_value_heads_per_layer": [3, 2]}, "num_key_value_heads_per_layer names 2 layers"),
    ("exaone4-32b", {"attention_bias": True}, "attention_bias=True (only False)"),
    ("olmo3-released", {"sliding_window": None}, "layer_types has windowed layers and there is no window"),
])
def test_a_setting_that_is_not_implemented_is_refused_by_name(case, settings, message):
    with pytest.raises(PellucidError) as refusal:
        read_spec(changed(case, **settings))
    assert message in str(refusal.value)


def test_a_pattern_of_windows_may_be_spelled_in_letters():
    raw = changed("exaone4-32b", layer_types=..., sliding_window_pattern="LLLG")
    assert read_spec(raw) == build(CASE["exaone4-32b"]).spec
    assert [layer.mixer.window for layer in read_spec(raw | {"sliding_window_pattern": "LG"}).layers] == [11, None, 11, None, 11]


@pytest.mark.parametrize("kind", ["su", "yarn"])
def test_longrope_under_its_older_names(kind):
    raw = changed("phi3-128k")
    called = raw | {"rope_parameters": raw["rope_parameters"] | {"rope_type": kind}}
    assert read_spec(called) == build(CASE["phi3-128k"]).spec


def test_dbrx_as_released_keeps_its_base_among_the_facts_of_attention():
    raw = changed("dbrx-released", rope_parameters=...)
    assert read_spec(raw) == build(CASE["dbrx-released"]).spec
    raw["attn_config"] = raw["attn_config"] | {"rope_theta": 500.0}
    assert read_spec(raw).layers[0].mixer.rope.theta == 500.0


def test_one_value_may_be_said_for_every_layer():
    raw = changed("hunyuan_v1_moe-released", moe_intermediate_size=[20, 20], num_shared_expert=[1, 1], moe_topk=[3, 3])
    assert read_spec(raw) == build(CASE["hunyuan_v1_moe-released"]).spec


def test_ministral3_with_vision_is_a_mistral3_wrapper_around_it():
    text = build(CASE["ministral3-released"])
    assert read_spec({"model_type": "mistral3", "text_config": text.raw, "tie_word_embeddings": False}) == text.spec


def test_what_corrects_a_choice_of_experts_stays_float32_in_a_half_precision_model(tmp_path):
    theirs = randomized(CASE["dots1-groups"])
    theirs.save_pretrained(tmp_path)
    decoder, _ = load_decoder(tmp_path, dtype="bfloat16", device="cpu")
    router = decoder.blocks[0].mlp.router
    assert (router.correction.dtype, router.weight.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(router.correction, theirs.model.layers[0].mlp.gate.e_score_correction_bias)

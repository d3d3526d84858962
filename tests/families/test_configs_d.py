"""Families that transformers lacks: published configs are read whole, and what is not computed is refused by name."""
from __future__ import annotations

import math

import pytest

from pellucid import cost, families
from pellucid.errors import PellucidError
from pellucid.families._describe import describe
from pellucid.model.load import load_decoder
from pellucid.weights.save import save_checkpoint
from tests.families.build import TOLERANCE, build, error, judged, logits, ours, shapes
from tests.families.case import ORIGINAL
from tests.families.cases_d import CASES, longrope
from tests.families.configs_d import CONFIGS

CASE = {str(case): case for case in CASES}
REFERENCE = {case.model_type: case.reference for case in CASES}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_config_is_read_whole_and_its_tensors_count_as_the_reference_lists_them(name):
    raw = CONFIGS[name]
    described, reference = describe(raw), REFERENCE[raw["model_type"]]
    listed = reference.shapes(reference.DEFAULTS | raw)
    assert cost.parameters(described.spec) == sum(math.prod(shape) for shape in listed.values())
    assert set(listed) == set(described.names.saved(shapes(described.spec), {n: s[0] for n, s in shapes(described.spec).items()})) - (
        {"lm_head.weight", "output.weight"} if described.spec.tied else set())


@pytest.mark.parametrize(("case", "settings", "message"), [
    ("internlm2-released", {"rope_pos_id_version": "interleaved"}, "rope_pos_id_version='interleaved' (only 'default')"),
    ("minicpm-released", {"sparse_config": {"kernel_size": 32}}, "sparse_config={'kernel_size': 32} (only None): it switches on InfLLM-v2"),
    ("chatglm-chatglm3", {"position_encoding_2d": True}, "is the first ChatGLM's (position_encoding_2d, inner_hidden_size), another architecture"),
    ("chatglm-chatglm3", {"inner_hidden_size": 16384}, "of 'chatglm' only ChatGLM 2 and 3 and GLM-4-9B are implemented"),
    ("chatglm-glm4_9b", {"padded_vocab_size": 65024}, "rope_ratio=500 divides the positions in ChatGLM2-6B-32K and multiplies the base in ChatGLM3-6B"),
    ("chatglm-glm4_9b", {"padded_vocab_size": 65024}, "{'type': 'linear', 'factor': 500} for the former, 'rope_theta': 5000000 for the latter."),
    ("qwen-logn", {"rope_theta": 10_000}, "rope_theta=10000 (only 500)"),
    ("chatglm-chatglm3", {"multi_query_attention": False}, "multi_query_attention=False (only True)"),
    ("chatglm-chatglm3", {"multi_query_attention": None}, "config.json has no 'multi_query_attention'"),
    ("chatglm-chatglm3", {"quantization_bit": 4}, "quantization_bit=4 (only 0)"),
    ("chatglm-chatglm3", {"pre_seq_len": 128}, "pre_seq_len=128 (only None)"),
    ("chatglm-chatglm3", {"vision_config": {"hidden_size": 4}}, "family 'chatglm' does not read: vision_config="),
    ("qwen-logn", {"kv_channels": 12}, "kv_channels=12 (only 10)"),
    ("qwen-logn", {"use_dynamic_ntk": None}, "config.json has no 'use_dynamic_ntk', which this family needs"),
    ("qwen-logn", {"visual": {"width": 4}}, "family 'qwen' does not read: visual="),
    ("sarvam_moe-released", {"score_function": "softmax"}, "score_function='softmax' (only 'sigmoid')"),
    ("sarvam_moe-groups", {"topk_group": 1}, "num_experts, num_experts_per_tok, n_group and topk_group do not go together: 3 active experts are more"),
    ("pangu_pro_moe-released", {"num_experts": 10}, "num_experts=10 do not make num_experts_per_tok=4 groups of equal size. Which one is wrong?"),
    ("baichuan-baichuan_13b", {"vocab_size": 64_003}, "vocab_size=64003 is neither Baichuan 1's (64,000) nor Baichuan 2's (125,696)"),
    ("baichuan-baichuan2_7b", {"hidden_size": 5120}, "hidden_size=5120 is a 13B's, which has ALiBi, and max_position_embeddings a 7B's, which has rope"),
    ("baichuan-baichuan2_13b", {"hidden_size": 4096}, "hidden_size=4096 is a 7B's, which has rope, and there is no max_position_embeddings, as in a 13B"),
    ("sarvam_mla-released", {"rope_scaling": {"rope_type": "deepseek_yarn", "factor": 40}}, "without a 'type' the published code sharpens the scores"),
    ("sarvam_mla-released", {"rope_scaling": None}, "config.json has no 'rope_scaling', which this family needs"),
    ("sarvam_mla-released", {"moe_layer_freq": 2}, "moe_layer_freq=2 (only 1)"),
    ("minicpm-minicpm4", {"rope_scaling": longrope(29) | {"factor": 4.0}}, "does not implement: factor in rope_scaling (the published code does not read"),
    ("minicpm-released", {"num_experts": 8}, "has no 'num_experts_per_tok', which this family needs"),
])
def test_a_setting_that_is_not_computed_is_refused_by_name(case, settings, message):
    with pytest.raises(PellucidError) as refusal:
        describe(build(CASE[case]).raw | settings)
    assert message in str(refusal.value)


def test_a_model_type_of_words_run_together_is_saved_and_loaded_under_its_own_name(tmp_path):
    assert families.family("PanguEmbedded") is families.family("pangu_embedded")
    case = build(CASE["pangu_pro_moe-released"])
    save_checkpoint(tmp_path / "saved", case.spec, case.module.WEIGHTS, case.tensors, case.raw)
    decoder, report = load_decoder(tmp_path / "saved", device="cpu")
    assert error(logits(decoder, case.tokens_T), case.logits_TV) < TOLERANCE
    assert not [note for note in report.notes if "the text model of" in note]



@pytest.mark.parametrize("n", [ORIGINAL, ORIGINAL + 1, 2 * ORIGINAL, 2 * ORIGINAL + 1, 3 * ORIGINAL])
def test_the_base_of_the_first_qwen_grows_at_the_powers_of_two_of_its_length(n):
    case = build(CASE["qwen-released_past"])
    tokens_T = case.tokens_T[:n]
    assert error(logits(ours(case.spec, case.tensors), tokens_T), judged(case.case, case.raw, case.files, tokens_T)) < TOLERANCE

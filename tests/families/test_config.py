"""What config.json may not say, and what each refusal tells its reader."""
from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from pellucid import families
from pellucid.errors import BadConfig, BadRequest, UnsupportedModel
from pellucid.families._config import Config
from pellucid.families._describe import describe
from pellucid.families._inert import INERT
from pellucid.spec import Attention, DecoderSpec, Experts, FeedForward, Layer, LayerInputs, Linear, LogTemperature, Norm, Proportional, Rope, Yarn
from tests.families.build import build
from tests.families.case import Json
from tests.families.cases_llama import CASES

RAW = {str(case): case for case in CASES}


def changed(case: str, **settings: Any) -> Json:
    """The config.json of a case with these settings; ... drops a key."""
    return {k: v for k, v in (build(RAW[case]).raw | settings).items() if v is not ...}


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0], "long_factor": [1.0]}
BOTH_WAYS = "does not implement: use_bidirectional_attention=True (only False)"
ONLY_FULL = "layer_types with 'chunked_attention' (only 'full_attention' and 'sliding_attention')"


@pytest.mark.parametrize(("case", "settings", "kind", "message"), [
    ("llama-biases", {"vocab_size": ...}, BadConfig, "config.json has no 'vocab_size', which this family needs. Is the file whole?"),
    ("llama-biases", {"intermediate_size": None}, BadConfig, "config.json has no 'intermediate_size', which this family needs"),
    ("mixtral-window", {"num_key_value_heads": ...}, BadConfig, "config.json has no 'num_key_value_heads', which this family needs"),
    ("llama-biases", {"hidden_act": "prelu"}, UnsupportedModel,
     "config.json has a setting this family does not implement: hidden_act='prelu' (known: silu, swish, gelu, "),
    ("llama-biases", {"num_key_value_heads": 4}, BadConfig, "describes no decoder of family 'llama': 6 query heads cannot share 4 key/value heads evenly"),
    ("llama-biases", {"hidden_size": "48"}, BadConfig, "; no plain numbers: hidden_size='48'"),
    ("llama-biases", {"num_hidden_layers": 10**9}, BadConfig, "num_hidden_layers is 1,000,000,000, and no decoder here has more than 10,000 layers"),
    ("llama-biases", {"num_hidden_layers": 0}, BadConfig, "describes no decoder of family 'llama': n_layers is 0, and no decoder has fewer than 1"),
    ("mixtral-window", {"num_experts_per_tok": 9}, BadConfig, "describes no decoder of family 'mixtral': 9 of 8 experts cannot be active"),
    ("mistral-window", {"attention_bias": True}, UnsupportedModel, "does not implement: attention_bias=True (only False)"),
    ("mistral-window", {"sliding_window": 0}, BadConfig, "describes no decoder of family 'mistral': window is 0, and no decoder has fewer than 1"),
    ("llama-biases", {"rope_interleaved": True}, UnsupportedModel, "does not implement: rope_interleaved=True (only False)"),
    ("qwen2-plain", {"use_mrope": True}, UnsupportedModel, "does not implement: use_mrope=True (only False)"),
    ("gemma2-caps", {"sliding_window_size": 12}, UnsupportedModel, "does not implement: sliding_window_size=12 (only 11)"),
    # rope
    ("llama-biases", {"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, UnsupportedModel,
     "config.json has a rope scaling Pellucid does not implement: rope_type='spiral' (known: default, linear, dynamic, llama3, yarn, longrope, "
     "ntk_alpha, proportional)"),
    ("llama-biases", {"rope_parameters": LONGROPE}, BadConfig, "describes no decoder of family 'llama': 1 short and 1 long factors are not those of 7 pairs"),
    ("llama-biases", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, BadConfig,
     "rope scaling 'linear' lacks 'factor'. Is the file whole?"),
    ("llama-biases", {"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, BadConfig,
     "rope scaling 'llama3' lacks 'low_freq_factor'"),
    ("llama-biases", {"rope_parameters": {**YARN, "beta_medium": 3}}, BadConfig,
     "config.json has 1 key that family 'llama' does not read: rope_scaling.beta_medium=3."),
    ("llama-biases", {"rope_parameters": YARN, "rope_scaling": {"type": "linear", "factor": 4.0}}, BadConfig,
     "config.json: rope_scaling and rope_parameters disagree on rope_type. Remove the wrong one."),
    ("llama-biases", {"rope_parameters": YARN, "rope_scaling": {"type": "yarn", "factor": 8.0}}, BadConfig,
     "disagree on factor. Remove the wrong one."),
    ("llama-biases", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, UnsupportedModel,
     "does not implement: partial_rotary_factor=0.5 (only 1.0)"),
    ("llama-biases", {"rope_theta": 5.0, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, BadConfig,
     "config.json: rope_theta is 5.0, and rope_theta of the rope's own facts is 10000.0. Remove the wrong one."),
    ("llama-biases", {"partial_rotary_factor": 0.5, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0}}, BadConfig,
     "config.json: partial_rotary_factor is 0.5, and partial_rotary_factor of the rope's own facts is 1.0. Remove the wrong one."),
    ("llama-biases", {"partial_rotary_factor": 0.5}, UnsupportedModel, "does not implement: partial_rotary_factor=0.5 (only 1.0)"),
    ("gemma3_text-cap", {"partial_rotary_factor": 0.5}, UnsupportedModel, "does not implement: partial_rotary_factor=0.5 (only 1.0)"),
    ("llama-biases", {"rope_scaling": "linear"}, BadConfig, "has a value of a kind that family 'llama' cannot read"),
    # kinds of layers
    ("qwen2-layer_types", {"layer_types": ["chunked_attention"] * 4}, UnsupportedModel, f"does not implement: {ONLY_FULL}"),
    ("qwen2-layer_types", {"layer_types": ["full_attention"] * 3}, BadConfig,
     "config.json: layer_types names 3 layers and num_hidden_layers says 4. Which one is right?"),
    ("qwen2-layer_types", {"use_sliding_window": False}, BadConfig, "config.json: layer_types has windowed layers and there is no window: "
     "sliding_window is null or use_sliding_window is off. Set it, or make every layer 'full_attention'."),
    ("gemma2-caps", {"sliding_window": None}, BadConfig, "layer_types has windowed layers and there is no window"),
    ("smollm3-windows", {"no_rope_layers": [1, 0]}, BadConfig,
     "no_rope_layers names 2 layers and num_hidden_layers says 4. Which one is right?"),
    # what no causal decoder does
    ("gemma-gelu", {"use_bidirectional_attention": True}, UnsupportedModel, BOTH_WAYS),
    ("gemma2-caps", {"use_bidirectional_attention": True}, UnsupportedModel, BOTH_WAYS),
    ("gemma-gelu", {"hidden_activation": "silu"}, BadConfig,
     "config.json: hidden_act and hidden_activation disagree: gelu_tanh, silu. Remove the wrong one."),
])
def test_a_refusal_says_what_was_found_and_what_was_expected(case, settings, kind, message):
    with pytest.raises(kind) as refusal:
        describe(changed(case, **settings))
    assert message in str(refusal.value)


def test_an_unread_key_stops_the_load_by_name():
    with pytest.raises(BadConfig) as refusal:
        describe(changed("llama-biases", use_magic=True, magic_size=7))
    assert str(refusal.value) == (
        "config.json has 2 keys that family 'llama' does not read: magic_size=7, use_magic=True. Running anyway could compute "
        "something else than the model's authors meant. If you know that they change nothing: "
        "--accept-unread magic_size --accept-unread use_magic")


def test_a_key_the_user_vouches_for_is_accepted_and_recorded():
    raw = changed("llama-biases", use_magic=True)
    with pytest.raises(BadRequest, match=r"--accept-unread use_magick: config\.json has no such key, so there is nothing to accept\. Did you mean use_magic\?"):
        describe(raw, accept_unread=["use_magic", "use_magick"])
    found = describe(raw, accept_unread=["use_magic"])
    assert found.accepted == ("use_magic",)
    assert found.spec == build(RAW["llama-biases"]).spec
    deep = describe(changed("llama-biases", rope_parameters={**YARN, "beta_medium": 3}), accept_unread=["rope_scaling.beta_medium"])
    assert deep.accepted == ("rope_scaling.beta_medium",)


def test_a_key_of_a_nested_config_is_accounted_for_too():
    c = Config({"model_type": "wrapper", "text_config": {"vocab_size": 7, "magic": 1}}, accept_unread=["magic"])
    assert c.part("text_config")("vocab_size") == 7
    c.finish()
    assert c.accepted == ["text_config.magic"]
    c = Config({"model_type": "wrapper", "text_config": {"magic": 1}})
    c.part("text_config")
    with pytest.raises(BadConfig, match=r"text_config of config.json has 1 key that family .* does not read: magic=1"):
        c.finish()
    with pytest.raises(BadConfig, match=r"config.json: text_config is list, not an object"):
        Config({"text_config": []}).part("text_config")


def test_a_null_key_need_not_be_read():
    assert describe(changed("llama-biases", use_magic=None)).spec == build(RAW["llama-biases"]).spec


@pytest.mark.parametrize(("model_type", "message"), [
    ("qwen5", "model_type 'qwen5' is not a family Pellucid runs. Nearest: qwen, qwen3, qwen2."),
    ("olmo-3", "Nearest: olmo3, olmo, olmoe."),
    ("zzz", f"Known: {families.NAMES[0]}, {families.NAMES[1]}, "),
])
def test_an_unknown_family_names_the_nearest(model_type, message):
    with pytest.raises(UnsupportedModel) as refusal:
        families.family(model_type)
    assert message in str(refusal.value)
    assert str(refusal.value).endswith("(docs/add-a-family.md shows how to add one)")


def test_a_hyphen_in_model_type_is_an_underscore_in_the_file():
    assert families.family("qwen3-moe") is families.family("qwen3_moe")


# What real repositories carry without effect: quantizing and fine-tuning tools, hubs, and years of transformers.
CARRIED = {
    "_attn_implementation_autoset": True, "torchscript": False, "auto_map": {"AutoConfig": "configuration_x.XConfig"},
    "_name_or_path": "acme/foo", "pretraining_tp": 1, "unsloth_version": "2025.3", "unsloth_fixed": True, "use_cache": False,
    "attention_dropout": 0.1, "id2label": {"0": "LABEL_0"}, "task_specific_params": {"text-generation": {}}, "_flash_attn_2_enabled": True,
    "transformers_version": "4.31.0", "torch_dtype": "float16", "output_router_logits": False, "gradient_checkpointing": False,
    "problem_type": None, "tokenizer_class": "LlamaTokenizer", "eos_token_id": [2, 7], "bad_words_ids": [[3]], "return_dict": True,
    "tf_legacy_loss": False, "use_bfloat16": False, "pruned_heads": {"0": [1]},
}


@pytest.mark.parametrize("key", CARRIED)
def test_a_key_that_real_repositories_carry_changes_nothing(key):
    assert describe(changed("llama-biases", **{key: CARRIED[key]})).spec == build(RAW["llama-biases"]).spec
    assert key in INERT


def test_every_inert_key_has_its_reason():
    assert all(reason.strip() for reason in INERT.values())


def test_a_scaling_may_be_called_by_its_oldest_name_or_by_both():
    spec = describe(changed("llama-linear")).spec
    for names in (["type"], ["rope_type"], ["type", "rope_type"]):
        scaling = dict.fromkeys(names, "linear") | {"factor": 3.0}
        assert describe(changed("llama-linear", rope_parameters=..., rope_theta=1e4, rope_scaling=scaling)).spec == spec
    both = describe(changed("llama-linear", rope_scaling={"type": "linear", "factor": 3.0})).spec  # said twice, and the same
    assert both == spec
    assert spec.layers[0].mixer.rope.scaling == Linear(factor=3.0)


def test_what_a_yarn_tuner_notes_is_inert():
    raw = changed("llama-yarn", rope_parameters=..., rope_theta=1e4, rope_scaling={
        "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 13, "finetuned": True})
    assert describe(raw).spec == build(RAW["llama-yarn"]).spec


def test_the_context_before_stretching_may_stand_outside_of_the_scaling():
    raw = changed("llama-yarn", rope_parameters={**YARN, "factor": None}, original_max_position_embeddings=13, max_position_embeddings=52)
    scaling = describe(raw).spec.layers[0].mixer.rope.scaling
    assert isinstance(scaling, Yarn)
    assert (scaling.original, scaling.factor) == (13, 4.0)


# A spec that no decoder could compute is refused when it is made.

ATTENTION = {"n_heads": 4, "n_kv_heads": 2, "d_head": 6, "scale": 1.0}
MIXTURE = {"n_experts": 4, "n_active": 2, "renormalize": True, "each": FeedForward(d_ff=5)}
LAYER = Layer(mixer=Attention(**ATTENTION), mlp=FeedForward(d_ff=5))
DECODER = {"family": "x", "n_vocab": 9, "n_ctx": 8, "d_model": 7, "layers": (LAYER,), "norm": Norm(eps=1e-5)}


def sharing(source: int, **facts: Any) -> DecoderSpec:
    """Two layers, the second sharing the keys of `source`, and of one key/value head where `facts` say nothing else."""
    second = replace(LAYER, mixer=Attention(**{**ATTENTION, "n_kv_heads": 1, **facts}, shares=source))
    return DecoderSpec(**{**DECODER, "layers": (LAYER, second)})


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Attention(**{**ATTENTION, "n_kv_heads": 3}), "4 query heads cannot share 3 key/value heads evenly"),
    (lambda: Attention(**{**ATTENTION, "n_kv_heads": 0}), "n_kv_heads is 0, and no decoder has fewer than 1"),
    (lambda: Attention(**ATTENTION, window=0), "window is 0, and no decoder has fewer than 1"),
    (lambda: Attention(**ATTENTION, rope=Rope(theta=1e4, d_rotary=8)), "8 channels cannot rotate in heads of 6"),
    (lambda: Attention(**ATTENTION, rope=Rope(theta=1e4, d_rotary=0)), "0 channels cannot rotate in heads of 6"),
    (lambda: Experts(n_experts=4, n_active=5, renormalize=True, each=FeedForward(d_ff=5)), "5 of 4 experts cannot be active"),
    (lambda: Experts(**MIXTURE, n_groups=2, n_active_groups=3), "3 of 2 groups of experts cannot be active"),
    (lambda: Experts(**MIXTURE, n_groups=3), "4 experts do not make 3 groups of equal size"),
    (lambda: Experts(**MIXTURE, n_groups=4, n_active_groups=1), "2 active experts are more than 1 groups of 1 have"),
    (lambda: Experts(**MIXTURE, n_groups=4, n_active_groups=3, group_score="best_two"), "groups of 1 expert have no two best"),
    (lambda: Experts(**MIXTURE, n_groups=4, n_active_groups=4, spread=True), "2 active experts cannot spread over 4 groups, of which 4 are active"),
    (lambda: Experts(**MIXTURE, n_groups=2, spread=True), "2 active experts cannot spread over 2 groups, of which 1 are active"),
    (lambda: Attention(**ATTENTION, shares=0, values_from_keys=True), "a layer that shares another's keys and values makes none"),
    (lambda: Attention(**ATTENTION, shares=0, value_norm=Norm(eps=1e-5)), "a layer that shares another's keys and values makes none"),
    (lambda: sharing(0), "layer 1 shares keys of 1 heads x 6, and layer 0 makes 2 x 6"),
    (lambda: sharing(0, n_kv_heads=2, window=3), "layer 1 sees otherwise (window 3, chunk None) than layer 0, whose keys it shares"),
    (lambda: sharing(1), "layer 1 shares the keys and values of layer 1, and no earlier layer of that number makes any"),
    (lambda: sharing(-1), "layer 1 shares the keys and values of layer -1, and no earlier layer of that number makes any"),
    (lambda: Layer(mixer=None, mlp=None, beside=Experts(**MIXTURE)), "a mixture stands beside a feed-forward, and this layer has none"),
    (lambda: DecoderSpec(**{**DECODER, "layers": (replace(LAYER, beside=Experts(**MIXTURE)),)}), "norm_in and norm_out put them, and both must be on"),
    (lambda: LayerInputs(d_input=0, n_vocab=9, act="silu"), "d_input is 0, and no decoder has fewer than 1"),
    (lambda: LogTemperature(original=1), "original is 1, whose logarithm nothing can be divided by"),
    (lambda: Experts(**MIXTURE, shared_gate=True), "there is a gate for a shared expert, and no shared expert"),
    (lambda: Rope(theta=1e4, d_rotary=8, scaling=Proportional(turning=5, factor=1.0)), "5 of 4 pairs cannot turn"),
    (lambda: FeedForward(d_ff=5, xielu=True), "xIELU stands in a feed-forward without a gate"),
    (lambda: FeedForward(d_ff=0), "d_ff is 0, and no decoder has fewer than 1"),
    (lambda: DecoderSpec(**{**DECODER, "n_vocab": 0}), "n_vocab is 0, and no decoder has fewer than 1"),
    (lambda: DecoderSpec(**{**DECODER, "layers": (Layer(mixer=None, mlp=FeedForward(d_ff=5)),), "parallel": True}),
     "a layer lacks one of its sublayers, and parallel and norm_stream are about both"),
    (lambda: DecoderSpec(**{**DECODER, "layers": ()}), "n_layers is 0, and no decoder has fewer than 1"),
    (lambda: DecoderSpec(**DECODER, d_embed=0), "d_embed is 0, and no decoder has fewer than 1"),
    *((lambda facts=facts: DecoderSpec(**DECODER, **{"norm_in": False, "norm_stream": "after"} | facts),
       "norm_stream='after' normalizes the stream itself: norm_in, norm_out and parallel must be off")
      for facts in ({"norm_in": True}, {"norm_out": True}, {"parallel": True})),
    (lambda: DecoderSpec(**DECODER, learned_positions=8, sinusoidal_positions=True), "positions cannot be learned and sinusoidal at once"),
])
def test_an_impossible_spec_is_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()

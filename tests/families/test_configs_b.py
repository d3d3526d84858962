"""GPT-2's line and the families with wiring of their own, their configs' spellings, their old tensor names, and what is refused."""
from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import transformers
from transformers.activations import ACT2CLS, ACT2FN

from pellucid import families
from pellucid.errors import BadConfig, PellucidError, UnsupportedModel
from pellucid.families._config import ACTIVATIONS
from pellucid.ops.reference import ACTIVATIONS as FUNCTIONS
from pellucid.weights.assemble import assemble
from pellucid.weights.names import LeftOut, NameTable
from tests.families.build import build, read_spec, shapes
from tests.families.cases_b import CASES
from tests.families.configs_b import COHERE, FALCON, GPT2, SPELLINGS

CASE = {str(case): case for case in CASES}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_tensor_that_transformers_makes_of_this_spelling_has_its_place_and_shape(name, tmp_path):
    raw = SPELLINGS[name]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(config)
    spec = read_spec(raw)
    files = {n: t for n, t in theirs.state_dict().items() if not (spec.tied and n in ("lm_head.weight", "embed_out.weight"))}
    ours, out = assemble(NameTable(families.family(raw["model_type"]).WEIGHTS), files.items(), shapes(spec), spec)
    assert {n: tuple(t.shape) for n, t in ours.items()} == shapes(spec)
    assert not out
    assert len(spec.layers) == config.num_hidden_layers
    assert spec.n_ctx == raw.get("model_max_length", config.max_position_embeddings)
    assert spec.tied == config.tie_word_embeddings


def test_command_r_is_as_long_as_it_was_made_for():
    assert (read_spec(COHERE).n_ctx, read_spec(COHERE | {"model_max_length": None}).n_ctx) == (131072, 8192)


def test_the_first_falcons_named_their_sizes_otherwise():
    old = {k: v for k, v in FALCON.items() if k not in ("num_attention_heads", "num_hidden_layers", "num_kv_heads")}
    assert read_spec(old | {"n_head": 71, "n_layer": 32, "n_head_kv": 71}) == read_spec(FALCON)


@pytest.mark.parametrize(("family", "old", "new"), [
    ("gpt2", "wte.weight", "transformer.wte.weight"),
    ("gpt2", "h.11.mlp.c_proj.bias", "transformer.h.11.mlp.c_proj.bias"),
    ("gpt2", "ln_f.weight", "transformer.ln_f.weight"),
    ("gpt_neox", "lm_head.weight", "embed_out.weight"),
    ("opt", "decoder.embed_positions.weight", "model.decoder.embed_positions.weight"),
    ("opt", "decoder.layers.3.self_attn.out_proj.bias", "model.decoder.layers.3.self_attn.out_proj.bias"),
])
def test_old_spellings_of_a_tensor_are_read_alike(family, old, new):
    table = NameTable(families.family(family).WEIGHTS)
    assert table.place(old).names == table.place(new).names


@pytest.mark.parametrize(("case", "prefix", "buffer"), [
    ("gpt2-released", "transformer.", "h.0.attn.bias"),
    ("opt-released", "model.", "decoder.version"),
])
def test_a_repository_saved_from_the_bare_model_loads_to_the_same_tensors(case, prefix, buffer):
    built = build(CASE[case])
    bare = {name.removeprefix(prefix): tensor for name, tensor in built.files.items()} | {buffer: torch.zeros(3, 3)}
    ours, out = assemble(NameTable(built.module.WEIGHTS), bare.items(), shapes(built.spec), built.spec)
    assert ours.keys() == built.tensors.keys()
    assert all(torch.equal(ours[name], built.tensors[name]) for name in ours)
    assert [name for names in out.values() for name in names] == [buffer]


@pytest.mark.parametrize(("family", "name", "why"), [
    ("gpt2", "h.0.attn.bias", "causal mask"),
    ("gpt2", "transformer.h.0.attn.masked_bias", "causal mask"),
    ("gptj", "transformer.h.27.attn.bias", "causal mask"),
    ("gptj", "transformer.h.27.attn.masked_bias", "causal mask"),
    ("gpt_neox", "gpt_neox.layers.0.attention.bias", "causal mask"),
    ("gpt_neox", "gpt_neox.layers.0.attention.masked_bias", "causal mask"),
    ("gpt_neox", "gpt_neox.layers.0.attention.rotary_emb.inv_freq", "rope frequencies"),
    ("opt", "decoder.version", "fairseq"),
    ("opt", "model.decoder.version", "fairseq"),
    ("stablelm", "model.layers.0.self_attn.rotary_emb.inv_freq", "rope frequencies"),
])
def test_a_saved_buffer_is_left_out_and_says_why(family, name, why):
    place = NameTable(families.family(family).WEIGHTS).place(name)
    assert isinstance(place, LeftOut)
    assert why in place.why


def changed(case: str, **settings: Any) -> dict[str, Any]:
    """The config.json of a case with these settings; ... drops a key."""
    raw = build(CASE[case]).raw | settings
    return {k: v for k, v in raw.items() if v is not ...}


LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0], "long_factor": [1.0]}


@pytest.mark.parametrize(("case", "settings", "message"), [
    ("gpt2-released", {"add_cross_attention": True}, "setting this family does not implement: add_cross_attention=True (only False)"),
    ("gpt2-released", {"activation_function": "prelu"}, "does not implement: activation_function='prelu' (known: silu, "),
    ("gpt2-released", {"activation_function": "gelu_10"}, "activation_function='gelu_10' (known: "),
    ("gpt_neox-pythia", {"rope_theta": 500.0}, "rope_theta=500.0 (only 10000)"),
    ("gpt_neox-pythia", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 (only 0.25)"),
    ("gptj-released", {"rotary_dim": None}, "config.json has no 'rotary_dim', which this family needs"),
    ("gptj-released", {"rotary": False}, "rotary=False (only True)"),
    ("falcon-7b", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 (only 1.0)"),
    ("phi3-mini_4k", {"rope_parameters": LONGROPE}, "1 short and 1 long factors are not those of 7 pairs"),
    ("phi3-mini_4k", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "rope scaling 'longrope' lacks 'short_factor'"),
    ("phi3-mini_4k", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
     "rope scaling this family does not implement: linear (only longrope)"),
    ("phi3-mini_4k", {"attention_bias": True}, "attention_bias=True (only False)"),
    ("phi3-mini_4k", {"full_attn_mod": 2}, "full_attn_mod=2 (only 1)"),
    ("stablelm-3b", {"rotary_scaling_factor": 2.0}, "rotary_scaling_factor=2.0 (only 1.0)"),
    ("stablelm-3b", {"num_key_value_heads": ...}, "no 'num_key_value_heads', which this family needs"),
    ("starcoder2-released", {"norm_type": "rms_norm"}, "norm_type='rms_norm' (only 'layer_norm')"),
    ("starcoder2-released", {"partial_rotary_factor": 0.5}, "partial_rotary_factor="),
    ("cohere-command_r", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 (only 1.0)"),
    ("cohere2-r7b", {"sliding_window": None}, "no 'sliding_window', which this family needs"),
    ("cohere2-r7b", {"use_qk_norm": True}, "use_qk_norm=True (only False)"),
    ("cohere2-r7b", {"layer_switch": 3}, "layer_switch=3 (only 4)"),
    ("cohere2-r7b", {"use_embedding_sharing": False}, "use_embedding_sharing=False (only True)"),
    ("cohere2-r7b", {"position_embedding_type": "rope_neox"}, "position_embedding_type='rope_neox' (only 'rope_gptj')"),
    ("nemotron-minitron", {"kv_channels": 16}, "kv_channels=16 (only 12)"),
    ("nemotron-minitron", {"layer_norm_eps": 0.1}, "layer_norm_eps=0.1 (only 1e-05)"),
    ("glm4-9b", {"head_dim": ...}, "no 'head_dim', which this family needs"),
])
def test_a_setting_that_is_not_implemented_is_refused_by_name(case, settings, message):
    with pytest.raises(PellucidError) as refusal:
        read_spec(changed(case, **settings))
    assert isinstance(refusal.value, UnsupportedModel | BadConfig)
    assert message in str(refusal.value)


@pytest.mark.parametrize(("raw", "key"), [(GPT2, "n_expert"), (FALCON, "rope_ratio"), (COHERE, "qk_norm_kind")])
def test_a_key_that_nobody_knows_stops_the_load_by_name(raw, key):
    with pytest.raises(BadConfig, match=rf"does not read: {key}=7\..* --accept-unread {key}"):
        read_spec(raw | {key: 7})


WITH_WEIGHTS = {"prelu", "xielu"}  # they learn numbers of their own
CLIPPED = {"gelu_10"}  # a GELU cut off at 10 for quantization experiments: in no decoder that was published


def test_every_activation_of_transformers_is_known_or_named_here():
    assert set(ACT2CLS) - set(ACTIVATIONS) == WITH_WEIGHTS | CLIPPED


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_equals_that_of_transformers_under_each_of_its_names(name):
    x = torch.linspace(-30, 30, 4001)
    torch.testing.assert_close(FUNCTIONS[ACTIVATIONS[name]](x), ACT2FN[name](x), rtol=2e-6, atol=2e-6)

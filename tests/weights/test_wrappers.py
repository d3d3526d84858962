"""Multimodal wrappers and MiMo: the decoder inside, through real files, against transformers."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from pellucid.errors import BadConfig, MissingTensors, UnsupportedModel
from pellucid.families import family
from pellucid.families._describe import describe
from pellucid.model.load import load_decoder
from pellucid.weights.save import save_checkpoint

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TOLERANCE = 2e-5  # of the largest logit, float32: the bound for every family
TEXT = {"vocab_size": 101, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 7, "num_attention_heads": 6, "num_key_value_heads": 3,
        "head_dim": 14, "max_position_embeddings": 29, "sliding_window": 11}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
IDS = torch.randint(3, 101, (41,), generator=torch.Generator().manual_seed(1))


GEMMA4: dict[str, dict[str, Any]] = {
    "gemma4-e2b": {"hidden_size_per_layer_input": 10, "vocab_size_per_layer_input": 101, "num_kv_shared_layers": 3, "use_double_wide_mlp": True,
                   "global_head_dim": 16, "layer_types": ["sliding_attention", "full_attention"] * 3 + ["full_attention"]},
    "gemma4-26b": {"hidden_size_per_layer_input": 0, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 20,
                   "global_head_dim": 16, "attention_k_eq_v": True, "num_global_key_value_heads": 2,
                   "num_hidden_layers": 3},  # deeper, both sides are 8e-5 from their float64 selves: scores are not scaled, and softmax is sharp
    "gemma4_unified": {"global_head_dim": 16, "attention_k_eq_v": True, "num_global_key_value_heads": 2, "num_hidden_layers": 3}}
SEEN = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
        "patch_size": 4, "position_embedding_size": 20}
HEARD = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "output_proj_dims": 16, "subsampling_conv_channels": [8, 4]}


def gemma4(name: str) -> Any:
    """transformers' model of a Gemma 4 wrapper, with both towers where it has towers."""
    if name == "gemma4_unified":
        small = {"mm_embed_dim": 16, "mm_posemb_size": 20, "output_proj_dims": 16, "patch_size": 4}
        config: Any = transformers.Gemma4UnifiedConfig(text_config=TEXT | GEMMA4[name], vision_config=small, audio_config={"audio_embed_dim": 12})
        return transformers.Gemma4UnifiedForConditionalGeneration(config)
    config = transformers.Gemma4Config(text_config=TEXT | GEMMA4[name], vision_config=SEEN, audio_config=HEARD if name == "gemma4-e2b" else None)
    return transformers.Gemma4ForConditionalGeneration(config)


@pytest.fixture(scope="module", params=["gemma3", "gemma3-linear", "mistral3", "mistral3-untied", *GEMMA4])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Tensor]:
    """(folder, transformers' model, its logits) of a wrapper that transformers wrote."""
    torch.manual_seed(0)
    if request.param.startswith("gemma3"):
        text: dict[str, Any] = TEXT | {"query_pre_attn_scalar": 24}
        if request.param == "gemma3-linear":
            text["rope_parameters"] = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                                       "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
        config: Any = transformers.Gemma3Config(text_config=text, vision_config=VISION)
        theirs: Any = transformers.Gemma3ForConditionalGeneration(config)
    elif request.param in GEMMA4:
        theirs = gemma4(request.param)
    else:
        config = transformers.Mistral3Config(text_config=TEXT, vision_config=VISION, tie_word_embeddings=request.param == "mistral3")
        theirs = transformers.Mistral3ForConditionalGeneration(config)
    for name, p in theirs.named_parameters():  # break every symmetry, gains included
        p.data = torch.randn_like(p) * (1.5 * p.shape[-1] ** -0.5 if p.ndim > 1 else 0.3) + (1.0 if p.ndim == 1 and "norm" in name else 0.0)
    for name, b in theirs.named_buffers():
        if name.endswith("layer_scalar"):
            b.fill_(0.7)
    theirs.tie_weights()
    folder = tmp_path_factory.mktemp(request.param)
    theirs.eval().save_pretrained(folder)
    with torch.no_grad():
        return folder, theirs, theirs(input_ids=IDS[None]).logits[0]


def logits(folder: Path) -> Tensor:
    decoder, _ = load_decoder(folder, dtype="float32")
    with torch.no_grad():
        return decoder.unembed(decoder(IDS))


def error(mine: Tensor, theirs: Tensor) -> float:
    return float((mine - theirs).abs().max() / theirs.abs().max())


def test_the_text_model_inside_equals_transformers(saved: tuple[Path, Any, Tensor]) -> None:
    folder, _, theirs_TV = saved
    assert error(logits(folder), theirs_TV) < TOLERANCE


def test_the_names_transformers_5_has_in_memory_are_read_too(saved: tuple[Path, Any, Tensor], tmp_path: Path) -> None:
    folder, theirs, theirs_TV = saved
    state = {name: tensor.contiguous().clone() for name, tensor in theirs.state_dict().items()}
    assert "model.language_model.embed_tokens.weight" in state
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file(state, tmp_path / "model.safetensors")
    assert error(logits(tmp_path), theirs_TV) < TOLERANCE


def test_what_sees_is_left_out_and_counted(saved: tuple[Path, Any, Tensor]) -> None:
    folder, *_ = saved
    _, report = load_decoder(folder)
    others = [name for name in load_file(folder / "model.safetensors") if "language_model" not in name and name != "lm_head.weight"]
    n_heard = sum("audio" in name for name in others)
    heard = {"audio: tower and projector, only the text model is run": n_heard} if n_heard else {}
    assert bool(n_heard) == (folder.name.startswith(("gemma4-e2b", "gemma4_unified")))
    assert report.left_out == {"vision: tower and projector, only the text model is run": len(others) - n_heard} | heard
    model_type = json.loads((folder / "config.json").read_text())["model_type"]
    assert f"the text model of a {model_type} checkpoint" in report.notes
    assert report.family == {"gemma3": "gemma3_text", "mistral3": "mistral", "gemma4": "gemma4_text", "gemma4_unified": "gemma4_unified_text"}[model_type]


def test_the_text_model_alone_is_saved_and_transformers_runs_it(saved: tuple[Path, Any, Tensor], tmp_path: Path) -> None:
    folder, _, theirs_TV = saved
    decoder, _ = load_decoder(folder, dtype="float32")
    described = describe(json.loads((folder / "config.json").read_text()))
    save_checkpoint(tmp_path / "text", decoder.spec, family(decoder.spec.family).WEIGHTS, decoder.state_dict(), described.config)
    assert error(logits(tmp_path / "text"), theirs_TV) == error(logits(folder), theirs_TV)
    alone: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "text", dtype=torch.float32).eval()
    with torch.no_grad():
        assert error(alone(input_ids=IDS[None]).logits[0], theirs_TV) < TOLERANCE


@pytest.mark.parametrize("saved", ["mistral3-untied"], indirect=True)
@pytest.mark.parametrize("outer", [None, True, False])
def test_an_unembedding_in_the_files_is_used_whatever_the_outer_config_says(saved: tuple[Path, Any, Tensor], tmp_path: Path, outer: bool | None) -> None:
    folder, _, theirs_TV = saved
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "tie_word_embeddings"} | ({"tie_word_embeddings": outer}
                                                                                                                     if outer is not None else {})))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    theirs: Any = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        assert error(theirs(input_ids=IDS[None]).logits[0], theirs_TV) < TOLERANCE, "transformers uses it too"
    assert error(logits(tmp_path), theirs_TV) < TOLERANCE
    said = "the files hold an unembedding of their own: it is used, though the outer tie_word_embeddings of config.json says true"
    assert (said in load_decoder(tmp_path)[1].notes) == (outer is True)


@pytest.mark.parametrize("saved", ["mistral3-untied"], indirect=True)
def test_an_untied_wrapper_needs_its_unembedding(saved: tuple[Path, Any, Tensor], tmp_path: Path) -> None:
    folder, *_ = saved
    tensors = load_file(folder / "model.safetensors")
    del tensors["language_model.lm_head.weight"]
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(MissingTensors, match=r"lacks 1 of .* first: language_model.lm_head.weight"):
        load_decoder(tmp_path)


# google/gemma-3-4b-it as published: what text_config does not say comes from the class.
GEMMA_4B = {"architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000, "eos_token_id": [1, 106],
            "image_token_index": 262144, "initializer_range": 0.02, "mm_tokens_per_image": 256, "model_type": "gemma3", "text_config": {
                "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
            "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
            "vision_config": {"hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "model_type": "siglip_vision_model",
                              "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": False}}


def test_a_text_config_that_leaves_most_to_its_class_means_what_transformers_means() -> None:
    theirs = transformers.Gemma3Config.from_dict(GEMMA_4B).text_config
    described = describe(GEMMA_4B)
    spec = described.spec
    assert describe(described.config).spec == spec, "the text part is whole by itself"
    assert (described.config["torch_dtype"], described.config["eos_token_id"]) == ("bfloat16", [1, 106])
    mixer = spec.layers[0].mixer
    assert (spec.n_vocab, spec.n_ctx, spec.norm.eps) == (theirs.vocab_size, theirs.max_position_embeddings, theirs.rms_norm_eps)
    assert (mixer.n_heads, mixer.n_kv_heads, mixer.d_head) == (theirs.num_attention_heads, theirs.num_key_value_heads, theirs.head_dim)
    assert mixer.scale == theirs.query_pre_attn_scalar ** -0.5
    assert [layer.mixer.window for layer in spec.layers] == [1024 if kind == "sliding_attention" else None for kind in theirs.layer_types]
    for layer, kind in zip(spec.layers, theirs.layer_types, strict=True):
        assert layer.mixer.rope is not None
        assert layer.mixer.rope.theta == theirs.rope_parameters[kind]["rope_theta"]
        assert getattr(layer.mixer.rope.scaling, "factor", None) == theirs.rope_parameters[kind].get("factor")


def test_a_text_model_of_other_tensor_names_is_refused() -> None:
    config = {"model_type": "mistral3", "text_config": {"model_type": "gpt2"}}
    with pytest.raises(UnsupportedModel, match=r"wraps a text model of family 'gpt2', and this wrapper's tensor names are known for 'mistral' only$"):
        describe(config)


def test_an_unread_key_inside_is_named_with_its_place() -> None:
    config = GEMMA_4B | {"text_config": GEMMA_4B["text_config"] | {"surprise": 1}}  # type: ignore[operator]
    with pytest.raises(BadConfig, match=r"^text_config of config.json has 1 key that family 'gemma3_text' does not read: surprise=1"):
        describe(config)
    assert describe(config, accept_unread=["surprise"]).accepted == ("text_config.surprise",)


def test_a_text_config_that_is_no_object() -> None:
    with pytest.raises(BadConfig, match=r"^config.json: text_config is int, not an object$"):
        describe({"model_type": "mistral3", "text_config": 3})


def test_mimo_is_qwen2_with_layers_left_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {k: v for k, v in TEXT.items() if k != "sliding_window"}
    theirs: Any = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes)).eval()
    for p in theirs.parameters():
        p.data = torch.randn_like(p) * (1.5 * p.shape[-1] ** -0.5 if p.ndim > 1 else 0.5)
    draft = {f"model.mtp_layers.0.{name}.weight": torch.zeros(48) for name in ("token_layernorm", "hidden_layernorm", "final_layernorm")}
    save_file({name: tensor.contiguous() for name, tensor in theirs.state_dict().items()} | draft, tmp_path / "model.safetensors")
    config = json.loads((Path(__file__).parent / "recorded" / "mimo.json").read_text())["config"]
    (tmp_path / "config.json").write_text(json.dumps(config | sizes | {"rope_theta": 10_000.0, "rms_norm_eps": 1e-6}))
    with torch.no_grad():
        theirs_TV = theirs(input_ids=IDS[None]).logits[0]
    assert error(logits(tmp_path), theirs_TV) < TOLERANCE
    _, report = load_decoder(tmp_path)
    assert report.left_out == {"multi-token-prediction layers: they draft tokens ahead, the model's own logits do not use them": 3}
    assert any(note.endswith("names code of its own (auto_map: modeling_mimo.MiMoForCausalLM); it is never run") for note in report.notes)

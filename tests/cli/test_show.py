"""`pellucid show`: what a checkpoint is, from its headers alone."""
from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file, save_file

import pellucid
from pellucid.cli import show
from pellucid.spec import Alibi, Attention, Experts, FeedForward, LatentAttention, Layer, Linear, Matrix, Norm, Rope
from tests.api.scripted import scripted_model
from tests.cli.conftest import ROOT, Said
from tests.conftest import SHARED
from tests.families.build import build
from tests.families.test_gguf import CASES, converted
from tests.weights import test_fp8 as fp8
from tests.weights import test_gptq as gptq
from tests.weights.build import write
from tests.weights.quantized import SIZES, files

Say = Callable[..., Said]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = scripted_model(tmp_path / "abc", [list("abc")], dtype=torch.bfloat16, generation={"eos_token_id": [257, 258]})
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: acme/base\n---\n")
    return folder


def test_json_says_what_the_loaded_model_is(say: Say, folder: Path) -> None:
    done = say("show", str(folder), "--json")
    said = json.loads(done.out)
    model = pellucid.load(folder)
    assert (said["family"], said["dtype"], said["license"], said["format"]) == ("llama", "bfloat16", "Apache-2.0", "safetensors")
    assert said["n_parameters"] == model.report.n_parameters == sum(p.numel() for p in model.decoder.parameters())
    assert (said["cache_bytes_per_token"], said["n_bytes"]) == (model.report.cache_bytes_per_token, model.report.n_bytes)
    assert (said["base_models"], said["eos_ids"]) == (["acme/base"], [257, 258])
    assert said["spec"]["layers"][0]["mixer"]["n_heads"] == model.spec.layers[0].mixer.n_heads == 1
    assert {k: v for k, v in said["spec"].items() if isinstance(v, int | float | str)} == {
        k: v for k in said["spec"] if isinstance(v := getattr(model.spec, k), int | float | str)}
    assert said["tokenizer"] == {"n_vocab": 259, "bos": {"id": 256, "token": "<|bos|>"}, "eos": {"id": 258, "token": "<|im_end|>"}, "adds_bos": False,
                                 "n_special": 3, "chat_template": True}


def test_packed_weights_are_named_and_counted(say: Say, tmp_path: Path) -> None:
    packed, _ = files(gptq.packer(ordered=True, bias=True))
    folder = write(tmp_path / "m", packed, **SIZES, quantization_config=gptq.CONFIG | {"desc_act": True})
    said = json.loads(say("show", str(folder), "--json").out)
    assert said["quantization"] == {"method": "gptq", "shown": "gptq: int4, a scale for 32 columns, columns in the order of activation", "n_matrices": 14,
                                    "bits": 4, "group_size": 32, "desc_act": True, "symmetric": True, "format": "gptq"}
    assert (said["stored_bytes"].keys(), said["unknown_tensors"]) == ({"INT4", "float32", "float16"}, [])  # the biases of zeros are float16
    assert said["n_parameters"] == pellucid.load(folder).report.n_parameters
    told = say("show", str(folder)).out
    assert "packed      gptq: int4, a scale for 32 columns, columns in the order of activation · 14 matrices" in told
    files_of_fp8, _ = files(fp8.packer(None, shape=(), beside="activation_scale"))
    folder = write(tmp_path / "fp8", files_of_fp8, **SIZES, quantization_config={"quant_method": "fp8", "activation_scheme": "static"})
    assert json.loads(say("show", str(folder), "--json").out)["left_out"] == {"scales of activations, which are rounded in another way here or not at all": 14}


def test_a_gguf_file_is_shown_by_itself(say: Say, folder: Path) -> None:
    """The folder it lies in has a tokenizer, a license and a config, and they are another model's."""
    path = folder / "m.gguf"
    converted(path, build(CASES["llama-plain"]), GGMLQuantizationType.Q4_0)
    said, model = json.loads(say("show", str(path), "--json").out), pellucid.load(path)
    assert (said["family"], said["format"], said["dtype"], said["license_source"]) == ("llama", "gguf", "Q4_0", "m.gguf")
    assert (said["n_parameters"], said["cache_bytes_per_token"]) == (model.report.n_parameters, model.report.cache_bytes_per_token)
    assert (list(said["sha256"]), said["tokenizer"], said["eos_ids"]) == (["m.gguf"], None, [7])


def test_every_acting_file_is_hashed(say: Say, folder: Path) -> None:
    said = json.loads(say("show", str(folder), "--json").out)
    acting = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert said["sha256"] == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in acting}
    assert said["files"] == {name: (folder / name).stat().st_size for name in acting}


def test_the_human_form_is_a_table(say: Say, folder: Path) -> None:
    done = say("show", str(folder))
    assert done.code == 0
    assert 145_299 == 2 * 259**2 + 3 * 259 + 4 * 4 * 259 + 3 * 8 * 259  # two tables, three norms, q k v o, gate up down
    for row in (f"model       {folder}\n", "family      llama", "license     Apache-2.0 (README.md) · made from acme/base",
                "parameters  145 K (145,299)", "weights     safetensors bfloat16",
                "context     128 tokens, ", "layers      1 × attention of 1 heads / 1 kv, 4 channels each · rope theta 10,000 · feed-forward 8 silu gated",
                "tokenizer   259 tokens, BOS '<|bos|>' (256), EOS '<|im_end|>' (258), with a chat template (--template shows it)"):
        assert row in done.out
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() in done.out
    assert done.err == f"next: pellucid chat {folder}\n"


def test_every_kind_of_layer_has_its_line() -> None:
    rope, norm, mlp = Rope(theta=1e6, d_rotary=8, scaling=Linear(factor=2.0)), Norm(eps=1e-6), FeedForward(d_ff=96, act="gelu", gated=False)
    plain = Attention(n_heads=4, n_kv_heads=2, d_head=16, scale=0.25)
    latent = LatentAttention(n_heads=4, d_plain=16, d_value=16, d_latent=32, d_query_latent=None, scale=0.2, rope=rope, norm=norm)
    experts = Experts(n_experts=8, n_active=2, renormalize=True, each=FeedForward(d_ff=24), shared=FeedForward(d_ff=48))
    assert show._layer(Layer(mixer=plain, mlp=mlp)) == "attention of 4 heads / 2 kv, 16 channels each · feed-forward 96 gelu"
    assert show._layer(Layer(mixer=replace(plain, rope=rope, window=4096), mlp=mlp)) == (
        "attention of 4 heads / 2 kv, 16 channels each · rope theta 1,000,000, linear-scaled · window 4,096 · feed-forward 96 gelu")
    assert show._layer(Layer(mixer=replace(plain, alibi=Alibi()), mlp=mlp)) == (
        "attention of 4 heads / 2 kv, 16 channels each · ALiBi · feed-forward 96 gelu")
    assert show._layer(Layer(mixer=replace(plain, chunk=8192, sinks=True), mlp=mlp)) == (
        "attention of 4 heads / 2 kv, 16 channels each · chunk 8,192 · attention sinks · feed-forward 96 gelu")
    assert show._layer(Layer(mixer=latent, mlp=experts)) == (
        "attention of 4 heads, 24 channels each, out of a latent of 32 · rope theta 1,000,000, linear-scaled · 2 of 8 experts, each feed-forward 24 silu gated "
        "and one for all, feed-forward 48 silu gated")
    assert show._layer(Layer(mixer=Matrix(), mlp=Matrix())) == "one matrix in place of attention · one matrix in place of a feed-forward"
    assert show._layer(Layer(mixer=replace(plain, shares=3), mlp=mlp, beside=replace(experts, shared=None))) == (
        "attention of 4 heads / 2 kv, 16 channels each · keys and values of layer 3 · feed-forward 96 gelu · "
        "beside it 2 of 8 experts, each feed-forward 24 silu gated")


def test_left_out_and_unplaced_tensors_are_said(say: Say, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors |= {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2), "model.layers.0.mystery.weight": torch.ones(3)}
    save_file(tensors, folder / "model.safetensors")
    said = json.loads(say("show", str(folder), "--json").out)
    assert list(said["left_out"].values()) == [1]
    assert said["unknown_tensors"] == ["model.layers.0.mystery.weight"]
    out = say("show", str(folder)).out
    assert "left out    1 tensor, " in out
    assert "no place    1 tensor this family has no place for, so it will not load; first: model.layers.0.mystery.weight" in out


def test_the_template_is_shown_with_its_special_tokens(say: Say, folder: Path) -> None:
    done = say("show", str(folder), "--template")
    assert done.code == 0
    assert "⟦<|im_start|>⟧user\n" in done.out
    assert done.out.endswith("⟦<|im_start|>⟧assistant\n\n")
    said = json.loads(say("show", str(folder), "--template", "--json").out)
    assert said["example"] + "\n" == done.out


def test_another_template_is_tried_before_a_chat(say: Say, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("{{ messages[-1].content }} mine")
    done = say("show", str(folder), "--chat-template", str(tmp_path / "mine.jinja"))
    assert done.out == "And of Spain? mine\n"
    assert done.err == f"next: pellucid chat {folder} --chat-template {tmp_path}/mine.jinja\n"


def test_a_folder_without_a_tokenizer_is_still_shown(say: Say, folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "tokenizer   none: this model takes token ids only" in say("show", str(folder)).out
    assert json.loads(say("show", str(folder), "--json").out)["tokenizer"] is None
    refused = say("show", str(folder), "--template")
    assert refused.code == 1
    assert f"error: '{folder}' has no tokenizer files in {folder}, so no chat template either: looked for tokenizer.json" in refused.err


def test_a_broken_tokenizer_is_shown_as_broken(say: Say, folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    assert "tokenizer   not usable: " in say("show", str(folder)).out
    assert "error" in json.loads(say("show", str(folder), "--json").out)["tokenizer"]


def test_an_unread_key_is_refused_or_said(say: Say, tmp_path: Path) -> None:
    folder = str(scripted_model(tmp_path / "odd", [["a", "b"]], config={"frobnicate": 3}))
    assert "--accept-unread frobnicate" in say("show", folder).err
    assert "on your word: frobnicate" in say("show", folder, "--accept-unread", "frobnicate").out


@pytest.mark.parametrize(("make", "message"), [
    (lambda p: None, "no such path"),
    (lambda p: p.mkdir(), "config.json"),
    (lambda p: (p.mkdir(), (p / "config.json").write_text("{broken")), "config.json"),
])
def test_bad_input_is_one_line(say: Say, tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path / "m")
    done = say("show", str(tmp_path / "m"))
    assert done.code in (1, 2)
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert message in done.err
    assert done.err.count("\n") == 1


def test_show_imports_no_torch(folder: Path) -> None:
    code = f"import sys; from pellucid.cli import main; code = main(['show', {str(folder)!r}]); print(code, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"


@pytest.mark.shared
def test_stories260k_is_what_its_readme_says(say: Say) -> None:
    said = json.loads(say("show", str(SHARED / "stories260k"), "--json").out)
    assert (said["family"], said["license"], said["dtype"], len(said["spec"]["layers"])) == ("llama", "MIT", "float32", 5)
    assert said["n_parameters"] == 260_032

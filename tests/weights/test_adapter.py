"""Adapters as files: what is read, and what stops by name. Nothing in them is passed over."""
from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pellucid.errors import (
    BadCheckpoint,
    BadConfig,
    MisshapenTensor,
    MissingTensors,
    ModelNotFound,
    PellucidError,
    UnknownTensors,
    UnsafePickle,
    UnsupportedModel,
)
from pellucid.weights.adapter import is_adapter, open_adapter
from pellucid.weights.checkpoint import open_checkpoint

Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.11.mlp.up_proj"
# What LoraConfig(r=8, target_modules=["q_proj"]).save_pretrained of peft 0.21.2 writes, whole.
WRITTEN = json.loads("""{"alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null, "auto_mapping": null, "base_model_name_or_path": null,
"bias": "none", "corda_config": null, "ensure_weight_tying": false, "eva_config": null, "exclude_modules": null, "fan_in_fan_out": false,
"inference_mode": false, "init_lora_weights": true, "kasa_config": null, "layer_replication": null, "layers_pattern": null, "layers_to_transform": null,
"loftq_config": {}, "lora_alpha": 8, "lora_bias": false, "lora_dropout": 0.0, "lora_ga_config": null, "megatron_config": null,
"megatron_core": "megatron.core", "modules_to_save": null, "monteclora_config": null, "peft_type": "LORA", "peft_version": "0.21.2",
"qalora_group_size": 16, "r": 8, "rank_pattern": {}, "revision": null, "target_modules": ["q_proj"], "target_parameters": null, "task_type": null,
"trainable_token_indices": null, "use_bdlora": null, "use_dora": false, "use_qalora": false, "use_rslora": false, "velora_config": null}""")


def halves(*modules: str, rank: int = 8, prefix: str = "base_model.model.") -> dict[str, torch.Tensor]:
    return {f"{prefix}{module}.lora_{x}.weight": torch.ones(shape) for module in modules for x, shape in (("A", (rank, 5)), ("B", (7, rank)))}


def peft(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(WRITTEN | config))
    return folder


def test_what_peft_writes_is_read_whole(tmp_path: Path) -> None:
    file = open_adapter(peft(tmp_path / "a", halves(Q), base_model_name_or_path="acme/base", lora_alpha=12))
    assert (file.name, file.format, file.base, file.alpha, file.ranks) == ("a", "peft", "acme/base", 12, (8,))
    assert list(file.pairs) == [f"{Q}.weight"]
    assert (file.pairs[f"{Q}.weight"].a.shape, file.pairs[f"{Q}.weight"].b.shape, file.pairs[f"{Q}.weight"].scale) == ((8, 5), (7, 8), 1.5)
    assert [path.name for path in file.files] == ["adapter_config.json", "adapter_model.safetensors"]
    assert open_adapter(peft(tmp_path / "b", halves(Q, prefix=""))).pairs.keys() == file.pairs.keys()


@pytest.mark.parametrize(("config", "expected"), [
    ({"use_rslora": True}, (8 / math.sqrt(8), 8 / math.sqrt(2))),
    ({"alpha_pattern": {"q_proj": 4}}, (0.5, 4.0)),
    ({"alpha_pattern": {r"layers\.1\.mlp\.up_proj": 100, r"model.layers.11.mlp.up_proj": 4}}, (1.0, 2.0)),  # the whole name, or its end after a dot
    ({"alpha_pattern": {"proj": 4}}, (1.0, 4.0)),  # no end after a dot
    ({"alpha_pattern": {r".*_proj": 4, "up_proj": 9}}, (0.5, 2.0)),  # the first that fits
])
def test_scales_follow_peft(tmp_path: Path, config: dict[str, Any], expected: tuple[float, float]) -> None:
    """LoraLayer.update_layer and get_pattern_key of peft 0.21.2."""
    tensors = halves(Q) | halves(UP, rank=2)
    file = open_adapter(peft(tmp_path / "a", tensors, rank_pattern={"up_proj": 2}, **config))
    assert tuple(pair.scale for pair in file.pairs.values()) == pytest.approx(expected)


def test_a_pickle_is_read_by_the_restricted_loader(tmp_path: Path) -> None:
    folder = peft(tmp_path / "a", halves(Q))
    (folder / "adapter_model.safetensors").unlink()
    torch.save(halves(Q), folder / "adapter_model.bin")
    assert torch.equal(open_adapter(folder).pairs[f"{Q}.weight"].a, torch.ones(8, 5))
    torch.save({"x": Path("y")}, folder / "adapter_model.bin")
    with pytest.raises(UnsafePickle):
        open_adapter(folder)


@pytest.mark.parametrize(("config", "error", "message"), [
    ({"use_dora": True}, MissingTensors, f"adapter 'a' is of DoRA (use_dora=True) and lacks {Q}.lora_magnitude_vector (1 such). Is the file whole?"),
    ({"bias": "lora_only"}, UnsupportedModel, "bias='lora_only' (only 'none'): the biases it changes are not read"),
    ({"lora_bias": True}, UnsupportedModel, "lora_bias=True (only False)"),
    ({"modules_to_save": ["lm_head"]}, UnsupportedModel, "modules_to_save=['lm_head'] (only null): whole modules in place of the model's own"),
    ({"target_parameters": "experts.down_proj"}, BadConfig, "target_parameters is 'experts.down_proj', and a list of names was expected"),
    ({"target_parameters": ["mlp.experts.gate_up_proj"]}, MissingTensors,
     "names target_parameters 'mlp.experts.gate_up_proj', and adapter_model.safetensors has no tensors of such"),
    ({"alora_invocation_tokens": [7]}, UnsupportedModel, "alora_invocation_tokens=[7] (only null): an adapter that begins in the middle of a prompt"),
    ({"layer_replication": [[0, 4], [2, 5]]}, UnsupportedModel, "layer_replication=[[0, 4], [2, 5]] (only null)"),
    ({"init_lora_weights": "pissa_niter_16"}, UnsupportedModel, "init_lora_weights='pissa_niter_16': it changes the model's own matrices before"),
    ({"peft_type": "LOHA"}, UnsupportedModel, "peft_type='LOHA' (read: 'lora')"),
    ({"task_type": "SEQ_CLS"}, UnsupportedModel, "task_type='SEQ_CLS' (read: 'causal_lm')"),
    ({"invocation_string": "hi"}, BadConfig, "has 1 key that nobody reads: invocation_string='hi'"),
    ({"r": "8"}, BadConfig, "r is '8', and a whole number was expected"),
    ({"r": 4}, MisshapenTensor, f"{Q} is of rank 8, and adapter_config.json of 'a' makes it 4. Do the two files belong together?"),
    ({"lora_alpha": 0}, BadConfig, "lora_alpha is 0, and a number that is not zero was expected"),
    ({"lora_alpha": None}, BadConfig, "has no 'lora_alpha', which this method needs"),
    ({"rank_pattern": {"(": 2}}, BadConfig, "rank_pattern has '(', which is no regular expression"),
    ({"alpha_pattern": {"q_proj": "2"}}, BadConfig, "alpha_pattern of q_proj is '2', and a number that is not zero was expected"),
    ({"alpha_pattern": [2]}, BadConfig, "alpha_pattern is [2], and an object was expected"),
    ({"target_modules": ["q_proj", "v_proj"]}, MissingTensors, "names target_modules 'v_proj', and adapter_model.safetensors has no tensors of such"),
])
def test_a_setting_that_is_not_read_stops_by_name(tmp_path: Path, config: dict[str, Any], error: type[PellucidError], message: str) -> None:
    with pytest.raises(error) as told:
        open_adapter(peft(tmp_path / "a", halves(Q), **config))
    assert message in str(told.value)


@pytest.mark.parametrize(("tensors", "error", "message"), [
    ({}, BadCheckpoint, "has no tensors: it would change nothing"),
    ({f"{Q}.lora_A.weight": torch.ones(8, 5)}, MissingTensors, f"lacks 1 of 2 tensors, first: {Q}.lora_B.weight. Is the file whole?"),
    (halves(Q) | {"model.embed_tokens.lora_embedding_A": torch.ones(8, 5)}, UnknownTensors,
     "1 tensor of adapter 'a' is no half of a pair *.lora_A.weight, *.lora_B.weight, first: model.embed_tokens.lora_embedding_A. Embeddings, norms"),
    (halves(Q) | {f"{Q}.lora_magnitude_vector": torch.ones(7), "model.norm.weight": torch.ones(5)}, UnknownTensors, "2 tensors of adapter 'a' are no half"),
    (halves(Q) | halves(Q, prefix=""), UnknownTensors, "with and without base_model.model.. Which of the two is meant, nothing says"),
    ({f"{Q}.lora_A.weight": torch.ones(8, 5), f"{Q}.lora_B.weight": torch.ones(7, 9)}, MisshapenTensor, "is changed by A (8, 5) and B (7, 9), and (r, D)"),
    ({f"{Q}.lora_A.weight": torch.ones(0, 5), f"{Q}.lora_B.weight": torch.ones(7, 0)}, MisshapenTensor, "is changed by A (0, 5) and B (7, 0)"),
    ({f"{Q}.lora_A.weight": torch.ones(8), f"{Q}.lora_B.weight": torch.ones(8)}, MisshapenTensor, "is changed by A (8,) and B (8,)"),
])
def test_tensors_that_are_no_whole_pairs_stop_by_name(tmp_path: Path, tensors: dict[str, torch.Tensor], error: type[PellucidError], message: str) -> None:
    with pytest.raises(error) as told:
        open_adapter(peft(tmp_path / "a", tensors))
    assert message in str(told.value)


E = "model.layers.1.mlp.experts"


@pytest.mark.parametrize(("tensors", "error", "message"), [
    (halves(E), MissingTensors, f"has 1 of 2 parameters of {E} that target_parameters of adapter_config.json names (gate_up_proj, down_proj)"),
    (halves(E) | {f"{E}.base_layer.lora_A.weight": torch.ones(16, 5)}, MissingTensors, f"adapter 'a' has lora_A.weight of {E}.gate_up_proj, and A and B"),
    (halves(E) | {f"{E}.base_layer.lora_A.weight": torch.ones(12, 5), f"{E}.base_layer.lora_B.weight": torch.ones(5, 12)}, MisshapenTensor,
     f"{E}.gate_up_proj is changed by A (12, 5) and B (5, 12), and (X * 8, D) and (F, 8 * X) were expected"),
])
def test_parameters_that_are_not_whole_stop_by_name(tmp_path: Path, tensors: dict[str, torch.Tensor], error: type[PellucidError], message: str) -> None:
    with pytest.raises(error) as told:
        open_adapter(peft(tmp_path / "a", tensors, target_modules=[], target_parameters=["experts.gate_up_proj", "experts.down_proj"]))
    assert message in str(told.value)
    with pytest.raises(UnsupportedModel, match="in which order that module declares them, which decides what its tensors are, is not known of 'w1'"):
        open_adapter(peft(tmp_path / "b", tensors, target_modules=[], target_parameters=["experts.w1", "experts.down_proj"]))


def written(path: Path, change: Callable[[gguf.GGUFWriter], None] = lambda w: None, *, type: str = "adapter", kind: str = "lora", alpha: Any = 16.0) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(type)
    writer.add_string("adapter.type", kind)
    if alpha is not None:
        writer.add_float32("adapter.lora.alpha", alpha)
    change(writer)
    writer.add_tensor("blk.0.attn_q.weight.lora_a", np.ones((8, 5), np.float32))
    writer.add_tensor("blk.0.attn_q.weight.lora_b", np.ones((7, 8), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(("alpha", "scale", "notes"), [(16.0, 2.0, 0), (0.0, 1.0, 1), (None, 1.0, 1)])
def test_a_gguf_adapter_is_read_as_llama_cpp_does(tmp_path: Path, alpha: float | None, scale: float, notes: int) -> None:
    def about(writer: gguf.GGUFWriter) -> None:
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, "base")
        writer.add_base_model_organization(0, "acme")
        writer.add_string("adapter.lora.task_name", "json")
    file = open_adapter(written(tmp_path / "a.gguf", about, alpha=alpha))
    assert (file.format, file.architecture, file.base, len(file.notes)) == ("gguf", "llama", "acme/base", notes)
    [(name, pair)] = file.pairs.items()
    assert (name, pair.scale, pair.a.shape, pair.b.dtype) == ("blk.0.attn_q.weight", scale, (8, 5), torch.float16)


@pytest.mark.parametrize(("how", "error", "message"), [
    ({"type": "model"}, UnsupportedModel, "a.gguf is of general.type 'model', and an adapter was expected. Is it the model itself?"),
    ({"kind": "ia3"}, UnsupportedModel, "a.gguf has adapter.type='ia3', and 'lora' is what is read"),
    ({"alpha": math.nan}, BadConfig, "adapter.lora.alpha is nan, and a number was expected"),
    ({"change": lambda w: w.add_array("adapter.alora.invocation_tokens", [3, 4])}, UnsupportedModel,
     "has adapter.alora.invocation_tokens (2 of them), and an adapter that begins in the middle of a prompt is not read"),
    ({"change": lambda w: w.add_uint32("adapter.lora.rank", 8)}, BadConfig, "has 1 key that nobody reads in an adapter: adapter.lora.rank"),
    ({"change": lambda w: w.add_tensor("blk.0.attn_norm.weight", np.ones(5, np.float32))}, UnknownTensors,
     "1 tensor of adapter 'a.gguf' is no half of a pair *.lora_a, *.lora_b, first: blk.0.attn_norm.weight"),
])
def test_a_gguf_file_that_is_no_such_adapter_stops_by_name(tmp_path: Path, how: dict[str, Any], error: type[PellucidError], message: str) -> None:
    with pytest.raises(error) as told:
        open_adapter(written(tmp_path / "a.gguf", **how))
    assert message in str(told.value)


def test_a_prompt_that_it_wants_is_said(tmp_path: Path) -> None:
    [note] = open_adapter(written(tmp_path / "a.gguf", lambda w: w.add_string("adapter.lora.prompt_prefix", "Say: "))).notes
    assert note == "a.gguf: adapter.lora.prompt_prefix='Say: ' is for prompts, and nothing puts it there"


def test_what_is_an_adapter_is_told_from_a_model(tmp_path: Path) -> None:
    folder = peft(tmp_path / "a", halves(Q))
    assert is_adapter(folder)
    assert is_adapter(written(tmp_path / "a.gguf"))
    assert not is_adapter(written(tmp_path / "m.gguf", type="model"))
    with pytest.raises(BadConfig, match="is an adapter"):
        open_checkpoint(folder)
    (folder / "config.json").write_text("{}")
    assert not is_adapter(folder)
    with pytest.raises(ModelNotFound, match=r"no such file or folder: .*nowhere\. An adapter is a folder with adapter_config\.json"):
        open_adapter(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadConfig, match=r"has no adapter_config\.json, so it is no adapter: it holds nothing"):
        open_adapter(tmp_path / "empty")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(MissingTensors, match=r"neither adapter_model\.safetensors nor adapter_model\.bin\. Was the download complete\?"):
        open_adapter(folder)

"""Small checkpoints for these tests, written by the safetensors library and torch, not by ours."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

# No two sizes are equal, so that a swapped axis cannot hide.
CONFIG: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 53, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 10, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "dtype": "float32"}


def llama(stored: torch.dtype = torch.float32, **config: Any) -> dict[str, Tensor]:
    """The tensors of a random llama of CONFIG's sizes, or of other ones, under their names in the files."""
    c = CONFIG | config
    D, F, V = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    q, kv = c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
    layer = {"input_layernorm": (D,), "self_attn.q_proj": (q, D), "self_attn.k_proj": (kv, D), "self_attn.v_proj": (kv, D), "self_attn.o_proj": (D, q),
             "post_attention_layernorm": (D,), "mlp.gate_proj": (F, D), "mlp.up_proj": (F, D), "mlp.down_proj": (D, F)}
    shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,), "lm_head.weight": (V, D)}
    shapes |= {f"model.layers.{i}.{name}.weight": shape for i in range(c["num_hidden_layers"]) for name, shape in layer.items()}
    noise = torch.Generator().manual_seed(0)
    return {name: (torch.randn(shape, generator=noise) * shape[-1] ** -0.5).to(stored) for name, shape in shapes.items()}


def write_config(folder: Path, **config: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))


def write(folder: Path, tensors: dict[str, Tensor] | None = None, **config: Any) -> Path:
    """A folder with config.json and model.safetensors."""
    write_config(folder, **config)
    save_file(tensors if tensors is not None else llama(**config), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_shards(folder: Path, n_shards: int = 3, *, format: str = "safetensors", index: bool = True, **config: Any) -> Path:
    """The same in shards, dealt one tensor to each in turn, with an index."""
    write_config(folder, **config)
    tensors = llama(**config)
    stem, ending = ("model", "safetensors") if format == "safetensors" else ("pytorch_model", "bin")
    files = [f"{stem}-{i:05d}-of-{n_shards:05d}.{ending}" for i in range(1, n_shards + 1)]
    shards: dict[str, dict[str, Tensor]] = {file: {} for file in files}
    for i, (name, tensor) in enumerate(sorted(tensors.items())):
        shards[files[i % n_shards]][name] = tensor
    for file, part in shards.items():
        save_file(part, folder / file) if format == "safetensors" else torch.save(part, folder / file)
    if index:
        weight_map = {name: file for file, part in shards.items() for name in part}
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    return folder

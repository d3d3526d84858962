"""Small models on disk that predict something: a Llama with random weights and one token a byte."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.api.scripted import bytes_tokenizer

N_VOCAB = 259
TEXT = "".join(f"The {a} {b} of the {c}, and {d}.\n" for i in range(60) for a, b, c, d in [
    (["old", "red", "far", "low"][i % 4], ["house", "river", "door"][i % 3], ["hill", "sea", "town", "king", "wood"][i % 5], ["so on", "no more"][i % 2])])


def random_model(folder: Path, *, seed: int = 0, scale: float = 1.0, n_layers: int = 2, d_model: int = 256, d_ff: int = 96, bos: bool = False, n_ctx: int = 128,
                 dtype: torch.dtype = torch.float32) -> Path:
    """Writes it. scale: of the unembedding, and so of how sure the model is."""
    folder.mkdir(parents=True)
    noise = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int, by: float = 1.0) -> torch.Tensor:
        return torch.randn(rows, columns, generator=noise) * by / columns**0.5
    n_heads, d_head = 2, 16
    tensors = {"model.embed_tokens.weight": matrix(N_VOCAB, d_model, 16), "lm_head.weight": matrix(N_VOCAB, d_model, scale)}
    tensors["model.norm.weight"] = torch.ones(d_model)
    for i in range(n_layers):
        shapes = {"self_attn.q_proj": (n_heads * d_head, d_model), "self_attn.k_proj": (d_head, d_model), "self_attn.v_proj": (d_head, d_model),
                  "self_attn.o_proj": (d_model, n_heads * d_head), "mlp.gate_proj": (d_ff, d_model), "mlp.up_proj": (d_ff, d_model),
                  "mlp.down_proj": (d_model, d_ff)}
        tensors |= {f"model.layers.{i}.{name}.weight": matrix(*shape) for name, shape in shapes.items()}
        tensors |= {f"model.layers.{i}.{name}.weight": torch.ones(d_model) for name in ("input_layernorm", "post_attention_layernorm")}
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, folder / "model.safetensors")
    config = {"model_type": "llama", "hidden_size": d_model, "intermediate_size": d_ff, "num_hidden_layers": n_layers, "num_attention_heads": n_heads,
              "num_key_value_heads": 1, "head_dim": d_head, "vocab_size": N_VOCAB, "max_position_embeddings": n_ctx, "rms_norm_eps": 1e-6,
              "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    bytes_tokenizer().save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "bos_token": "<|bos|>", "add_bos_token": bos, "clean_up_tokenization_spaces": False,
                "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    def of(name: str, **facts: object) -> Path:
        return random_model(tmp_path / name, **facts)  # type: ignore[arg-type]
    return of

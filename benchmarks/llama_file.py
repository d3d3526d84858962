"""A Llama's safetensors as a GGUF file, for the peer in benchmarks/engine.py.

What goes where is read from llama.cpp's convert_hf_to_gguf.py (class LlamaModel): names, metadata, norms in float32, and the rows of q and k, which
llama.cpp rotates as neighbours. No vocabulary is written: ids go in and ids come out.
"""
from __future__ import annotations

import json
from pathlib import Path

MATRICES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
            "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
            "post_attention_layernorm": "ffn_norm"}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def named(name: str) -> str:
    """llama.cpp's name of a tensor."""
    stem = name.removesuffix(".weight")
    if stem in OUTER:
        return f"{OUTER[stem]}.weight"
    _, _, index, rest = stem.split(".", 3)
    return f"blk.{index}.{MATRICES[rest]}.weight"


def write(folder: Path, kind: str, path: Path) -> Path:
    """The file, made once. kind: "f16" or "bf16"."""
    if path.exists():
        return path
    import gguf
    import torch
    from safetensors.torch import load_file
    config = json.loads((folder / "config.json").read_text())
    H, D = config["num_attention_heads"], config["hidden_size"]
    K = config["num_key_value_heads"]
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "llama")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if kind == "f16" else gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(D)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(H)
    writer.add_head_count_kv(K)
    writer.add_rope_dimension_count(config.get("head_dim") or D // H)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    for name, tensor in load_file(folder / "model.safetensors").items():
        if "q_proj" in name or "k_proj" in name:
            n = H if "q_proj" in name else K
            tensor = tensor.unflatten(0, (n, 2, -1)).transpose(1, 2).flatten(0, 2)
        if tensor.ndim == 1:
            writer.add_tensor(named(name), tensor.float().numpy())
        elif kind == "f16":
            writer.add_tensor(named(name), tensor.half().numpy())
        else:
            bits = tensor.bfloat16().contiguous().view(torch.uint8).numpy()
            writer.add_tensor(named(name), bits, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return part.rename(path)

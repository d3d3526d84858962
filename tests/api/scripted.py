"""A model on disk that says what it is told to: a Llama whose layers add nothing and whose unembedding is a table token -> next token.

So every continuation has a closed form, and goes through the real files, loader, decoder and engine. Its tokenizer has one token a byte.
"""
from __future__ import annotations

import itertools
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CHATML = ("{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% if think_first is defined and think_first %}{{ '<think>' }}{% endif %}{% endif %}")
SPECIAL = ("<|bos|>", "<|im_start|>", "<|im_end|>")
SCALE = 40.0  # of the logits: even at temperature 1 nothing else is ever drawn


def bytes_tokenizer(*, think: str | None = None) -> Tokenizer:
    """One token a byte and the special ones; think: "special" or "plain" adds the thinking marks as such tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    if think is not None:
        marks = [AddedToken(t, special=think == "special", normalized=False) for t in ("<think>", "</think>")]
        (tokenizer.add_special_tokens if think == "special" else tokenizer.add_tokens)(marks)
    return tokenizer


def scripted_model(folder: Path, scripts: list[list[str]], *, n_ctx: int = 128, bos: bool = True, template: str | None = CHATML,
                   think: str | None = None, dtype: torch.dtype = torch.float32, config: dict | None = None, generation: dict | None = None) -> Path:
    """Writes it. Each script is a chain of tokens (one character each, or a special token); what no script goes on from ends with <|im_end|>.

    No token may have two successors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = bytes_tokenizer(think=think)
    n = tokenizer.get_vocab_size()
    ids = {token: tokenizer.encode(token).ids for script in scripts for token in script}
    following: dict[int, int] = {}
    for script in scripts:
        chain = [i for token in script for i in ids[token]]
        for i, j in itertools.pairwise(chain):
            assert following.setdefault(i, j) == j, "a token with two successors"
    end = tokenizer.token_to_id("<|im_end|>")
    unembed = torch.zeros(n, n)
    for i in range(n):
        unembed[following.get(i, end), i] = SCALE / n ** 0.5  # the norm makes a one-hot row n ** 0.5 tall
    zero, d_head, d_ff = torch.zeros, 4, 8
    tensors = {"model.embed_tokens.weight": torch.eye(n), "lm_head.weight": unembed, "model.norm.weight": torch.ones(n)}
    block = {"input_layernorm": torch.ones(n), "post_attention_layernorm": torch.ones(n), "mlp.down_proj": zero(n, d_ff), "self_attn.o_proj": zero(n, d_head)}
    block |= {f"self_attn.{name}_proj": zero(d_head, n) for name in "qkv"} | {f"mlp.{name}_proj": zero(d_ff, n) for name in ("gate", "up")}
    tensors |= {f"model.layers.0.{name}.weight": tensor for name, tensor in block.items()}
    save_file({name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    whole = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": n, "intermediate_size": d_ff, "num_hidden_layers": 1,
             "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": d_head, "vocab_size": n, "max_position_embeddings": n_ctx,
             "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False,
             "torch_dtype": str(dtype).removeprefix("torch."), **(config or {})}
    (folder / "config.json").write_text(json.dumps(whole))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast"}
    settings |= {"bos_token": "<|bos|>", "add_bos_token": False} if bos else {}
    settings |= {"chat_template": template} if template is not None else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder

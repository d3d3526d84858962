"""Repositories as transformers wrote them years ago: names without prefix, saved buffers, pickles. Logits against transformers."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from pellucid.model.load import load_decoder

transformers.logging.set_verbosity_error()

TOLERANCE = 2e-5  # of the largest logit, float32: the bound for every family
IDS = torch.randint(3, 101, (23,), generator=torch.Generator().manual_seed(1))
SIZES: dict[str, Any] = {"vocab_size": 101, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 72,
                         "max_position_embeddings": 32}
MASK, MASKED, FREQ = torch.ones(1, 1, 32, 32).tril().bool(), torch.tensor(-1e4), torch.rand(4)

MASKS, ROPE = "buffer: causal mask, recomputed", "buffer: rope frequencies, recomputed from config.json"
Old = tuple[Any, dict[str, Tensor], dict[str, int]]  # transformers' model, the tensors of the repository, what of them is left out


def gpt2() -> Old:
    """openai-community/gpt2: no `transformer.`, masks of floats."""
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=101, n_embd=48, n_layer=2, n_head=4, n_positions=32))
    randomize(theirs)
    state = {name.removeprefix("transformer."): t for name, t in theirs.state_dict().items() if name != "lm_head.weight"}
    return theirs, state | {f"h.{i}.attn.bias": MASK.float() for i in range(2)}, {MASKS: 2}


def gpt2_with_everything() -> Old:
    """Fine-tunes of it: the prefix, both buffers and the tied copy."""
    theirs, state, _ = gpt2()
    state = {f"transformer.{name}": t for name, t in state.items()} | {f"transformer.h.{i}.attn.masked_bias": MASKED for i in range(2)}
    return theirs, state | {"lm_head.weight": state["transformer.wte.weight"]}, {MASKS: 4, "a copy of the tied embedding": 1}


def pythia() -> Old:
    """EleutherAI/pythia and RedPajama: three buffers a layer."""
    theirs = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SIZES))
    randomize(theirs)
    buffers = {"attention.bias": MASK, "attention.masked_bias": MASKED, "attention.rotary_emb.inv_freq": FREQ}
    return theirs, theirs.state_dict() | {f"gpt_neox.layers.{i}.{name}": t for i in range(2) for name, t in buffers.items()}, {MASKS: 4, ROPE: 2}


def gptj() -> Old:
    """EleutherAI/gpt-j-6b: both masks."""
    theirs = transformers.GPTJForCausalLM(transformers.GPTJConfig(vocab_size=101, n_embd=48, n_layer=2, n_head=4, n_positions=32, rotary_dim=6))
    randomize(theirs)
    buffers = {"attn.bias": MASK, "attn.masked_bias": MASKED}
    return theirs, theirs.state_dict() | {f"transformer.h.{i}.{name}": t for i in range(2) for name, t in buffers.items()}, {MASKS: 4}


def llama() -> Old:
    """Conversions of early 2023: rope frequencies."""
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    randomize(theirs)
    return theirs, theirs.state_dict() | {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": FREQ for i in range(2)}, {ROPE: 2}


def randomize(model: Any) -> None:
    torch.manual_seed(0)
    for p in model.parameters():
        p.data = torch.randn_like(p) * (1.5 * p.shape[-1] ** -0.5 if p.ndim > 1 else 0.3)
    model.tie_weights()
    model.eval()


@pytest.mark.parametrize("make", [gpt2, gpt2_with_everything, pythia, gptj, llama], ids=lambda f: f.__name__)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "torch-1.5"])
def test_an_old_repository_computes_what_transformers_does(make: Any, zipped: bool, tmp_path: Path) -> None:
    theirs, state, left_out = make()
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    config = json.loads(theirs.config.to_json_string(use_diff=False))
    rope = config.pop("rope_parameters", None)
    if rope is not None:  # the dialect of that time
        fraction = rope.get("partial_rotary_factor")
        neox = theirs.config.model_type == "gpt_neox"
        config |= {"rotary_emb_base": rope["rope_theta"], "rotary_pct": fraction} if neox else {"rope_theta": rope["rope_theta"]}
    config["torch_dtype"] = "float32"
    config.pop("dtype", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    decoder, report = load_decoder(tmp_path, device="cpu")
    with torch.no_grad():
        mine_TV, theirs_TV = decoder.unembed(decoder(IDS)), theirs(input_ids=IDS[None]).logits[0]
    assert (mine_TV - theirs_TV).abs().max() < TOLERANCE * theirs_TV.abs().max()
    assert report.left_out == left_out
    assert (report.format, report.dtype) == ("pickle", "f32")


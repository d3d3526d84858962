"""Tokens added to a model: a base of its own, whose tokenizer knows them and whose embedding has rows for them, written before it is tuned.

A new row is the mean of all rows: then a new token's logit is about that of an average token, and what the model says of others hardly changes.
Source: https://nlp.stanford.edu/~johnhew/vocab-expansion.html
"""
from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pellucid
from pellucid.catalog import ancestry
from pellucid.errors import BadRequest
from pellucid.families import family
from pellucid.families._describe import describe_checkpoint
from pellucid.records import sha256_of
from pellucid.train.recipe import Recipe
from pellucid.weights.hub import resolve
from pellucid.weights.inputs import input_files
from pellucid.weights.packed_rows import PackedWeight
from pellucid.weights.save import save_files

BASE = "base"  # in a run's folder: the model before it is tuned, with the new tokens


def with_added_tokens(recipe: Recipe) -> Recipe:
    """The recipe over a base that has its added tokens, which is written into the run's folder where it is not there yet."""
    asked = recipe.model.added_tokens
    if not asked:
        return recipe
    if recipe.tune.kind != "full":
        raise BadRequest(f"model.added_tokens={', '.join(asked)}: adapters leave the embedding as it is, and nothing would be learned of new tokens. "
                         f"Train the whole model (tune.kind: full)", field="model.added_tokens")
    base = Path(recipe.out.folder) / BASE
    if base.is_dir():
        tokenizer = pellucid.load_tokenizer(base)
        known = json.loads((base / "tokenizer.json").read_text("utf-8"))["added_tokens"][-len(asked) :]
        if [each["content"] for each in known] != list(asked) or tokenizer.id_of(asked[-1]) is None:
            raise BadRequest(f"{base} was made for other tokens than {', '.join(asked)}. Give another folder (out.folder=...)", field="model.added_tokens")
    else:
        add_tokens(recipe.model.path, base, asked, recipe.model.accept_unread)
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, path=str(base), added_tokens=()))


def add_tokens(source: str, out: Path, tokens: Sequence[str], accept_unread: Sequence[str] = ()) -> None:
    """Writes the model with these tokens at the end of its vocabulary: text like any other, which is read and written as one token.

    Raises BadRequest for tokens it has, for packed weights, and for a tokenizer that is no tokenizer.json; what `save_files` raises.
    """
    model = pellucid.load(source, ops="fused", activations="exact", accept_unread=accept_unread)
    checkpoint, file = model.checkpoint, model.checkpoint.folder / "tokenizer.json"
    packed = next((name for name, weight in model.decoder.weights().items() if isinstance(weight, PackedWeight)), None)
    if packed or checkpoint.gguf is not None or not file.is_file():
        what = f"its weights are packed ({packed})" if packed else "it has no tokenizer.json"
        raise BadRequest(f"tokens cannot be added to {source}: {what}. Start from the checkpoint as it was published", field="model.added_tokens")
    known = [token for token in tokens if model.tokenizer.id_of(token) is not None]
    if known or len(set(tokens)) < len(tokens) or not all(tokens):
        raise BadRequest(f"model.added_tokens: {', '.join(known) or 'one'} is {'in the vocabulary already' if known else 'empty or named twice'}. Take it out",
                         field="model.added_tokens")
    first = model.tokenizer.n_vocab
    rows = max(model.spec.n_vocab, first + len(tokens))  # some embeddings have room
    ours = {name: _widened(weight.detach().cpu(), first, len(tokens), rows) if name.partition(".")[0] in ("embed", "unembed") else weight.detach().cpu()
            for name, weight in model.decoder.weights().items() if not isinstance(weight, PackedWeight)}
    described = describe_checkpoint(checkpoint, tuple(accept_unread))
    parent = ancestry.of_path(resolve(source), None if Path(source).exists() else source)
    made = ancestry.child(parent, {each.name: sha256_of(checkpoint.folder / each.name) for each in checkpoint.files})
    texts = _tokenizer_texts(checkpoint.folder, tokens, first)
    left_out = {each.name for each in checkpoint.files} | {"config.json", "model.safetensors.index.json", *texts}
    beside = [path for name, path in input_files(checkpoint).items() if name not in left_out]
    save_files(out, dataclasses.replace(described.spec, n_vocab=rows), family(described.spec.family).WEIGHTS, ours, _sized(described.config, rows),
               beside=beside, texts=texts, metadata={ancestry.ANCESTRY: ancestry.text_of(made)})


def _widened(weight: Tensor, first: int, n: int, rows: int) -> Tensor:
    """The first tokens as they are, then n new ones, then what there is room for."""
    mean = weight[:first].float().mean(0).to(weight.dtype)
    room = weight[first + n :] if len(weight) > first + n else weight[:0]
    out = torch.cat([weight[:first], mean.expand(n, *weight.shape[1:]), room])
    assert len(out) == rows
    return out


def _sized(config: dict[str, Any], rows: int) -> dict[str, Any]:
    """config.json with another vocabulary, wherever it says how large that is."""
    return {key: rows if key == "vocab_size" else _sized(value, rows) if isinstance(value, dict) and key == "text_config" else value
            for key, value in config.items()}


def _tokenizer_texts(folder: Path, tokens: Sequence[str], first: int) -> dict[str, str]:
    """The tokenizer's files that name added tokens, with the new ones."""
    facts = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    raw = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    raw["added_tokens"] = [*raw.get("added_tokens", ()), *({"id": first + i, "content": token, **facts} for i, token in enumerate(tokens))]
    texts = {"tokenizer.json": json.dumps(raw, ensure_ascii=False)}
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if "added_tokens_decoder" in config:
        config["added_tokens_decoder"] |= {str(first + i): {"content": token, **facts} for i, token in enumerate(tokens)}
        texts[path.name] = json.dumps(config, ensure_ascii=False, indent=1)
    return texts

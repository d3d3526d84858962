"""Random adapters in peft's files for the families' tiny models, and the same models with the adapter added into their matrices by hand."""
from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from pellucid.model.decoder import Decoder
from pellucid.model.low_rank import Choice
from pellucid.model.parts import Rows
from tests.families.build import Built

RANK, ALPHA = 3, 6.0
CONFIG: dict[str, Any] = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA}


Pairs = dict[str, tuple[Tensor, Tensor]]


def random_pairs(files: dict[str, Tensor], names: Iterable[str], *, stored_across: Sequence[str] = (), seed: int = 5, rank: int = RANK) -> Pairs:
    """A (r, D) and B (F, r) for each of these tensors; `stored_across`: those that the files have as (D, F)."""
    noise, out = torch.Generator().manual_seed(seed), {}
    for name in names:
        F, D = files[name].shape[::-1] if name in stored_across else files[name].shape
        out[name] = torch.randn(rank, D, generator=noise) * D**-0.5, torch.randn(F, rank, generator=noise) * 0.15
    return out


def write_peft(folder: Path, pairs: Pairs, config: dict[str, Any] | None = None) -> Path:
    """The adapter as peft saves it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({f"base_model.model.{name.removesuffix('.weight')}.lora_{x}.weight": half.clone()
               for name, pair in pairs.items() for x, half in zip("AB", pair, strict=True)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | (config or {})))
    return folder


def merged_logits(built: Built, pairs: Pairs, *, stored_across: Sequence[str] = (), scale: float = ALPHA / RANK) -> Tensor:
    """(T, V): what transformers makes of the case's tokens with scale * B A added to the files' own matrices."""
    files = dict(built.files)
    for name, (a, b) in pairs.items():
        change = scale * b @ a
        files[name] = files[name] + (change.T if name in stored_across else change)
    with tempfile.TemporaryDirectory() as folder:
        built.theirs.config.save_pretrained(folder)
        save_file({name: tensor.contiguous() for name, tensor in files.items()}, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", experts_implementation="eager",
                                                                    dtype=torch.float32).eval()
        with torch.inference_mode():
            return theirs(built.tokens_T[None], use_cache=False).logits[0].clone()


@torch.inference_mode()
def adapted_logits(decoder: Decoder, tokens_T: Tensor, lengths: Sequence[int], adapters: Sequence[str | None]) -> Tensor:
    """(T, V) of rows with an adapter each."""
    rows = Rows(tuple(lengths), tuple(range(len(lengths))), tuple(adapters))
    return decoder.unembed(decoder(tokens_T, None, rows), Choice.of(adapters, lengths))

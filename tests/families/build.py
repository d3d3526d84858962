"""Tiny random models, written to disk by transformers (or as their authors publish them) and read back by us: each built once a run."""
from __future__ import annotations

import copy
import functools
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from pellucid import families
from pellucid.errors import PellucidError
from pellucid.families._describe import describe
from pellucid.model.cache import Cache
from pellucid.model.decoder import Decoder, Rows, kept_in
from pellucid.ops.choose import choose
from pellucid.spec import DecoderSpec
from pellucid.weights.assemble import assemble
from pellucid.weights.names import NameTable
from tests.families.case import Case, Json

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TOLERANCE = 2e-5  # of the largest logit: a few hundred float32 roundings (6e-8 each) through the blocks; the bound


@dataclass
class Built:
    """One case on both sides: transformers' model, the files it wrote, and what we made of them."""

    case: Case
    theirs: Any  # None where a reference judges
    raw: Json
    files: dict[str, Tensor]
    module: ModuleType
    spec: DecoderSpec
    tensors: dict[str, Tensor]
    tokens_T: Tensor
    logits_TV: Tensor  # transformers', float32; a reference's were float64


@functools.cache
def build(case: Case) -> Built:
    """The case's model from disk. Raises whatever our loader raises."""
    theirs = randomized(case) if case.reference is None else None
    with tempfile.TemporaryDirectory() as folder:
        if theirs is None:
            publish(case, Path(folder))
        else:
            theirs.save_pretrained(folder)
            theirs.config.dtype = torch.float32  # saving leaves its name there, and not every class can be made from a name
        raw = json.loads((Path(folder) / "config.json").read_text())
        files = {name: tensor for path in sorted(Path(folder).glob("*.safetensors")) for name, tensor in load_file(path).items()}
    spec = read_spec(raw)
    module = families.family(raw["model_type"])
    tokens_T = torch.randint(3, spec.n_vocab, (case.length,), generator=torch.Generator().manual_seed(1))
    if theirs is None:
        logits_TV = judged(case, raw, files, tokens_T)
    else:
        with torch.inference_mode():
            logits_TV = theirs(tokens_T[None], use_cache=False).logits[0]
    return Built(case, theirs, raw, files, module, spec, assembled(module, files, spec), tokens_T, logits_TV)


def their_config(model_type: str, **kwargs: Any) -> Any:
    """transformers' config object. Eager attention and experts: the readable text that theirs is, without kernels' own rounding."""
    config = transformers.AutoConfig.for_model(model_type, **copy.deepcopy(kwargs))
    config._attn_implementation = config._experts_implementation = "eager"
    return config


def randomized(case: Case) -> Any:
    """transformers' model in float32 with every symmetry broken: gains away from one, biases away from zero."""
    config = their_config(case.model_type, **case.kwargs())
    theirs = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    noise = torch.Generator().manual_seed(0)
    for name, p in theirs.named_parameters():
        random = torch.randn(p.shape, generator=noise)
        gain = p.ndim == 1 and "bias" not in name
        p.data = random * case.spread * p.shape[-1] ** -0.5 if p.ndim > 1 else random * 0.4 + gain
    for name, b in theirs.named_buffers():
        if "correction" in name or "scalar" in name:  # zero, or one, until trained
            b.copy_(torch.randn(b.shape, generator=noise) * 0.4 + ("scalar" in name))
    theirs.tie_weights()
    if case.adjust is not None:
        case.adjust(theirs)
    return theirs


def publish(case: Case, folder: Path) -> None:
    """Random files under the names that the family's authors publish, as its reference lists them; gains away from one, biases away from zero."""
    assert case.reference is not None
    raw = {"model_type": case.model_type, **case.kwargs()}
    noise, files = torch.Generator().manual_seed(0), {}
    for name, shape in case.reference.shapes(case.reference.DEFAULTS | raw).items():
        random = torch.randn(shape, generator=noise)
        gain = len(shape) == 1 and "bias" not in name
        files[name] = random * case.spread * shape[-1] ** -0.5 if len(shape) > 1 else random * 0.4 + gain
    if case.adjust is not None:
        case.adjust(files)
    (folder / "config.json").write_text(json.dumps(raw))
    save_file(files, folder / "model.safetensors")


def judged(case: Case, raw: Json, files: dict[str, Tensor], tokens_T: Tensor) -> Tensor:
    """(T, V): the logits of these files by the case's reference, computed in float64."""
    assert case.reference is not None
    wide = {name: tensor.double().numpy() for name, tensor in files.items()}
    return torch.from_numpy(case.reference.logits(case.reference.DEFAULTS | raw, wide, tokens_T.numpy())).float()


def read_spec(raw: Json) -> DecoderSpec:
    """The spec of a config.json whose every key has been read."""
    return describe(raw).spec


def shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """What the decoder expects, by our names: of tied matrices the embedding only."""
    with torch.device("meta"):
        decoder = Decoder(spec, choose("reference"))
    return {name: tuple(p.shape) for name, p in decoder.named_parameters()}


def assembled(module: ModuleType, files: dict[str, Tensor], spec: DecoderSpec) -> dict[str, Tensor]:
    tensors, _ = assemble(NameTable(module.WEIGHTS), files.items(), shapes(spec), spec)
    return tensors


def ours(spec: DecoderSpec, tensors: dict[str, Tensor], *, ops: str = "reference", deterministic: bool = False,
         dtype: torch.dtype = torch.float32) -> Decoder:
    """A decoder that holds these tensors."""
    with torch.device("meta"):
        decoder = Decoder(spec, choose(ops), deterministic=deterministic)
    state = {name: tensor.to(kept_in(name, dtype)) for name, tensor in tensors.items()}
    decoder.load_state_dict(state | ({"unembed.weight": state["embed.weight"]} if spec.tied else {}), assign=True)
    if spec.tied:
        decoder.unembed.weight = decoder.embed.weight
    return decoder.eval()


@torch.inference_mode()
def logits(decoder: Decoder, tokens_T: Tensor, rows: Rows | None = None, cache: Cache | None = None) -> Tensor:
    """(T, V), in the decoder's dtype."""
    return decoder.unembed(decoder(tokens_T, None, rows, cache))


@torch.inference_mode()
def in_chunks(decoder: Decoder, tokens_T: Tensor, *sizes: int) -> Tensor:
    """The logits of one row through the cache: chunks of these sizes, then token by token."""
    cache, rest = Cache(decoder.spec), tokens_T.shape[0] - sum(sizes)
    cache.plan(0, tokens_T.shape[0])
    return torch.cat([logits(decoder, chunk, cache=cache) for chunk in tokens_T.split([*sizes, *[1] * rest])])


def error(a: Tensor, b: Tensor) -> float:
    """The worst difference, relative to the largest value of b."""
    return float((a.float() - b.float()).abs().max() / b.float().abs().max())


def refused(make: Any) -> str | None:
    """The message of the refusal, or None where nothing was refused."""
    try:
        make()
    except (PellucidError, RuntimeError, ValueError, IndexError) as refusal:
        return f"{type(refusal).__name__}: {refusal}"
    return None

"""`pellucid.load`: a Model of what lies at a path."""
from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch

from pellucid.api.model import Model
from pellucid.engine.draft import DraftModel, other_vocabulary
from pellucid.engine.speculate import PromptLookup, Proposer
from pellucid.engine.store import CacheDtype, check_cache
from pellucid.errors import BadConfig, BadRequest
from pellucid.families._tokenizer import checkpoint_tokenizer
from pellucid.model.load import check_vocabulary, load_decoder
from pellucid.ops.interface import Activations
from pellucid.spec import DecoderSpec
from pellucid.tokenizer.template import choose
from pellucid.weights.checkpoint import open_checkpoint
from pellucid.weights.hub import resolve


def load(path: str | os.PathLike[str], *, device: str = "auto", dtype: str = "auto", quantize: str | None = None, accept_unread: Iterable[str] = (),
         ops: str = "auto", activations: Activations | Literal["auto"] = "auto", deterministic: bool = False, threads: int | None = None,
         chat_template: str | os.PathLike[str] | None = None, cache_bytes: int | None = None, cache_dtype: CacheDtype = "auto",
         draft: str | os.PathLike[str] | None = None, adapters: Mapping[str, str | os.PathLike[str]] | None = None,
         gpu_layers: int | Literal["auto"] | None = None) -> Model:
    """The model at a folder, a file, or a downloaded repository `owner/name[@revision]`. Never downloads, never runs remote code.

    Args:
        device, dtype, accept_unread, ops, deterministic: see model.load.load_decoder.
        activations: what quantized weights are multiplied by. "int8" rounds, 32 numbers to a scale, and is many times faster where there are kernels;
            "exact" does not; "auto" is int8 there, and exact elsewhere. The report and the records say which.
        threads: for torch's CPU work, in this whole process; None leaves it as it is.
        chat_template: a file, or the name of one of the model's own templates, in place of the default one.
        cache_bytes, cache_dtype: what keys and values may take, and how they are kept; see engine.engine.Engine.
        draft: "lookup", or a smaller model of the same vocabulary: guesses what comes next, to be checked several ids at a time. The output is the
            same without; see engine/speculate.py.
        adapters: name -> path of what requests may ask for with adapter=name; see Model.load_adapter.
        gpu_layers: how many of the last layers compute on the device, while the first ones stay on the CPU; "auto": as many as fit. See model/placement.py.
        quantize: "nf4", "int8" or a type of GGUF ("q8_0", "q6_k", "q5_k", "q4_k") that the blocks' matrices are packed in as they are read; see
            model/packing.py. What is packed often is better written once: `pellucid convert --quantize`.

    Raises ModelNotFound, BadCheckpoint and its kinds, UnsupportedModel, BadTokenizer, BadTemplate or BadRequest.
    """
    if isinstance(accept_unread, str):
        raise BadRequest(f"accept_unread={accept_unread!r} must be a list of keys: [{accept_unread!r}]", field="accept_unread")
    found = resolve(path)
    settings: dict[str, Any] = {
        "model": os.fspath(path), "path": os.path.abspath(found), "device": device, "dtype": dtype, "accept_unread": sorted(accept_unread), "ops": ops,
        "activations": activations, "deterministic": deterministic, "threads": threads,
        "chat_template": None if chat_template is None else os.fspath(chat_template), "cache_bytes": cache_bytes, "cache_dtype": cache_dtype,
        "draft": None if draft is None else os.fspath(draft), "gpu_layers": gpu_layers, "quantize": quantize}
    check_cache(cache_bytes, cache_dtype)
    if threads is not None:
        set_threads(threads)
    checkpoint = open_checkpoint(found)
    decoder, report = load_decoder(checkpoint, device=device, dtype=dtype, accept_unread=settings["accept_unread"], ops=ops, activations=activations,
                                   deterministic=deterministic, gpu_layers=gpu_layers, quantize=quantize)
    if gpu_layers == "auto":  # a replay puts them where they were, whatever is free then
        settings["gpu_layers"] = decoder.n_on_device
    if wrong := [i for i in checkpoint.eos_ids if i >= decoder.spec.n_vocab]:
        stated = "generation_config.json or config.json, whichever states it" if checkpoint.gguf is None else "the metadata (gguf-set-metadata)"
        raise BadConfig(f"{checkpoint.name!r} has eos_token_id {wrong[0]:,}, and its vocabulary has {decoder.spec.n_vocab:,} ids, so that nothing would "
                        f"end an answer there. Mend it in {stated}.")
    tokenizer = checkpoint_tokenizer(checkpoint)
    if tokenizer is not None:
        check_vocabulary(decoder.spec, tokenizer.n_vocab)
    model = Model(decoder, report, checkpoint, tokenizer, settings=settings)
    if draft is not None:
        model.proposer = proposer(os.fspath(draft), decoder.spec, device=report.device, dtype=dtype, ops=ops, activations=activations)
    if chat_template is not None:
        model.chat_template = choose(model.tokenizer, settings["chat_template"])
    for name, place in (adapters or {}).items():
        model.load_adapter(name, place)
    return model


def proposer(draft: str, spec: DecoderSpec, **how: Any) -> Proposer:
    """Who guesses what comes next. Raises BadRequest for a model of another vocabulary, and what loading one raises."""
    if draft == "lookup":
        return PromptLookup()
    small, _ = load_decoder(open_checkpoint(resolve(draft)), **how)
    if small.spec.n_vocab != spec.n_vocab:
        raise other_vocabulary(small.spec, spec)
    return DraftModel(small)


def set_threads(threads: int) -> None:
    """CPU threads of torch, process-wide. Raises BadRequest for a count that cannot be."""
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise BadRequest(f"threads={threads!r} is out of range: at least 1 (this machine has {os.cpu_count()} CPUs)", field="threads")
    torch.set_num_threads(threads)

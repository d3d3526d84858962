"""A checkpoint of any format -> a folder of safetensors that any Hugging Face program reads."""
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pellucid.catalog.ancestry import ANCESTRY, section, text_of, without_section
from pellucid.families import family
from pellucid.families._describe import describe
from pellucid.families._tokenizer import checkpoint_tokenizer
from pellucid.model.convert import Job, made_by
from pellucid.model.nf4 import Nf4
from pellucid.model.on_demand import Tensors
from pellucid.ops.cast import PLAIN, SPELLED, exact_in
from pellucid.tokenizer.save import tokenizer_files
from pellucid.weights.assemble import layout
from pellucid.weights.card import README, front_matter, restated
from pellucid.weights.checkpoint import GENERATION, Checkpoint
from pellucid.weights.drafts import Written
from pellucid.weights.inputs import input_files
from pellucid.weights.names import NameTable
from pellucid.weights.packed import BESIDE as QUANTIZED
from pellucid.weights.packed import KEYS
from pellucid.weights.save import MAX_SHARD_BYTES, save_files

TEMPLATE = "chat_template.jinja"
_CARD = ("LICEN[SC]E*", "NOTICE*")


def write(job: Job) -> tuple[Written, ...]:
    """Writes the folder; its files."""
    checkpoint, described = job.checkpoint, job.described
    assert described is not None
    tensors = Tensors(checkpoint, described, job.change.of)
    table = family(described.spec.family).WEIGHTS
    dtypes = _dtypes(job, tensors)
    if job.dtype is None:
        _agree(dtypes, table, tensors)
    like = {name: torch.empty(shape, dtype=dtypes[name], device="meta") for name, shape in tensors.shapes.items()}
    job.types = Counter({SPELLED[dtype]: sum(t.nbytes for t in like.values() if t.dtype == dtype) for dtype in dict.fromkeys(dtypes.values())})
    config = {key: value for key, value in described.config.items() if key not in described.accepted} | _ids(checkpoint)
    config["torch_dtype"] = str(dtypes["embed.weight"]).removeprefix("torch.")
    config.pop("dtype", None)
    again = describe({**config, **dict.fromkeys(KEYS)}, where=f"the config.json made from {checkpoint.name!r}")
    assert again.spec == described.spec, "the config that is written describes another model"
    job.notes += [f"left out: {len(names)} tensor{'s' * (len(names) > 1)}, {why}" for why, names in tensors.left_out.items()]
    job.watch.started(sum(t.nbytes for t in like.values()))

    def read(names: Sequence[str]) -> Mapping[str, Tensor]:
        tensors.release()  # what the tensor before took
        found = tensors.read(names)
        return {name: _turned(job.cast.dense(name, weight, dtypes[name], tensors.stored[name], tensors.offset(name)), tensors.shapes[name])
                for name, weight in found.items()}

    texts: dict[str, str | bytes] = {}
    generation = checkpoint.generation
    texts[README] = _readme(job)
    if checkpoint.gguf is not None and job.tokenizer and (tokenizer := checkpoint_tokenizer(checkpoint)) is not None:
        texts |= tokenizer_files(tokenizer, described.spec.n_ctx)
        ends = [i for i in (tokenizer.eos_id, *checkpoint.eos_ids, *sorted(tokenizer.end_ids)) if i is not None]
        generation = {**generation, "eos_token_id": list(dict.fromkeys(ends))}
    beside = [] if checkpoint.gguf is not None else _beside(job)
    if job.change.chat_template is not None:
        texts[TEMPLATE] = job.change.chat_template  # before one in tokenizer_config.json, here and in transformers
        beside = [path for path in beside if path.name != TEMPLATE]
    packer = Nf4(job, dtypes) if job.quantize is not None else None
    return save_files(job.out, described.spec, table, like, config, read=read, pack=packer and packer.pack, packed=packer and packer.config,
                      generation=generation, metadata={ANCESTRY: text_of(job.ancestry)}, beside=beside,
                      texts=texts, max_shard_bytes=job.max_bytes or MAX_SHARD_BYTES,
                      overwrite=job.overwrite, report=job.watch.report)


def _dtypes(job: Job, tensors: Tensors) -> dict[str, torch.dtype]:
    """What each of our tensors is written as: what was asked for; else what it is stored as, what is packed as float32."""
    if job.dtype is not None:
        return dict.fromkeys(tensors.shapes, PLAIN[job.dtype])
    out = {name: PLAIN.get(tensors.stored[name], torch.float32) for name in tensors.shapes}
    matrices = Counter[torch.dtype]()
    for name, shape in tensors.shapes.items():
        matrices[out[name]] += (len(shape) > 1) * torch.Size(shape).numel()
    main = matrices.most_common(1)[0][0]
    for name in tensors.shapes:
        # GGUF has vectors, routers and positions in float32, whatever the model they come from had them in.
        if tensors.stored[name] == "F32" and main != torch.float32 and exact_in(_tensor(tensors, name), main, tensors.offset(name)):
            out[name] = main
    return out


def _turned(t: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Rows of all heads, of what stayed packed as it is stored: each head's matrix transposed (see `To.by_head`)."""
    return t if t.shape == shape else t.transpose(1, 2).flatten(0, 1)


def _tensor(tensors: Tensors, name: str) -> Tensor:
    found = tensors.read([name])[name]
    assert isinstance(found, Tensor)
    return found


def _agree(dtypes: dict[str, torch.dtype], table: Any, tensors: Tensors) -> None:
    """What one tensor of the files holds is of one dtype: the widest of those."""
    like = {name: torch.empty(shape, device="meta") for name, shape in tensors.shapes.items()}
    for place in layout(NameTable(table), like, tensors.spec).values():
        if len({dtypes[name] for name in place.names}) > 1:
            dtypes.update(dict.fromkeys(place.names, torch.float32))


def _ids(checkpoint: Checkpoint) -> dict[str, int]:
    """The special ids of a GGUF file, as config.json calls them."""
    if checkpoint.gguf is None:
        return {}
    metadata = checkpoint.gguf.metadata
    found = {key: metadata.get(f"tokenizer.ggml.{theirs}_token_id") for key, theirs in (("bos_token_id", "bos"), ("eos_token_id", "eos"),
                                                                                         ("pad_token_id", "padding"))}
    return {key: value for key, value in found.items() if type(value) is int}


def _beside(job: Job) -> list[Any]:
    """The files that are copied along: tokenizer, card, license."""
    checkpoint = job.checkpoint
    weights = {file.name for file in checkpoint.files} | {"config.json", GENERATION, *QUANTIZED}
    found = [path for name, path in input_files(checkpoint).items() if name not in weights]
    if not job.tokenizer:
        found = []
    return found + sorted({path for pattern in _CARD for path in checkpoint.folder.glob(pattern) if path.is_file()})


def _readme(job: Job) -> str:
    """The source's own model card, where it has one, with what it was made from after it; what a change brings of licenses stands at its head too."""
    own = job.checkpoint.folder / README
    node = replace(job.ancestry, name=job.out.name)
    if job.checkpoint.gguf is not None or not own.is_file():
        about = f"{front_matter(job.card)}# {job.out.name}\n\nConverted from {job.checkpoint.name}.\n"
    else:
        text = without_section(own.read_text(encoding="utf-8-sig", errors="replace"))
        about = restated(text, job.card) if job.change.parents else text
    return f"{about}\n{section(node, job.lineage, made_by())}"

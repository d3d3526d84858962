"""A checkpoint of any format -> a GGUF file that llama.cpp reads."""
from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pellucid.catalog.ancestry import ANCESTRY, text_of
from pellucid.errors import BadRequest, UnsupportedModel
from pellucid.families._gguf_write import architecture_of, factors, metadata
from pellucid.families._tokenizer import checkpoint_tokenizer
from pellucid.model.convert import Job, made_by
from pellucid.model.on_demand import Tensors
from pellucid.model.report import count
from pellucid.ops.cast import PLAIN, format_of, unpacked
from pellucid.spec import Attention, DecoderSpec, Experts, LatentAttention, Yarn
from pellucid.tokenizer.gguf_write import gguf_metadata
from pellucid.tokenizer.template import ChatTemplate
from pellucid.weights.assemble import joined, layout
from pellucid.weights.checkpoint import SAMPLING, SAMPLING_KEYS
from pellucid.weights.drafts import Planned, Written
from pellucid.weights.gguf import Gguf
from pellucid.weights.gguf_card import LINEAGE, VERSION, general
from pellucid.weights.gguf_write import Value, copied, planned, write_gguf
from pellucid.weights.mixes import MIXES, Facts, packable, plan_mix
from pellucid.weights.names import NameTable, Place
from pellucid.weights.packed_rows import PackedRows, PackedWeight
from pellucid.weights.safetensors import raw

# Whose YaRN ramp and gain llama.cpp reads: load_hparams of each architecture, at 3679b65db and in later additions.
_RAMPS = ("grok", "laguna", "k2-horizon", "mistral3")


def write(job: Job) -> tuple[Written, ...]:
    """Writes the file, or its parts."""
    metadata, tensors = _from_gguf(job, job.checkpoint.gguf) if job.checkpoint.gguf is not None else _from_safetensors(job)
    metadata |= {VERSION: made_by(), LINEAGE: list(job.lineage), ANCESTRY: text_of(job.ancestry)}
    for tensor in tensors:
        job.types[tensor.type] += tensor.n_bytes
    job.watch.started(sum(tensor.n_bytes for tensor in tensors))
    return write_gguf(job.out, metadata, tensors, max_bytes=job.max_bytes, overwrite=job.overwrite, report=job.watch.report)


def _from_gguf(job: Job, model: Gguf) -> tuple[dict[str, Value], list[Planned]]:
    """The same model: what keeps its format is copied bit for bit, metadata as well."""
    metadata = copied(model)
    types = {name: entry.type for name, (_, entry) in model.tensors.items()}
    if (mix := job.quantize or job.dtype) is not None:
        plan = plan_mix(mix, {name: entry.shape for name, (_, entry) in model.tensors.items()}, _facts(job), overrides=job.overrides,
                        important=job.imatrix is not None)
        # Vectors and what is never packed stay as they are.
        types |= {name: plan.types[name] for name in types if plan.types[name] != "F32" or MIXES[plan.mix][0] == "F32"}
        metadata |= {"general.file_type": plan.file_type, "general.quantization_version": 2}
        metadata |= _measured(job, types, {name: entry.shape for name, (_, entry) in model.tensors.items()})
        job.notes += _fell_back(plan.fell_back, plan.types)
        again = Counter(entry.type for name, (_, entry) in model.tensors.items() if entry.type != types[name] and entry.type not in PLAIN)
        job.notes += [f"{n} matri{'ces were' if n > 1 else 'x was'} {type} before: what that lost stays lost. The original loses less"
                      for type, n in again.items()]
    if not job.tokenizer:
        metadata = {key: value for key, value in metadata.items() if not key.startswith("tokenizer.")} | {"tokenizer.ggml.model": "no_vocab"}
        if "token_embd.weight" in model.tensors:  # the list of tokens said it otherwise
            metadata[f"{model.metadata['general.architecture']}.vocab_size"] = model.tensors["token_embd.weight"][1].shape[0]

    def read(name: str) -> Iterator[memoryview]:
        for piece in job.cast.pieces(name, job.checkpoint.tensor(name), types[name], _importance(job, name, tuple(model.tensors[name][1].shape))):
            yield raw(piece)
        job.checkpoint.release()

    return metadata, [planned(name, types[name], entry.shape, lambda name=name: read(name)) for name, (_, entry) in model.tensors.items()]


def _from_safetensors(job: Job) -> tuple[dict[str, Value], list[Planned]]:
    """A model of Hugging Face's files by its family's table."""
    assert job.described is not None
    spec = job.described.spec
    architecture = architecture_of(spec)
    source = Tensors(job.checkpoint, job.described, job.change.of)
    like = {name: torch.empty(shape, dtype=PLAIN.get(source.stored[name], torch.float32), device="meta") for name, shape in source.shapes.items()}
    places = layout(NameTable(architecture.table), like, spec)
    said = {theirs: place for theirs, place in places.items() if theirs.rpartition(".")[0] in architecture.numbers}
    numbers = {place.names[0]: unpacked(source.read(place.names)[place.names[0]]).item() for place in said.values()}
    places = {theirs: places[theirs] for theirs in sorted(places.keys() - said.keys(), key=_in_order)}
    shapes = {theirs: tuple(joined({name: like[name] for name in place.names}, place, spec).shape) for theirs, place in places.items()}
    made = {name: torch.tensor(values) for name, values in factors(spec).items()}
    if lost := [name for name in made if NameTable(architecture.table).place(name) is None]:
        raise UnsupportedModel(f"a GGUF file of architecture {architecture.name!r} cannot say how the rope of {job.checkpoint.name!r} is scaled: llama.cpp "
                               f"reads no {lost[0]} there. Save it as safetensors")
    job.notes += [f"llama.cpp will compute another model than Pellucid: {told}" for told in (_ramps(spec, architecture.name), _groups(spec)) if told]
    about = metadata(spec, shapes | {name: tuple(t.shape) for name, t in made.items()}, numbers)
    stored = {theirs: _stored(source, place) for theirs, place in places.items()} if (job.quantize or job.dtype) is None else {}
    types, file_type = _types(job, shapes, stored)
    job.notes += [f"left out: {len(names)} tensor{'s' * (len(names) > 1)}, {why}" for why, names in source.left_out.items()]

    def read(theirs: str) -> Iterator[memoryview]:
        source.release()  # what the tensor before took
        held = source.read(places[theirs].names)
        weight: Tensor | PackedRows | None = _whole_rows(held, places[theirs], spec)
        stored = None
        if weight is None:
            weight = joined({name: unpacked(each) for name, each in held.items()}, places[theirs], spec)
            stored = ", ".join(sorted({source.stored[name] for name, each in held.items() if isinstance(each, PackedWeight)})) or None
        yield from map(raw, job.cast.pieces(theirs, weight, types[theirs], _importance(job, theirs, shapes[theirs]), stored=stored))
        if offset := places[theirs].rule.offset:
            [before] = held.values()
            assert isinstance(before, Tensor)
            assert isinstance(weight, Tensor)  # a vector
            if not torch.equal((weight - offset).to(before.dtype), before):  # a small number lost its last bits to the one beside it
                job.cast.rounded(theirs, format_of(before), f"{format_of(before)} + {offset:g}")

    tensors = [planned(name, "F32", tuple(t.shape), lambda t=t: [raw(t)]) for name, t in made.items()]
    tensors += [planned(theirs, types[theirs], shapes[theirs], lambda theirs=theirs: read(theirs)) for theirs in places]
    label = count(sum(map(math.prod, source.shapes.values()))).replace(" ", "")
    head = general(job.card, name=job.checkpoint.name, architecture=about.pop("general.architecture"), size_label=label, file_type=file_type)
    text = _tokenizer(job, str(head["general.architecture"])) | _sampling(job.checkpoint.generation)
    return head | about | text | _measured(job, types, shapes), tensors


def _stored(source: Tensors, place: Place) -> str:
    """The format that a tensor has already: what its parts are in, or the blocks of GGUF that say the same bits. F32 holds what has neither."""
    [format] = formats if len(formats := {source.stored[name] for name in place.names}) == 1 else ["F32"]
    if format in PLAIN:
        return format
    rows = _whole_rows(source.read(place.names), place, source.spec)
    return "F32" if rows is None else rows.format


def _whole_rows(held: Mapping[str, Tensor | PackedWeight], place: Place, spec: DecoderSpec) -> PackedRows | None:
    """The tensor of that place in blocks of GGUF, moved by whole rows; None where its parts are not in such, or a move is not by rows."""
    rows = {name: weight for name, weight in held.items() if isinstance(weight, PackedRows)}
    formats = {weight.format for weight in rows.values()}
    if len(rows) < len(held) or len(formats) > 1 or place.rule.transpose or place.rule.by_head == "turned":
        return None
    return PackedRows(joined({name: weight.bytes for name, weight in rows.items()}, place, spec), formats.pop())


def _importance(job: Job, name: str, shape: tuple[int, ...]) -> Tensor | None:
    return None if job.imatrix is None or len(shape) < 2 else job.imatrix.importance(name, shape)


def _measured(job: Job, types: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Value]:
    """What the metadata says of an imatrix, as llama.cpp's tools/quantize writes it; every entry is checked before the first byte is written.

    Raises what `Imatrix.importance` raises, BadRequest for an imatrix that has none of these matrices.
    """
    if (imatrix := job.imatrix) is None:
        return {}
    tables = ("per_layer_token_embd.weight", *(("token_embd.weight",) if "output.weight" in shapes else ()))  # looked up, and multiplied with nothing
    packed = [name for name, shape in shapes.items() if packable(name, shape) and types[name] not in PLAIN and name not in tables]
    with_importance = [name for name in packed if _importance(job, name, shapes[name]) is not None]
    if packed and not with_importance:
        raise BadRequest(f"{imatrix.source} has no importance of any matrix of this model: it has {', '.join([*imatrix.entries][:3])}, and "
                         f"{packed[0]} was looked for. Was it made from this model?", field="imatrix")
    if missing := [name for name in packed if name not in with_importance]:
        job.notes.append(f"{len(missing)} of {len(packed)} matrices are not in the imatrix, and their columns count alike: {', '.join(missing[:3])}"
                         f"{', ...' * (len(missing) > 3)}")
    return {"quantize.imatrix.file": imatrix.source, "quantize.imatrix.dataset": ", ".join(imatrix.datasets),
            "quantize.imatrix.entries_count": len(imatrix.entries), "quantize.imatrix.chunks_count": imatrix.n_chunks}


def _ramps(spec: DecoderSpec, architecture: str) -> str:
    """What llama.cpp passes over: it reads YaRN's ramp and gain for few architectures, and computes the others with those of the paper."""
    for mixer in spec.mixers if architecture not in _RAMPS else ():
        scaling = mixer.rope.scaling if mixer.rope is not None else None
        if not isinstance(scaling, Yarn):
            continue
        usual = 0.1 * math.log(scaling.factor) + 1  # of latent attention the metadata says another, and llama.cpp reads it
        odd = [f"a ramp from {scaling.fast:g} to {scaling.slow:g} turns where it takes 32 to 1"] * ((scaling.fast, scaling.slow) != (32, 1))
        if not isinstance(mixer, LatentAttention) and not math.isclose(scaling.gain, usual, rel_tol=1e-5):
            odd.append(f"a gain of {scaling.gain:.4g} where it takes {usual:.4g}")
        if odd:
            return f"YaRN has {' and '.join(odd)} for architecture {architecture!r}, whatever the file says"
    return ""


def _groups(spec: DecoderSpec) -> str:
    """DeepSeek-V2's way, measured in benchmarks/gguf_roundtrip_cpu_202611.md."""
    mixtures = [mlp for layer in spec.layers for mlp in (layer.mlp, layer.beside) if isinstance(mlp, Experts)]
    by_best = any(mlp.n_active_groups < mlp.n_groups and mlp.group_score == "best" for mlp in mixtures)
    return "the groups of its experts are chosen by the best of each, where llama.cpp takes the two best" if by_best else ""


def _tokenizer(job: Job, architecture: str) -> dict[str, Value]:
    """What the file says of text. A model without tokenizer says so, as llama.cpp expects it to."""
    assert job.described is not None
    checkpoint = job.checkpoint
    tokenizer = checkpoint_tokenizer(checkpoint, pieces_first=True) if job.tokenizer else None
    if tokenizer is None:
        return {"tokenizer.ggml.model": "no_vocab", f"{architecture}.vocab_size": job.described.spec.n_vocab}
    if job.change.chat_template is not None:
        template = ChatTemplate(job.change.chat_template, special_tokens=tokenizer.special_tokens)
        tokenizer = replace(tokenizer, chat_templates={**tokenizer.chat_templates, "default": template})
    said, notes = gguf_metadata(tokenizer, job.described.spec.n_vocab, end_ids=checkpoint.eos_ids, architecture=architecture)
    job.notes += notes
    return said


def _sampling(generation: Mapping[str, Any]) -> dict[str, Value]:
    """The sampling that generation_config.json recommends, where it draws at all."""
    if not generation.get("do_sample"):
        return {}
    found = {key: generation.get(theirs) for key, theirs in SAMPLING_KEYS.items()}
    return {SAMPLING + key: value if key == "top_k" else float(value) for key, value in found.items() if isinstance(value, int | float)}


def _types(job: Job, shapes: dict[str, tuple[int, ...]], stored: Mapping[str, str]) -> tuple[dict[str, str], int]:
    """Name -> format, and general.file_type. What is not asked for stays what the files hold; what they pack in another way than GGUF becomes F32."""
    if (mix := job.quantize or job.dtype) is not None:
        plan = plan_mix(mix, shapes, _facts(job), overrides=job.overrides, important=job.imatrix is not None)
        job.notes += _fell_back(plan.fell_back, plan.types)
        return dict(plan.types), plan.file_type
    types = {name: stored[name] if packable(name, shape) else "F32" for name, shape in shapes.items()}
    most = Counter[str]()
    for name, shape in shapes.items():
        most[types[name]] += math.prod(shape) * packable(name, shape)
    main = most.most_common(1)[0][0]
    return types, next((number for format, number in MIXES.values() if format == main), 0)


def _in_order(name: str) -> tuple[int, int, str]:
    """What comes before the blocks, the blocks one after the other, what comes after them."""
    block = re.match(r"blk\.(\d+)\.", name)
    return (1, int(block[1]), name) if block else (2 if name.startswith("output") else 0, 0, name)


def _fell_back(fell_back: dict[str, str], types: dict[str, str]) -> list[str]:
    pairs = Counter((wanted, types[name]) for name, wanted in fell_back.items())
    return [f"{n} matri{'ces are' if n > 1 else 'x is'} {type}: no block of {wanted} divides the rows" for (wanted, type), n in pairs.items()]


def _facts(job: Job) -> Facts:
    """What the rules of a mix ask of the model; a plain dtype asks nothing."""
    if job.described is None:
        return Facts(architecture="", n_layers=0, n_heads=1, n_kv_heads=1)
    spec, gguf = job.described.spec, job.checkpoint.gguf
    name = architecture_of(spec).name if gguf is None else str(gguf.metadata["general.architecture"])
    mixers = [mixer for mixer in spec.mixers if isinstance(mixer, Attention | LatentAttention)]
    experts = [mlp.n_experts for layer in spec.layers for mlp in (layer.mlp, layer.beside) if isinstance(mlp, Experts)]
    return Facts(architecture=name, n_layers=len(spec.layers), n_heads=max(mixer.n_heads for mixer in mixers),
                 n_kv_heads=max(mixer.n_kv_heads for mixer in mixers), n_experts=max(experts, default=0))

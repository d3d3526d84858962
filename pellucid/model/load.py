"""A checkpoint -> a decoder that runs, and a report of what was decided.

The decoder is built without memory, then each weight becomes a view of the mapped files: nothing is read before it is used, and nothing is
held twice. What must change (dtype, device) or lies badly there is copied, tensor by tensor.
"""
from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pellucid import cost
from pellucid.errors import BadConfig, BadRequest, BadTokenizer, UnsupportedModel
from pellucid.families._describe import Description, describe_checkpoint
from pellucid.model.decoder import Decoder, kept_in
from pellucid.model.memory import available_bytes, check_memory, keep_freed_memory, page_dtype
from pellucid.model.on_demand import assembled
from pellucid.model.packing import check_asked as check_quantize
from pellucid.model.packing import copied_bytes, pack_dense
from pellucid.model.parts import Embed, Project, hold
from pellucid.model.placement import Sizes, check_asked, check_rest, layer_of, shown
from pellucid.model.placement import chosen as chosen_layers
from pellucid.model.plan_scope import describe
from pellucid.model.report import LoadReport, size
from pellucid.ops.choose import CPU, choose
from pellucid.ops.interface import Activations, Ops, Weight
from pellucid.ops.native import Native
from pellucid.ops.packed import is_whole
from pellucid.ops.unpack import UNPACK, unpack
from pellucid.spec import DecoderSpec
from pellucid.weights.checkpoint import Checkpoint, open_checkpoint
from pellucid.weights.names import LeftOut, Place, family_name
from pellucid.weights.packed import METHODS
from pellucid.weights.packed_rows import PackedRows, PackedWeight
from pellucid.weights.room import Room, aligned, taken

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
SHORT = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16", torch.float64: "f64"}
_ALSO = {"fp32": "float32", "f32": "float32", "float": "float32", "bf16": "bfloat16", "f16": "float16", "fp16": "float16", "half": "float16", "f64": "float64"}
_STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


def load_decoder(source: str | Path | Checkpoint, *, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto",
                 accept_unread: Iterable[str] = (), ops: str = "auto", activations: Activations | Literal["auto"] = "auto",
                 deterministic: bool = False, gpu_layers: int | Literal["auto"] | None = None, quantize: str | None = None) -> tuple[Decoder, LoadReport]:
    """The decoder of a checkpoint, in evaluation mode with frozen weights, and what was decided on the way.

    Args:
        device: "auto" is cuda, then mps, then cpu, the first that is there.
        dtype: "auto" is the one the files hold; of several, config.json's, or the one most bytes are in. The report says which.
        accept_unread: keys of config.json that you know to be inert.
        ops: a backend's name; activations: see `choose`; deterministic: see `Decoder`.
        gpu_layers: how many of the last layers compute on the device, the first ones on the CPU; "auto" is as many as fit; None is all, or an error. `ops` is
            the device's; the CPU's layers take the same if it is torch's, and else the best there is.
        quantize: what the dense matrices of the blocks are packed in, one after another: see model/packing.py.

    Weights that lie well in the files' private map are used there, and changing them in place changes no file; the others are copied, if there is
    room, to where a matrix product likes them. On a CPU the process keeps freed memory from then on (`keep_freed_memory`). Raises what
    `open_checkpoint`, `describe` and `assemble` raise, UnsupportedModel for packed weights, BadRequest for a device, dtype or backend that is
    not there, OutOfMemoryBudget before anything is copied.
    """
    started = time.perf_counter()
    check_asked(gpu_layers)
    place = _device(device)
    if gpu_layers == 0:
        place = CPU
    if place == CPU and gpu_layers not in (None, 0, "auto"):
        raise BadRequest(f"gpu_layers={gpu_layers}: the device is 'cpu', and there is no other to put them on. Leave it out", field="gpu_layers")
    backend = choose(ops, activations, place)
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    described = describe_checkpoint(checkpoint, accept_unread)
    stored = _stored_dtypes(checkpoint, described)
    packing = None if quantize is None else check_quantize(quantize, checkpoint)
    chosen, notes = _dtype(dtype, stored, checkpoint)
    if place == CPU and gpu_layers == "auto":
        notes.append("--gpu-layers auto: no GPU is here, and all layers are on the CPU")
        gpu_layers = None
    with torch.device("meta"):
        decoder = Decoder(described.spec, backend, deterministic=deterministic)
    repacked = backend.activations == "int8"
    in_place = (_in_place(checkpoint, described, stored, chosen, place, repacked=repacked) if packing is None else
                cost.parameters(described.spec) * chosen.itemsize - copied_bytes(decoder, packing, chosen, repacked=repacked))
    free = available_bytes(place)
    kept = page_dtype(stored, chosen)
    if not gpu_layers:
        check_memory(checkpoint.name, described.spec, chosen, in_place, place, free, kept=kept)
    if place.type == "cpu" or gpu_layers:
        keep_freed_memory()
    shapes = {name: tuple(p.shape) for name, p in decoder.named_parameters()}
    tensors = checkpoint.tensors(release=True, used=lambda name: not isinstance(described.names.place(name), LeftOut))
    numbers = ((name, torch.tensor(number)) for name, number in described.numbers.items())
    ours, left_out = assembled(checkpoint, described.names, chain(tensors, numbers), shapes, described.spec)
    _pack(decoder, ours, checkpoint, chosen)
    if packing is not None:
        notes.append(pack_dense(decoder, ours, packing, checkpoint))
    if gpu_layers:
        n_layers, held = len(described.spec.layers), {name: n_bytes(weight, kept_in(name, chosen)) for name, weight in ours.items()}
        sizes = Sizes.of(described.spec, held, kept.itemsize)
        n = chosen_layers(checkpoint.name, described.spec, sizes, gpu_layers, free, str(place))
        if n == 0:
            return _on_cpu(checkpoint, place, dtype=dtype, accept_unread=accept_unread, ops=ops, activations=activations, deterministic=deterministic,
                           quantize=quantize)
        if n < n_layers:
            beside = choose("auto" if ops in ("native", "triton") else ops, activations, CPU)
            check_rest(checkpoint.name, sizes, n, available_bytes(CPU), repacked=beside.activations == "int8")
            decoder = _split(described.spec, [beside] * (n_layers - n) + [backend] * n, [CPU] * (n_layers - n) + [place] * n, deterministic=deterministic)
        if gpu_layers == "auto":
            room = "nobody says how much" if free is None else size(free)
            notes.append(f"--gpu-layers auto: {n} of {n_layers} layers and both ends are on {place}, where {room} was free")
    _fill(decoder, ours, checkpoint, chosen, place)
    for native in {module.ops for module in decoder.modules() if isinstance(module, Project) and isinstance(module.ops, Native)}:
        native.beside_torch = not deterministic and not any(isinstance(weight, PackedWeight) for weight in decoder.weights().values())
    report = _report(checkpoint, described, decoder, n_parameters=sum(map(math.prod, shapes.values())), stored=stored, dtype=chosen,
                     device=place, seconds=time.perf_counter() - started,
                     left_out={why: len(names) for why, names in left_out.items()}, notes=notes)
    return decoder.eval(), report


def check_vocabulary(spec: DecoderSpec, n_tokenizer: int) -> None:
    """Raises BadTokenizer when the tokenizer can produce ids that the embedding has no row for. Fewer than the rows is usual: padding."""
    if n_tokenizer > spec.n_vocab:
        raise BadTokenizer(f"the tokenizer knows {n_tokenizer:,} tokens, and the model's embedding has {spec.n_vocab:,} rows. "
                           f"Are the tokenizer files those of this model, or were tokens added without resizing the embedding?")


def _in_place(checkpoint: Checkpoint, described: Description, stored: Mapping[str, int], dtype: torch.dtype, device: torch.device, *,
              repacked: bool) -> int:
    """Bytes of the weights, counted as if they were all of this dtype, that take no memory of their own.

    repacked: int8 products want packed rows in another order.
    """
    if checkpoint.format == "gguf":  # packed weights are used where they are mapped, or copied at about the size they have
        return cost.parameters(described.spec) * dtype.itemsize - (0 if device.type == "cpu" and not repacked else checkpoint.n_bytes)
    # Those of other formats are put in another order, so copied, and take about the bytes that they take in the files.
    saved = sum(math.prod(packed.shape) * dtype.itemsize - checkpoint.unpacked[name].n_bytes for name, packed in checkpoint.packed.items()
                if isinstance(described.names.place(name), Place))
    return saved + (stored.get(SHORT[dtype], 0) if device.type == "cpu" else 0)  # what the files hold in this dtype is used where they are mapped


def _split(spec: DecoderSpec, layer_ops: Sequence[Ops], devices: Sequence[torch.device], *, deterministic: bool) -> Decoder:
    """A decoder without memory whose layers are on these devices, and its ends where the last one is."""
    with torch.device("meta"):
        decoder = Decoder(spec, layer_ops[-1], deterministic=deterministic, layer_ops=layer_ops)
    decoder.devices = tuple(devices)
    return decoder


def _on_cpu(checkpoint: Checkpoint, place: torch.device, **how: Any) -> tuple[Decoder, LoadReport]:
    """All of it on the CPU, where nothing fits the device."""
    decoder, report = load_decoder(checkpoint, device="cpu", **how)
    return decoder, replace(report, notes=(*report.notes, f"--gpu-layers auto: no layer fits {place} beside both ends; all are on the CPU"))


def _pack(decoder: Decoder, ours: dict[str, Weight], checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    """Makes of each tensor what is kept of it, but for its dtype."""
    for name, weight in ours.items():
        ours[name] = _packed(weight, matrix=_is_matrix(decoder, name), gguf=checkpoint.format == "gguf", dtype=kept_in(name, dtype))


def _fill(decoder: Decoder, ours: dict[str, Weight], checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
    """Puts each tensor where its name says, emptying `ours`, so that a copy's original is let go before the next is made.

    device: of the ends, and of the layers where the decoder says no other. What has its dtype and is on the CPU stays where it is mapped: copying
    what begins between two lines of the cache makes prompts a tenth faster, and loading four times as long (docs/LOG.md).
    """
    where = {name: device if decoder.devices is None or (i := layer_of(name)) is None else decoder.devices[i] for name in ours}
    copied = {name: taken(weight, kept_in(name, dtype)) for name, weight in ours.items() if where[name].type == "cpu" and isinstance(weight, Tensor)
              and weight.numel() and weight.dtype != kept_in(name, dtype)}
    panels = {name: aligned(n) for name, weight in ours.items() if where[name].type == "cpu" and (ops := _multiplied(decoder, name)) is not None
              and (n := ops.prepared_bytes(weight))}
    room = Room(sum(copied.values()) + sum(panels.values())) if copied or panels else None
    for name in list(ours):
        view, wanted = ours.pop(name), kept_in(name, dtype)
        path, _, leaf = name.rpartition(".")
        module = decoder.get_submodule(path)
        tensor = room.copy(view, wanted) if room and name in copied else view.to(device=where[name], dtype=wanted)
        copied_here = isinstance(view, Tensor) and tensor is not view
        if room and name in panels and (ops := _multiplied(decoder, name)) is not None:
            tensor = ops.prepare(tensor, room.take)
        if copied_here or name in panels:
            checkpoint.release()  # the pages just copied
        hold(module, leaf, tensor)
    if decoder.spec.tied:
        hold(decoder.unembed, "weight", decoder.embed.weight)


def _is_matrix(decoder: Decoder, name: str) -> bool:
    """Whether this is what `Project` multiplies by or `Embed` looks up."""
    path, _, leaf = name.rpartition(".")
    return leaf == "weight" and isinstance(decoder.get_submodule(path), Project | Embed)


def _multiplied(decoder: Decoder, name: str) -> Ops | None:
    """What multiplies by this, if it is the weight of a product, or a table that is one, too."""
    module = decoder.get_submodule(name.rpartition(".")[0])
    product = name.endswith(".weight") and (isinstance(module, Project) or (decoder.spec.tied and module is decoder.embed))
    return module.ops if product and isinstance(module, Project | Embed) else None


def _packed(weight: Weight, *, matrix: bool, gguf: bool, dtype: torch.dtype) -> Weight:
    """What the files hold, as it is kept: packed matrices, and of GGUF all, in whatever format they are in, anything else as numbers."""
    if isinstance(weight, PackedWeight) and not matrix:
        return unpack(weight)
    if gguf and matrix and isinstance(weight, Tensor) and weight.dtype != dtype and (format := SHORT[weight.dtype].upper()) in UNPACK:
        return PackedRows(weight.contiguous().view(torch.uint8), format, dtype)
    return weight


def _stored_dtypes(checkpoint: Checkpoint, described: Description) -> dict[str, int]:
    """Bytes of each format among the tensors that will be used. Raises UnsupportedModel for packed weights that this version does not unpack."""
    out: Counter[str] = Counter()
    for name, tensor in checkpoint.unpacked.items():
        if isinstance(described.names.place(name), LeftOut):
            continue
        if checkpoint.format == "gguf" and tensor.dtype not in UNPACK:
            raise UnsupportedModel(f"{name} in {tensor.file} is {tensor.dtype}, which weights are not read in (read: {', '.join(UNPACK)})")
        if tensor.dtype not in _STORED and name not in checkpoint.packed and checkpoint.format != "gguf":
            quantization = checkpoint.config.get("quantization_config")
            method = f" ({quantization.get('quant_method', 'quantized')})" if isinstance(quantization, dict) else ""
            raise UnsupportedModel(f"{checkpoint.name!r} holds packed weights{method}: {name} is {tensor.dtype}, and this version runs "
                                   f"{', '.join(_STORED)}, and what {', '.join(METHODS)} pack. Fetch the repository it was quantized from.")
        out[SHORT[_STORED[tensor.dtype]] if tensor.dtype in _STORED else tensor.dtype.lower()] += tensor.n_bytes
    return dict(out.most_common())


def _dtype(asked: str | torch.dtype, stored: Mapping[str, int], checkpoint: Checkpoint) -> tuple[torch.dtype, list[str]]:
    """The dtype to run in, and what there is to say about the choice."""
    quantization = checkpoint.quantization
    plain = [dtype for dtype in _STORED.values() if SHORT[dtype] in stored]
    plain.sort(key=lambda dtype: -stored[SHORT[dtype]])
    notes = [] if quantization is None else [f"{len(checkpoint.packed):,} matrices stay packed: {quantization.shown}", *quantization.notes]
    if "quantization_config" in checkpoint.config and quantization is None:
        notes.append("config.json has a quantization_config, and the files hold plain numbers: they are used as they are")
    named = _named(checkpoint)
    stated = DTYPES.get(named or "")
    if asked != "auto":
        name = str(asked).removeprefix("torch.")
        if (name := _ALSO.get(name, name)) not in DTYPES:
            raise BadRequest(f"dtype={asked!r} is not one the decoder runs in (auto, {', '.join(DTYPES)})", field="dtype")
        return DTYPES[name], notes
    if checkpoint.format == "gguf" and len(plain) < len(stored):  # products with packed weights are computed in float32 anyway
        return torch.float32, notes
    if quantization is not None:  # packed weights run in what they were trained in; their plain neighbors may be float32
        return stated or torch.bfloat16, notes
    most = next(iter(plain), torch.float32)
    chosen = stated if stated in plain else most
    assert chosen is not None
    if len(plain) > 1:
        notes.append(f"the files mix {' and '.join(SHORT[d] for d in plain)}: everything runs in {SHORT[chosen]}")
    if named is not None and stated not in plain and plain:
        notes.append(f"config.json says {SHORT[stated] if stated else named}, the files hold {SHORT[most]}: the files are believed")
    return chosen, notes


def _named(checkpoint: Checkpoint) -> str | None:
    """The dtype config.json names, in either dialect, of the model or of its text part. Raises BadConfig where the dialects disagree."""
    text = checkpoint.config.get("text_config")
    for facts in (checkpoint.config, text if isinstance(text, dict) else {}):
        named: dict[str, str] = {key: facts[key].removeprefix("torch.") for key in ("dtype", "torch_dtype") if isinstance(facts.get(key), str)}
        if len(set(named.values())) > 1:
            raise BadConfig(f"config.json of {checkpoint.name!r} has dtype={named['dtype']!r} and torch_dtype={named['torch_dtype']!r}. Remove the wrong one.")
        if named:
            return next(iter(named.values()))
    return None


def _device(asked: str | torch.device) -> torch.device:
    """The device to run on. Raises BadRequest for one that is not here."""
    there = ["cpu", *(["cuda"] if torch.cuda.is_available() else []), *(["mps"] if torch.backends.mps.is_available() else [])]
    if asked == "auto":
        asked = next(kind for kind in ("cuda", "mps", "cpu") if kind in there)
    try:
        device = torch.device(asked)
    except (RuntimeError, TypeError):
        device = None
    if device is not None and device.type == "cuda" and device.index is None and "cuda" in there:
        device = torch.device("cuda", torch.cuda.current_device())  # what tensors there will say
    n = torch.cuda.device_count() if device is not None and device.type == "cuda" else 1
    if device is None or device.type not in there or (device.index or 0) >= n:
        raise BadRequest(f"device={str(asked)!r} is not here (auto, {', '.join(there)}; torch {torch.__version__})", field="device")
    return device


def n_bytes(weight: Weight, dtype: torch.dtype) -> int:
    """Bytes that a weight takes once it is loaded."""
    return weight.nbytes if isinstance(weight, PackedWeight) else weight.numel() * dtype.itemsize


def _activations(decoder: Decoder) -> Activations:
    """What the matrices are multiplied by: int8 matters where one of them is made of whole numbers."""
    rounded = any(module.ops.activations == "int8" and is_whole(module.weight) for module in decoder.modules() if isinstance(module, Project))
    return "int8" if rounded else "exact"


def _ops(decoder: Decoder) -> str:
    """What computes, for the report."""
    if decoder.devices is None:
        return f"{decoder.ops.describe()}{describe(decoder)}"
    first = next(module.ops for module in decoder.blocks.modules() if isinstance(module, Project))
    return f"{decoder.ops.describe()} · {shown(sum(device == CPU for device in decoder.devices))} on cpu: {first.describe()}"


def _unpacked(decoder: Decoder, weights: list[Weight]) -> list[str]:
    """A note on the matrices that are not multiplied as whole numbers, where others are, and on those of other formats than GGUF's wherever activations are."""
    slow = Counter(w.format if isinstance(w, PackedRows) else "groups" for w in weights if isinstance(w, PackedWeight) and not is_whole(w))
    if not slow or decoder.ops.activations == "exact" or (_activations(decoder) == "exact" and "groups" not in slow):
        return []
    which = ", ".join(f"{n:,} in {name}" for name, n in slow.most_common())
    if decoder.ops.name == "native":
        return [f"matrices not of whole numbers ({which}) are multiplied in float32, each as it is stored: slower than the others would be"]
    return [f"matrices without kernels ({which}) are unpacked for every product, which is slow"]


def _report(checkpoint: Checkpoint, described: Description, decoder: Decoder, *, n_parameters: int, stored: Mapping[str, int], dtype: torch.dtype,
            device: torch.device, seconds: float, left_out: dict[str, int], notes: Iterable[str]) -> LoadReport:
    spec, weights = described.spec, [module.weight for module in decoder.modules() if isinstance(module, Project)]
    heads, kv_heads = ({getattr(mixer, name) for mixer in spec.mixers} or {0} for name in ("n_heads", "n_kv_heads"))
    wrapper = [f"the text model of a {described.model_type} checkpoint"] if family_name(described.model_type) != spec.family else []
    return LoadReport(
        name=checkpoint.name, family=spec.family, n_layers=len(spec.layers), d_model=spec.d_model, n_heads=(min(heads), max(heads)),
        n_kv_heads=(min(kv_heads), max(kv_heads)), n_parameters=n_parameters, n_ctx=spec.n_ctx,
        license=checkpoint.card.license_shown, format=checkpoint.format, dtype=SHORT[dtype], stored=dict(stored),
        device=str(device), n_bytes=checkpoint.n_bytes, seconds=seconds, ops=_ops(decoder),
        activations=_activations(decoder), cache_bytes_per_token=cost.cache_bytes_per_token(spec, page_dtype(stored, dtype).itemsize),
        left_out=left_out, accepted=described.accepted,
        notes=(*wrapper, *checkpoint.notes, *described.notes, *notes, *_unpacked(decoder, weights), *checkpoint.card.notes))

"""Checkpoint tensors -> ours and back, following a family's name table. Splitting makes views: nothing is copied."""
from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from pellucid.errors import MisshapenTensor, MissingTensors, UnknownTensors
from pellucid.spec import DecoderSpec
from pellucid.weights.names import LeftOut, NameTable, Place, To

Shape = tuple[int, ...]


def assemble(table: NameTable, checkpoint: Iterable[tuple[str, Tensor]], shapes: Mapping[str, Shape], spec: DecoderSpec) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """(our name -> tensor for every name in `shapes`, reason -> checkpoint names left out).

    Args:
        checkpoint: (name, tensor) pairs, read lazily: each is looked at once, and views of it are kept.
        shapes: what the decoder expects, by our names; of tied matrices the embedding only.

    Raises UnknownTensors, MisshapenTensor or MissingTensors, with the names concerned.
    """
    ours: dict[str, Tensor] = {}
    out: dict[str, list[str]] = {}
    unknown: list[str] = []
    gains: dict[str, dict[int, Tensor]] = {}
    tied_copies: list[tuple[str, Tensor]] = []
    for theirs, tensor in checkpoint:
        place = table.place(theirs)
        if place is None:
            unknown.append(theirs)
        elif isinstance(place, LeftOut):
            out.setdefault(place.why, []).append(theirs)
        elif spec.tied and place.names == ("unembed.weight",):
            tied_copies.append((theirs, tensor))
        elif place.names[0] not in shapes:
            unknown.append(theirs)
        elif place.head is not None:
            gains.setdefault(place.names[0], {})[place.head] = tensor
        else:
            ours.update(_parts(theirs, tensor, place, shapes, spec))
    if unknown:
        raise UnknownTensors(f"{len(unknown)} tensor{'s' * (len(unknown) > 1)} in the checkpoint {'have' if len(unknown) > 1 else 'has'} no place "
                             f"in family {spec.family!r} with these settings, first: {', '.join(sorted(unknown)[:3])}. "
                             f"Is model_type in config.json the right one?")
    for name, by_head in gains.items():
        rows = [by_head[h] for h in sorted(by_head)]
        ours[name] = _checked(name, torch.stack(rows), shapes[name], name)
    if missing := sorted(set(shapes) - set(ours)):
        raise MissingTensors(f"the checkpoint lacks {len(missing)} of {len(shapes)} tensors that family {spec.family!r} needs, first: "
                             f"{', '.join(missing[:3])}. Is a shard missing, or model_type in config.json wrong?")
    for theirs, tensor in tied_copies:
        if not torch.equal(tensor, ours["embed.weight"]):
            raise MisshapenTensor(f"{theirs} differs from the embedding, but config.json says tie_word_embeddings=true. "
                                  f"One of them is wrong; set tie_word_embeddings to false to use both.")
        out.setdefault("a copy of the tied embedding", []).append(theirs)
    return ours, out


def disassemble(table: NameTable, ours: Mapping[str, Tensor], spec: DecoderSpec) -> dict[str, Tensor]:
    """Our tensors under the checkpoint's names and in its layout: the exact inverse of `assemble`."""
    have = {name: tensor for name, tensor in ours.items() if not (spec.tied and name == "unembed.weight")}
    places = table.saved(have, {name: tensor.shape[0] for name, tensor in have.items()})
    written = {name for place in places.values() for name in place.names}
    if lost := sorted(set(have) - written):
        raise UnknownTensors(f"family {spec.family!r} has no checkpoint name for {len(lost)} tensors, first: {', '.join(lost[:3])}")
    return {theirs: _joined([have[name] for name in place.names], place, spec) for theirs, place in places.items()}


def _parts(theirs: str, tensor: Tensor, place: Place, shapes: Mapping[str, Shape], spec: DecoderSpec) -> dict[str, Tensor]:
    """The tensors of ours that one checkpoint tensor holds, as views."""
    rule: To = place.rule
    rows = [shapes[name][0] for name in place.names]
    whole = (sum(rows), *shapes[place.names[0]][1:])
    t = _checked(theirs, tensor.T if rule.transpose else tensor, whole, place.names[0])
    if len(rows) == 1:
        return {place.names[0]: t}
    if rule.stacked == "whole":
        return dict(zip(place.names, t.split(rows), strict=True))
    K = _kv_heads(place, spec)
    groups = t.unflatten(0, (K, -1)).split([r // K for r in rows], 1)
    return {name: part.flatten(0, 1) for name, part in zip(place.names, groups, strict=True)}


def _joined(parts: list[Tensor], place: Place, spec: DecoderSpec) -> Tensor:
    """One checkpoint tensor from the tensors of ours that it holds."""
    rule = place.rule
    if place.head is not None:
        return parts[0][place.head]
    if rule.stacked == "by_kv_head" and len(parts) > 1:
        K = _kv_heads(place, spec)
        t = torch.cat([p.unflatten(0, (K, -1)) for p in parts], 1).flatten(0, 1)
    else:
        t = torch.cat(parts) if len(parts) > 1 else parts[0]
    return (t.T if rule.transpose else t).contiguous()


def _kv_heads(place: Place, spec: DecoderSpec) -> int:
    """How many key/value heads the layer of this place has."""
    return spec.layers[int(place.names[0].split(".")[1])].mixer.n_kv_heads


def _checked(theirs: str, tensor: Tensor, shape: Shape, ours: str) -> Tensor:
    if tuple(tensor.shape) != tuple(shape):
        raise MisshapenTensor(f"{theirs} has shape {tuple(tensor.shape)}, and config.json makes it {tuple(shape)} ({ours}). "
                              f"Do config.json and the weights belong together?")
    return tensor

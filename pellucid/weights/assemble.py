"""Checkpoint tensors -> ours and back, following a family's name table. Splitting makes views: nothing is copied, but interleaved columns."""
from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from pellucid.errors import MisshapenTensor, MissingTensors, UnknownTensors
from pellucid.spec import Attention, DecoderSpec, Experts, LatentAttention
from pellucid.weights.names import LeftOut, NameTable, Place, To
from pellucid.weights.packed_rows import PackedRows, PackedWeight

Shape = tuple[int, ...]


def assemble(table: NameTable, checkpoint: Iterable[tuple[str, Any]], shapes: Mapping[str, Shape],
             spec: DecoderSpec, *, zeros: Collection[str] = ()) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """(our name -> tensor for every name in `shapes`, reason -> checkpoint names left out).

    Args:
        checkpoint: (name, tensor) pairs, read lazily: each is looked at once, and views of it are kept. Of packed rows, packed rows.
        shapes: what the decoder expects, by our names; of tied matrices the embedding only.
        zeros: names in the checkpoint that need no place where all their numbers are zero: biases that some quantizers add.

    Raises UnknownTensors, MisshapenTensor or MissingTensors, with the names concerned.
    """
    ours: dict[str, Tensor] = {}
    out: dict[str, list[str]] = {}
    unknown: list[str] = []
    gains: dict[str, dict[int, Tensor]] = {}
    tied_copies: list[tuple[str, Tensor]] = []
    for theirs, tensor in checkpoint:
        place = _with_experts(table.place(theirs), spec)
        if isinstance(place, LeftOut):
            out.setdefault(place.why, []).append(theirs)
        elif place is not None and spec.tied and place.names == ("unembed.weight",):
            tied_copies.append((theirs, tensor))
        elif place is None or not place.rule.holds(spec) or not shapes.keys() >= set(place.names):
            if theirs in zeros and not bool(tensor.any()):
                out.setdefault("a bias of zeros that quantizing added", []).append(theirs)
            else:
                unknown.append(theirs)
        elif place.head is not None:
            gains.setdefault(place.names[0], {})[place.head] = tensor
        else:
            _add(ours, theirs, _parts(theirs, tensor, place, shapes, spec))
    if unknown:
        raise UnknownTensors(f"{len(unknown)} tensor{'s' * (len(unknown) > 1)} in the checkpoint {'have' if len(unknown) > 1 else 'has'} no place "
                             f"in family {spec.family!r} with these settings, first: {', '.join(sorted(unknown)[:3])}. "
                             f"Is model_type in config.json the right one?")
    for name, by_head in gains.items():
        _add(ours, table.theirs(name), {name: _stacked(table.theirs(name), by_head, shapes[name], name)})
    _tie(ours, out, tied_copies, shapes)
    if missing := sorted(set(shapes) - set(ours)):
        theirs = ", ".join(dict.fromkeys(table.theirs(name) for name in missing[:3]))
        raise MissingTensors(f"the checkpoint lacks {len(missing)} of {len(shapes)} tensors that family {spec.family!r} needs, first: "
                             f"{theirs}. Is a shard missing, or model_type in config.json wrong?")
    return ours, out


def layout(table: NameTable, ours: Mapping[str, Tensor], spec: DecoderSpec) -> dict[str, Place]:
    """Checkpoint name -> place of every tensor that saving writes. Raises UnknownTensors when one of ours has no name there."""
    have = {name: tensor.shape[0] if tensor.ndim else 1 for name, tensor in ours.items() if not (spec.tied and name == "unembed.weight")}
    places = {theirs: place for theirs, place in table.saved(have, have).items() if place.rule.holds(spec)}
    written = {name for place in places.values() for name in place.names}
    if lost := sorted(set(have) - written):
        raise UnknownTensors(f"family {spec.family!r} has no checkpoint name for {len(lost)} tensors, first: {', '.join(lost[:3])}")
    return places


def joined(ours: Mapping[str, Tensor], place: Place, spec: DecoderSpec) -> Tensor:
    """The checkpoint tensor of that place, from the tensors of ours that it holds; contiguous, copied only where it has to be."""
    rule, parts = place.rule, [ours[name] for name in place.names]
    if place.head is not None:
        return parts[0][place.head].contiguous()
    if rule.all_experts:
        each = [joined(ours, one, spec) for one in _experts(place)]
        return torch.cat(each) if rule.all_experts == "rows" else torch.stack(each)
    if rule.offset:
        return parts[0].float() + rule.offset  # whose last bits a short float would lose
    if rule.by_head:
        heads = _shared(parts[0], _mixer(place, spec).n_heads)
        return (heads.transpose(1, 2) if rule.by_head == "turned" else heads).contiguous()
    parts = [part[_halves(place, spec, part.shape[0]).argsort()] if i < rule.paired else part for i, part in enumerate(parts)]
    if rule.stacked == "interleaved":
        t = torch.stack(parts, 1).flatten(0, 1)
    elif rule.stacked != "whole" and len(parts) > 1:
        n = _shares(place, spec)
        t = torch.cat([_shared(p, n) for p in parts], 1).flatten(0, 1)
    else:
        t = torch.cat(parts) if len(parts) > 1 else parts[0]
    return (t[None] if rule.lone else t.T if rule.transpose else t).contiguous()


def disassemble(table: NameTable, ours: Mapping[str, Tensor], spec: DecoderSpec) -> dict[str, Tensor]:
    """Our tensors under the checkpoint's names and in its layout: the exact inverse of `assemble`."""
    return {theirs: joined(ours, place, spec) for theirs, place in layout(table, ours, spec).items()}


def low_rank(theirs: str, a: Tensor, b: Tensor, place: Place, shapes: Mapping[str, Shape], spec: DecoderSpec) -> dict[str, tuple[Tensor, Tensor]]:
    """(A, B) for each of ours of a change B A to one checkpoint tensor: rows of B go where the tensor's rows go, and A is what they read.

    a (r, D), b (F, r); of a tensor that holds all experts (X, r, D), (X, F, r), or one A (1, r, D) for all. F counts outputs and D inputs whichever way
    round the tensor is stored. shapes: of ours, (F, D) each. Raises MisshapenTensor, or UnknownTensors where rows of B cannot be moved alone.
    """
    place = _with_experts(place, spec)  # type: ignore[assignment]
    if place.rule.all_experts:
        experts = _experts(place)
        if a.ndim != 3 or b.ndim != 3 or len(b) != len(experts) or len(a) not in (1, len(b)):
            raise MisshapenTensor(f"{theirs} changes all experts, by A {tuple(a.shape)} and B {tuple(b.shape)}, and {len(experts)} of each were expected")
        each = [low_rank(theirs, a[min(i, len(a) - 1)], b[i], one, shapes, spec) for i, one in enumerate(experts)]
        return {name: pair for pairs in each for name, pair in pairs.items()}
    if place.rule.by_head or place.rule.index:
        raise UnknownTensors(f"{theirs} is stored head by head, and no change of low rank is read there")
    rows, columns = sum(shapes[name][0] for name in place.names), shapes[place.names[0]][1]
    if a.ndim != 2 or b.ndim != 2 or (len(b), len(a), a.shape[1]) != (rows, b.shape[1], columns):
        raise MisshapenTensor(f"{theirs} is changed by A {tuple(a.shape)} and B {tuple(b.shape)}, and the model makes it (r, {columns}) and ({rows}, r)")
    plain = dataclasses.replace(place, rule=dataclasses.replace(place.rule, transpose=False, lone=False, flat=False, offset=0.0))
    parts = _parts(theirs, b, plain, {name: (shapes[name][0], len(a)) for name in place.names}, spec)
    return {name: _read(a, part) for name, part in parts.items()}


def _read(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """A and B without what zeros in all of B leave out: another's A above its own, as `joined_low_rank` writes them. The same change, and half the work."""
    read_r = b.any(0)
    return (a[read_r], b[:, read_r]) if read_r.any() and not read_r.all() else (a, b)


def joined_low_rank(theirs: str, pairs: Mapping[str, tuple[Tensor, Tensor]], place: Place, spec: DecoderSpec,
                    shapes: Mapping[str, Shape] | None = None) -> tuple[Tensor, Tensor]:
    """(A, B) of a change to the checkpoint tensor of that place, from those of ours: the inverse of `low_rank`.

    Where ours have A of their own, or some are not changed (then `shapes` of ours is needed), A is all of them above each other, and each one's rows of B
    meet its own: the same sum, of the ranks together. Raises UnknownTensors for what has no such place.
    """
    rule = place.rule
    if rule.all_experts:
        if rule.all_experts == "rows":
            raise UnknownTensors(f"{theirs} holds the rows of all experts in one matrix, and no change of low rank to single experts is written there")
        experts = [(one, {name: pairs[name] for name in one.names if name in pairs}) for one in _experts(place)]
        changed = {i: joined_low_rank(theirs, some, one, spec, shapes) for i, (one, some) in enumerate(experts) if some}
        rank, (a, b) = max(len(a) for a, _ in changed.values()), next(iter(changed.values()))
        each = [changed.get(i, (a[:0], b[:, :0])) for i in range(len(experts))]  # what is not changed, or by a lower rank, ends in zeros
        return torch.stack([pad(a, (0, 0, 0, rank - len(a))) for a, _ in each]), torch.stack([pad(b, (0, rank - b.shape[1])) for _, b in each])
    if rule.by_head or rule.index:
        raise UnknownTensors(f"{theirs} is stored head by head, and no change of low rank is written there")
    if missing := [name for name in place.names if name not in pairs and shapes is None]:
        raise UnknownTensors(f"{theirs} holds {', '.join(place.names)}, and {missing[0]} is not changed with the others")
    a = next(iter(pairs.values()))[0]
    if len(pairs) < len(place.names) or not all(torch.equal(a, own) for own, _ in pairs.values()):
        a, pairs = _side_by_side(pairs, place.names, shapes or {})
    plain = dataclasses.replace(place, rule=dataclasses.replace(rule, transpose=False, lone=False, flat=False, offset=0.0))
    return a, joined({name: pairs[name][1] for name in place.names}, plain, spec)


def _side_by_side(pairs: Mapping[str, tuple[Tensor, Tensor]], names: Sequence[str],
                  shapes: Mapping[str, Shape]) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """One A for all of them: theirs above each other, with B that is zero where another's A is read."""
    a = torch.cat([own for own, _ in pairs.values()])
    out: dict[str, tuple[Tensor, Tensor]] = {}
    start = 0
    for name, (own, b) in pairs.items():
        wide = b.new_zeros(len(b), len(a))
        wide[:, start : start + len(own)] = b
        out[name], start = (a, wide), start + len(own)
    return a, {name: out[name] if name in out else (a, a.new_zeros(shapes[name][0], len(a))) for name in names}


def _add(ours: dict[str, Tensor], theirs: str, parts: Mapping[str, Tensor]) -> None:
    if twice := sorted(ours.keys() & parts.keys()):
        raise UnknownTensors(f"{theirs} is a second tensor for {twice[0]}: the checkpoint holds two spellings of one name. "
                             f"Which of the two is meant, nothing says; remove one.")
    ours.update(parts)


def _stacked(theirs: str, by_head: Mapping[int, Tensor], shape: Shape, ours: str) -> Tensor:
    """One gain a head, saved head by head, as one tensor."""
    if sorted(by_head) != list(range(shape[0])):
        raise MissingTensors(f"{theirs} is there for heads {sorted(by_head)}, and {shape[0]} heads were expected. Is a shard missing?")
    return torch.stack([_checked(theirs, by_head[h], shape[1:], ours) for h in range(shape[0])])


def _tie(ours: dict[str, Tensor], out: dict[str, list[str]], copies: list[tuple[str, Tensor]], shapes: Mapping[str, Shape]) -> None:
    """Finds the unembeddings of a tied model equal to its embedding; one of them stands in where only it was saved."""
    for theirs, tensor in copies:
        if "embed.weight" not in ours:  # a writer that dropped the second of two equal tensors may have dropped this one
            ours["embed.weight"] = _checked(theirs, tensor, shapes["embed.weight"], "embed.weight")
        elif isinstance(tensor, Tensor) and isinstance(ours["embed.weight"], Tensor) and torch.equal(tensor, ours["embed.weight"]):
            out.setdefault("a copy of the tied embedding", []).append(theirs)
        else:
            raise MisshapenTensor(f"{theirs} differs from the embedding, but config.json says tie_word_embeddings=true. "
                                  f"One of them is wrong; set tie_word_embeddings to false to use both.")


def _parts(theirs: str, tensor: Tensor, place: Place, shapes: Mapping[str, Shape], spec: DecoderSpec) -> dict[str, Tensor]:
    """The tensors of ours that one checkpoint tensor holds, as views."""
    rule: To = place.rule
    if rule.all_experts:
        experts = _experts(place)
        if rule.all_experts == "rows":
            if tensor.shape[0] % len(experts):
                raise MisshapenTensor(f"{theirs} has {tensor.shape[0]} rows, and config.json counts {len(experts)} experts. Do they belong together?")
            n = tensor.shape[0] // len(experts)
            each = [tensor[i * n : (i + 1) * n] for i in range(len(experts))]
        elif (n := 1 if isinstance(tensor, PackedWeight) and len(tensor.shape) == 2 else tensor.shape[0]) != len(experts):
            raise MisshapenTensor(f"{theirs} holds {n} experts, and config.json counts {len(experts)}. Do they belong together?")
        else:
            each = [tensor[i] for i in range(len(experts))]
        return {name: part for t, one in zip(each, experts, strict=True) for name, part in _parts(theirs, t, one, shapes, spec).items()}
    shape = shapes[place.names[0]]
    if rule.lone:
        tensor = _checked(theirs, tensor, (1, *shape), place.names[0])[0]
    if rule.flat and isinstance(tensor, Tensor) and [n for n in tensor.shape if n > 1] == [n for n in shape if n > 1]:
        tensor = tensor.reshape(shape)
    if not shape:
        return {place.names[0]: _checked(theirs, tensor, (), place.names[0])}  # a single number
    if rule.by_head:
        return {place.names[0]: _from_heads(theirs, tensor, place, shape, spec)}
    rows = [shapes[name][0] for name in place.names]
    whole = (sum(rows), *shapes[place.names[0]][1:])
    # Packed rows are a matrix's outputs whichever way round the plain files of the same model have it.
    t = _checked(theirs, tensor.T if rule.transpose and isinstance(tensor, Tensor) else tensor, whole, place.names[0])
    if rule.offset:
        t = t.float() - rule.offset
    if rule.stacked == "whole" or len(rows) == 1:
        parts = [t[start:stop] for start, stop in pairwise(accumulate(rows, initial=0))] if len(rows) > 1 else [t]
        return {name: part[_halves(place, spec, part.shape[0]).to(part.device)] if i < rule.paired else part
                for i, (name, part) in enumerate(zip(place.names, parts, strict=True))}
    if isinstance(t, PackedWeight):
        return dict(zip(place.names, _picked(t, rows, place, spec), strict=True))
    if rule.stacked == "interleaved":
        # Of a transposed tensor every other row has no two numbers side by side, and each matmul would copy it again: copied once, here.
        return {name: t[i :: len(rows)] if t.stride(-1) == 1 else t[i :: len(rows)].contiguous() for i, name in enumerate(place.names)}
    n = _shares(place, spec)
    groups = torch.split(_shared(t, n), [r // n for r in rows], 1)
    return {name: part.flatten(0, 1) for name, part in zip(place.names, groups, strict=True)}


def _from_heads(theirs: str, t: Tensor, place: Place, shape: Shape, spec: DecoderSpec) -> Tensor:
    """The rows of all heads, one head after another. Packed rows of turned matrices stay as they are stored, and that is how the decoder's own part
    for them reads them: a row cannot be turned without being unpacked."""
    heads, turned = _mixer(place, spec).n_heads, place.rule.by_head == "turned"
    width = shape[0] // heads
    t = _checked(theirs, t, (heads, shape[1], width) if turned else (heads, width, shape[1]), place.names[0])
    if isinstance(t, PackedRows):
        return t if turned else t.flat()
    return (t.transpose(1, 2) if turned else t).flatten(0, 1)


def _picked(t: PackedWeight, rows: Sequence[int], place: Place, spec: DecoderSpec) -> list[PackedWeight]:
    """Packed rows of each part where the parts' rows alternate: copies, since only rows that lie in order can be a view."""
    at = torch.arange(sum(rows))
    if place.rule.stacked == "interleaved":
        return [t[at[i :: len(rows)]] for i in range(len(rows))]
    n = _shares(place, spec)
    return [t[part.flatten()] for part in torch.split(at.view(n, -1), [r // n for r in rows], 1)]


def _with_experts(place: Place | LeftOut | None, spec: DecoderSpec) -> Place | LeftOut | None:
    """The place with the names of every expert, where one tensor holds them all."""
    if not isinstance(place, Place) or not place.rule.all_experts:
        return place
    _, i, part, *_ = place.names[0].split(".")
    layer = spec.layers[int(i)] if int(i) < len(spec.layers) else None
    mlp = None if layer is None else layer.beside if part == "beside" else layer.mlp
    names = [name.format_map({"e": e}) for e in range(mlp.n_experts) for name in place.names] if isinstance(mlp, Experts) else place.names
    return dataclasses.replace(place, names=tuple(names))


def _experts(place: Place) -> list[Place]:
    """The places of the single experts."""
    rule, n = dataclasses.replace(place.rule, all_experts=False), len(place.rule.names)
    return [Place(rule, place.names[start : start + n]) for start in range(0, len(place.names), n)]


def _shared(t: Tensor, n: int) -> Tensor:
    return t.reshape(n, -1, *t.shape[1:])  # a view of what lies in order


def _shares(place: Place, spec: DecoderSpec) -> int:
    """Into how many equal parts the rows are cut: shards, or key/value heads of the layer of this place."""
    if isinstance(place.rule.stacked, int):
        return place.rule.stacked
    return _mixer(place, spec).n_kv_heads


def _mixer(place: Place, spec: DecoderSpec) -> Attention | LatentAttention:
    mixer = spec.layers[int(place.names[0].split(".")[1])].mixer
    assert isinstance(mixer, Attention | LatentAttention)  # the names are those of its tensors
    return mixer


def _halves(place: Place, spec: DecoderSpec, n_rows: int) -> Tensor:
    """Where in the file each row lies whose head alternates between its halves: (n_rows,)."""
    mixer = _mixer(place, spec)
    assert isinstance(mixer, Attention)
    return torch.arange(n_rows).view(-1, mixer.d_head // 2, 2).transpose(1, 2).flatten()


def _checked(theirs: str, tensor: Tensor, shape: Shape, ours: str) -> Tensor:
    if tuple(tensor.shape) != tuple(shape):
        raise MisshapenTensor(f"{theirs} has shape {tuple(tensor.shape)}, and config.json makes it {tuple(shape)} ({ours}). "
                              f"Do config.json and the weights belong together?")
    return tensor


def holders(table: NameTable, stored: Iterable[str], spec: DecoderSpec) -> dict[str, list[str]]:
    """Our name -> the checkpoint tensors that hold it: one, or one a head. Of a tied model that saved only its unembedding, that one."""
    out: dict[str, list[str]] = {}
    for theirs in stored:
        place = _with_experts(table.place(theirs), spec)
        if isinstance(place, Place) and place.rule.holds(spec):
            for name in place.names:
                out.setdefault(name, []).append(theirs)
    if spec.tied and (copies := out.pop("unembed.weight", None)):
        out.setdefault("embed.weight", copies)
    return out

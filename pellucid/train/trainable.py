"""What is trained of a model: all of it, or low-rank parts beside its matrices."""
from __future__ import annotations

import fnmatch
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pellucid.errors import BadRequest, did_you_mean, nearest
from pellucid.model.adapters import Half, projects
from pellucid.model.decoder import Decoder
from pellucid.model.low_rank import Adapters, LowRank
from pellucid.model.parts import Project
from pellucid.train.recipe import TunePart
from pellucid.weights.packed_rows import PackedWeight

NAME = "tuned"  # what the adapter in training is called: rows of a training pass ask for it
PRESETS = {"attention": ("blocks.*.attn.*",), "mlp": ("blocks.*.mlp.*", "blocks.*.beside.mixture.*"), "all-linear": ("blocks.*",)}


@dataclass(frozen=True, slots=True)
class Trained:
    """parameters: by our names. adapter: what rows have to ask for so that they pass through what is trained; None where that is the model itself."""

    parameters: dict[str, nn.Parameter]
    adapter: str | None

    def table(self) -> list[tuple[str, int, int]]:
        """(kind of tensor, how many, numbers in them): blocks and experts counted together."""
        kinds: Counter[str] = Counter()
        numbers: Counter[str] = Counter()
        for name, p in self.parameters.items():
            kind = re.sub(r"\.\d+\.", ".*.", name)
            kinds[kind] += 1
            numbers[kind] += p.numel()
        return [(kind, n, numbers[kind]) for kind, n in kinds.items()]

    @property
    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters.values())

    def parts(self, decoder: Decoder) -> dict[str, LowRank]:
        """The adapter's parts by the names of their matrices, without .weight."""
        halves = [name for name in self.parameters if name.rpartition(".")[2].startswith("lora_")]  # a method's head is none
        names = dict.fromkeys(name.rpartition(".")[0] for name in halves)
        return {name: decoder.get_submodule(name).adapters.get(NAME) for name in names}  # type: ignore[misc,union-attr]

    def halves(self, decoder: Decoder) -> dict[str, Half]:
        """The adapter by its matrices' names, as files take it."""
        return {f"{name}.weight": Half(part.a.detach(), part.b.detach(), part.scale, None if part.m is None else part.m.detach())
                for name, part in self.parts(decoder).items()}


def trained(decoder: Decoder, tune: TunePart, seed: int) -> Trained:
    """Puts what the recipe trains in place, and asks for its gradients alone. Raises BadRequest for what cannot be trained so."""
    decoder.requires_grad_(False)
    return _whole(decoder) if tune.kind == "full" else _low_rank(decoder, tune, seed)


def _whole(decoder: Decoder) -> Trained:
    packed = [name for name, weight in decoder.weights().items() if isinstance(weight, PackedWeight)]
    if packed:
        raise BadRequest(f"tune.kind=full trains every weight, and {len(packed)} of this model's are packed ({packed[0]}). Train adapters (tune.kind=lora), or "
                         f"start from the checkpoint before it was quantized", field="tune.kind")
    own = {name: p for name, p in decoder.named_parameters() if ".adapters." not in name}
    for p in own.values():
        p.requires_grad_(True)
    return Trained(own, None)


def _low_rank(decoder: Decoder, tune: TunePart, seed: int) -> Trained:
    """A drawn as peft draws it, uniformly in +-sqrt(1 / D) (nn.init.kaiming_uniform_ with a of sqrt 5), and B zero: at first nothing is changed.

    DoRA's magnitudes begin as the lengths of the matrix's rows.
    """
    if NAME in decoder.adapters:
        raise BadRequest(f"the model has an adapter called {NAME!r} already: that name is the one in training", field="tune")
    generator = torch.Generator().manual_seed(seed)
    scale = tune.alpha / (math.sqrt(tune.rank) if tune.rslora else tune.rank)
    own: dict[str, nn.Parameter] = {}
    for name, matrix in chosen(decoder, tune.targets).items():
        a_rD = torch.empty(tune.rank, matrix.d_in).uniform_(-(matrix.d_in**-0.5), matrix.d_in**-0.5, generator=generator)
        like: Tensor | PackedWeight = matrix.weight
        part = LowRank(matrix.ops, a_rD.to(like.device), torch.zeros(matrix.d_out, tune.rank, device=like.device), scale)
        if tune.dora:
            part.m = nn.Parameter(part.lengths(matrix.matrix))
        part.requires_grad_(True)
        if matrix.adapters is None:
            matrix.adapters = Adapters()
        matrix.adapters.put(NAME, part)
        own |= {f"{name.removesuffix('.weight')}.lora_{half}": p for half, p in part.named_parameters()}
    decoder.adapters[NAME] = None  # in training: there is no file to tell of yet
    return Trained(own, NAME)


def chosen(decoder: Decoder, targets: Sequence[str]) -> Mapping[str, Project]:
    """The matrices that globs over our names choose, in their order. Raises BadRequest for one that chooses none, with the names that are there."""
    matrices = projects(decoder)
    out: set[str] = set()
    for target in targets:
        globs = PRESETS.get(target, (target, f"{target}.weight", f"*.{target}.weight"))
        found = {name for name in matrices if any(fnmatch.fnmatchcase(name, glob if glob.endswith(("*", ".weight")) else f"{glob}.weight")
                                                  for glob in globs)}
        if target in PRESETS:  # a router's choice is no map that adapters are made for; name it to train it
            found = {name for name in found if not name.endswith(".router.weight")}
        if not found:
            kinds = sorted({re.sub(r"\.\d+\.", ".*.", name.removesuffix(".weight")) for name in matrices})
            raise BadRequest(f"tune.targets has {target!r}, which matches no matrix of this model.{did_you_mean(nearest(target, kinds, 0.3))} There are "
                             f"{', '.join(kinds)}; or {', '.join(PRESETS)}", field="tune.targets")
        out |= found
    return {name: matrix for name, matrix in matrices.items() if name in out}

"""Several processes that train one model: FSDP2 of torch.distributed, started by torchrun. One process is the same code without any of it.

    torchrun --nproc-per-node 2 -m pellucid tune recipe.yaml

Every process reads all data and makes its share of the items of each step; blocks are sharded, and gradients are summed as they are needed. A step's loss is
divided by the weight of the whole step before any process begins, so that its gradients are those of one process. The first process writes and tells.
"""
from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.data.batch import micro
from pellucid.data.example import Item, n_tokens
from pellucid.errors import BadRequest, PellucidError
from pellucid.model.decoder import Decoder
from pellucid.model.experts import MixtureOfExperts
from pellucid.train.recipe import Recipe
from pellucid.train.trainable import Trained

PATIENCE = timedelta(hours=12)  # that one process may wait for another: the first one makes data and references while the others wait


@dataclass(frozen=True, slots=True)
class Group:
    """rank: which of n processes this is. here: how many of them run on this machine. With n = 1 nothing here does anything."""

    rank: int = 0
    n: int = 1
    here: int = 1
    _experts: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)  # beginnings of their names: has it read a token of this step

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[Item], max_tokens: int) -> Iterator[tuple[list[Item], float]]:
        """(part, what it counts) of this process: as many parts as every other makes, since each of them gathers weights from all. What one makes too few
        of is made up by a part that counts nothing."""
        if self.n == 1:
            yield from ((part, 1.0) for part in micro(items, max_tokens))
            return
        each = [micro(some, max_tokens) for some in dealt(items, self.n)]
        own, most = each[self.rank], max(map(len, each))
        yield from ((part, 1.0) for part in own)
        spare = own[0] if own else [min(items, key=n_tokens)]
        yield from ((spare, 0.0) for _ in range(most - len(own)))

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process alone, then the others: what it wrote is there for them."""
        if not self.first:
            self.meet()
        yield
        if self.first:
            self.meet()

    def meet(self) -> None:
        """Waits for all."""
        if self.n > 1:
            torch.distributed.barrier()

    def summed(self, sums: Mapping[str, float]) -> Counter[str]:
        """Each over all processes, whose names are the same."""
        if self.n == 1:
            return Counter(sums)
        names = sorted(sums)
        values = torch.tensor([sums[name] for name in names], dtype=torch.float64)
        torch.distributed.all_reduce(values)
        return Counter(dict(zip(names, values.tolist(), strict=True)))

    def any(self, told: bool) -> bool:
        """Whether any process says so."""
        return told if self.n == 1 else self.summed({"told": float(told)})["told"] > 0

    def sum_gradients(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Of what is not sharded: a head that a method brings. What no process used has no gradient, as in one, and so is not stepped."""
        if self.n == 1:
            return
        for p in parameters.values():
            if p.grad is not None and not is_shard(p):
                torch.distributed.all_reduce(p.grad)
        used = self.summed({name: float(read) for name, read in self._experts.items()})
        for name in self._experts:
            self._experts[name] = False
        for name, p in parameters.items():
            if used and (at := name.find(".experts.")) >= 0 and not used[name[: name.index(".", at + len(".experts.")) + 1]]:
                p.grad = None

    def draw_anew(self, seed: int, step: int) -> None:
        """Random draws of a step depend on the process and the step alone, so that processes drop other numbers, and a run that goes on the same."""
        if self.n > 1:
            torch.manual_seed(hash((seed, step, self.rank)) & 0x7FFFFFFF)  # of whole numbers: the same in every process

    def shard(self, decoder: Decoder, trained: Trained) -> None:
        """Splits every block's weights over the processes, and those outside of blocks. Packed weights stay whole with each.

        What is outside of blocks is whole from a forward pass to the end of its backward pass: a loss in parts takes the unembedding after the decoder.
        """
        if self.n == 1:
            return
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
        keys = {id(p): key for key, p in trained.parameters.items()}
        ours = {name: keys[id(p)] for name, p in decoder.named_parameters() if id(p) in keys}
        how: dict[str, Any] = {"mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32)}
        for block in decoder.blocks:
            fully_shard(block, **how)
        fully_shard(decoder, reshard_after_forward=False, **how)
        for module in decoder.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # a sum and no mean: see the head of this file
                module.set_force_sum_reduction_for_comms(True)  # gloo multiplies nothing on the way
        decoder.set_reduce_scatter_unused_params(True)  # type: ignore[attr-defined]  # experts that one process's tokens choose and another's do not
        for name, mixture in decoder.named_modules():
            for x, expert in enumerate(mixture.experts if isinstance(mixture, MixtureOfExperts) else ()):
                self._experts[f"{name}.experts.{x}."] = False
                expert.register_forward_pre_hook(partial(self._read, f"{name}.experts.{x}."))
        trained.parameters.update({ours[name]: p for name, p in decoder.named_parameters() if name in ours})

    def own(self, available: int | None, device: torch.device) -> int | None:
        """Of bytes that are free: a process has a GPU to itself, and shares the machine's memory."""
        return available if available is None or device.type != "cpu" else available // self.here

    def _read(self, expert: str, *_: object) -> None:
        if torch.is_grad_enabled():
            self._experts[expert] = True

    def leave(self) -> None:
        """Ends the group when all are here. Whoever goes first closes its connections, and another's last message can be lost with them: of this meeting,
        and so of nothing that was written."""
        if self.n > 1:
            with suppress(RuntimeError):
                self.meet()
            torch.distributed.destroy_process_group()


ALONE = Group()


def join() -> Group:
    """The group that torchrun started this process for; the process alone where nobody did. Raises BadRequest for variables that make no sense."""
    said = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
    if (said["WORLD_SIZE"] or "1") == "1":
        return ALONE
    if missing := [name for name, value in said.items() if not value]:
        raise BadRequest(f"WORLD_SIZE={said['WORLD_SIZE']} says that several processes train together, and {', '.join(missing)} is not set. Start them with "
                         f"torchrun --nproc-per-node N -m pellucid tune RECIPE, or take WORLD_SIZE away", field="recipe")
    if not torch.distributed.is_initialized():
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(said["LOCAL_RANK"] or 0))
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    return Group(torch.distributed.get_rank(), torch.distributed.get_world_size(), int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def check(recipe: Recipe, group: Group) -> None:
    """Raises BadRequest for what several processes do not do."""
    if group.n == 1:
        return
    if recipe.optim.name != "adamw":
        raise BadRequest(f"optim.name={recipe.optim.name} works on whole matrices, and {group.n} processes hold shards of them. Set optim.name: adamw, or "
                         f"start one process", field="optim.name")
    if recipe.batch < group.n:
        raise BadRequest(f"batch={recipe.batch} is less than the {group.n} processes: some would have nothing to do. Give at least batch={group.n}, or start "
                         f"fewer", field="batch")


@contextmanager
def ended_by_another() -> Iterator[None]:
    """Where one process ends with an error, the others lose their connection to it. It has said why; the first one says what it saw, the rest nothing."""
    try:
        yield
    except RuntimeError as error:
        if os.environ.get("WORLD_SIZE", "1") == "1" or not any(word in str(error).lower() for word in ("connection", "socket", "gloo", "nccl", "broken pipe")):
            raise
        if os.environ.get("RANK", "0") == "0":
            raise PellucidError(f"another process of this tuning is gone, and nothing can go on without it. What it said stands above; if it said nothing, it "
                                f"was killed or its machine is out of reach. Go on with --resume ({str(error).splitlines()[0]})") from None
        raise SystemExit(1) from None


def dealt(items: Sequence[Item], n: int) -> list[list[Item]]:
    """n shares of about as many tokens each: the longest first, to whoever has the least."""
    shares: list[list[int]] = [[] for _ in range(n)]
    filled = [0] * n
    for i in sorted(range(len(items)), key=lambda i: (-n_tokens(items[i]), i)):
        least = min(range(n), key=lambda r: (filled[r], r))
        shares[least].append(i)
        filled[least] += n_tokens(items[i])
    return [[items[i] for i in sorted(share)] for share in shares]


def is_shard(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")  # torch.distributed.tensor.DTensor, which one process never imports


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, of a shard with the help of every process."""
    return tensor.full_tensor() if is_shard(tensor) else tensor  # type: ignore[attr-defined,no-any-return]


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor cut as another is; each process has the whole and takes its own."""
    if not is_shard(other) or tensor.shape != other.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)  # type: ignore[attr-defined]

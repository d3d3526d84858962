"""The swappable arithmetic: a contract of a handful of functions. Plain tensors in and out, no state.

Shape letters are those of model/decoder.py. T counts the query tokens of all rows, S the key tokens of all rows; rows
stand one after another without padding, and their lengths are explicit arguments (plain ints: no device
round trip to learn a shape). One signature serves prefill, decode and training.

`reference.py` implements everything in torch, written to be read. A backend subclasses it and overrides what it does
faster; `tests/test_ops.py` runs every backend against the reference over one grid.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Literal, Protocol

import torch
from torch import Tensor

from pellucid.spec import Activation, Experts
from pellucid.weights.packed_rows import PackedWeight

Weight = Tensor | PackedWeight  # a matrix (F, D), dense or packed
Activations = Literal["exact", "int8"]


@dataclass(frozen=True)
class Pages:
    """Where the keys of a pass's rows lie in pools of pages, (P, N, ...) each: N tokens a page.

    Made once a pass and shared by all layers that see equally far. Row b's keys are tokens offsets[b] to offsets[b] + lengths[b] of its
    pages put together; what lies beside them is of no row, or of a part of it that no query of this pass sees.
    """

    size: int  # N
    tables: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    q_lengths: tuple[int, ...]  # queries, each row's last tokens
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    scratch: dict[str, Tensor] = field(default_factory=dict, compare=False, repr=False)  # what `padded` writes to, in one pass after another

    def padded(self, pool_PN: Tensor, pages_Bn: Tensor, name: str) -> Tensor:
        """These pages of every row one after another, (B, n N, ...); they are there until the next call of this name.

        Into memory that is kept: a new tensor of some megabytes for every layer costs more in page faults than in copying (docs/LOG.md).
        """
        (B, n), (_, N, *shape) = pages_Bn.shape, pool_PN.shape
        size = B * n * pool_PN[0].numel()
        held = self.scratch.get(name)
        if held is None or held.numel() < size or held.dtype != pool_PN.dtype:
            with torch.inference_mode(False):  # what is made there can be written to here and there
                self.scratch[name] = held = pool_PN.new_empty(size)
        out = held[:size].view(B * n, N, *shape)
        return torch.index_select(pool_PN, 0, pages_Bn.flatten(), out=out).view(B, n * N, *shape)

    @cached_property
    def flat(self) -> tuple[Tensor, Tensor]:
        """For native kernels: of each row where its table begins, 0, its offset, keys, queries and first query, (B, 6); all tables in one, int32."""
        places, queries = list(accumulate(map(len, self.tables), initial=0)), accumulate(self.q_lengths, initial=0)
        rows = [(place, 0, *facts) for place, *facts in zip(places, self.offsets, self.lengths, self.q_lengths, queries, strict=False)]
        return torch.tensor(rows).view(-1, 6), torch.tensor([page for table in self.tables for page in table], dtype=torch.int32)

    @cached_property
    def last(self) -> int:
        """The highest page of any row; -1 where a row needs more than its table has, has fewer keys than queries, or a number is no page."""
        enough = all(offset >= 0 and n <= length and offset + length <= len(table) * self.size for table, offset, length, n in zip(
            self.tables, self.offsets, self.lengths, self.q_lengths, strict=True))
        return max(map(max, self.tables)) if enough and all(min(table) >= 0 for table in self.tables) else -1

    def gather(self, pool: Tensor) -> Tensor:
        """The rows' keys or values one after another, (S, ...). Pages that lie one after another are not copied, if there is one row."""
        parts = [self._row(pool.flatten(0, 1), *row) for row in zip(self._places, self.offsets, self.lengths, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @cached_property
    def by_queries(self) -> tuple[Pages | None, Pages | None]:
        """The leading rows with one query each, and the other rows; None for either if there are none."""
        n = next((b for b, length in enumerate(self.q_lengths) if length != 1), len(self.q_lengths))
        if n in (0, len(self.q_lengths)):
            return (self, None) if n else (None, self)
        parts = [Pages(self.size, self.tables[rows], self.offsets[rows], self.lengths[rows], self.q_lengths[rows], self.device, self.scratch)
                 for rows in (slice(n), slice(n, None))]
        return parts[0], parts[1]

    def _row(self, tokens: Tensor, place: int | Tensor, offset: int, length: int) -> Tensor:
        if isinstance(place, int):
            return tokens[place * self.size + offset : place * self.size + offset + length]
        return tokens.unflatten(0, (-1, self.size)).index_select(0, place).flatten(0, 1)[offset : offset + length]

    @cached_property
    def _places(self) -> list[int | Tensor]:
        """Of each row its first page, if the others follow it; else all of them."""
        return [table[0] if table[-1] - table[0] + 1 == len(table) and list(table) == list(range(table[0], table[-1] + 1))
                else torch.tensor(table, device=self.device) for table in self.tables]

    @cached_property
    def batches(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Rows of similar length padded to one: their indices (B,), their pages (B, n) and how far each key is past the row's last one (B, n N).

        That is at most 0 for a key and positive past the end; keys before the first are as far back as they are, and count as past the end.
        """
        order = sorted(range(len(self.tables)), key=lambda b: len(self.tables[b]))
        groups: list[list[int]] = []
        for b in order:
            if groups and len(self.tables[b]) <= SPREAD * len(self.tables[groups[-1][0]]) + 1:
                groups[-1].append(b)
            else:
                groups.append([b])
        return [self._batch(sorted(rows)) for rows in groups]

    def _batch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        n = max(len(self.tables[b]) for b in rows)
        pages_Bn = torch.tensor([[*self.tables[b], *(0,) * (n - len(self.tables[b]))] for b in rows], device=self.device)
        first_B1, length_B1 = (torch.tensor([which[b] for b in rows], device=self.device)[:, None] for which in (self.offsets, self.lengths))
        place_1S = torch.arange(n * self.size, device=self.device)[None]
        back_BS = place_1S - (first_B1 + length_B1 - 1)
        return torch.tensor(rows, device=self.device), pages_Bn, back_BS.masked_fill(place_1S < first_B1, 1)


SPREAD = 1.5  # a row is padded to at most so many times its own pages


class Ops(Protocol):
    """What the decoder calls. Every function returns the dtype of its first argument unless it says otherwise."""

    name: str
    activations: Activations  # what quantized weights are multiplied by: the numbers as they are, or rounded (`ops.packed.rounded`)

    def describe(self) -> str:
        """One line for the load report: which functions are native here, which fall back to the reference."""
        ...

    def prepared_bytes(self, weight_FD: Weight) -> int:
        """Bytes that `prepare` takes for this weight; 0 where it is best as it is."""
        ...

    def prepare(self, weight_FD: Weight, take: Callable[[int], Tensor] | None = None) -> Weight:
        """A weight as `matmul` likes it best: itself, or the same numbers in another order, which `embed` and `unpack` take as well. Once, at load.

        take: gives so many bytes of memory, uint8.
        """
        ...

    def matmul(self, x_TD: Tensor, weight_FD: Weight, bias_F: Tensor | None = None) -> Tensor:
        """x @ weight.T + bias, shape (T, F). A packed weight is never unpacked as a whole, and takes no gradient; x and the bias do."""
        ...

    def low_rank(self, y_TF: Tensor, x_TD: Tensor, a_rD: Tensor, b_Fr: Tensor, scale: float) -> Tensor:
        """y + scale * (x @ a.T) @ b.T, in y's dtype and perhaps in its place: what an adapter adds to what a matrix made of x."""
        ...

    def embed(self, weight_VD: Weight, tokens_T: Tensor) -> Tensor:
        """Rows of the weight, unpacked, in the weight's dtype: (T, D)."""
        ...

    def unpack(self, weight_FD: Weight, dtype: torch.dtype) -> Tensor:
        """A weight's numbers, (F, D), each rounded once: for the few places that compute with a matrix itself."""
        ...

    def normalize(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, *,
                  kind: Literal["rms", "layer"], eps: float, offset: float) -> Tensor:
        """Normalized over the last axis of x in float32, times (offset + weight), plus bias, rounded once."""
        ...

    def rotate(self, x_THC: Tensor, cos_TR: Tensor, sin_TR: Tensor, *, pairing: Literal["half", "adjacent"]) -> Tensor:
        """x * cos + partner(x) * sin over the first R channels of each head; the rest pass through.

        A channel's partner is R/2 away ("half") or its neighbour ("adjacent"). cos and sin are float32, one number a channel; the sine of
        a pair's first channel is negated, so that one line turns both.
        """
        ...

    def attend(self, q_THC: Tensor, k_SKC: Tensor, v_SKC: Tensor, *, q_lengths: Sequence[int], k_lengths: Sequence[int],
               scale: float, window: int | None, softcap: float | None, chunk: int | None = None, sinks_H: Tensor | None = None,
               slopes_H: Tensor | None = None, causal: bool = True) -> Tensor:
        """Attention inside each row, (T, H, C). A row's last q_lengths[b] keys are its queries' own.

        A query sees keys in (t - window, t], and of those the ones in its own chunk, counted from the row's first key; scores are scaled, then
        soft-capped, then lowered by slope * (t - s), float32, one slope a head. A head's sink is one more score, of a key whose value is zero.
        Not causal: it sees keys on both sides, those less than a window away; rows are whole then, and neither chunks nor slopes are given.
        """
        ...

    def attend_pages(self, q_THC: Tensor, k_PNKC: Tensor, v_PNKC: Tensor, pages: Pages, *, scale: float, window: int | None, softcap: float | None,
                     chunk: int | None = None, sinks_H: Tensor | None = None, slopes_H: Tensor | None = None, causal: bool = True) -> Tensor:
        """`attend` over keys and values that lie in pages, of the queries' dtype or a shorter one. A row's first key stands where its first query's chunk
        begins, or before the window."""
        ...

    def gated(self, gate_TF: Tensor, up_TF: Tensor, act: Activation, *, slope: float = 1.0, limit: float | None = None, up_offset: float = 0.0) -> Tensor:
        """act(gate) * (up + up_offset), the gate clamped to at most the limit, and up to between its negative and it; slope is silu's."""
        ...

    def activate(self, x_TF: Tensor, act: Activation) -> Tensor:
        """act(x)."""
        ...

    def xielu(self, x_TF: Tensor, alpha_p: Tensor, alpha_n: Tensor, beta: Tensor, eps: Tensor) -> Tensor:
        """softplus(alpha_p) x^2 + beta x above zero, and (beta + softplus(alpha_n)) (expm1(min(x, eps)) - x) + beta x below. One number each."""
        ...

    def route(self, logits_TX: Tensor, correction_X: Tensor | None, experts: Experts) -> tuple[Tensor, Tensor]:
        """The shares (T, A), float32, and indices (T, A), int64, of the experts chosen as `Experts` says, the highest score first."""
        ...

    def surprise(self, logits_NV: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
        """-log p(target), (N,), float32, and its gradient by the logits, (N, V), in their dtype; that may be in their place. Takes no gradient itself."""
        ...

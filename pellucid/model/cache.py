"""Keys and values already computed: one growing buffer a layer and row."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pellucid.spec import Attention, DecoderSpec

GROWTH = 256  # tokens: a buffer starts here and doubles, so that appending costs constant time on average


class Cache:
    """Memory of `n_rows` sequences. A forward pass extends it; `lengths` says how many tokens each row holds."""

    def __init__(self, spec: DecoderSpec, n_rows: int = 1) -> None:
        self.lengths = [0] * n_rows
        self._buffers: list[list[tuple[Tensor, Tensor] | None]] = [[None] * n_rows for _ in spec.layers]

    def extend(self, layer: int, rows: Sequence[int], q_lengths: Sequence[int], k_TKC: Tensor, v_TKC: Tensor) -> tuple[Tensor, Tensor]:
        """Appends the new keys and values of these rows; returns everything each row holds, (S, K, C) twice, row after row.

        With one row the result is a view of its buffer: nothing is copied.
        """
        keys, values = [], []
        for row, k_new, v_new in zip(rows, k_TKC.split(list(q_lengths)), v_TKC.split(list(q_lengths)), strict=True):
            start, stop = self.lengths[row], self.lengths[row] + k_new.shape[0]
            k, v = self._room(layer, row, stop, k_new, v_new)
            k[start:stop], v[start:stop] = k_new, v_new
            keys.append(k[:stop])
            values.append(v[:stop])
        return (keys[0], values[0]) if len(keys) == 1 else (torch.cat(keys), torch.cat(values))

    def advance(self, rows: Sequence[int], q_lengths: Sequence[int]) -> None:
        """Counts the tokens that every layer has now seen."""
        for row, n in zip(rows, q_lengths, strict=True):
            self.lengths[row] += n

    def truncate(self, row: int, length: int) -> None:
        """Forgets everything of a row past `length` tokens."""
        self.lengths[row] = min(self.lengths[row], length)

    def _room(self, layer: int, row: int, stop: int, k_new: Tensor, v_new: Tensor) -> tuple[Tensor, Tensor]:
        held = self._buffers[layer][row]
        if held is not None and held[0].shape[0] >= stop:
            return held
        capacity = max(GROWTH, stop if held is None else 2 * held[0].shape[0], stop)
        grown = k_new.new_empty(capacity, *k_new.shape[1:]), v_new.new_empty(capacity, *v_new.shape[1:])
        if held is not None:
            for new, old in zip(grown, held, strict=True):
                new[: old.shape[0]] = old
        self._buffers[layer][row] = grown
        return grown


def cache_bytes_per_token(mixer: Attention, bytes_per_number: int) -> int:
    """Bytes one layer's cache takes for one token."""
    return 2 * mixer.n_kv_heads * mixer.d_head * bytes_per_number

"""The swappable arithmetic: a contract of a handful of functions. Plain tensors in and out, no state.

Shape letters are those of model/decoder.py. T counts the query tokens of all rows, S the key tokens of all rows; rows
stand one after another without padding, and their lengths are explicit arguments (plain ints: no device
round trip to learn a shape). One signature serves prefill, decode and training.

`reference.py` implements everything in torch, written to be read. A backend subclasses it and overrides what it does
faster; `tests/test_ops.py` runs every backend against the reference over one grid.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from torch import Tensor

from pellucid.spec import Activation, Experts


class Ops(Protocol):
    """What the decoder calls. Every function returns the dtype of its first argument unless it says otherwise."""

    name: str

    def describe(self) -> str:
        """One line for the load report: which functions are native here, which fall back to the reference."""
        ...

    def matmul(self, x_TD: Tensor, weight_FD: Tensor, bias_F: Tensor | None = None) -> Tensor:
        """x @ weight.T + bias, shape (T, F). The weight may be in any format the backend knows; dense is one of them."""
        ...

    def embed(self, weight_VD: Tensor, tokens_T: Tensor) -> Tensor:
        """Rows of the weight, unpacked: (T, D)."""
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
               slopes_H: Tensor | None = None) -> Tensor:
        """Causal attention inside each row, (T, H, C). A row's last q_lengths[b] keys are its queries' own.

        A query sees keys in (t - window, t], and of those the ones in its own chunk, counted from the row's first key; scores are scaled, then
        soft-capped, then lowered by slope * (t - s), float32, one slope a head. A head's sink is one more score, of a key whose value is zero.
        """
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

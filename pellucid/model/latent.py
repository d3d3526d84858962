"""Multi-head latent attention: keys and values of every head come out of one latent a token, and the latent is what the cache keeps.

Shape letters as in decoder.py, and
  L latent · N channels of a head that do not rotate · V channels of a head's value · E = L + R, what is kept of a token · F = H (N + R)

The same sum in two orders. Expanded, the latents become keys and values of every head, as the formula reads; absorbed, the queries are
brought to the latents instead, and the results back from them, so that attention reads the cache as it lies:

    q_N . (k_up l_L)  =  (k_up^T q_N) . l_L            sum_s p_s (v_up l_L)  =  v_up (sum_s p_s l_L)
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.model.cache import Held, Memory, keep
from pellucid.model.low_rank import Choice
from pellucid.model.parts import Normalize, Project, Rows
from pellucid.model.tables import Tables
from pellucid.ops.interface import Ops, Weight
from pellucid.spec import LatentAttention


class KeyUp(Project):
    """What brings latents to the keys of all heads. Packed rows may be those of each head's matrix turned, (H, L, N), as GGUF's deepseek2 stores it:
    no row of it can be turned without being unpacked, so it is turned where its numbers are read.
    """

    def __init__(self, ops: Ops, d_latent: int, n_heads: int, d_plain: int) -> None:
        super().__init__(ops, d_latent, n_heads * d_plain, bias=False)
        self.n_heads = n_heads

    def forward(self, x_TL: Tensor, choice: Choice | None = None) -> Tensor:
        if len(self.weight.shape) == 2:
            return super().forward(x_TL, choice)
        return self.adapted(x_TL, self.ops.matmul(x_TL, self.numbers(x_TL.dtype).flatten(0, 1), None), choice)

    @property
    def matrix(self) -> Weight:
        return self.weight if len(self.weight.shape) == 2 else self.numbers(torch.float32).flatten(0, 1)

    def numbers(self, dtype: torch.dtype) -> Tensor:
        """(H, N, L)."""
        numbers = self.ops.unpack(self.weight, dtype)
        return numbers.transpose(1, 2) if numbers.ndim == 3 else numbers.unflatten(0, (self.n_heads, -1))


class CompressedAttention(nn.Module):
    """Queries and latents projected, normalized, partly rotated; then attention inside each row."""

    def __init__(self, ops: Ops, d_model: int, mixer: LatentAttention, index: int) -> None:
        super().__init__()
        self.ops, self.mixer, self.index = ops, mixer, index
        H, N, R, V, L = mixer.n_heads, mixer.d_plain, mixer.rope.d_rotary, mixer.d_value, mixer.d_latent
        if mixer.d_query_latent is None:
            self.q = Project(ops, d_model, H * (N + R), bias=False)
        else:
            self.q_down = Project(ops, d_model, mixer.d_query_latent, mixer.latent_bias)
            self.q_norm = Normalize(ops, mixer.norm, mixer.d_query_latent)
            self.q_up = Project(ops, mixer.d_query_latent, H * (N + R), bias=False)
        self.kv_down = Project(ops, d_model, L + R, mixer.latent_bias)
        self.kv_norm = Normalize(ops, mixer.norm, L)
        self.k_up = KeyUp(ops, L, H, N)
        self.v_up = Project(ops, L, H * V, bias=False)
        self.o = Project(ops, H * V, d_model, mixer.out_bias)

    def forward(self, x_TD: Tensor, tables: Tables, rows: Rows, cache: Memory | None) -> Tensor:
        mixer, (cos_TR, sin_TR) = self.mixer, tables[self.mixer.rope]
        R, pairing = mixer.rope.d_rotary, mixer.rope.pairing
        choice = tables.choice
        q_TF = self.q(x_TD, choice) if mixer.d_query_latent is None else self.q_up(self.q_norm(self.q_down(x_TD, choice)), choice)
        q_THN, q_THR = q_TF.unflatten(-1, (mixer.n_heads, -1)).split([mixer.d_plain, R], -1)
        latent_TL, shared_TR = self.kv_down(x_TD, choice).split([mixer.d_latent, R], -1)
        shared_T1R = self.ops.rotate(shared_TR[:, None], cos_TR, sin_TR, pairing=pairing)
        q_THR = self.ops.rotate(q_THR, cos_TR, sin_TR, pairing=pairing)
        kept_T1E = torch.cat([self.kv_norm(latent_TL)[:, None], shared_T1R], -1)
        held = keep(cache, self.index, rows, kept_T1E)
        if self._absorbs(rows.lengths, held.lengths) and not any(matrix.turned_by(choice) for matrix in (self.k_up, self.v_up)):
            out_THV = self._absorbed(q_THN, q_THR, held, rows.lengths, choice)
        else:
            out_THV = self._expanded(q_THN, q_THR, held, rows.lengths, Choice.of(rows.adapters, held.lengths, x_TD.device))
        return self.o(out_THV.flatten(1), choice)

    def _absorbs(self, q_lengths: Sequence[int], k_lengths: Sequence[int]) -> bool:
        """Whether bringing the queries to the latents multiplies less than bringing all latents to the heads: so it is in decoding."""
        N, R, V, L = self.mixer.d_plain, self.mixer.rope.d_rotary, self.mixer.d_value, self.mixer.d_latent
        pairs = sum(t * s for t, s in zip(q_lengths, k_lengths, strict=True))
        return sum(q_lengths) * L * (N + V) + pairs * (2 * L + R) < sum(k_lengths) * L * (N + V) + pairs * (N + R + V)

    def _expanded(self, q_THN: Tensor, q_THR: Tensor, held: Held, q_lengths: Sequence[int], choice: Choice | None = None) -> Tensor:
        """(T, H, V), with a key and a value for every head. choice: of the S tokens that are held."""
        H, L, (kept_S1E,) = self.mixer.n_heads, self.mixer.d_latent, held.rows()
        kept_S1E = kept_S1E.to(q_THN.dtype)
        latent_SL, shared_S1R = kept_S1E[:, 0, :L], kept_S1E[..., L:]
        k_SHC = torch.cat([self.k_up(latent_SL, choice).unflatten(-1, (H, -1)), shared_S1R.expand(-1, H, -1)], -1)
        v_SHV = self.v_up(latent_SL, choice).unflatten(-1, (H, -1))
        return Held((k_SHC, v_SHV), held.lengths).attend(self.ops, torch.cat([q_THN, q_THR], -1), k_SHC, v_SHV, q_lengths, **self._how)

    def _absorbed(self, q_THN: Tensor, q_THR: Tensor, held: Held, q_lengths: Sequence[int], choice: Choice | None = None) -> Tensor:
        """(T, H, V), with one key and one value for all heads: what was kept, and the latent in it."""
        H, (kept,) = self.mixer.n_heads, held.parts
        # The matrices' numbers are read here, not their modules called: whoever changes what k_up and v_up compute changes their weights.
        k_HNL, v_HVL = self.k_up.numbers(q_THN.dtype), self.ops.unpack(self.v_up.weight, q_THN.dtype).unflatten(0, (H, -1))
        q_THL = torch.einsum("thn,hnl->thl", q_THN, k_HNL)
        for token_N, a_rL, b_HNr in self._adapting(self.k_up, choice, len(q_THN)):
            q_THL = q_THL.index_add(0, token_N, torch.einsum("thn,hnr,rl->thl", q_THN[token_N].to(a_rL.dtype), b_HNr, a_rL).to(q_THL.dtype))
        q_THE = torch.cat([q_THL, q_THR], -1)
        out_THL = held.attend(self.ops, q_THE, kept, kept[..., : self.mixer.d_latent], q_lengths, **self._how)
        out_THV = torch.einsum("thl,hvl->thv", out_THL, v_HVL)
        for token_N, a_rL, b_HVr in self._adapting(self.v_up, choice, len(out_THL)):
            out_THV = out_THV.index_add(0, token_N, torch.einsum("thl,rl,hvr->thv", out_THL[token_N].to(a_rL.dtype), a_rL, b_HVr).to(out_THV.dtype))
        return out_THV

    def _adapting(self, matrix: Project, choice: Choice | None, n: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """What adapters add to a matrix of all heads: (their tokens, A, B times the scale, head by head) of each that some of the n tokens take."""
        for name, token_N in () if choice is None or matrix.adapters is None else choice.parts:
            if (part := matrix.adapters.get(name)) is not None:  # type: ignore[union-attr]
                tokens = torch.arange(n, device=part.a.device) if token_N is None else token_N
                yield tokens, part.a, part.scale * part.b.unflatten(0, (self.mixer.n_heads, -1))

    @property
    def _how(self) -> dict[str, Any]:
        return {"scale": self.mixer.scale, "window": None, "softcap": None}

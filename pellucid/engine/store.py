"""How keys and values are kept: as the model computes in, in float16, or in eight bits; what of them, and in memory of what kind."""
from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from pellucid.errors import BadRequest
from pellucid.model.decoder import Decoder
from pellucid.model.memory import page_dtype
from pellucid.spec import LatentAttention, Mixer
from pellucid.weights.packed_rows import PackedWeight

# float16 for quantized weights and else as the model computes; always as it computes; always float16; 8 bits a number and a float32 scale a head and token
CacheDtype = Literal["auto", "same", "float16", "int8"]


def check_cache(n_bytes: object, store: object) -> None:
    """Raises BadRequest for a size or a way to keep keys and values that cannot be."""
    if n_bytes is not None and (isinstance(n_bytes, bool) or not isinstance(n_bytes, int) or n_bytes < 1):
        raise BadRequest(f"cache_bytes={n_bytes!r} is not a count of bytes, from 1", field="cache_bytes")
    if store not in get_args(CacheDtype):
        raise BadRequest(f"cache_dtype={store!r} is not one of {', '.join(get_args(CacheDtype))}", field="cache_dtype")


def settled(store: CacheDtype, decoder: Decoder) -> Literal["same", "float16", "int8"]:
    """How a decoder's keys and values are kept where that is left to us ("auto")."""
    if store != "auto":
        return store
    computed, packed = decoder.embed.weight.dtype, [w for w in decoder.weights().values() if isinstance(w, PackedWeight)]
    return "float16" if page_dtype((getattr(w, "format", "groups") for w in packed), computed) != computed else "same"


def kept_shapes(mixer: Mixer) -> list[tuple[int, int]]:
    """(heads, width) of each thing a mixer keeps of a token."""
    if not mixer.n_cached:
        return []
    if isinstance(mixer, LatentAttention):
        return [(1, mixer.n_cached)]
    return [(mixer.n_kv_heads, mixer.d_head)] * 2


def untouched(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, not whatever lay there: padding has no weight, but nothing times NaN is NaN. On a CPU they take memory where they are written to.

    torch.zeros writes them all (2.13, measured); numpy asks the system for pages that are zero. It aligns to 16 bytes, and torch would have 64.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    n_bytes = math.prod(shape) * dtype.itemsize
    raw = np.zeros(n_bytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return torch.from_numpy(raw[start : start + n_bytes]).view(dtype).view(shape)


def pack16(x: Tensor) -> Tensor:
    """In float16, with NaN for what that does not hold (65,520 and more round past its end): whoever sees one has no number either, and says so.

    An infinite key could be a share of zero, and go unnoticed.
    """
    short = x.to(torch.float16)
    return short.masked_fill_(short.isinf(), torch.nan)


def pack8(x_TKC: Tensor) -> tuple[Tensor, Tensor]:
    """8-bit numbers (T, K, C) and their scale (T, K, 1), float32: the largest of a head's channels becomes 127."""
    x = x_TKC.float()
    scale = x.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / 127
    return (x / scale).round_().to(torch.int8), scale


def unpack8(x8_TKC: Tensor, scale_TK1: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers that were packed, rounded."""
    return (x8_TKC.float() * scale_TK1).to(dtype)

"""What every reference here computes with: plain numpy in float64, sharing nothing with Pellucid.

A reference is a module with DEFAULTS (what the authors' configuration class says of an absent key), N_CTX (the key that names the context),
`shapes(c)` (the published tensors) and `logits(c, w, tokens)`, (T, V). Shape letters are those of model/decoder.py.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Config = Mapping[str, Any]
Tensors = Mapping[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]


def rms(x: np.ndarray, gain: np.ndarray | float, eps: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * gain


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


def angles(theta: float, width: int, n: int) -> np.ndarray:
    """(n, width / 2): how far each pair of `width` channels has turned at positions 0 to n - 1. https://arxiv.org/abs/2104.09864"""
    return np.outer(np.arange(n), theta ** (-np.arange(0, width, 2) / width))


def dynamic_angles(theta: float, width: int, n: int, scaling: Config, trained: int) -> np.ndarray:
    """The same under dynamic scaling: the base grows with the row. InternLM2DynamicNTKScalingRotaryEmbedding and its likes, which say it alike."""
    alpha = scaling["factor"] * max(n, trained) / trained - (scaling["factor"] - 1)
    return angles(theta * alpha ** (width / (width - 2)), width, n)


def turned_halves(x_THC: np.ndarray, angle_TP: np.ndarray) -> np.ndarray:
    """Channel p turns with channel p + P, as one complex number; channels past 2 P stay."""
    P = angle_TP.shape[1]
    z = (x_THC[..., :P] + 1j * x_THC[..., P : 2 * P]) * np.exp(1j * angle_TP)[:, None]
    return np.concatenate([z.real, z.imag, x_THC[..., 2 * P :]], -1)


def turned_neighbours(x_THC: np.ndarray, angle_TP: np.ndarray) -> np.ndarray:
    """Channel 2 p turns with channel 2 p + 1; channels past 2 P stay."""
    P = angle_TP.shape[1]
    z = (x_THC[..., 0 : 2 * P : 2] + 1j * x_THC[..., 1 : 2 * P : 2]) * np.exp(1j * angle_TP)[:, None]
    return np.concatenate([np.stack([z.real, z.imag], -1).reshape(*z.shape[:-1], 2 * P), x_THC[..., 2 * P :]], -1)


def attended(q_THC: np.ndarray, k_TKC: np.ndarray, v_TKC: np.ndarray, scale: float, bias_HTT: np.ndarray | None = None) -> np.ndarray:
    """Causal attention, head by head; (T, all heads together)."""
    T, H, _ = q_THC.shape
    future_TT, heads = np.triu(np.ones((T, T), bool), 1), []
    for h in range(H):
        kv = h * k_TKC.shape[1] // H
        scores_TT = q_THC[:, h] @ k_TKC[:, kv].T * scale + (0 if bias_HTT is None else bias_HTT[h])
        heads.append(softmax(np.where(future_TT, -np.inf, scores_TT)) @ v_TKC[:, kv])
    return np.concatenate(heads, -1)

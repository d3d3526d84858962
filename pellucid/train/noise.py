"""Dropout: what config.json has for training alone, and an adapter's own. Inert wherever no gradient is asked for: in evaluation, for a reference.

    embedding ─ x ─ [drop] ─ block 0 ...      attention: softmax ─ [drop] ─ times values      residual: x + [drop](attn), x + [drop](mlp)
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pellucid.errors import UnsupportedModel
from pellucid.model.decoder import Decoder
from pellucid.model.low_rank import LowRank
from pellucid.ops.interface import Ops
from pellucid.ops.reference import attend_row

# config.json's spellings, from the modeling files of transformers 5.23 for the families that are read here
_PLACES: dict[str, tuple[str, ...]] = {
    "embedding": ("embd_pdrop", "embd_dropout", "embedding_dropout", "emb_pdrop", "embed_dropout", "emb_dropout_prob"),
    "residual": ("resid_pdrop", "hidden_dropout", "resid_dropout", "residual_dropout", "hidden_dropout_prob", "dropout", "output_dropout"),
    "attention": ("attention_dropout", "attn_pdrop", "attention_dropout_prob", "attention_probs_dropout_prob", "attn_dropout", "attn_dropout_prob"),
}
_BOTH = {"xglm": "dropout", "gpt_neox": "hidden_dropout"}  # families whose embedding is dropped by the key of the residual
_NOT_HERE = ("layerdrop", "activation_dropout", "router_jitter_noise", "input_jitter_noise", "moe_jitter_eps")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropouts:
    """The share of numbers that become zero in each place, while training. keys: where config.json says so."""

    embedding: float = 0.0
    residual: float = 0.0
    attention: float = 0.0
    keys: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.embedding or self.residual or self.attention)

    def __str__(self) -> str:
        return ", ".join(f"{place} {getattr(self, place):g}" for place in _PLACES if getattr(self, place))


def dropouts_of(config: Mapping[str, Any], where: str) -> Dropouts:
    """What a config says. Raises UnsupportedModel for what it would do in training and this package does not, by its key."""
    said = _flat(config)
    if odd := [f"{key}={said[key]}" for key in _NOT_HERE if said.get(key)]:
        raise UnsupportedModel(f"config.json of {where} has {', '.join(odd)}, which acts in training and is not implemented. Train without what it has for "
                               f"training alone: model.dropouts=off")
    found = {place: next(((key, said[key]) for key in keys if said.get(key)), None) for place, keys in _PLACES.items()}
    if (key := _BOTH.get(str(config.get("model_type")))) and said.get(key):
        found["embedding"] = key, said[key]
    return Dropouts(**{place: float(pair[1]) for place, pair in found.items() if pair}, keys=tuple(f"{key}={p}" for key, p in filter(None, found.values())))


@contextmanager
def dropping(decoder: Decoder, drop: Dropouts, parts: Sequence[LowRank] = (), adapter: float = 0.0) -> Iterator[None]:
    """Within it, passes that train drop: in the places of the config, and of what the adapter's parts read."""
    with ExitStack() as stack:
        if drop.embedding:
            stack.callback(decoder.blocks[0].register_forward_pre_hook(_first(drop.embedding)).remove)
        for block in decoder.blocks:
            for name in ("attn", "mlp") if drop.residual else ():
                if (sublayer := getattr(block, name, None)) is not None:
                    stack.callback(sublayer.register_forward_hook(_last(drop.residual)).remove)
            attn: Any = getattr(block, "attn", None)
            if drop.attention and hasattr(attn, "mixer"):
                stack.callback(setattr, attn, "ops", attn.ops)
                attn.ops = _Dropping(attn.ops, attn, drop.attention)
        for part in parts if adapter else ():
            stack.callback(part.register_forward_pre_hook(_first(adapter)).remove)
            part.add = _as_written(part)  # type: ignore[method-assign]
            stack.callback(delattr, part, "add")
        yield


def _dropped(x: Tensor, p: float, module: nn.Module) -> Tensor:
    return F.dropout(x, p) if module.training and torch.is_grad_enabled() else x


def _first(p: float) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    return lambda module, args: (_dropped(args[0], p, module), *args[1:])


def _last(p: float) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    return lambda module, args, out: _dropped(out, p, module)


def _as_written(part: LowRank) -> Callable[..., Tensor]:
    return lambda x_TD, y_TF, *gain_F: y_TF + part(x_TD, *gain_F).to(y_TF.dtype)


class _Dropping:
    """A backend whose attention drops while its module trains: row by row, with the probabilities written out. All else is the backend's."""

    def __init__(self, ops: Ops, module: nn.Module, p: float) -> None:
        self._ops, self._module, self._p = ops, module, p

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def attend(self, q_THC: Tensor, k_SKC: Tensor, v_SKC: Tensor, *, q_lengths: Sequence[int], k_lengths: Sequence[int], sinks_H: Tensor | None = None,
               slopes_H: Tensor | None = None, chunk: int | None = None, causal: bool = True, **how: Any) -> Tensor:
        how |= {"sinks_H": sinks_H, "slopes_H": slopes_H, "chunk": chunk, "causal": causal}
        if not (self._module.training and torch.is_grad_enabled()):
            return self._ops.attend(q_THC, k_SKC, v_SKC, q_lengths=q_lengths, k_lengths=k_lengths, **how)
        rows = zip(q_THC.split(list(q_lengths)), k_SKC.split(list(k_lengths)), v_SKC.split(list(k_lengths)), strict=True)
        return torch.cat([attend_row(q, k, v, **how, drop=self._p) for q, k, v in rows])


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of the config and of its parts; the outer ones win."""
    out: dict[str, Any] = {}
    for value in config.values():
        if isinstance(value, Mapping):
            out |= _flat(value)
    return out | {key: value for key, value in config.items() if isinstance(value, int | float) and not isinstance(value, bool)}

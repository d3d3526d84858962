"""Reading config.json so that nothing in it is silently ignored.

A family takes the keys it needs by calling the config, states what it supports in one value only with `expect`, and
lists what cannot matter with `inert`. What is left over when it has finished stops the load.
Both dialects are read: transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`) and 5 (`rope_parameters`, `dtype`).
"""
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from pellucid.errors import BadConfig, UnsupportedModel
from pellucid.families._inert import INERT
from pellucid.spec import Activation, Linear, Llama3, Rope, RopeScaling, Yarn

# Hugging Face's spellings of activations. https://github.com/huggingface/transformers/blob/main/src/transformers/activations.py
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_accurate": "gelu_tanh", "quick_gelu": "gelu_quick", "relu": "relu",
    "relu2": "relu2", "relu6": "relu6", "tanh": "tanh", "sigmoid": "sigmoid", "mish": "mish", "linear": "linear",
}
assert set(ACTIVATIONS.values()) == set(get_args(Activation))


class Config:
    """A config.json whose every key must be taken, expected, or known to be inert.

    Args:
        raw: the parsed file. Keys whose value is null count as absent, as they do in transformers.
        accept_unread: keys the user vouches for; they are recorded in `accepted` when they were in fact left over.
        where: what error messages call the file.
    """

    def __init__(self, raw: Mapping[str, Any], *, accept_unread: Iterable[str] = (), where: str = "config.json") -> None:
        self.raw, self.where = raw, where
        self.accept_unread = frozenset(accept_unread)
        self.accepted: list[str] = []
        self._read: set[str] = set()
        self._parts: list[Config] = []

    def __call__(self, *names: str, default: Any = ...) -> Any:
        """Value of the first of `names` that is present. Raises BadConfig when none is and there is no default."""
        self._read |= set(names)
        for name in names:
            if self.raw.get(name) is not None:
                return self.raw[name]
        if default is ...:
            raise BadConfig(f"{self.where} has no {' or '.join(map(repr, names))}, which this family needs. Is the file whole?")
        return default

    def expect(self, **facts: Any) -> None:
        """States settings this family supports in one value only. Raises UnsupportedModel for any other."""
        for name, value in facts.items():
            self._read.add(name)
            if self.raw.get(name) is not None and self.raw[name] != value:
                raise UnsupportedModel(f"{self.where} has a setting this family does not implement: {name}={self.raw[name]!r} (only {value!r})")

    def inert(self, **reasons: str) -> None:
        """Names keys that cannot change what this family computes here, each with its reason."""
        self._read |= set(reasons)

    def part(self, name: str) -> Config:
        """A nested config, such as the text_config of a multimodal wrapper; its keys are accounted for in the same way."""
        nested = self(name)
        if not isinstance(nested, dict):
            raise BadConfig(f"{self.where}: {name} is {type(nested).__name__}, not an object")
        part = Config(nested, accept_unread=self.accept_unread, where=f"{name} of {self.where}")
        self._parts.append(part)
        return part

    def finish(self) -> None:
        """Raises BadConfig if a key was left over that nobody vouched for."""
        left = {k: v for k, v in self.raw.items() if v is not None and k not in self._read and k not in INERT}
        self.accepted = sorted(set(left) & self.accept_unread)
        if unread := {k: v for k, v in left.items() if k not in self.accept_unread}:
            shown = ", ".join(f"{k}={v!r}"[:120] for k, v in sorted(unread.items()))
            flags = " ".join(f"--accept-unread {k}" for k in sorted(unread))
            raise BadConfig(f"{self.where} has {len(unread)} key{'s' * (len(unread) > 1)} that family "
                            f"{self.raw.get('model_type')!r} does not read: {shown}. Running anyway could compute something else than "
                            f"the model's authors meant. If you know that they change nothing: {flags}")
        for part in self._parts:
            part.finish()
            self.accepted += [f"{part.where.split(' ')[0]}.{k}" for k in part.accepted]

    def activation(self, *names: str, default: Any = ...) -> Activation:
        """The activation under the first of `names`. Raises UnsupportedModel for one we do not know, naming those we do."""
        name = self(*names, default=default)
        if name not in ACTIVATIONS:
            raise UnsupportedModel(f"{self.where} has a setting this family does not implement: {names[0]}={name!r} (known: {', '.join(ACTIVATIONS)})")
        return ACTIVATIONS[name]

    def rope(self, d_head: int, *, pairing: Literal["half", "adjacent"] = "half", layer_type: str | None = None,
             fraction: float = 1.0, theta: float = 10_000.0, theta_key: str = "rope_theta", fraction_key: str = "partial_rotary_factor") -> Rope:
        """The rope that both dialects describe; `layer_type` picks one of several, where layers differ.

        Args:
            d_head: channels of a head; `fraction` of them rotate, unless the config says otherwise.
            theta, theta_key, fraction_key: the family's defaults, and its old spellings of those keys.
        """
        new = self("rope_parameters", default={})
        if layer_type is not None and layer_type in new:
            new = new[layer_type]
        old = self("rope_scaling", default={})
        facts = {("rope_type" if k == "type" else k): v for k, v in (dict(old) | dict(new)).items() if v is not None}
        theta = facts.pop("rope_theta", None) or self(theta_key, "rope_theta", default=theta)
        fraction = facts.pop("partial_rotary_factor", None) or self(fraction_key, "partial_rotary_factor", default=fraction)
        return Rope(theta=float(theta), d_rotary=int(d_head * fraction), pairing=pairing, scaling=self._scaling(facts))

    def _scaling(self, facts: dict[str, Any]) -> RopeScaling | None:
        facts = dict(facts)
        kind = facts.pop("rope_type", "default")
        try:
            scaling = _SCALINGS[kind](facts, self.raw.get("max_position_embeddings"))
        except KeyError as missing:
            if kind not in _SCALINGS:
                raise UnsupportedModel(f"{self.where} has a rope scaling Pellucid does not implement: rope_type={kind!r} "
                                       f"(known: {', '.join(_SCALINGS)})") from None
            raise BadConfig(f"{self.where}: rope scaling {kind!r} lacks {missing}") from None
        if facts:
            raise BadConfig(f"{self.where}: rope scaling {kind!r} has keys nobody reads: {facts}")
        return scaling


def _llama3(facts: dict[str, Any], n_ctx: int | None) -> Llama3:
    return Llama3(factor=facts.pop("factor"), low=facts.pop("low_freq_factor"), high=facts.pop("high_freq_factor"),
                  original=facts.pop("original_max_position_embeddings"))


def _yarn(facts: dict[str, Any], n_ctx: int | None) -> Yarn:
    factor, original = facts.pop("factor"), facts.pop("original_max_position_embeddings", n_ctx)
    gain = facts.pop("attention_factor", None) or (0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0)  # https://arxiv.org/abs/2309.00071, eq. 22
    return Yarn(factor=factor, original=original, fast=facts.pop("beta_fast", 32), slow=facts.pop("beta_slow", 1),
                whole_pairs=facts.pop("truncate", True), gain=gain)


_SCALINGS = {
    "default": lambda facts, n_ctx: None,
    "linear": lambda facts, n_ctx: Linear(factor=facts.pop("factor")),
    "llama3": _llama3,
    "yarn": _yarn,
}

"""Reading config.json so that nothing in it is silently ignored.

A family takes the keys it needs by calling the config, states what it supports in one value only with `expect`, and
lists what cannot matter with `inert`. What is left over when it has finished stops the load.
Both dialects are read: transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`) and 5 (`rope_parameters`, `dtype`).
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args

from pellucid.errors import BadConfig, UnsupportedModel
from pellucid.families._inert import INERT
from pellucid.spec import Activation, Dynamic, Linear, Llama3, LongRope, Ntk, Proportional, Rope, RopeScaling, Yarn

# Hugging Face's spellings of activations. https://github.com/huggingface/transformers/blob/main/src/transformers/activations.py
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_accurate": "gelu_tanh", "quick_gelu": "gelu_quick", "relu": "relu",
    "relu2": "relu2", "relu6": "relu6", "leaky_relu": "leaky_relu", "hardswish": "hardswish", "laplace": "laplace",
    "sqrtsoftplus": "sqrtsoftplus", "tanh": "tanh", "sigmoid": "sigmoid", "mish": "mish", "linear": "linear",
}
assert set(ACTIVATIONS.values()) == set(get_args(Activation))


_DEPTHS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
_DEEPEST = 10_000  # published ones have 126 at most; a spec of a billion layers would fill the memory before a tensor is looked at


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
        self._left: dict[str, Any] = {}  # keys inside rope's facts that no scaling took
        self.parts: list[Config] = []

    def __call__(self, *names: str, default: Any = ...) -> Any:
        """Value of the first of `names` that is present. Raises BadConfig when none is and there is no default."""
        self._read |= set(names)
        for name in names:
            if (value := self.raw.get(name)) is not None:
                if name in _DEPTHS and isinstance(value, int) and value > _DEEPEST:
                    raise BadConfig(f"{self.where}: {name} is {value:,}, and no decoder here has more than {_DEEPEST:,} layers. Is the file as its "
                                    f"authors wrote it?")
                return value
        if default is ...:
            raise BadConfig(f"{self.where} has no {' or '.join(map(repr, names))}, which this family needs. Is the file whole?")
        return default

    def names(self) -> set[str]:
        """Every key there is, those of the parts included."""
        return set(self.raw) | set(self._left) | {key for part in self.parts for key in part.names()}

    def no_numbers(self) -> list[str]:
        """What was read and is text, a list or an object, as `key=value`: where to look when a family stumbles over a kind."""
        read = [f"{key}={self.raw[key]!r:.60}" for key in sorted(self._read & set(self.raw)) if isinstance(self.raw[key], str | list | dict)]
        return read + [each for part in self.parts for each in part.no_numbers()]

    def nullable(self, name: str, *, absent: Any) -> Any:
        """A setting that null switches off (None) and whose absence means something else, as it does in transformers."""
        self._read.add(name)
        return self.raw.get(name, absent)

    @property
    def read(self) -> frozenset[str]:
        """Keys that were asked for so far, there or not."""
        return frozenset(self._read)

    def expect(self, because: str = "", **facts: Any) -> None:
        """States settings this family supports in one value only. Raises UnsupportedModel for any other; a list may say it for every layer.

        because: why another value is refused, where that is not plain, and what to do about it.
        """
        for name, value in facts.items():
            self._read.add(name)
            said = self.raw.get(name)
            if said is not None and said != value and not (isinstance(said, list) and said and all(v == value for v in said)):
                raise UnsupportedModel(f"{self.where} has a setting this family does not implement: "
                                       f"{name}={self.raw[name]!r} (only {value!r}){because and ': ' + because}")

    def inert(self, **reasons: str) -> None:
        """Names keys that cannot change what this family computes here, each with its reason."""
        self._read |= set(reasons)

    def part(self, name: str, **absent: Any) -> Config:
        """A nested config, such as the text_config of a multimodal wrapper; its keys are accounted for in the same way.

        absent: what the keys mean that the file leaves to the class it was saved by.
        """
        nested = self(name)
        if not isinstance(nested, dict):
            raise BadConfig(f"{self.where}: {name} is {type(nested).__name__}, not an object")
        part = Config(absent | nested, accept_unread=self.accept_unread, where=f"{name} of {self.where}")
        self.parts.append(part)
        return part

    def finish(self) -> None:
        """Raises BadConfig if a key was left over that nobody vouched for."""
        left = {k: v for k, v in self.raw.items() if v is not None and k not in self._read and k not in INERT} | self._left
        self.accepted = sorted(set(left) & self.accept_unread)
        if unread := {k: v for k, v in left.items() if k not in self.accept_unread}:
            shown = ", ".join(f"{k}={v!r}"[:120] for k, v in sorted(unread.items()))
            flags = " ".join(f"--accept-unread {k}" for k in sorted(unread))
            raise BadConfig(f"{self.where} has {len(unread)} key{'s' * (len(unread) > 1)} that family "
                            f"{self.raw.get('model_type')!r} does not read: {shown}. Running anyway could compute something else than "
                            f"the model's authors meant. If you know that they change nothing: {flags}")
        for part in self.parts:
            part.finish()
            self.accepted += [f"{part.where.split(' ')[0]}.{k}" for k in part.accepted]

    def activation(self, *names: str, default: Any = ...) -> Activation:
        """The activation under the first of `names`. Raises UnsupportedModel for one we do not know, naming those we do."""
        name = self(*names, default=default)
        if name not in ACTIVATIONS:
            raise UnsupportedModel(f"{self.where} has a setting this family does not implement: "
                                   f"{names[0]}={name!r} (known: {', '.join(ACTIVATIONS)})")
        return ACTIVATIONS[name]

    def rope(self, d_head: int, *, pairing: Literal["half", "adjacent"] = "half", layer_type: str | None = None,
             fraction: float = 1.0, theta: float = 10_000.0, theta_key: str = "rope_theta", fraction_key: str = "partial_rotary_factor",
             scaled: bool = True, called: Mapping[str, str] | None = None, beside: Iterable[str] = ()) -> Rope:
        """The rope that both dialects describe; `layer_type` picks one of several, where layers differ.

        Args:
            d_head: channels of a head; `fraction` of them rotate, unless the config says otherwise.
            theta, theta_key, fraction_key: the family's defaults, and its old spellings of those keys.
            scaled: whether rope_scaling, of the transformers 4 dialect, is about this type of layer.
            called: this family's own names of scalings.
            beside: facts in the same place that are not the rope's, and that the family reads with `rope_fact`.
        """
        facts = self._rope_facts(layer_type, scaled)
        theta = self._agreed(facts, "rope_theta", (theta_key, *(() if layer_type else ("rope_theta",))), theta)
        fraction = self._agreed(facts, "partial_rotary_factor", (fraction_key, "partial_rotary_factor"), fraction)
        for name in beside:
            facts.pop(name, None)
        if facts["rope_type"] == "proportional":  # the fraction counts turning pairs there, not channels
            facts["turning"], fraction = int(fraction * d_head // 2), 1.0
        facts["rope_type"] = (called or {}).get(facts["rope_type"], facts["rope_type"])
        return Rope(theta=float(theta), d_rotary=int(d_head * fraction), pairing=pairing, scaling=self._scaling(facts))

    def rope_fact(self, name: str) -> Any:
        """A fact beside the rope's scaling that acts outside of it; None where the file does not state it."""
        return self._rope_facts(None, True).get(name)

    def _agreed(self, facts: dict[str, Any], name: str, keys: tuple[str, ...], default: float) -> Any:
        """A fact that may stand inside rope_parameters (taken out of `facts`) and beside them. Raises BadConfig where the two differ."""
        inside, beside = facts.pop(name, None), self(*keys, default=None)
        if None not in (inside, beside) and inside != beside:
            raise BadConfig(f"{self.where}: {' or '.join(dict.fromkeys(keys))} is {beside!r}, and {name} of the rope's own facts is {inside!r}. "
                            f"Remove the wrong one.")
        return inside if inside is not None else beside if beside is not None else default

    def _rope_facts(self, layer_type: str | None, scaled: bool) -> dict[str, Any]:
        """What rope_parameters (transformers 5) or rope_scaling (4) says of this type of layer. Raises BadConfig where they disagree."""
        new, old = ({k: v for k, v in self(key, default={}).items() if v is not None} for key in ("rope_parameters", "rope_scaling"))
        if layer_type is not None and any(isinstance(v, dict) for v in new.values()):
            new = {k: v for k, v in new.get(layer_type, {}).items() if v is not None}
        for facts in (new, old):
            kind = facts.pop("type", None)  # the oldest spelling; files often carry both
            facts.setdefault("rope_type", kind or "default")
        if not scaled or not self.raw.get("rope_scaling"):
            return new
        if self.raw.get("rope_parameters") and (torn := sorted(k for k in old.keys() & new.keys() if old[k] != new[k])):
            raise BadConfig(f"{self.where}: rope_scaling and rope_parameters disagree on {', '.join(torn)}. Remove the wrong one.")
        return new | old

    def _scaling(self, facts: dict[str, Any]) -> RopeScaling | None:
        """The spec of a rope scaling. Raises UnsupportedModel or BadConfig for one we do not know, lacking a key, or with one too many."""
        facts = dict(facts)
        kind = facts.pop("rope_type")
        if kind not in _SCALINGS:
            raise UnsupportedModel(f"{self.where} has a rope scaling Pellucid does not implement: "
                                   f"rope_type={kind!r} (known: {', '.join(_SCALINGS)})")
        try:
            scaling = _SCALINGS[kind](facts, self)
        except KeyError as missing:
            raise BadConfig(f"{self.where}: rope scaling {kind!r} lacks {missing}. Is the file whole?") from None
        for key in _INERT_IN_SCALING:
            facts.pop(key, None)
        self._left |= {f"rope_scaling.{key}": value for key, value in facts.items()}
        return scaling


_INERT_IN_SCALING = ("finetuned",)  # says that the model was tuned with the scaling, as the Yarn-Llama-2 repositories write it


def _linear(facts: dict[str, Any], c: Config) -> Linear:
    return Linear(factor=facts.pop("factor"))


def _dynamic(facts: dict[str, Any], c: Config) -> Dynamic:
    return Dynamic(original=c("max_position_embeddings"), factor=facts.pop("factor"))


def _llama3(facts: dict[str, Any], c: Config) -> Llama3:
    return Llama3(factor=facts.pop("factor"), low=facts.pop("low_freq_factor"), high=facts.pop("high_freq_factor"),
                  original=_original(facts, c))


def _yarn(facts: dict[str, Any], c: Config) -> Yarn:
    original = _original(facts, c)
    factor = facts.pop("factor", None) or c("max_position_embeddings") / original
    gain, over, under = (facts.pop(key, None) for key in ("attention_factor", "mscale", "mscale_all_dim"))
    if gain is None:  # transformers reads the two only together
        gain = temperature(factor, over) / temperature(factor, under) if over and under else temperature(factor)
    return Yarn(factor=factor, original=original, fast=facts.pop("beta_fast", 32), slow=facts.pop("beta_slow", 1),
                whole_pairs=facts.pop("truncate", True), gain=gain)


def _ntk(facts: dict[str, Any], c: Config) -> Ntk:
    for key in ("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"):
        facts.pop(key, None)  # carried beside alpha by the files that have it, and read by nobody
    return Ntk(alpha=facts.pop("alpha"))


def _longrope(facts: dict[str, Any], c: Config) -> LongRope:
    original = _original(facts, c)
    factor = facts.pop("factor", None) or c("max_position_embeddings") / original
    gain = facts.pop("attention_factor", None)
    if gain is None:
        gain = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return LongRope(short=tuple(map(float, facts.pop("short_factor"))), long=tuple(map(float, facts.pop("long_factor"))), original=original, gain=gain)


def temperature(factor: float, by: float = 1.0) -> float:
    """What stretching a rope does to the scores. https://arxiv.org/abs/2309.00071, eq. 22; `by` is DeepSeek-V2's generalization."""
    return 0.1 * by * math.log(factor) + 1.0 if factor > 1 else 1.0


def _original(facts: dict[str, Any], c: Config) -> int:
    """The context before stretching: some files keep it outside of the rope's facts, and that one wins, as it does in transformers."""
    inside = facts.pop("original_max_position_embeddings", None)
    return int(c("original_max_position_embeddings", default=None) or inside or c("max_position_embeddings"))


_SCALINGS: dict[str, Callable[[dict[str, Any], Config], RopeScaling | None]] = {
    "default": lambda facts, c: None,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "ntk_alpha": _ntk,
    "proportional": lambda facts, c: Proportional(turning=facts.pop("turning"), factor=float(facts.pop("factor", 1.0))),
}

"""What a case is: one tiny random model of a family, its sizes all different, so that a swapped axis cannot hide."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

Json = dict[str, Any]

# Under the names most configs use. No two are equal, and n_heads * d_head (84) is not d_model.
SIZES: Json = {
    "vocab_size": 101, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 4, "num_attention_heads": 6,
    "num_key_value_heads": 3, "head_dim": 14, "max_position_embeddings": 29,
}
WINDOW, ORIGINAL = 11, 13  # tokens: a sliding window, and the context before rope was stretched
LENGTH = 41  # tokens of a pass: past n_ctx, the window and rope's original context
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@dataclass(frozen=True, eq=False)  # each is itself: a key of the cache of built models
class Case:
    """One model: `config` are the keyword arguments of transformers' config class, on top of SIZES less `without`; or, where transformers lacks the
    family, the keys of its published config.json.

    why:     the switch values that this case proves.
    length:  tokens of a full pass.
    spread:  standard deviation of a matrix product's output for a normalized input; wilder weights show finer facts.
    old:     config.json rewritten into the transformers 4 dialect; None where that dialect never existed for the family.
    n_ctx:   the key of config.json that says how long the model was made for.
    adjust:  called with the random transformers model (with a reference: its tensors, by name) before it is saved, for a fact that plain noise
             would hide.
    reference: a module of tests/references, which judges in place of transformers; None where transformers 5.23 has the family.
    """

    family: str
    name: str
    why: str
    config: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    length: int = LENGTH
    spread: float = 1.5
    old: Callable[[Json], Json] | None = None
    n_ctx: str = "max_position_embeddings"
    adjust: Callable[[Any], None] | None = None
    reference: ModuleType | None = None

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type", self.family))

    def kwargs(self) -> Json:
        """The keyword arguments in full."""
        sizes = {key: value for key, value in SIZES.items() if key not in self.without}
        return {**sizes, **TOKENS, **{k: v for k, v in self.config.items() if k != "model_type"}}

    def __str__(self) -> str:
        return f"{self.family}-{self.name}"


def flat_rope(raw: Json, *, theta_key: str = "rope_theta", fraction_key: str = "partial_rotary_factor") -> Json:
    """A transformers 5 config.json in the dialect of 4: rope_theta and rope_scaling at the top, torch_dtype for dtype."""
    old = dict(raw)
    rope = dict(old.pop("rope_parameters", None) or {})
    if (theta := rope.pop("rope_theta", None)) is not None:
        old[theta_key] = theta
    if (fraction := rope.pop("partial_rotary_factor", None)) is not None:
        old[fraction_key] = fraction
    kind = rope.pop("rope_type", "default")
    old["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    old["torch_dtype"] = old.pop("dtype")
    return old | {"transformers_version": "4.38.0"}


def rope(kind: str, theta: float = 10_000.0, **facts: Any) -> Json:
    """rope_parameters of one type."""
    return {"rope_type": kind, "rope_theta": theta, **facts}


LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=ORIGINAL)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=ORIGINAL)
LINEAR = rope("linear", factor=3.0)
DYNAMIC = rope("dynamic", factor=2.0)


def yarn(**facts: Any) -> Json:
    """YARN with these facts added, its ramp wide enough for every one of them to show at these sizes."""
    return {**YARN, "rope_theta": 50.0, "beta_fast": 1.2, "beta_slow": 0.3, **facts}

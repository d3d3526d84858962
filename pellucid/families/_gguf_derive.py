"""What a config.json says that no single key of GGUF's metadata does: formulas that families share. Each takes the keys it reads. No torch here."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pellucid.families._gguf import Derive, Facts


def d_head(raw: Mapping[str, Any]) -> int:
    """Channels of a head, where no key need say it."""
    return int(raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"])


def turning(facts: Facts, raw: Mapping[str, Any]) -> float:
    """The share of a head's channels that rotate: all of them where no key counts them."""
    return float(facts.take("rope.dimension_count", d_head(raw)) / d_head(raw))


def layer_types(facts: Facts, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The kind of each layer where the file lists the windowed ones; a number is how many layers the pattern is long, the last one without a window."""
    said, n = facts.take("attention.sliding_window_pattern"), raw["num_hidden_layers"]
    if said is None or not raw.get("sliding_window"):
        return {}
    here = [bool(each) for each in said] if isinstance(said, list) else [said is True or (said is not False and (i + 1) % said != 0) for i in range(n)]
    return {"layer_types": ["sliding_attention" if each else "full_attention" for each in here]}


def partial(facts: Facts, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The share that rotates, as most families call it."""
    return {"partial_rotary_factor": turning(facts, raw)}


def query_scalar(wide: int) -> Derive:
    """What divides the scores is not in Gemma's files: the square root of a head's width, or of its share of d_model in the model that has so many
    layers. src/models/gemma2.cpp and gemma3.cpp of llama.cpp.
    """
    return lambda facts, raw: {"query_pre_attn_scalar": raw["hidden_size"] // raw["num_attention_heads"] if raw["num_hidden_layers"] == wide else d_head(raw)}

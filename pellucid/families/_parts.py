"""The facts that Llama's descendants all spell the same way. A family passes what differs; a keyword wins over config.json's usual key."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pellucid.errors import BadConfig, UnsupportedModel
from pellucid.families._config import Config
from pellucid.spec import Attention, DecoderSpec, Experts, FeedForward, Layer, Norm


def attention(c: Config, *, theta: float = 10_000.0, fraction: float | None = None, pairing: Literal["half", "adjacent"] = "half",
              layer_type: str | None = None, heads_default: bool = True, **facts: Any) -> Attention:
    """Grouped-query attention under rope.

    Args:
        theta: rope's base where config.json is silent.
        fraction: share of a head's channels that rotate where config.json is silent; None = always all.
        layer_type: picks one of several ropes, where layers differ.
        heads_default: an absent num_key_value_heads means as many as queries have; False = it must be there.
        facts: fields of Attention that this family sets otherwise.
    """
    n_heads = c("num_attention_heads")
    kv = c.nullable("num_key_value_heads", absent=None if heads_default else ...)
    if kv is ...:
        raise BadConfig(f"{c.where} has no 'num_key_value_heads', which this family needs. Is the file whole?")
    d_head = c("head_dim", default=c("hidden_size") // n_heads)
    bias = c("attention_bias", default=False) if "qkv_bias" not in facts else False
    usual = {"n_heads": n_heads, "n_kv_heads": kv or n_heads, "d_head": d_head, "scale": d_head ** -0.5, "qkv_bias": bias, "out_bias": bias}
    if "rope" not in facts:
        rope = c.rope(d_head, theta=theta, pairing=pairing, fraction=1.0 if fraction is None else fraction, layer_type=layer_type)
        if fraction is None and rope.d_rotary != d_head:
            raise UnsupportedModel(f"{c.where} has a setting this family does not implement: partial_rotary_factor={rope.d_rotary / d_head:g} (only 1.0)")
        usual["rope"] = rope
    return Attention(**(usual | facts))


def feed_forward(c: Config, **facts: Any) -> FeedForward:
    """A gated feed-forward; `facts` are fields that this family sets otherwise."""
    usual: dict[str, Any] = {} if "d_ff" in facts else {"d_ff": c("intermediate_size")}
    if "act" not in facts:
        usual["act"] = c.activation("hidden_act", default="silu")
    return FeedForward(**(usual | facts))


def experts(c: Config, each: FeedForward, *, renormalize: bool) -> Experts:
    """A mixture; the number of experts has two spellings, of which files saved by transformers 5 use the second."""
    return Experts(n_experts=c("num_experts", "num_local_experts"), n_active=c("num_experts_per_tok"), renormalize=renormalize, each=each)


def decoder(c: Config, layers: Iterable[Layer], *, eps: float = 1e-6, tied: bool = False, **facts: Any) -> DecoderSpec:
    """A whole decoder with RMSNorm before each sublayer; `eps` and `tied` are this family's defaults, `facts` fields it sets otherwise."""
    usual: dict[str, Any] = {"family": c("model_type"), "n_vocab": c("vocab_size"), "n_ctx": c("max_position_embeddings"), "d_model": c("hidden_size"),
                             "layers": tuple(layers), "tied": c("tie_word_embeddings", default=tied)}
    if "norm" not in facts:
        usual["norm"] = Norm(eps=c("rms_norm_eps", default=eps))
    return DecoderSpec(**(usual | facts))


def layer_types(c: Config, default: Sequence[str]) -> list[str]:
    """The kind of every layer, each "full_attention" or "sliding_attention"; `default` is the family's own pattern, as long as the model.

    Raises UnsupportedModel for a kind we do not know and BadConfig for a list of the wrong length.
    """
    kinds: list[str] = c("layer_types", default=list(default))
    if strange := sorted(set(kinds) - {"full_attention", "sliding_attention"}):
        raise UnsupportedModel(f"{c.where} has a setting this family does not implement: layer_types with {strange[0]!r} "
                               f"(only 'full_attention' and 'sliding_attention')")
    if len(kinds) != len(default):
        raise BadConfig(f"{c.where}: layer_types names {len(kinds)} layers and num_hidden_layers says {len(default)}. Which one is right?")
    return kinds

"""The facts that Llama's descendants all spell the same way. A family passes what differs; a keyword wins over config.json's usual key."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from pellucid.errors import BadConfig, UnsupportedModel
from pellucid.families._config import Config, temperature
from pellucid.spec import Activation, Attention, DecoderSpec, Experts, FeedForward, LatentAttention, Layer, Norm, Rope, Yarn


def attention(c: Config, *, theta: float = 10_000.0, fraction: float | None = None, pairing: Literal["half", "adjacent"] = "half",
              heads_default: bool = True, called: Mapping[str, str] | None = None, beside: Iterable[str] = (), **facts: Any) -> Attention:
    """Grouped-query attention under rope.

    Args:
        theta: rope's base where config.json is silent.
        fraction: share of a head's channels that rotate where config.json is silent; None = always all.
        heads_default: an absent num_key_value_heads means as many as queries have; False = it must be there.
        called, beside: see `Config.rope`.
        facts: fields of Attention that this family sets otherwise.
    """
    n_heads = c("num_attention_heads")
    kv = c.nullable("num_key_value_heads", absent=None if heads_default else ...)
    if kv is ...:
        raise BadConfig(f"{c.where} has no 'num_key_value_heads', which this family needs. Is the file whole?")
    d_head = facts["d_head"] if "d_head" in facts else c("head_dim", default=c("hidden_size") // n_heads)
    bias = False if "qkv_bias" in facts else c("attention_bias", default=False)
    usual = {"n_heads": n_heads, "n_kv_heads": n_heads if kv is None else kv, "d_head": d_head, "scale": d_head ** -0.5,
             "qkv_bias": bias, "out_bias": bias}
    if facts.get("rope") is None:
        how: dict[str, Any] = {"theta": theta, "pairing": pairing, "called": called, "beside": beside}
        usual["rope"] = whole_rope(c, d_head, **how) if fraction is None else c.rope(d_head, fraction=fraction, **how)
    return Attention(**(usual | facts))


def latent_attention(c: Config, *, pairing: Literal["half", "adjacent"] = "adjacent") -> LatentAttention:
    """DeepSeek's multi-head latent attention. The norms of the latents have an eps of their own, which no config states."""
    n_heads, d_plain, d_rotary = c("num_attention_heads"), c("qk_nope_head_dim", default=128), c("qk_rope_head_dim", default=64)
    c("num_key_value_heads")  # must be there: transformers' default is another number of heads
    c.expect(num_key_value_heads=n_heads)
    c.inert(**dict.fromkeys(("qk_head_dim", "head_dim"), "follows from qk_nope_head_dim and qk_rope_head_dim, in transformers too"))
    bias, rope, scale = c("attention_bias", default=False), whole_rope(c, d_rotary, pairing=pairing), (d_plain + d_rotary) ** -0.5
    if isinstance(rope.scaling, Yarn) and (over_all := c.rope_fact("mscale_all_dim")):
        scale *= temperature(rope.scaling.factor, over_all) ** 2
    return LatentAttention(n_heads=n_heads, d_plain=d_plain, d_value=c("v_head_dim", default=128), d_latent=c("kv_lora_rank", default=512),
                           d_query_latent=c.nullable("q_lora_rank", absent=1536), scale=scale, rope=rope, norm=Norm(eps=1e-6),
                           latent_bias=bias, out_bias=bias)


def head_width(c: Config, absent: int) -> int:
    """head_dim of a family that has a number for it where config.json is silent, and divides d_model among the heads where it says null."""
    width = c.nullable("head_dim", absent=absent)
    return int(width if width is not None else c("hidden_size") // c("num_attention_heads"))


def whole_rope(c: Config, d_head: int, **how: Any) -> Rope:
    """`Config.rope` for a family that turns every channel. Raises UnsupportedModel for a config that says otherwise."""
    rope = c.rope(d_head, **how)
    if rope.d_rotary != d_head:
        raise UnsupportedModel(f"{c.where} has a setting this family does not implement: "
                               f"partial_rotary_factor={rope.d_rotary / d_head:g} (only 1.0)")
    return rope


def feed_forward(c: Config, **facts: Any) -> FeedForward:
    """A gated feed-forward; `facts` are fields that this family sets otherwise."""
    usual: dict[str, Any] = {} if "d_ff" in facts else {"d_ff": c("intermediate_size")}
    if "act" not in facts:
        usual["act"] = c.activation("hidden_act", default="silu")
    return FeedForward(**(usual | facts))


def experts(c: Config, each: FeedForward, *, renormalize: bool, n_experts: int, n_active: int, **facts: Any) -> Experts:
    """A mixture; the counts are the family's defaults. The number of experts has two spellings: transformers 5 writes the second."""
    return Experts(n_experts=c("num_experts", "num_local_experts", default=n_experts),
                   n_active=c("num_experts_per_tok", default=n_active), renormalize=renormalize, each=each, **facts)


def sparse_steps(c: Config, dense: FeedForward, mixture: Experts) -> list[FeedForward | Experts]:
    """The feed-forward of every layer where every decoder_sparse_step-th is sparse, except those that mlp_only_layers names."""
    step, dense_at = c("decoder_sparse_step", default=1), c("mlp_only_layers", default=[])
    return [mixture if i not in dense_at and (i + 1) % step == 0 else dense for i in range(c("num_hidden_layers"))]


def corrected_experts(c: Config, *, n_dense: int = 0, bias: bool = False, keys: Sequence[str] = ("n_routed_experts", "num_local_experts"),
                      shared_key: str = "n_shared_experts", **facts: Any) -> list[FeedForward | Experts]:
    """The feed-forward of every layer where the first ones are dense and the others choose experts as DeepSeek-V3 does: sigmoid scores with a
    correction, groups, shared experts as one wide one. https://arxiv.org/abs/2412.19437, section 2.1.2.

    n_dense: how many are dense where config.json is silent; bias: of the dense ones and the shared; keys, shared_key: where the numbers of
    experts stand; facts: fields set otherwise.
    """
    each = feed_forward(c, d_ff=c("moe_intermediate_size"))
    usual: dict[str, Any] = {
        "n_experts": c(*keys), "n_active": c("num_experts_per_tok"), "scoring": "sigmoid", "correction": True,
        "n_groups": c("n_group", default=1), "n_active_groups": c("topk_group", default=1), "group_score": "best_two", "each": each,
        "shared": replace(each, d_ff=each.d_ff * c(shared_key), bias=bias), "share_scale": float(c("routed_scaling_factor", default=1.0))}
    if "renormalize" not in facts:
        usual["renormalize"] = c("norm_topk_prob")
    try:
        mixture = Experts(**(usual | facts))
    except ValueError as e:
        raise BadConfig(f"{c.where}: {keys[0]}, num_experts_per_tok, n_group and topk_group do not go together: {e}. Which one is wrong?") from None
    dense, n_dense = feed_forward(c, bias=bias), c("first_k_dense_replace", default=n_dense)
    return [dense if i < n_dense else mixture for i in range(c("num_hidden_layers"))]


def router_beside(c: Config, norm: Norm, act: Activation) -> Experts | None:
    """Gemma 4's mixture beside the feed-forward, where enable_moe_block says so; its router reads the stream through a norm of its own."""
    keys = ("num_experts", "top_k_experts", "moe_intermediate_size")
    if not c("enable_moe_block", default=False):
        c.inert(**dict.fromkeys(keys, "enable_moe_block is off"))
        return None
    n_experts, n_active, d_ff = map(c, keys)
    return Experts(n_experts=n_experts, n_active=n_active, renormalize=True, router_norm=norm, router_scale=c("hidden_size") ** -0.5, share_gain=True,
                   each=FeedForward(d_ff=d_ff, act=act))


def shared_from(c: Config, kinds: Sequence[str]) -> list[int | None]:
    """For every layer the one whose keys and values it reads, None for its own: the last num_kv_shared_layers read the last of their kind before."""
    first = len(kinds) - (n_shared := c("num_kv_shared_layers", default=0))
    makers = {kind: i for i, kind in enumerate(kinds[:first])}
    if strange := sorted(set(kinds) - set(makers)):
        raise BadConfig(f"{c.where}: num_kv_shared_layers={n_shared} and layer_types leave none of {len(kinds)} layers that makes keys and values of "
                        f"{strange[0]!r}. Which is right?")
    return [None if i < first else makers[kind] for i, kind in enumerate(kinds)]


def causal(c: Config, *implemented: str) -> Any:
    """What is said of attention that sees both ways. Raises UnsupportedModel for it, where transformers' own ways to compute it disagree, but for what is
    implemented."""
    said = c("use_bidirectional_attention", default=False)
    if said and said not in implemented:
        raise UnsupportedModel(f"{c.where} has a setting this family does not implement: use_bidirectional_attention={said!r} (only False): no release of "
                               f"the family says so, and in transformers it acts in some attention kernels only. EmbeddingGemma is a gemma3_text.")
    return said


def both_ways(c: Config, window: int) -> tuple[bool, int]:
    """Whether Gemma 4's tokens see only what came before them, and how far. Source: transformers 5.23, Gemma4TextConfig and masking_utils.py.

    Two switches: the class derives is_causal from use_bidirectional_attention="all", which halves the window as well, and a file may say is_causal alone.
    A window to both sides holds those at most so far away, a causal one those nearer.
    """
    both = causal(c, "vision", "all") == "all"  # "vision" is about the inside of each image, and no image is read
    one_way = bool(c.nullable("is_causal", absent=True)) and not both
    return one_way, (window // 2 + 1 if both else window) + (not one_way)


def multipliers(c: Config) -> dict[str, Any]:
    """Granite's fixed factors, as fields of DecoderSpec."""
    return {"logit_scale": 1.0 / c("logits_scaling", default=1.0), "embed_scale": float(c("embedding_multiplier", default=1.0)),
            "residual_scale": float(c("residual_multiplier", default=1.0))}


def decoder(c: Config, layers: Iterable[Layer], *, eps: float = 1e-6, tied: bool = False, **facts: Any) -> DecoderSpec:
    """A whole decoder with RMSNorm before each sublayer; `eps` and `tied` are this family's defaults, `facts` fields it sets otherwise."""
    n_ctx = c("max_position_embeddings", "max_sequence_length")  # the second in the first conversions of Llama, alone or beside the first
    usual: dict[str, Any] = {"family": c("model_type"), "n_vocab": c("vocab_size"), "n_ctx": n_ctx, "d_model": c("hidden_size"),
                             "layers": tuple(layers), "tied": c("tie_word_embeddings", default=tied)}
    if "norm" not in facts:
        usual["norm"] = Norm(eps=c("rms_norm_eps", default=eps))
    return DecoderSpec(**(usual | facts))


def layer_types(c: Config, default: Sequence[str], window: int | None) -> list[str]:
    """The kind of every layer, each "full_attention" or "sliding_attention"; `default` is the family's own pattern, as long as the model.

    Raises UnsupportedModel for a kind we do not know, BadConfig for a list of the wrong length or windowed layers without a window.
    """
    kinds: list[str] = c("layer_types", default=list(default))
    if strange := sorted(set(kinds) - {"full_attention", "sliding_attention"}):
        raise UnsupportedModel(f"{c.where} has a setting this family does not implement: layer_types with {strange[0]!r} "
                               f"(only 'full_attention' and 'sliding_attention')")
    if len(kinds) != len(default):
        raise BadConfig(f"{c.where}: layer_types names {len(kinds)} layers and num_hidden_layers says {len(default)}. Which one is right?")
    if "sliding_attention" in kinds and window is None:
        raise BadConfig(f"{c.where}: layer_types has windowed layers and there is no window: sliding_window is null or "
                        f"use_sliding_window is off. Set it, or make every layer 'full_attention'.")
    return kinds


def one_a_layer(c: Config, name: str, n_layers: int) -> list[Any]:
    """A list with one entry for every layer. Raises BadConfig for one of another length."""
    said: list[Any] = c(name)
    if len(said) != n_layers:
        raise BadConfig(f"{c.where}: {name} names {len(said)} layers and num_hidden_layers says {n_layers}. Which one is right?")
    return said


def late_windows(c: Config, *, used: bool | None = None, first: int = 28) -> list[int | None]:
    """The window of every layer where only those from max_window_layers on have one, and only if use_sliding_window says so.

    used: what the family says in place of use_sliding_window; first: its max_window_layers where config.json is silent.
    """
    window = c.nullable("sliding_window", absent=4096)
    if not (c("use_sliding_window", default=False) if used is None else used):
        window = None
    first = c("max_window_layers", default=first)
    late = ["sliding_attention" if window and i >= first else "full_attention" for i in range(c("num_hidden_layers"))]
    return [window if kind == "sliding_attention" else None for kind in layer_types(c, late, window)]

"""What a spec says under each key of GGUF's metadata: one table for every architecture. Files are written by it, and what a file says is held against it.

The keys: https://github.com/ggml-org/llama.cpp/blob/3679b65db16ebaabba95a893c62eb6c4840e832c/src/llama-arch.cpp; what they mean: load_hparams of
src/llama-model.cpp there, and each architecture's file in src/models. No torch here.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from pellucid.spec import Attention, DecoderSpec, Experts, FeedForward, LatentAttention, Linear, LongRope, Matrix, Mixer, Rope, Yarn


class Free(NamedTuple):
    """A value that is written where a file must say something, and in whose place any other means the same to this model."""

    value: Any


Of = Callable[[DecoderSpec], Any]  # None: nothing to say, and a file that says something must say zero, false or "none"

GATING = {"softmax": 1, "sigmoid": 2}  # enum llama_expert_gating_func_type


def one(values: Iterable[Any]) -> Any:
    """The value that all share, the list of them where they differ, None where there are none."""
    said = list(values)
    return None if not said else said[0] if all(value == said[0] for value in said) else said


def attentions(s: DecoderSpec) -> list[Attention]:
    return [mixer for mixer in s.mixers if isinstance(mixer, Attention)]


def mixtures(s: DecoderSpec) -> list[Experts]:
    return [layer.mlp if isinstance(layer.mlp, Experts) else layer.beside for layer in s.layers  # type: ignore[misc]
            if isinstance(layer.mlp, Experts) or layer.beside is not None]


def windowed(s: DecoderSpec) -> list[bool]:
    return [isinstance(layer.mixer, Attention) and layer.mixer.window is not None for layer in s.layers]


def far(s: DecoderSpec) -> list[Mixer]:
    """The mixers that see everything, or all where none does."""
    return [m for m in s.mixers if not isinstance(m, Attention) or m.window is None] or list(s.mixers)


def near(s: DecoderSpec) -> list[Attention]:
    """The windowed ones."""
    return [m for m in attentions(s) if m.window is not None]


def ropes(s: DecoderSpec) -> list[Rope]:
    """Those of the mixers that see everything, or of all where none of those has one."""
    return [m.rope for m in far(s) if m.rope is not None] or [m.rope for m in s.mixers if m.rope is not None]


def of_attention(fact: Callable[[Attention], Any]) -> Of:
    return lambda s: one(fact(mixer) for mixer in attentions(s))


def of_experts(fact: Callable[[Experts], Any]) -> Of:
    return lambda s: one(fact(mixture) for mixture in mixtures(s))


def of_latent(fact: Callable[[LatentAttention], Any]) -> Of:
    return lambda s: one(fact(mixer) for mixer in s.mixers if isinstance(mixer, LatentAttention))


def of_scaling(fact: Callable[[Any], Any], *kinds: type) -> Of:
    """A fact of the rope's scaling, where it is of these kinds."""
    def of(s: DecoderSpec) -> Any:
        scalings = [rope.scaling for rope in ropes(s)]
        return fact(scalings[0]) if scalings and isinstance(scalings[0], kinds) else None
    return of


def feed_forward_length(s: DecoderSpec) -> Any:
    dense = [layer.mlp.d_ff if isinstance(layer.mlp, FeedForward) else 0 for layer in s.layers]
    if not any(dense):
        return Free(mixtures(s)[0].each.d_ff)  # llama.cpp takes it where nothing else says how wide an expert is
    return one(n for n in dense if n or not mixtures(s))


def _heads(s: DecoderSpec) -> Any:
    return one(0 if layer.mixer is None or isinstance(layer.mixer, Matrix) else layer.mixer.n_heads for layer in s.layers)


def _kv_heads(s: DecoderSpec) -> Any:
    """Of latent attention one: llama.cpp reads the latents as the keys of a single head."""
    return one(layer.mixer.n_kv_heads if isinstance(layer.mixer, Attention) else 1 if isinstance(layer.mixer, LatentAttention) else 0
               for layer in s.layers)


def _dense_before(s: DecoderSpec) -> int | None:
    sparse = [isinstance(layer.mlp, Experts) for layer in s.layers]
    return sparse.index(True) if True in sparse else None


def _scaling_type(scaling: Linear | Yarn | LongRope) -> str | None:
    """None for one set of factors and no gain: that is Llama 3's, whose factors alone say it."""
    if isinstance(scaling, LongRope):
        return None if scaling.short == scaling.long and scaling.gain == 1.0 else "longrope"
    return "linear" if isinstance(scaling, Linear) else "yarn"


KEYS: dict[str, Of] = {
    "context_length": lambda s: s.n_ctx,
    "embedding_length": lambda s: s.d_model,
    "block_count": lambda s: len(s.layers),
    "feed_forward_length": feed_forward_length,
    "vocab_size": lambda s: s.n_vocab,
    "attention.head_count": _heads,
    "attention.head_count_kv": _kv_heads,
    "attention.key_length": lambda s: one(m.d_head if isinstance(m, Attention) else m.n_cached for m in far(s)),
    "attention.value_length": lambda s: one(m.d_head if isinstance(m, Attention) else m.d_latent for m in far(s)),
    "attention.key_length_swa": lambda s: one(m.d_head for m in near(s)),
    "attention.value_length_swa": lambda s: one(m.d_head for m in near(s)),
    "attention.layer_norm_epsilon": lambda s: s.norm.eps if s.norm.kind == "layer" else None,
    "attention.layer_norm_rms_epsilon": lambda s: s.norm.eps if s.norm.kind == "rms" else None,
    "attention.causal": lambda s: s.causal,
    "attention.clamp_kqv": of_attention(lambda a: a.clip),
    "attention.max_alibi_bias": of_attention(lambda a: None if a.alibi is None else a.alibi.steepness),
    "attention.scale": of_attention(lambda a: a.scale),
    "attention.sliding_window": lambda s: one(m.window for m in attentions(s) if m.window is not None),
    "attention.sliding_window_pattern": lambda s: windowed(s) if any(windowed(s)) else None,
    "attention.q_lora_rank": of_latent(lambda m: m.d_query_latent),
    "attention.kv_lora_rank": of_latent(lambda m: m.d_latent),
    "attention.key_length_mla": of_latent(lambda m: m.d_plain + m.rope.d_rotary),
    "attention.value_length_mla": of_latent(lambda m: m.d_value),
    "attn_logit_softcapping": of_attention(lambda a: a.softcap),
    "final_logit_softcapping": lambda s: s.logit_softcap,
    "embedding_scale": lambda s: s.embed_scale,
    "residual_scale": lambda s: s.residual_scale,
    "use_parallel_residual": lambda s: s.parallel,
    "rope.dimension_count": lambda s: one(rope.d_rotary for rope in ropes(s)),
    "rope.dimension_count_swa": lambda s: one(m.rope.d_rotary for m in near(s) if m.rope is not None),
    "rope.freq_base": lambda s: (Free if all(windowed(s)) else lambda x: x)(one(rope.theta for rope in ropes(s))),
    "rope.freq_base_swa": lambda s: one(m.rope.theta for m in near(s) if m.rope is not None),
    "rope.scaling.type": of_scaling(_scaling_type, Linear, Yarn, LongRope),
    "rope.scaling.factor": of_scaling(lambda r: r.factor, Linear, Yarn),
    "rope.scaling.attn_factor": of_scaling(lambda r: r.gain if _scaling_type(r) else None, LongRope),
    "rope.scaling.original_context_length": of_scaling(lambda r: r.original if _scaling_type(r) else None, Yarn, LongRope),
    "rope.scaling.yarn_attn_factor": of_scaling(lambda r: r.gain, Yarn),
    "rope.scaling.yarn_beta_fast": of_scaling(lambda r: r.fast, Yarn),
    "rope.scaling.yarn_beta_slow": of_scaling(lambda r: r.slow, Yarn),
    "expert_count": of_experts(lambda x: x.n_experts),
    "expert_used_count": of_experts(lambda x: x.n_active),
    "expert_feed_forward_length": of_experts(lambda x: x.each.d_ff),
    "expert_shared_feed_forward_length": of_experts(lambda x: None if x.shared is None else x.shared.d_ff),
    "expert_shared_count": of_experts(lambda x: None if x.shared is None else x.shared.d_ff // x.each.d_ff),
    "expert_weights_scale": of_experts(lambda x: x.share_scale),
    "expert_weights_norm": of_experts(lambda x: x.renormalize),
    "expert_gating_func": of_experts(lambda x: GATING[x.scoring]),
    "expert_group_count": of_experts(lambda x: x.n_groups),
    "expert_group_used_count": of_experts(lambda x: x.n_active_groups),
    "leading_dense_block_count": _dense_before,
    # Nothing in a spec: how an older converter laid q and k out, how vectors of text are pooled, that the model was tuned with its scaling.
    **dict.fromkeys(("tensor_data_layout", "pooling_type", "rope.scaling.finetuned"), lambda s: Free(None)),
}


def same(said: Any, made: Any) -> bool:
    """Whether a value of the metadata is what the spec makes it, float32 against float64; nothing is zero, false or "none"."""
    if isinstance(made, Free):
        return True
    if made is None:
        return not isinstance(said, list) and said in (0, False, "none", "")
    if isinstance(said, Sequence) and isinstance(made, Sequence) and not isinstance(made, str):
        return len(said) == len(made) and all(map(same, said, made))
    if isinstance(said, float) or isinstance(made, float):
        return isinstance(said, int | float) and isinstance(made, int | float) and abs(said - made) <= 1e-6 * abs(made)
    return bool(said == made)

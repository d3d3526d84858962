"""What a decoder is, as frozen data. A family turns config.json into one of these; the decoder reads nothing else.

A prefix tells the kind: d_ is the width of a vector, n_ a count of things; a boolean reads as a fact.
Nothing here imports torch: planning, licences and the catalog work from a spec alone. A spec that no decoder could
compute raises ValueError when it is made.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu", "gelu_tanh", "gelu_quick", "relu", "relu2", "relu6", "leaky_relu", "hardswish", "laplace",
                     "sqrtsoftplus", "tanh", "sigmoid", "mish", "linear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """Normalization over the last axis, computed in float32 and rounded once."""

    kind: Literal["rms", "layer"] = "rms"
    eps: float
    weight: bool = True
    bias: bool = False
    offset: float = 0.0  # the gain is (offset + weight): 1.0 for Gemma and Nemotron


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """Rope scaling: every frequency divided by `factor`. https://arxiv.org/abs/2306.15595"""

    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Dynamic:
    """Rope scaling: plain in rows of up to `original` tokens; the base of a row n times as long is stretched as by Ntk, at all its positions, with
    alpha = 1 + factor * (n - 1), or with n rounded up to a power of two. https://arxiv.org/abs/2309.00071, section 3.3
    """

    original: int
    factor: float
    doubling: bool = False

    def __post_init__(self) -> None:
        _positive(original=self.original)

    def turns_as(self, length: int) -> int:
        """The length that stands for all whose rows turn as a row of `length` tokens does."""
        return self.original << ((max(length, 1) - 1) // self.original).bit_length() if self.doubling else max(length, self.original)

    def alpha(self, length: int) -> float:
        return 1 + self.factor * (self.turns_as(length) / self.original - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3:
    """Rope scaling: slow pairs stretched by `factor`, fast ones kept, a ramp between.

    A pair is slow below `low` turns per `original` tokens and fast above `high`. https://arxiv.org/abs/2407.21783
    """

    factor: float
    low: float
    high: float
    original: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Yarn:
    """Rope scaling: as Llama3's, but with a ramp over the pair's index; `gain` multiplies cos and sin. https://arxiv.org/abs/2309.00071"""

    factor: float
    original: int
    fast: float = 32.0  # turns per `original` tokens above which a pair is kept
    slow: float = 1.0
    whole_pairs: bool = True  # the ramp starts and ends at whole pair indices
    gain: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LongRope:
    """Rope scaling: every pair stretched by a factor of its own, in rows of up to `original` tokens by the short ones, in longer rows by the
    long ones, at all their positions; `gain` multiplies cos and sin. https://arxiv.org/abs/2402.13753
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original: int
    gain: float

    def turns_as(self, length: int) -> int:
        """The length that stands for all whose rows turn as a row of `length` tokens does."""
        return self.original + (length > self.original)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ntk:
    """Rope scaling: theta multiplied by alpha ** (R / (R - 2)), so that the slowest pair is stretched by alpha and the fastest kept.

    https://arxiv.org/abs/2309.00071, section 3.1
    """

    alpha: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Proportional:
    """Rope scaling: only the first `turning` pairs of the head turn, each as fast as if all did, divided by `factor`; the others stand still."""

    turning: int
    factor: float


RopeScaling = Linear | Dynamic | Llama3 | Yarn | LongRope | Ntk | Proportional


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary position embedding. https://arxiv.org/abs/2104.09864"""

    theta: float
    d_rotary: int  # leading channels of each head that rotate; the rest pass through
    pairing: Literal["half", "adjacent"] = "half"  # channel c pairs with c + R/2, or with c + 1
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        if isinstance(self.scaling, Proportional) and not 0 <= self.scaling.turning <= self.d_rotary // 2:
            raise ValueError(f"{self.scaling.turning} of {self.d_rotary // 2} pairs cannot turn")
        if isinstance(self.scaling, Ntk | Dynamic) and self.d_rotary <= 2:
            raise ValueError("the base of a rope with one pair cannot be stretched: nothing turns slower")
        if isinstance(self.scaling, LongRope) and {len(self.scaling.short), len(self.scaling.long)} != {self.d_rotary // 2}:
            raise ValueError(f"{len(self.scaling.short)} short and {len(self.scaling.long)} long factors are not those of {self.d_rotary // 2} pairs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Temperature:
    """Scores sharpen with position: a query at p is multiplied by 1 + by * log(1 + floor((p + first) / every)). https://arxiv.org/abs/2501.19399"""

    every: int  # tokens
    by: float
    first: int  # what the first position counts as

    def __post_init__(self) -> None:
        _positive(every=self.every)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alibi:
    """A bias on the scores that falls with distance: head h loses its slope for every token back. https://arxiv.org/abs/2108.12409"""

    steepness: float = 8.0  # the last of a power of two heads has the slope 2 ** -steepness
    gain: float = 1.0  # multiplies every slope

    def slopes(self, n_heads: int) -> tuple[float, ...]:
        """One a head. Past a power of two, n, the slopes of 2 n heads fill in, every other one from the first."""
        n = 1 << n_heads.bit_length() - 1  # the largest power of two that is not above n_heads
        exponents = [i / n for i in range(1, n + 1)] + [i / (2 * n) for i in range(1, 2 * (n_heads - n), 2)]
        return tuple(self.gain * 2 ** (-self.steepness * e) for e in exponents)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogTemperature:
    """Scores sharpen with the length: a query that sees n tokens is multiplied by log(n) / log(original), and never by less than 1.

    https://arxiv.org/abs/2202.12172, as https://arxiv.org/abs/2309.16609 has it.
    """

    original: int  # tokens

    def __post_init__(self) -> None:
        if self.original < 2:
            raise ValueError(f"original is {self.original}, whose logarithm nothing can be divided by")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """The mixer of a layer: softmax attention with grouped key/value heads."""

    n_heads: int
    n_kv_heads: int
    d_head: int
    scale: float  # multiplies q . k
    rope: Rope | None = None  # None = no rotary position in this layer
    alibi: Alibi | None = None
    causal: bool = True  # a query sees no key after it; else keys on both sides, and a window counts to each
    window: int | None = None  # tokens a query may see, itself included; None = all
    chunk: int | None = None  # a row is cut into chunks of so many tokens, and a query sees nothing before its own
    sinks: bool = False  # a learned score for each head takes part in the softmax and brings no value
    softcap: float | None = None  # scores become cap * tanh(scores / cap)
    qkv_bias: bool = False
    out_bias: bool = False
    clip: float | None = None  # q, k and v are clamped to [-clip, clip] before they are split into heads
    qk_norm: Norm | None = None  # normalize queries and keys before they rotate
    qk_norm_over: Literal["head", "each_head", "width"] = "head"  # one gain for all heads, one gain a head, all heads together
    value_norm: Norm | None = None  # normalize each head's values
    values_from_keys: bool = False  # values are what keys are before their norm and rope: one projection makes both
    shares: int | None = None  # index of the layer whose keys and values these queries read; None = this layer makes its own
    qk_norm_late: bool = False  # after they rotated instead
    temperature: Temperature | LogTemperature | None = None

    def __post_init__(self) -> None:
        _positive(n_heads=self.n_heads, n_kv_heads=self.n_kv_heads, d_head=self.d_head, window=1 if self.window is None else self.window,
                  chunk=1 if self.chunk is None else self.chunk)
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"{self.n_heads} query heads cannot share {self.n_kv_heads} key/value heads evenly")
        if not self.causal and (self.chunk is not None or self.alibi is not None):
            raise ValueError("chunks and falling scores are counted from what came before, and this attention sees what follows too")
        if self.rope is not None and not 0 < self.rope.d_rotary <= self.d_head:
            raise ValueError(f"{self.rope.d_rotary} channels cannot rotate in heads of {self.d_head}")
        if self.qk_norm_late and self.qk_norm_over == "width":
            raise ValueError("a norm over all heads together stands before the rope, and qk_norm_late says after")
        if self.shares is not None and (self.value_norm is not None or self.values_from_keys):
            raise ValueError("a layer that shares another's keys and values makes none, and value_norm and values_from_keys are about making them")

    @property
    def n_cached(self) -> int:
        """Numbers a cache keeps of one token: its keys and values; what is shared is kept where it was made."""
        return 2 * self.n_kv_heads * self.d_head if self.shares is None else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """The mixer of a layer: keys and values of all heads come out of one short latent a token. https://arxiv.org/abs/2405.04434, section 2.1

    A head's query and key are `d_plain` channels, then those that the rope turns; the turning part of the key is one for all heads.
    """

    n_heads: int
    d_plain: int
    d_value: int  # width of a head's value
    d_latent: int  # what keys and values come out of
    d_query_latent: int | None  # queries come out of a latent of their own; None = straight from the stream
    scale: float  # multiplies q . k
    rope: Rope
    norm: Norm  # of both latents
    latent_bias: bool = False  # of the matrices that make the latents
    out_bias: bool = False

    def __post_init__(self) -> None:
        _positive(n_heads=self.n_heads, d_plain=self.d_plain, d_value=self.d_value, d_latent=self.d_latent, d_rotary=self.rope.d_rotary,
                  d_query_latent=1 if self.d_query_latent is None else self.d_query_latent)

    @property
    def n_kv_heads(self) -> int:
        """Every head has keys and values of its own; that they come out of one latent is what the cache saves."""
        return self.n_heads

    @property
    def n_cached(self) -> int:
        """Numbers a cache keeps of one token: the latent and the key that all heads share."""
        return self.d_latent + self.rope.d_rotary


Mixer = Attention | LatentAttention


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedForward:
    """down(act(gate(x)) * up(x)), or down(act(up(x))) where it is not gated.

    xielu: an activation with numbers of its own, learned for each layer, stands in place of act. https://arxiv.org/abs/2411.13010
    """

    d_ff: int
    act: Activation = "silu"
    gated: bool = True
    bias: bool = False
    slope: float = 1.0  # silu's: x * sigmoid(slope * x)
    limit: float | None = None  # the gate is clamped from above, and up on both sides
    up_offset: float = 0.0  # added to up
    xielu: bool = False

    def __post_init__(self) -> None:
        _positive(d_ff=self.d_ff)
        if self.slope != 1.0 and self.act != "silu":
            raise ValueError(f"a slope of {self.slope:g} is silu's, and the activation is {self.act}")
        if not self.gated and (self.slope != 1.0 or self.limit is not None or self.up_offset):
            raise ValueError("slope, limit and up_offset are about a gated feed-forward, and this one is not")
        if self.xielu and self.gated:
            raise ValueError("xIELU stands in a feed-forward without a gate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """A mixture: the router picks `n_active` of `n_experts` feed-forwards for every token; a shared one sees every token.

    The router's logits become scores, the experts with the highest are chosen, and their scores are their shares. A softmax over the
    chosen experts alone is `renormalize`: the sum over the others cancels.
    """

    n_experts: int
    n_active: int
    scoring: Literal["softmax", "sigmoid"] = "softmax"  # of all the logits
    router_norm: Norm | None = None  # normalize what the router reads
    router_scale: float = 1.0  # multiplies the logits
    router_bias: bool = False
    correction: bool = False  # a number an expert, added to its score when experts are chosen, not to its share. https://arxiv.org/abs/2408.15664
    n_groups: int = 1  # experts stand in groups of equal size, one after another
    n_active_groups: int = 1  # groups whose experts may be chosen
    group_score: Literal["best", "best_two"] = "best"  # what makes a group active: its highest score, or the sum of its two highest
    spread: bool = False  # as many are chosen in one group as in any other. https://arxiv.org/abs/2505.21411
    renormalize: bool  # divide the chosen experts' shares by their sum
    share_scale: float = 1.0  # multiplies the shares in the end
    share_gain: bool = False  # a learned number an expert, which multiplies its share too
    scale_input: bool = False  # the share multiplies what an expert reads, not what it writes
    each: FeedForward
    shared: FeedForward | None = None  # added to what the chosen experts write
    shared_gate: bool = False  # the shared one's output is multiplied by the sigmoid of a projection of the token

    def __post_init__(self) -> None:
        if not 0 < self.n_active <= self.n_experts:
            raise ValueError(f"{self.n_active} of {self.n_experts} experts cannot be active")
        if not 0 < self.n_active_groups <= self.n_groups:
            raise ValueError(f"{self.n_active_groups} of {self.n_groups} groups of experts cannot be active")
        if self.n_experts % self.n_groups:
            raise ValueError(f"{self.n_experts} experts do not make {self.n_groups} groups of equal size")
        if self.n_active > self.n_active_groups * (size := self.n_experts // self.n_groups):
            raise ValueError(f"{self.n_active} active experts are more than {self.n_active_groups} groups of {size} have")
        if self.group_score == "best_two" and self.n_groups > 1 and size < 2:
            raise ValueError(f"groups of {size} expert have no two best")
        if self.spread and (self.n_active % self.n_groups or self.n_active_groups != self.n_groups):
            raise ValueError(f"{self.n_active} active experts cannot spread over {self.n_groups} groups, of which {self.n_active_groups} are active")
        if self.shared_gate and self.shared is None:
            raise ValueError("there is a gate for a shared expert, and no shared expert")


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """One square matrix in place of a whole sublayer: where it stands for attention, no position sees another. https://arxiv.org/abs/2411.19146"""

    @property
    def n_cached(self) -> int:
        """Nothing is kept of a token."""
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInputs:
    """Beside the stream every layer reads a short vector of its own for each token: looked up in a table, and projected from the embedding.

    https://ai.google.dev/gemma/docs/core, per-layer embeddings
    """

    d_input: int
    n_vocab: int  # rows of the table
    act: Activation

    def __post_init__(self) -> None:
        _positive(d_input=self.d_input, n_vocab=self.n_vocab)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One block: what mixes positions and what works on each position. Layers may differ in anything named here.

    None: this layer has no such sublayer, nor the norms around it.
    """

    mixer: Mixer | Matrix | None
    mlp: FeedForward | Experts | Matrix | None
    beside: Experts | None = None  # a mixture that reads the stream beside mlp; each of the two has norms of its own, and their sum another
    scaled: bool = False  # a learned number multiplies what leaves the layer

    def __post_init__(self) -> None:
        if self.beside is not None and not isinstance(self.mlp, FeedForward):
            raise ValueError("a mixture stands beside a feed-forward, and this layer has none")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """Everything the decoder needs to know about a model except its numbers."""

    family: str
    n_vocab: int
    n_ctx: int  # tokens the model was made for
    d_model: int
    layers: tuple[Layer, ...]
    norm: Norm  # of the residual stream: before and after sublayers, and at the end
    # wiring of one block
    parallel: bool = False  # attention and feed-forward both read the block's input
    shared_norm: bool = False  # a parallel block that normalizes once, for both
    norm_in: bool = True  # normalize what a sublayer reads
    norm_out: bool = False  # normalize what a sublayer writes
    norm_stream: Literal["before", "after"] | None = None  # instead of both: normalize the residual stream itself, before or after each sublayer
    residual_scale: float = 1.0  # multiplies what a sublayer adds to the residual stream
    # the two ends
    d_embed: int | None = None  # width of the embedding, where projections lead from it into the stream and back; None = d_model
    learned_positions: int = 0  # rows in the position table; 0 = none
    sinusoidal_positions: bool = False  # computed, and added as learned ones are
    position_offset: int = 0  # OPT stores position p in row p + 2
    embed_scale: float = 1.0
    embed_norm: bool = False  # normalize what enters the first block
    layer_inputs: LayerInputs | None = None
    final_norm: bool = True  # normalize what leaves the last
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    tied: bool = False  # the embedding is the unembedding
    unembed_bias: bool = False
    unembed_unit: bool = False  # every row of the unembedding is scaled to length one. https://arxiv.org/abs/2309.10305

    def __post_init__(self) -> None:
        _positive(n_vocab=self.n_vocab, n_ctx=self.n_ctx, d_model=self.d_model, n_layers=len(self.layers),
                  d_embed=1 if self.d_embed is None else self.d_embed)
        if self.norm_stream and (self.norm_in or self.norm_out or self.parallel):
            raise ValueError(f"norm_stream={self.norm_stream!r} normalizes the stream itself: norm_in, norm_out and parallel must be off")
        if (self.parallel or self.norm_stream) and any(layer.mixer is None or layer.mlp is None for layer in self.layers):
            raise ValueError("a layer lacks one of its sublayers, and parallel and norm_stream are about both")
        if (self.parallel or self.norm_stream or not self.norm_in or not self.norm_out) and any(layer.beside is not None for layer in self.layers):
            raise ValueError("a mixture beside a feed-forward has its norms where norm_in and norm_out put them, and both must be on")
        if self.learned_positions and self.sinusoidal_positions:
            raise ValueError("positions cannot be learned and sinusoidal at once")
        for i, layer in enumerate(self.layers):
            if isinstance(layer.mixer, Attention) and layer.mixer.shares is not None:
                self._check_shared(i, layer.mixer, layer.mixer.shares)

    def _check_shared(self, i: int, mixer: Attention, source: int) -> None:
        """Raises ValueError where layer i cannot read the keys and values of layer `source`."""
        made = self.layers[source].mixer if 0 <= source < i else None
        if not isinstance(made, Attention) or made.shares is not None:
            raise ValueError(f"layer {i} shares the keys and values of layer {source}, and no earlier layer of that number makes any")
        if (mixer.n_kv_heads, mixer.d_head) != (made.n_kv_heads, made.d_head):
            raise ValueError(f"layer {i} shares keys of {mixer.n_kv_heads} heads x {mixer.d_head}, and layer {source} makes {made.n_kv_heads} x {made.d_head}")
        if (mixer.window, mixer.chunk) != (made.window, made.chunk):  # what nobody who made them sees any more, a memory may forget
            raise ValueError(f"layer {i} sees otherwise (window {mixer.window}, chunk {mixer.chunk}) than layer {source}, whose keys it shares")

    @property
    def causal(self) -> bool:
        """Whether every token sees only what came before it, so that a row can be continued; else the model encodes text, a row at a time."""
        return all(mixer.causal for mixer in self.mixers if isinstance(mixer, Attention))

    @property
    def mixers(self) -> tuple[Mixer, ...]:
        """What mixes positions, of the layers where something does."""
        return tuple(layer.mixer for layer in self.layers if layer.mixer is not None and not isinstance(layer.mixer, Matrix))


def _positive(**sizes: int) -> None:
    """Raises ValueError for a size below one."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}, and no decoder has fewer than 1")

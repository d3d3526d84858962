"""What a decoder costs, from its spec alone: parameters, arithmetic, cache. No torch here.

    weights   bytes = parameters x bytes a number
    cache     bytes = tokens x cache_bytes_per_token
    compute   FLOPs = tokens x flops_per_token
"""
from __future__ import annotations

from collections.abc import Callable

from pellucid.spec import Attention, DecoderSpec, Experts, FeedForward, LatentAttention, Layer, Matrix, Mixer, Norm


def parameters(spec: DecoderSpec) -> int:
    """Numbers in the weights; a tied embedding counts once. Equal to the count on the real decoder."""
    D, V, E = spec.d_model, spec.n_vocab, spec.d_embed or spec.d_model
    ends = V * E + spec.learned_positions * D + (0 if spec.tied else V * E) + (V if spec.unembed_bias else 0) + _ends(spec)
    if spec.layer_inputs is not None:
        ends += _input_table(spec) + len(spec.layers) * (_inputs(spec) + _norm(spec.norm, D)) + _norm(spec.norm, spec.layer_inputs.d_input)
    return ends + (spec.embed_norm + spec.final_norm) * _norm(spec.norm, D) + sum(_block(spec, layer) for layer in spec.layers)


def active_parameters(spec: DecoderSpec) -> int:
    """Numbers one token is multiplied with or looks up: of experts only the active ones, of tables no unread row."""
    idle = sum((mlp.n_experts - mlp.n_active) * _feed_forward(spec.d_model, mlp.each)
               for layer in spec.layers for mlp in (layer.mlp, layer.beside) if isinstance(mlp, Experts))
    tables = 0 if spec.tied else spec.n_vocab * (spec.d_embed or spec.d_model)  # a tied table is read whole, as the unembedding
    return parameters(spec) - idle - tables - spec.learned_positions * spec.d_model - _input_table(spec)


def flops_per_token(spec: DecoderSpec, n_context: int) -> int:
    """Floating-point operations of one forward pass for one token that sees `n_context` tokens, itself included.

    A multiply-add counts as two. Counted: every matrix, scores and their sums over what each layer's window shows. Not counted: norms, rope,
    activations, softmax (about 1 in 100), looking up an embedding. The well-known 2 x parameters leaves out attention and counts the tables.
    """
    D = spec.d_model
    total = 2 * spec.n_vocab * (spec.d_embed or D) + 2 * _ends(spec) + 2 * len(spec.layers) * _inputs(spec)
    for layer in spec.layers:
        total += 2 * _matrices(D, layer)
    return total + sum(2 * _pair(mixer) * seen(mixer, n_context) for mixer in spec.mixers)


def seen(mixer: Mixer, n_context: int) -> int:
    """Tokens a query of this layer attends to when `n_context` are there; where rows are cut into chunks, at the end of a chunk."""
    if isinstance(mixer, LatentAttention):
        return n_context
    return min(x for x in (n_context, mixer.window, mixer.chunk) if x is not None)


def cache_bytes_per_token(spec: DecoderSpec, bytes_per_number: int) -> int:
    """Bytes of what all layers keep of one token."""
    return sum(mixer.n_cached for mixer in spec.mixers) * bytes_per_number


def _ends(spec: DecoderSpec) -> int:
    """Numbers of the two matrices between an embedding of its own width and the stream."""
    return 0 if spec.d_embed is None else 2 * spec.d_embed * spec.d_model


def _input_table(spec: DecoderSpec) -> int:
    """Numbers of the table that the layers' own inputs are looked up in."""
    return 0 if spec.layer_inputs is None else spec.layer_inputs.n_vocab * len(spec.layers) * spec.layer_inputs.d_input


def _inputs(spec: DecoderSpec) -> int:
    """Numbers of the three matrices that make one layer's own input and take it in."""
    return 0 if spec.layer_inputs is None else 3 * spec.d_model * spec.layer_inputs.d_input


def _block(spec: DecoderSpec, layer: Layer) -> int:
    D = spec.d_model
    around = spec.norm_out + (spec.norm_stream is not None)
    total = int(layer.scaled)
    if layer.mixer is not None:
        total += _projections(D, layer.mixer) + _small(D, layer.mixer) + (spec.norm_in + around) * _norm(spec.norm, D)
    if layer.mlp is not None:
        total += _mlp(D, layer.mlp) + ((spec.norm_in and not spec.shared_norm) + around) * _norm(spec.norm, D)
    return total + (0 if layer.beside is None else _mlp(D, layer.beside) + 3 * _norm(spec.norm, D))


def _matrices(D: int, layer: Layer) -> int:
    """Numbers of the matrices one token passes in this layer; biases are no multiplication."""
    total = 0 if layer.mixer is None else _projections(D, layer.mixer)
    for mlp in (layer.mlp, layer.beside):
        if isinstance(mlp, Experts):
            total += mlp.n_active * _matrix(D, mlp.each) + mlp.n_experts * D + _shared(D, mlp, _matrix)
        elif mlp is not None:
            total += _matrix(D, mlp)
    return total


def _projections(D: int, mixer: Mixer | Matrix) -> int:
    """Numbers of a mixer's matrices."""
    if isinstance(mixer, Matrix):
        return D * D
    H = mixer.n_heads
    if isinstance(mixer, LatentAttention):
        L, R, Q = mixer.d_latent, mixer.rope.d_rotary, mixer.d_query_latent
        queries = H * (mixer.d_plain + R) * (Q or D) + (Q or 0) * D
        return queries + (L + R) * D + H * (mixer.d_plain + mixer.d_value) * L + H * mixer.d_value * D
    return (2 * H + _made(mixer) * mixer.n_kv_heads) * mixer.d_head * D


def _made(mixer: Attention) -> int:
    """How many projections make keys and values: 2, 1 where both come out of one, 0 where they are another layer's."""
    return 0 if mixer.shares is not None else 2 - mixer.values_from_keys


def _small(D: int, mixer: Mixer | Matrix) -> int:
    """Numbers of a mixer's biases and gains."""
    if isinstance(mixer, Matrix):
        return 0
    out = D if mixer.out_bias else 0
    if isinstance(mixer, LatentAttention):
        Q, L = mixer.d_query_latent or 0, mixer.d_latent
        return out + (Q + mixer.n_cached if mixer.latent_bias else 0) + _norm(mixer.norm, Q) + _norm(mixer.norm, L)
    H, K, C = mixer.n_heads, mixer.n_kv_heads, mixer.d_head
    gains = 0
    if mixer.qk_norm is not None:
        gains = sum(_norm(mixer.qk_norm, C if mixer.qk_norm_over == "head" else n * C) for n in ((H, K) if mixer.shares is None else (H,)))
    values = _norm(mixer.value_norm, C) if mixer.value_norm else 0
    return out + ((H + _made(mixer) * K) * C if mixer.qkv_bias else 0) + gains + values + (H if mixer.sinks else 0)


def _pair(mixer: Mixer) -> int:
    """Multiplications of all heads for one query and one key: the score and the value's share."""
    if isinstance(mixer, LatentAttention):
        return mixer.n_heads * (mixer.n_cached + mixer.d_latent)  # absorbed, as decoding has it: see model/latent.py
    return 2 * mixer.n_heads * mixer.d_head


def _mlp(D: int, mlp: FeedForward | Experts | Matrix) -> int:
    if not isinstance(mlp, Experts):
        return _feed_forward(D, mlp)
    router = _norm(mlp.router_norm, D) if mlp.router_norm else 0
    return router + mlp.n_experts * (D + mlp.router_bias + mlp.correction + mlp.share_gain + _feed_forward(D, mlp.each)) + _shared(D, mlp, _feed_forward)


def _shared(D: int, mlp: Experts, numbers: Callable[[int, FeedForward], int]) -> int:
    """Numbers of the shared expert and its gate."""
    return (numbers(D, mlp.shared) if mlp.shared else 0) + D * mlp.shared_gate


def _matrix(D: int, mlp: FeedForward | Matrix) -> int:
    return D * D if isinstance(mlp, Matrix) else (3 if mlp.gated else 2) * D * mlp.d_ff


def _feed_forward(D: int, mlp: FeedForward | Matrix) -> int:
    if isinstance(mlp, Matrix):
        return _matrix(D, mlp)
    return _matrix(D, mlp) + ((2 if mlp.gated else 1) * mlp.d_ff + D if mlp.bias else 0) + 4 * mlp.xielu


def _norm(norm: Norm, width: int) -> int:
    return width * (norm.weight + norm.bias)

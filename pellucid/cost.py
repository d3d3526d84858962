"""What a decoder costs, from its spec alone: parameters, arithmetic, cache. No torch here.

    weights   bytes = parameters x bytes a number
    cache     bytes = tokens x cache_bytes_per_token
    compute   FLOPs = tokens x flops_per_token
"""
from __future__ import annotations

from collections.abc import Callable

from pellucid.spec import Attention, DecoderSpec, Experts, FeedForward, Layer, Norm


def parameters(spec: DecoderSpec) -> int:
    """Numbers in the weights; a tied embedding counts once. Equal to the count on the real decoder."""
    D, V = spec.d_model, spec.n_vocab
    ends = V * D + spec.learned_positions * D + (0 if spec.tied else V * D) + (V if spec.unembed_bias else 0)
    return ends + _norm(spec.norm, D) + sum(_block(spec, layer) for layer in spec.layers)


def active_parameters(spec: DecoderSpec) -> int:
    """Numbers one token is multiplied with or looks up: of experts only the active ones, of tables no unread row."""
    idle = sum((layer.mlp.n_experts - layer.mlp.n_active) * _feed_forward(spec.d_model, layer.mlp.each)
               for layer in spec.layers if isinstance(layer.mlp, Experts))
    tables = 0 if spec.tied else spec.n_vocab * spec.d_model  # a tied table is read whole, as the unembedding
    return parameters(spec) - idle - tables - spec.learned_positions * spec.d_model


def flops_per_token(spec: DecoderSpec, n_context: int) -> int:
    """Floating-point operations of one forward pass for one token that sees `n_context` tokens, itself included.

    A multiply-add counts as two. Counted: every matrix, scores and their sums over what each layer's window shows. Not counted: norms, rope,
    activations, softmax (about 1 in 100), looking up an embedding. The well-known 2 x parameters leaves out attention and counts the tables.
    """
    D = spec.d_model
    total = 2 * spec.n_vocab * D
    for layer in spec.layers:
        total += 2 * _matrices(D, layer) + 4 * layer.mixer.n_heads * layer.mixer.d_head * seen(layer.mixer, n_context)
    return total


def seen(mixer: Attention, n_context: int) -> int:
    """Tokens a query of this layer attends to when `n_context` are there."""
    return n_context if mixer.window is None else min(n_context, mixer.window)


def cache_bytes_per_token(spec: DecoderSpec, bytes_per_number: int) -> int:
    """Bytes of keys and values for one token in all layers."""
    return sum(2 * layer.mixer.n_kv_heads * layer.mixer.d_head for layer in spec.layers) * bytes_per_number


def _block(spec: DecoderSpec, layer: Layer) -> int:
    D, mixer = spec.d_model, layer.mixer
    H, K, C = mixer.n_heads, mixer.n_kv_heads, mixer.d_head
    biases = ((H + 2 * K) * C if mixer.qkv_bias else 0) + (D if mixer.out_bias else 0)
    gains = 0
    if mixer.qk_norm is not None:
        gains = sum(_norm(mixer.qk_norm, C if mixer.qk_norm_over == "head" else n * C) for n in (H, K))
    n_norms = (spec.norm_in + (spec.norm_in and not spec.shared_norm)) + 2 * spec.norm_out
    return 2 * (H + K) * C * D + biases + gains + n_norms * _norm(spec.norm, D) + _mlp(D, layer.mlp)


def _matrices(D: int, layer: Layer) -> int:
    """Numbers of the matrices one token passes in this layer; biases are no multiplication."""
    H, K, C = layer.mixer.n_heads, layer.mixer.n_kv_heads, layer.mixer.d_head
    mlp = layer.mlp
    width = mlp.n_active * _matrix(D, mlp.each) + mlp.n_experts * D + _shared(D, mlp, _matrix) if isinstance(mlp, Experts) else _matrix(D, mlp)
    return 2 * (H + K) * C * D + width


def _mlp(D: int, mlp: FeedForward | Experts) -> int:
    if not isinstance(mlp, Experts):
        return _feed_forward(D, mlp)
    return mlp.n_experts * (D + mlp.router_bias + mlp.correction + _feed_forward(D, mlp.each)) + _shared(D, mlp, _feed_forward)


def _shared(D: int, mlp: Experts, numbers: Callable[[int, FeedForward], int]) -> int:
    """Numbers of the shared expert and its gate."""
    return (numbers(D, mlp.shared) if mlp.shared else 0) + D * mlp.shared_gate


def _matrix(D: int, mlp: FeedForward) -> int:
    return (3 if mlp.gated else 2) * D * mlp.d_ff


def _feed_forward(D: int, mlp: FeedForward) -> int:
    return _matrix(D, mlp) + ((2 if mlp.gated else 1) * mlp.d_ff + D if mlp.bias else 0)


def _norm(norm: Norm, width: int) -> int:
    return width * (norm.weight + norm.bias)

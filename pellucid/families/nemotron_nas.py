"""Llama-Nemotron 49B, 51B and 253B: Llama whose layers were chosen one by one, each of its own width, one matrix, or left out. https://arxiv.org/abs/2411.19146"""
from dataclasses import replace

from pellucid.families import _gguf, _gguf_derive, _parts, deci, llama
from pellucid.families._config import Config
from pellucid.spec import DecoderSpec, Layer, Matrix
from pellucid.weights.names import Rule

WEIGHTS: dict[str, Rule] = llama.WEIGHTS | {  # the 51B, names of its own modeling_decilm.py
    "model.layers.{i}.self_attn.linear_attn.weight": "blocks.{i}.attn.matrix.weight",
    "model.layers.{i}.mlp.linear_mlp.weight": "blocks.{i}.mlp.matrix.weight",
}
GGUF = replace(deci.GGUF, many=("attention.head_count", "attention.head_count_kv", "feed_forward_length"), derive=_gguf_derive.blocks,
               reads=_gguf.reads(less=("attention.head_count", "attention.head_count_kv", "feed_forward_length")), when=_gguf_derive.chosen,
               also=("attention.head_count", "attention.head_count_kv", "feed_forward_length"))


def spec(c: Config) -> DecoderSpec:
    c.inert(intermediate_size="block_configs says it for each layer")
    # What an absent base or eps would mean is nowhere written but in code that is not run.
    usual, bias, D, n = _parts.attention(c, theta=c("rope_theta")), c("mlp_bias", default=False), c("hidden_size"), c("num_hidden_layers")
    layers = []
    for i, block in enumerate(_parts.one_a_layer(c, "block_configs", n)):
        attn, ffn = (Config(block[half], accept_unread=c.accept_unread, where=f"block_configs[{i}].{half} of {c.where}") for half in ("attention", "ffn"))
        attn.expect(sparsify=None, window_length=None, num_sink_tokens=None, unshifted_sink=False,
                    use_prefill_window_in_sink_attention=False)
        ffn.expect(sparsify=None)
        group, mult = attn("n_heads_in_group", default=1), ffn("ffn_mult", default=1.0)
        d_ff = -(-int(2 * mult * D / 3) // 256) * 256  # rounded up to a multiple of 256
        (no_attn, no_ffn), (attn_linear, ffn_linear) = ([part(key, default=False) for part in (attn, ffn)] for key in ("no_op", "replace_with_linear"))
        mixer = None if no_attn else Matrix() if attn_linear else replace(usual, n_kv_heads=usual.n_heads // group)
        mlp = None if no_ffn else Matrix() if ffn_linear else _parts.feed_forward(c, d_ff=d_ff, bias=bias)
        for part in (attn, ffn):
            part.finish()
        layers.append(Layer(mixer=mixer, mlp=mlp))
    return _parts.decoder(c, layers, eps=c("rms_norm_eps"), family="nemotron_nas")

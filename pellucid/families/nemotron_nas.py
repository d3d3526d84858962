"""Llama-Nemotron 49B and 253B: Llama whose layers were chosen one by one, each of its own width or left out. https://arxiv.org/abs/2411.19146"""
from dataclasses import replace

from pellucid.families import _parts, llama
from pellucid.families._config import Config
from pellucid.spec import DecoderSpec, Layer

WEIGHTS = llama.WEIGHTS


def spec(c: Config) -> DecoderSpec:
    c.inert(intermediate_size="block_configs says it for each layer")
    # What an absent base or eps would mean is nowhere written but in code that is not run.
    usual, bias, D, n = _parts.attention(c, theta=c("rope_theta")), c("mlp_bias", default=False), c("hidden_size"), c("num_hidden_layers")
    layers = []
    for i, block in enumerate(_parts.one_a_layer(c, "block_configs", n)):
        attn, ffn = (Config(block[half], accept_unread=c.accept_unread, where=f"block_configs[{i}].{half} of {c.where}") for half in ("attention", "ffn"))
        attn.expect(replace_with_linear=False, sparsify=None, window_length=None, num_sink_tokens=None, unshifted_sink=False,
                    use_prefill_window_in_sink_attention=False)
        ffn.expect(replace_with_linear=False, sparsify=None)
        group, mult = attn("n_heads_in_group", default=1), ffn("ffn_mult", default=1.0)
        mixer = None if attn("no_op", default=False) else replace(usual, n_kv_heads=usual.n_heads // group)
        d_ff = -(-int(2 * mult * D / 3) // 256) * 256  # rounded up to a multiple of 256
        mlp = None if ffn("no_op", default=False) else _parts.feed_forward(c, d_ff=d_ff, bias=bias)
        for part in (attn, ffn):
            part.finish()
        layers.append(Layer(mixer=mixer, mlp=mlp))
    return _parts.decoder(c, layers, eps=c("rms_norm_eps"), family="nemotron_nas")

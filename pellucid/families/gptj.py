"""GPT-J: parallel block, one LayerNorm for both halves, adjacent-pair rotary. https://github.com/kingoflolz/mesh-transformer-jax"""
from pellucid.families import _buffers
from pellucid.families._config import Config
from pellucid.spec import Attention, DecoderSpec, FeedForward, Layer, Norm, Rope
from pellucid.weights.names import Rule

WEIGHTS: dict[str, Rule] = {"transformer.wte.weight": "embed.weight"}
WEIGHTS |= {f"transformer.h.{{i}}.attn.{theirs}_proj.weight": f"blocks.{{i}}.attn.{ours}.weight"
            for theirs, ours in {"q": "q", "k": "k", "v": "v", "out": "o"}.items()}
WEIGHTS |= {f"{theirs}.{p}": f"{ours}.{p}" for p in ("weight", "bias") for theirs, ours in {
    "transformer.h.{i}.ln_1": "blocks.{i}.attn_norm",
    "transformer.h.{i}.mlp.fc_in": "blocks.{i}.mlp.up",
    "transformer.h.{i}.mlp.fc_out": "blocks.{i}.mlp.down",
    "transformer.ln_f": "final_norm",
    "lm_head": "unembed",
}.items()}
WEIGHTS |= _buffers.MASKS


def spec(c: Config) -> DecoderSpec:
    c.expect(rotary=True, scale_attn_weights=True)  # what the first releases say of themselves
    d_model, n_heads = c("n_embd"), c("n_head")
    d_head = d_model // n_heads
    rope = Rope(theta=10_000.0, d_rotary=c("rotary_dim"), pairing="adjacent")
    mixer = Attention(n_heads=n_heads, n_kv_heads=n_heads, d_head=d_head, scale=d_head ** -0.5, rope=rope)
    act = c.activation("activation_function", default="gelu_new")
    mlp = FeedForward(d_ff=c("n_inner", default=4 * d_model), act=act, gated=False, bias=True)
    return DecoderSpec(family=c("model_type"), n_vocab=c("vocab_size"), n_ctx=c("n_positions"), d_model=d_model,
                       layers=(Layer(mixer=mixer, mlp=mlp),) * c("n_layer"),
                       norm=Norm(kind="layer", bias=True, eps=c("layer_norm_epsilon", default=1e-5)),
                       parallel=True, shared_norm=True, unembed_bias=True, tied=c("tie_word_embeddings", default=False))

"""Granite MoE with a shared expert, as transformers has it: granitemoe and one feed-forward that every token passes."""
from dataclasses import replace

from pellucid.families import _parts, granitemoe
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import SHARED
from pellucid.spec import DecoderSpec, Layer
from pellucid.weights.names import Rule, to

WEIGHTS: dict[str, Rule] = granitemoe.WEIGHTS | {
    "model.layers.{i}.shared_mlp.input_linear.weight": to("blocks.{i}.mlp.shared.gate.weight", "blocks.{i}.mlp.shared.up.weight"),
    "model.layers.{i}.shared_mlp.output_linear.weight": "blocks.{i}.mlp.shared.down.weight",
}
GGUF = replace(granitemoe.GGUF, tensors={**granitemoe.GGUF.tensors, **SHARED}, when=lambda facts: bool(facts.said.get("expert_shared_feed_forward_length")),
               reads={**granitemoe.GGUF.reads, "expert_shared_feed_forward_length": "shared_intermediate_size"})


def spec(c: Config) -> DecoderSpec:
    mixer, width = _parts.attention(c, scale=float(c("attention_multiplier", default=1.0))), c("shared_intermediate_size", default=0)
    mlp = _parts.experts(c, _parts.feed_forward(c), renormalize=True, n_experts=8, n_active=2,
                         shared=_parts.feed_forward(c, d_ff=width) if width else None)
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=mlp)] * c("num_hidden_layers"), **_parts.multipliers(c))

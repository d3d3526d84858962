"""Tensors that real repositories carry and no forward pass needs. A family merges what its repositories have into WEIGHTS with `|`.

Buffers were saved with the weights by transformers before 4.3x (`persistent=True`) and are computed here from config.json.
"""
from pellucid.weights.names import Rule, left_out

_ROPE: Rule = left_out("buffer: rope frequencies, recomputed from config.json")
_MASK: Rule = left_out("buffer: causal mask, recomputed")
MTP_LAYERS = left_out("multi-token-prediction layers: they draft tokens ahead, the model's own logits do not use them")
_MTP: Rule = MTP_LAYERS
_VISION: Rule = left_out("vision: tower and projector, only the text model is run")
_AUDIO: Rule = left_out("audio: tower and projector, only the text model is run")

ROTARY: dict[str, Rule] = {f"{{*}}rotary_emb.{name}": _ROPE for name in ("inv_freq", "cos_cached", "sin_cached")}
"""Llama-style checkpoints converted before transformers 4.31, and GPT-NeoX's."""

MASKS: dict[str, Rule] = {f"{{*}}.{attention}.{name}": _MASK for attention in ("attn", "attention") for name in ("bias", "masked_bias")} | {
    f"{{*}}.attn.attention.{name}": _MASK for name in ("bias", "masked_bias")}
"""GPT-2, GPT-J, GPT-NeoX, Pythia: `h.0.attn.bias` is a mask there. Not for a family whose attention has a bias of that very name."""

MTP: dict[str, Rule] = {f"{prefix}.{{*}}": _MTP for prefix in ("mtp", "model.mtp", "model.mtp_layers")}
"""Qwen and MiMo spellings. DeepSeek and GLM append them as layers past the last; loading leaves those out as config.json counts them."""

VISION: dict[str, Rule] = {f"{prefix}{name}.{{*}}": _VISION for prefix in ("", "model.") for name in (
    "vision_tower", "vision_model", "visual", "multi_modal_projector", "patch_merger", "vision_language_adapter", "vision_encoder", "pre_mm_projector_norm",
    "embed_vision", "vision_embedder")}
"""Multimodal wrappers, as transformers 4 writes them and, after `model.`, transformers 5."""

AUDIO: dict[str, Rule] = {f"{prefix}{name}.{{*}}": _AUDIO for prefix in ("", "model.") for name in ("audio_tower", "embed_audio")}
"""Gemma 4, under the same two spellings."""

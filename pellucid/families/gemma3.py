"""Gemma 3 with vision (4B, 12B, 27B): the text model inside is gemma3_text. https://arxiv.org/abs/2503.19786"""
from pellucid.families import _wrapper, gemma3_text
from pellucid.families._config import Config
from pellucid.spec import DecoderSpec

WEIGHTS = _wrapper.table(gemma3_text.WEIGHTS)


def spec(c: Config) -> DecoderSpec:
    c.inert(vision_config="the vision tower is left out", mm_tokens_per_image="tokens of an image; no image is read",
            **dict.fromkeys(("boi_token_index", "eoi_token_index", "image_token_index"), "marks where an image goes; no image is read"))
    # google/gemma-3-4b-it states seven keys and leaves these to the class.
    # https://github.com/huggingface/transformers/blob/v4.50.0/src/transformers/models/gemma3/configuration_gemma3.py
    return _wrapper.text_spec(c, "gemma3_text", vocab_size=262_208, max_position_embeddings=131_072, num_attention_heads=8,
                              num_key_value_heads=4)

"""Llama 4 with vision (Scout, Maverick): the text model inside is llama4_text. https://ai.meta.com/blog/llama-4-multimodal-intelligence"""
from pellucid.families import _wrapper, llama4_text
from pellucid.families._config import Config
from pellucid.spec import DecoderSpec

WEIGHTS = _wrapper.table(llama4_text.WEIGHTS)


def spec(c: Config) -> DecoderSpec:
    c.inert(vision_config="the vision tower is left out",
            **dict.fromkeys(("boi_token_index", "eoi_token_index", "image_token_index"), "marks where an image goes; no image is read"))
    return _wrapper.text_spec(c, "llama4_text")

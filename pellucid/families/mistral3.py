"""Mistral Small 3.1 and later with vision: the text model inside is mistral. https://mistral.ai/news/mistral-small-3-1"""
from pellucid.families import _wrapper, mistral
from pellucid.families._config import Config
from pellucid.spec import DecoderSpec

WEIGHTS = _wrapper.table(mistral.WEIGHTS)


def spec(c: Config) -> DecoderSpec:
    c.inert(vision_config="the vision tower is left out", image_token_index="marks where an image goes; no image is read",
            **dict.fromkeys(("multimodal_projector_bias", "projector_hidden_act", "spatial_merge_size", "vision_feature_layer"),
                            "belongs to the projector, which is left out"))
    return _wrapper.text_spec(c, "mistral")

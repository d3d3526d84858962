"""Multimodal wrappers: the text model inside is run, what sees is left out."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

from pellucid.errors import UnsupportedModel
from pellucid.families import _buffers, family
from pellucid.families._config import Config
from pellucid.spec import DecoderSpec
from pellucid.weights.names import Rule, Table, old


def table(text: Table) -> dict[str, Rule]:
    """The text family's table under a wrapper's names, and the vision tensors left out.

    transformers 4 and 5 write `language_model.model.layers`; some tools save what transformers 5 calls them in memory,
    `model.language_model.layers`, which is read too.
    """
    written = {f"language_model.{name}": rule for name, rule in text.items()}
    in_memory = {name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name: old(rule)
                 for name, rule in text.items() if not name.startswith("{*}")}
    return _buffers.VISION | _buffers.ROTARY | written | in_memory


def senses(c: Config) -> None:
    """What Gemma 4's wrappers say of images and sounds: none of it is about text."""
    c.inert(vision_config="what sees is left out", audio_config="what hears is left out", vision_soft_tokens_per_image="tokens of an image; no image is read",
            **dict.fromkeys((f"{mark}_token_id" for mark in ("image", "boi", "eoi", "video", "audio", "boa", "eoa")), "marks what is neither read nor heard"),
            eoa_token_index="marks what is not heard")


def text_spec(c: Config, default: str, **absent: Any) -> DecoderSpec:
    """The decoder of `text_config`, whose own model_type chooses the family; `default` where it names none.

    absent: values of text_config's keys that the file leaves to the class. Raises UnsupportedModel for a text model that does not share the
    default's tensor names.
    """
    text = c.part("text_config", model_type=default, **absent)
    model_type = text("model_type")
    module = family(str(model_type))
    if module.WEIGHTS != family(default).WEIGHTS:
        raise UnsupportedModel(f"{c.where} wraps a text model of family {model_type!r}, and this wrapper's tensor names are known for {default!r} only")
    spec: DecoderSpec = module.spec(text)
    # transformers 5 follows the outer word; where the two differ, the files decide: see `describe`.
    return replace(spec, tied=c("tie_word_embeddings", default=spec.tied))

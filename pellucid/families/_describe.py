"""config.json -> which family, which decoder, by which name table. No torch: `show` and `plan` stop here."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pellucid.errors import BadConfig, BadRequest, UnsupportedModel, did_you_mean, nearest
from pellucid.families import family
from pellucid.families._buffers import MTP_LAYERS
from pellucid.families._config import Config
from pellucid.families._gguf import NEXTN, check, config, facts_of_file, numbers
from pellucid.families._kinds import check_kinds
from pellucid.families._resemble import likeness
from pellucid.spec import Attention, DecoderSpec, Dynamic
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.names import LeftOut, NameTable, Place, Table, left_out

# Layers appended to the ordinary ones, counted by: DeepSeek-V3, GLM-4.5, MiMo.
_MTP_COUNT = "num_nextn_predict_layers"
_SHARED = left_out("keys and values of layers that read another layer's instead")


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a config describes.

    model_type: as config.json has it; `spec.family` differs for a multimodal wrapper, whose text model is run.
    config: of the model that is run, whole by itself: of a wrapper the text part, with what it leaves to its class and to the outer file.
    weights: the table of the files; `names`: compiled for this config. Saving writes `config` with the table of `spec.family`.
    accepted: keys that nobody read and the user vouched for.
    numbers: what a GGUF file's metadata has in place of tensors, by the name that `names` places.
    """

    model_type: str
    spec: DecoderSpec
    config: Mapping[str, Any]
    weights: Table
    names: NameTable
    accepted: tuple[str, ...]
    notes: tuple[str, ...]
    numbers: Mapping[str, float] = field(default_factory=dict)


def describe(raw: Mapping[str, Any], *, accept_unread: Iterable[str] = (), where: str = "config.json", stored: Iterable[str] = ()) -> Description:
    """What a parsed config.json describes.

    stored: names of the tensors in the files, where they are known. They decide whether a wrapper is tied whose outer and inner config differ on it.
    Raises BadConfig for one that lacks a key, has a key nobody read or a value of the wrong kind; UnsupportedModel for a family or a setting that
    is not implemented. Code that a config names (`auto_map`) is never run.
    """
    model_type = raw.get("model_type")
    if not isinstance(model_type, str):
        raise BadConfig(f"{where} has no model_type (found {model_type!r}), so nothing says which family this is. Add the one the model was made as.")
    notes = []
    if code := _code(raw):
        notes.append(f"{where} names code of its own ({code}); it is never run")
    try:
        module = family(model_type)
    except UnsupportedModel as e:
        own = f"The repository brings code of its own for it ({code}), and Pellucid never runs remote code." if code else ""
        raise UnsupportedModel(" ".join(filter(None, (str(e), likeness(raw), own)))) from None
    config = Config(raw, accept_unread=accept_unread, where=where)
    config.inert(num_nextn_predict_layers="those layers are left out, and the load report says so")
    try:
        spec: DecoderSpec = module.spec(config)
        check_kinds(spec, where)
        spec = replace(spec, n_ctx=_context(spec))
    except ValueError as e:
        raise BadConfig(f"{where} describes no decoder of family {model_type!r}: {e}. Is the file as its authors wrote it?") from e
    except (TypeError, KeyError, AttributeError, ArithmeticError, IndexError) as e:
        suspects = f"; no plain numbers: {', '.join(odd)}" if (odd := config.no_numbers()) else ""
        raise BadConfig(f"{where} has a value of a kind that family {model_type!r} cannot read ({type(e).__name__}: {e}{suspects}). "
                        f"Is the file as its authors wrote it?") from e
    config.finish()
    if absent := sorted(config.accept_unread - config.names()):
        hint = did_you_mean(nearest(absent[0], config.names()))
        raise BadRequest(f"--accept-unread {absent[0]}: {where} has no such key, so there is nothing to accept.{hint} Leave it out.", field="accept_unread")
    names = NameTable(module.WEIGHTS, past_last=_past_last(raw, spec), spare=_spare(spec))
    if spec.tied and _disagree_on_tying(config, spec) and _hold_unembedding(names, stored):
        spec = replace(spec, tied=False)
        notes.append("the files hold an unembedding of their own: it is used, though the outer tie_word_embeddings of config.json says true")
    return Description(model_type=model_type, spec=spec, config=_run(config, spec), weights=module.WEIGHTS, names=names,
                       accepted=tuple(config.accepted), notes=tuple(notes))


def describe_checkpoint(checkpoint: Checkpoint, accept_unread: Iterable[str] = ()) -> Description:
    """What a checkpoint's config.json describes, or the metadata of its GGUF files. Raises what `describe` and `translate` raise."""
    if checkpoint.gguf is None:
        return describe(checkpoint.config, accept_unread=accept_unread, where=f"config.json of {checkpoint.name!r}", stored=checkpoint.unpacked)
    facts = facts_of_file(checkpoint.gguf)
    raw, architecture = config(facts)
    described = describe(raw, accept_unread=accept_unread, where=f"the metadata of {checkpoint.name!r}")
    check(facts, architecture, described.spec)
    n, n_more = len(described.spec.layers), facts.said.get(NEXTN, 0)
    names = NameTable(architecture.table, past_last=(n, n_more, MTP_LAYERS) if n_more else None, spare=_spare(described.spec))
    return replace(described, names=names, weights=architecture.table, numbers=numbers(facts, architecture, n))


def _context(spec: DecoderSpec) -> int:
    """Tokens of a row. A config with dynamic scaling states the length before it, and a factor says how many times as long rows may become.

    vLLM counts so: max_len of DynamicNTKScalingRotaryEmbedding, vllm/model_executor/layers/rotary_embedding.py of v0.6.6.
    """
    scalings = [mixer.rope.scaling for mixer in spec.mixers if mixer.rope is not None]
    return max([spec.n_ctx, *(int(s.original * s.factor) for s in scalings if isinstance(s, Dynamic) and not s.doubling)])


def _code(raw: Mapping[str, Any]) -> str:
    """The code that auto_map names, as `auto_map: modeling_x.XForCausalLM`; empty where there is none."""
    auto_map = raw.get("auto_map")
    if not auto_map:
        return ""
    names = auto_map.get("AutoModelForCausalLM") or next(iter(auto_map.values())) if isinstance(auto_map, dict) else auto_map
    return f"auto_map: {names}"


def _part(config: Config, spec: DecoderSpec) -> Config | None:
    """The part of a wrapper's config that describes the model which is run."""
    return next((part for part in config.parts if part.raw.get("model_type") == spec.family), None)


def _run(config: Config, spec: DecoderSpec) -> Mapping[str, Any]:
    part = _part(config, spec)
    if part is None:
        return config.raw
    outer = {key: config.raw[key] for key in ("torch_dtype", "dtype", "bos_token_id", "eos_token_id", "pad_token_id") if key in config.raw}
    return {**outer, **part.raw, "tie_word_embeddings": spec.tied}


def _disagree_on_tying(config: Config, spec: DecoderSpec) -> bool:
    """Whether a wrapper calls itself tied and its text model does not.

    transformers 5 writes its own default, true, around untied models such as Mistral Small, and keeps an unembedding that it finds in the files.
    """
    part = _part(config, spec)
    return part is not None and not family(spec.family).spec(Config(part.raw)).tied


def _hold_unembedding(names: NameTable, stored: Iterable[str]) -> bool:
    return any(isinstance(place := names.place(name), Place) and place.names == ("unembed.weight",) for name in stored)


def _spare(spec: DecoderSpec) -> dict[str, LeftOut]:
    """The beginnings of our names of what files may hold and this model never reads: projections of layers that share another's keys and values."""
    sharing = [i for i, layer in enumerate(spec.layers) if isinstance(layer.mixer, Attention) and layer.mixer.shares is not None]
    return {f"blocks.{i}.attn.{part}.": _SHARED for i in sharing for part in ("k", "v", "k_norm")}


def _past_last(raw: Mapping[str, Any], spec: DecoderSpec) -> tuple[int, int, Any] | None:
    n_more = raw.get(_MTP_COUNT)
    return (len(spec.layers), n_more, MTP_LAYERS) if isinstance(n_more, int) and n_more > 0 else None

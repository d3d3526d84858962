"""A run record, run again: is the output the same, exactly, and if not, what changed."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pellucid.api.completion import OPTIONS, Completion
from pellucid.api.loading import load
from pellucid.api.model import Model
from pellucid.errors import BadRecord
from pellucid.records import Record, versions

_LOAD = ("path", "accept_unread", "deterministic", "chat_template")
_IN_FORCE = ("device", "dtype", "ops", "threads")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Where two outputs first part. `at` counts generated tokens from 0; None stands for an output that had ended."""

    at: int
    recorded_id: int | None
    replayed_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What a replay found. `same`: ids, text and finish reason are what they were."""

    same: bool
    difference: Difference | None  # of the ids; None also where only the text or the reason to stop differ
    recorded: Mapping[str, Any]
    completion: Completion


def changed_versions(record: Record) -> dict[str, tuple[str | None, str | None]]:
    """Libraries that are not what they were: name -> (recorded, here). `record.changed_inputs()` says the same of files."""
    here = versions()
    pairs = {name: (record.versions.get(name), here.get(name)) for name in sorted({*record.versions, *here})}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def load_recorded(record: Record) -> Model:
    """The model of a record, loaded as it was: on the same kind of device, in the same dtype, with the same kernels and threads.

    Raises BadRecord for one that does not say, and what `load` raises where something is no longer there.
    """
    if record.kind != "run":
        raise BadRecord(f"a record of kind {record.kind!r} is not run again (only 'run', and 'tune' by `pellucid replay`)")
    loading, in_force = _part(record, "load", _LOAD), _part(record, "in_force", _IN_FORCE)
    kept = {name: loading[name] for name in ("cache_bytes", "cache_dtype", "draft", "adapters", "gpu_layers", "quantize") if name in loading}
    kept["activations"] = in_force.get("activations", "exact")  # records of before there was a choice
    forced = {name: in_force[name] for name in _IN_FORCE}
    if kept.get("gpu_layers") is not None:  # the CPU's layers and the device's may have their own
        kept["activations"], forced["ops"] = loading["activations"], loading["ops"]
    return load(loading["path"], **kept, **{name: loading[name] for name in _LOAD[1:]}, **forced)


def replay(record: Record, model: Model | None = None) -> Replay:
    """Run a record again and compare. `model`: one from `load_recorded`, where the caller wants to load it first."""
    model = model or load_recorded(record)
    request = _part(record, "request", ("temperature", "max_tokens", "stop"))
    options: dict[str, Any] = {name: request[name] for name in OPTIONS if name in request}
    if options.get("logit_bias"):
        options["logit_bias"] = {int(i): value for i, value in options["logit_bias"].items()}  # JSON's keys are strings
    if "messages" in request:
        completion = model.chat(request["messages"], tools=request["tools"], documents=request["documents"], template_args=request["template_args"], **options)
    elif "prompt" in request:
        completion = model.generate(request["prompt"], **options)
    else:
        raise BadRecord("the record's request has neither a prompt nor messages")
    recorded = record.output
    difference = _difference(recorded.get("token_ids"), completion.token_ids)
    same = difference is None and (recorded.get("text"), recorded.get("finish_reason")) == (completion.text, completion.finish_reason)
    return Replay(same=same, difference=difference, recorded=recorded, completion=completion)


def _difference(recorded: Any, replayed: tuple[int, ...]) -> Difference | None:
    if not isinstance(recorded, list):
        raise BadRecord(f"the record's output has no token_ids to compare with: {recorded!r:.60}")
    for at in range(max(len(recorded), len(replayed))):
        was, now = (ids[at] if at < len(ids) else None for ids in (recorded, replayed))
        if was != now:
            return Difference(at=at, recorded_id=was, replayed_id=now)
    return None


def _part(record: Record, name: str, needs: tuple[str, ...]) -> Mapping[str, Any]:
    part = record.settings.get(name)
    if not isinstance(part, Mapping) or (missing := [key for key in needs if key not in part]):
        what = f"lacks {', '.join(missing)}" if isinstance(part, Mapping) else "is missing"
        raise BadRecord(f"the record's settings do not say how to run it again: {name} {what}")
    return part

"""`pellucid replay`: a run record, run again."""
from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from pellucid.cli._frame import Json, emit, next_step, note
from pellucid.records import Record


def command(
    record: Annotated[Path, typer.Argument(help="A file that `pellucid run --record FILE` or `pellucid tune` wrote.")],
    json: Json = False,
) -> int:
    """Run a record again and say whether the output is the same, exactly. Exit code 0: the same, 1: not.

    Model files that changed and libraries of another version are named before anything runs. A tuning is run again whole, into a folder that goes.

    \b
    pellucid run ./model -p "Once" --record once.json && pellucid replay once.json
    """
    read = Record.read(record)
    from pellucid.api.replay import changed_versions, load_recorded, replay
    inputs, libraries = read.changed_inputs(), changed_versions(read)
    if read.kind == "tune":
        return _tuning(read, inputs, libraries, json)
    for told in inputs:
        note(f"changed  {told}")
    for name, (was, now) in libraries.items():
        note(f"version  {name} was {was}, is {now}")
    model = load_recorded(read)
    found = replay(read, model)
    if json:
        difference = asdict(found.difference) if found.difference else None
        emit({"same": found.same, "changed_inputs": inputs, "changed_versions": libraries, "difference": difference, "recorded": found.recorded,
              **found.completion.as_dict()})
    else:
        print(_verdict(found, model))
    next_step("pellucid", "show", read.settings["load"]["path"])
    return 0 if found.same else 1


def _tuning(read: Record, inputs: list[str], libraries: Any, json: bool) -> int:
    for told in (*(f"changed  {each}" for each in inputs), *(f"version  {name} was {was}, is {now}" for name, (was, now) in libraries.items())):
        note(told)
    from pellucid.train.replay import replay
    found = replay(read)
    if json:
        emit({"same": found.same, "changed_inputs": inputs, "changed_versions": libraries, "files": found.files})
    else:
        for name, (was, now) in found.files.items():
            print(f"same: {name}, sha256 {was[:12]}…" if was == now else f"different: {name} had sha256 {was[:12]}…, has {(now or 'none')[:12]}")
    return 0 if found.same else 1


def _verdict(found: Any, model: Any) -> str:
    recorded, completion = found.recorded, found.completion
    if found.same:
        return f"same: {len(completion.token_ids):,} tokens and the text, sha256 {recorded['text_sha256'][:12]}…"
    if found.difference is None:
        if recorded.get("text") == completion.text:
            return f"different: it stopped because of {completion.finish_reason!r}, recorded was {recorded.get('finish_reason')!r}"
        return f"different: the same ids became another text: {completion.text!r:.200}, recorded was {recorded.get('text')!r:.200}"
    at = found.difference.at
    was, now = (_token(model, i) for i in (found.difference.recorded_id, found.difference.replayed_id))
    before = model.tokenizer.decode(list(completion.token_ids[max(0, at - 12) : at]))
    return f"different from token {at + 1:,} of {len(recorded['token_ids']):,} on: recorded {was}, now {now}, after …{before!r}"


def _token(model: Any, token_id: int | None) -> str:
    return "the end" if token_id is None else f"{model.tokenizer.decode([token_id], special=True)!r} ({token_id})"

"""A teacher's answers in place of the rows' own, written by the engine and learned like any others: distillation by texts, whatever the two vocabularies.

https://arxiv.org/abs/1606.07947, section 3.2. Files lie in the run's folder, one a source, so that what was learned can be read, and a run goes on with it.
"""
from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field

import pellucid
from pellucid.api import Model
from pellucid.api.stream import Stream, together
from pellucid.data.hub_files import files_of_hub
from pellucid.data.rows import files_of, read_rows
from pellucid.data.shapes import Continued, Conversation, check_shape, detect, said
from pellucid.errors import BadData, BadRequest
from pellucid.records import sha256_of
from pellucid.train.recipe import Recipe, SourcePart, part

FOLDER = "taught"


@part
class Taught:
    """teacher: a path, a repository or a GGUF file. max_tokens: of an answer; what is longer has no end to learn, and is left out. n: asked at once."""

    teacher: str
    max_tokens: int = Field(default=512, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    n: int = Field(default=16, ge=1)


def taught(recipe: Recipe, settings: Taught) -> Recipe:
    """The recipe with the teacher's answers as its data, which are written where they are not there yet.

    Raises BadRequest for answers that were asked otherwise, BadData for rows that nothing can be asked of, or where no answer came to its end.
    """
    folder = Path(recipe.out.folder) / FOLDER
    teacher: Model | None = None
    sources = []
    for i, source in enumerate(recipe.data.sources):
        pulled = files_of_hub(source.hub, split=source.split, config=source.config) if source.hub else None
        here = pulled.files if pulled else files_of(source.path or "")
        asked = {**asdict(settings), "seed": recipe.seed, "shape": source.shape, "columns": dict(source.columns), "rows": [sha256_of(file) for file in here]}
        file, beside = folder / f"{i}.jsonl", folder / f"{i}.json"
        if file.is_file():
            was = json.loads(beside.read_text("utf-8"))["asked"]
            if changed := [key for key in asked if was.get(key) != asked[key]]:
                raise BadRequest(f"{file} holds answers that were asked with other settings: {', '.join(changed)} changed. Delete {folder}, and they are asked "
                                 f"again", field="settings")
        else:
            teacher = teacher or pellucid.load(settings.teacher)
            _write(teacher, here, source, file, beside, asked, settings, recipe.seed)
        license = source.license or (pulled and pulled.license)  # of the questions: it travels with the answers
        sources.append(replace(source, path=str(file), hub=None, license=license, shape="prompt", columns={}))
    return replace(recipe, data=replace(recipe.data, sources=tuple(sources)))


def _write(teacher: Model, files: Sequence[Path], source: SourcePart, file: Path, beside: Path, asked: dict[str, Any], settings: Taught, seed: int) -> None:
    """All answers, or no file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".part")
    n_rows = n_kept = 0
    questions = _questions(files, source)
    with draft.open("w", encoding="utf-8") as out:
        while few := list(islice(questions, settings.n)):
            streams = [_ask(teacher, one, max_tokens=settings.max_tokens, temperature=settings.temperature, seed=seed) for one in few]
            together(teacher.engine, streams)
            for one, stream in zip(few, streams, strict=True):
                n_rows += 1
                if stream.result.finish_reason == "stop":
                    n_kept += 1
                    out.write(json.dumps(_row(one, stream.result.text), ensure_ascii=False) + "\n")
    if not n_kept:
        raise BadData(f"none of {n_rows} answers of {settings.teacher} came to an end within {settings.max_tokens} tokens, so nothing can be learned. Give a "
                      f"larger settings.max_tokens, or a teacher that stops")
    beside.write_text(json.dumps({"asked": asked, "teacher": teacher.sha256, "rows": n_rows, "kept": n_kept}, indent=1) + "\n", "utf-8")
    os.replace(draft, file)  # last: a file that is there is whole


def _questions(files: Sequence[Path], source: SourcePart) -> Iterator[Conversation | Continued]:
    """What the rows ask: conversations without the answer they end with."""
    check_shape(source.shape, source.columns)
    shape = source.shape
    for file in files:
        for read in read_rows(file):
            if shape == "auto":
                shape = detect([*read.row, *source.columns], str(file))
            for one in said(read, shape, source.columns):
                if isinstance(one, Conversation):
                    end = len(one.messages)
                    while end and one.messages[end - 1]["role"] == "assistant":
                        end -= 1
                    yield replace(one, messages=one.messages[:end])
                elif isinstance(one, Continued):
                    yield one
                else:
                    raise BadData(f"{one.origin} is a {type(one).__name__.lower()}, which asks nothing that a teacher could answer. Give conversations, or "
                                  f"prompts", [one.origin])


def _ask(teacher: Model, one: Conversation | Continued, **options: Any) -> Stream:
    if isinstance(one, Continued):
        return teacher.stream(one.prompt, **options)
    return teacher.stream_chat(one.messages, tools=one.tools or None, **options)


def _row(one: Conversation | Continued, answer: str) -> dict[str, Any]:
    if isinstance(one, Continued):
        return {"prompt": one.prompt, "completion": answer}
    tools = {"tools": list(one.tools)} if one.tools else {}
    return {"prompt": list(one.messages), "completion": [{"role": "assistant", "content": answer}], **tools}

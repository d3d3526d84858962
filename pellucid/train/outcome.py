"""The end of a tuning: what was trained is written, held against the model in training, and recorded."""
from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pellucid
from pellucid.api import Model
from pellucid.catalog import ancestry, gate, lineage, verdict
from pellucid.catalog.lineage import Node, Said
from pellucid.data.example import examples
from pellucid.errors import PellucidError
from pellucid.model.convert import Change, made_by
from pellucid.model.convert_adapter import save_adapter
from pellucid.model.to_safetensors import TEMPLATE
from pellucid.records import Record, record_of, sha256_of
from pellucid.train import checkpoint
from pellucid.train.export import ROWS, Survived, change_of, held_against, weights_with, write_merged
from pellucid.train.methods import method_settings
from pellucid.train.recipe import Recipe, SourcePart
from pellucid.train.reward import BradleyTerry, check_scores, save_reward
from pellucid.train.tuning import Tuning
from pellucid.weights.card import README, Card, front_matter
from pellucid.weights.drafts import Written
from pellucid.weights.hub import resolve

ADAPTER, MERGED, GGUF = "adapter", "model", "model.gguf"
BASE = "base_sha256"  # in an adapter's record: what it was made for, by content


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """out: what was written. losses: of what is held out, before and after, where something is."""

    out: Path
    kind: str
    steps: int
    tokens: int
    seconds: float
    best: float | None
    survived: Survived | None
    record: Path
    model: str

    def plain(self) -> dict[str, Any]:
        told = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        survived = None if self.survived is None else dataclasses.asdict(self.survived) | {"share": self.survived.share}
        return told | {"out": str(self.out), "record": str(self.record), "survived": survived}

    @property
    def text(self) -> str:
        rate = self.tokens / max(1e-9, self.seconds)
        lines = [f"{self.steps:,} steps, {self.tokens:,} tokens in {self.seconds:,.0f} s ({rate:,.0f} tokens/s)"
                 + ("" if self.best is None else f" · held out: loss {self.best:.4f}"), f"{self.kind:<10}  {self.out} · record {self.record}"]
        if self.survived is not None:
            lines.append(f"checked     {self.survived.share:.1%} of the change is in it, top-1 agreement {self.survived.top1:.1%} on "
                         f"{self.survived.tokens:,} tokens")
        return "\n".join(lines)

    @property
    def next(self) -> list[str]:
        if self.kind == "reward":
            return ["pellucid", "show", str(self.out)]
        if self.kind != ADAPTER:
            return ["pellucid", "run", str(self.out), "-p", "..."]
        template = self.out / TEMPLATE
        if template.is_file():
            return ["pellucid", "chat", self.model, "--adapter", str(self.out), "--chat-template", str(template)]
        return ["pellucid", "run", self.model, "--adapter", str(self.out), "-p", "..."]


def finish(tuning: Tuning, *, permission: str | None = None) -> Outcome:
    """Writes the best of the run in the recipe's format. Raises LostTuning, NotAllowed; the state stays, so that it can be written otherwise (--resume)."""
    try:
        return _finish(tuning, permission)
    except (PellucidError, OSError):  # of hours of training nothing is lost where a license, a disk or a format stops the writing
        tuning.run.save(False)
        raise


def _finish(tuning: Tuning, permission: str | None) -> Outcome:
    recipe, run, folder, kind = tuning.recipe, tuning.run, tuning.folder, tuning.kind
    folder.mkdir(parents=True, exist_ok=True)
    if recipe.eval.keeps_best and (best := checkpoint.best(folder)) is not None:
        checkpoint.put(best, tuning.trained.parameters)
    source = str(resolve(recipe.model.path))
    facts = _facts(tuning)
    survived = None
    template = None if tuning.model.chat_template is None else tuning.model.chat_template.source
    if kind == "adapter":
        out = folder / ADAPTER
        record = _write_adapter(tuning, out, facts, permission, template)
    elif kind == "reward":
        out = folder / MERGED
        record = _write_reward(tuning, out, facts, permission)
    else:
        out = folder / (GGUF if kind == "gguf" else MERGED)
        of = change_of(tuning.trained, tuning.model.decoder, packed=recipe.model.quantize is not None)
        change = Change(of=of, kind="tune", inputs=tuning.data.files, settings=facts["settings"],
                        parents=data_parents(tuning), measured=facts["measured"], seed=recipe.seed, chat_template=template)
        base = None if tuning.trained.adapter else lambda: _base(tuning)
        rows = tuning.data.held_out or run.items(0)
        survived = write_merged(source, out, change, quantize=recipe.out.quantize, accept_unread=recipe.model.accept_unread, permission=permission,
                                overwrite=True, check=held_against(tuning.model, rows, tuning.trained.adapter, base))
        record = record_of(out)
    return Outcome(out=out, kind=kind, steps=run.progress.step, tokens=run.progress.tokens, seconds=run.progress.seconds,
                   best=None if run.progress.best == float("inf") else run.progress.best, survived=survived, record=record, model=recipe.model.path)


def data_parents(tuning: Tuning) -> tuple[tuple[str, Node], ...]:
    """The data sets as ancestors, and a teacher: what their licenses demand travels with the model."""
    data = tuple(("data", _data(source, card)) for source, card in zip(tuning.recipe.data.sources, tuning.data.cards, strict=True))
    teacher = getattr(method_settings(tuning.recipe), "teacher", None)
    return data if teacher is None else (*data, ("outputs", ancestry.of_path(Path(resolve(teacher)), teacher)))


def _data(source: SourcePart, card: str | None) -> Node:
    """A source with every license that somebody states for it: the recipe, its card on the hub, the catalog."""
    name = source.hub.partition("@")[0] if source.hub else Path(source.path or source.made or "").name
    known = lineage.of_dataset(name) if source.hub else Node(name=name, said=())
    stated = (Said(license=source.license, by="the recipe"), Said(license=card, by="its card"), *known.said)
    return dataclasses.replace(known, said=tuple(each for each in stated if each.license) or stated[:1])


def allowed(tuning: Tuning, permission: str | None) -> list[str]:
    """What the gate notes on the model and the data together. Raises NotAllowed: before the first step, and again before anything is written."""
    passed = gate.check(ancestry.of_model(tuning.recipe.model.path).made_with(data_parents(tuning)), ("modify",), Path.cwd(), permission)
    return list(passed.notes) if passed else []


def _base(tuning: Tuning) -> Model:
    part = tuning.recipe.model
    return pellucid.load(part.path, ops="fused", activations="exact", accept_unread=part.accept_unread)


def _facts(tuning: Tuning) -> dict[str, Any]:
    progress = tuning.run.progress
    measured = {"train_seconds": progress.seconds, "steps": float(progress.step), "tokens": float(progress.tokens),
                **({} if progress.best == float("inf") else {"held_out_loss": progress.best}),
                **({} if progress.processes == 1 else {"processes": float(progress.processes)})}
    return {"settings": {"recipe": _placed(tuning.recipe), "facts": tuning.facts}, "measured": measured}


def _placed(recipe: Recipe) -> dict[str, Any]:
    """The recipe with its paths from the root, so that it can be run again from anywhere."""
    def rooted(path: Any) -> Any:
        return os.path.abspath(path) if isinstance(path, str) and os.path.exists(path) else path
    plain = recipe.plain()
    plain["model"] |= {name: rooted(plain["model"][name]) for name in ("path", "chat_template")}
    sources = [{**source, "path": rooted(source["path"])} for source in plain["data"]["sources"]]
    plain["data"] |= {"sources": sources, "held_out": rooted(plain["data"]["held_out"])}
    return plain


def _write_adapter(tuning: Tuning, out: Path, facts: dict[str, Any], permission: str | None, template: str | None) -> Path:
    model, recipe = tuning.model, tuning.recipe
    made, notes = _made(tuning, permission)
    own = model.checkpoint.card
    card = Card(license=own.license, license_name=own.license_name, license_link=own.license_link)
    card = dataclasses.replace(ancestry.card_of_result(card, made), base_models=(recipe.model.path,))
    files = save_adapter(out, tuning.trained.halves(model.decoder), model.spec, base=recipe.model.path, card=card, lineage=_lines(tuning), node=made,
                         base_sha256=model.sha256, chat_template=template)
    return _record(tuning, out, files, made, facts, notes)


def _write_reward(tuning: Tuning, out: Path, facts: dict[str, Any], permission: str | None) -> Path:
    """In place only once what was written scores as the model in training does."""
    model, method = tuning.model, tuning.run.method
    assert isinstance(method, BradleyTerry)
    made, notes = _made(tuning, permission)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as beside:
        draft = Path(beside) / out.name
        files = save_reward(draft, model.checkpoint, weights_with(tuning.trained, model.decoder), method.head.weight, tokenizer=model.tokenizer,
                            metadata={ancestry.ANCESTRY: ancestry.text_of(made)}, texts={README: _reward_card(tuning, out.name, made)})
        rows = [row for item in tuning.data.held_out or tuning.run.items(0) for row in examples(item)]
        check_scores(draft, model.decoder, method.head, tuning.trained.adapter, rows[:ROWS])
        placed = [dataclasses.replace(one, path=out / one.path.relative_to(draft)) for one in files]
        _record(tuning, draft, placed, made, facts, notes)
        if out.exists():
            shutil.rmtree(out)
        draft.replace(out)
    return record_of(out)


def _reward_card(tuning: Tuning, name: str, made: Node) -> str:
    head = front_matter(ancestry.card_of_result(tuning.model.checkpoint.card, made))
    about = f"# {name}\n\nA reward model: it says one number for a conversation, higher for the better of two.\n"
    return f"{head}{about}\n{ancestry.section(dataclasses.replace(made, name=name), _lines(tuning), made_by())}"


def _made(tuning: Tuning, permission: str | None) -> tuple[Node, list[str]]:
    """What is written, with its ancestors, and what the gate noted. Raises NotAllowed."""
    notes, files = allowed(tuning, permission), tuning.model.checkpoint.files
    made = ancestry.child(ancestry.of_model(tuning.recipe.model.path), {file.name: sha256_of(tuning.model.checkpoint.folder / file.name) for file in files})
    return made.made_with(data_parents(tuning)), notes


def _lines(tuning: Tuning) -> list[str]:
    return [f"{file.sha256}  {role}" for role, file in {**tuning.model.inputs(), **tuning.data.files}.items()]


def _record(tuning: Tuning, folder: Path, files: Sequence[Written], made: Node, facts: dict[str, Any], notes: list[str]) -> Path:
    model = tuning.model
    record = Record(kind="tune", settings=facts["settings"], seed=tuning.recipe.seed, inputs={**model.inputs(), **tuning.data.files},
                    measured=facts["measured"],
                    output={"files": {str(one.path): {"sha256": one.sha256, "bytes": one.n_bytes} for one in files}, BASE: model.sha256,
                            "lineage": _lines(tuning), "ancestry": lineage.plain(made), "license_of_result": verdict.result_license(made)},
                    licenses={model.checkpoint.name: model.report.license}, notes=notes)
    path = record_of(folder)
    record.save(path)
    return path

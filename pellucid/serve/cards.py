"""What is said of a model that is served: a line in a list, and all that loading it decided and what it was made from."""
from __future__ import annotations

import threading
import time
from dataclasses import asdict
from pathlib import Path

import torch

from pellucid.api import Model
from pellucid.catalog import ancestry
from pellucid.catalog.lineage import drawn, plain
from pellucid.errors import BadTemplate, BadTokenizer, PellucidError
from pellucid.records import Record, record_of, versions
from pellucid.serve.answers import Json
from pellucid.serve.openai import Served
from pellucid.tokenizer.template import choose


class Cards:
    """Of every model and adapter, by the names they are asked for."""

    def __init__(self, served: Served) -> None:
        self._served, self._started = served, int(time.time())
        self._lineages: dict[int, Json] = {}
        self._reading = threading.Lock()  # a record's files are hashed once, whoever asks

    def card(self, name: str | None) -> Json:
        """Raises ModelNotFound."""
        name, desk = self._served.find(name)
        model = desk.model
        return {"id": name, "object": "model", "created": self._started, "owned_by": "pellucid", "family": model.spec.family, "license": model.report.license,
                "context_window": model.engine.capacity, "parameters": model.report.n_parameters, "parent": self._served.adapted.get(name),
                "chat": _chats(model)}

    def report(self, name: str) -> Json:
        """The load report as data and as lines, the settings in force, lineage and run record. Paths of this machine are left out.

        Hashes the weights where a run record lies beside them, once: a second a gigabyte or so. Raises ModelNotFound.
        """
        model = self._served.find(name)[1].model
        with self._reading:
            if id(model) not in self._lineages:
                self._lineages[id(model)] = _lineage(model)
        report = asdict(model.report)
        in_force = {"ops": model.decoder.ops.name, "threads": torch.get_num_threads(), "deterministic": model.settings["deterministic"],
                    "cache_dtype": model.settings["cache_dtype"]}
        return {"id": name, "object": "report", "lines": model.report.lines(), "load": report, "in_force": in_force,
                "chat": _chats(model), "versions": versions(), **self._lineages[id(model)]}


def _chats(model: Model) -> bool:
    """Whether there is a chat template: without one a model continues texts and holds no conversation."""
    try:
        choose(model.tokenizer, model.chat_template)
    except (BadTemplate, BadTokenizer):
        return False
    return True


def _lineage(model: Model) -> Json:
    """What it was made from, drawn and as data, and the run record that lies beside its weights; where it cannot be told, why."""
    path = Path(model.settings["path"])
    out: Json = {"lineage": None, "lineage_lines": [], "lineage_error": None, "record": None}
    try:
        node = ancestry.of_path(path, model.report.name)
        out |= {"lineage": plain(node), "lineage_lines": drawn(node)}
        file = record_of(path)
        if file.is_file():
            out["record"] = _record(Record.read(file))
    except PellucidError as error:
        out["lineage_error"] = str(error).replace(str(path), path.name)
    return out


def _record(record: Record) -> Json:
    """Who may ask a server does not learn where its files lie, nor what somebody else asked a model."""
    return {"kind": record.kind, "created": record.created, "seed": record.seed, "measured": dict(record.measured), "versions": dict(record.versions),
            "licenses": dict(record.licenses), "notes": list(record.notes),
            "inputs": {Path(role).name: {"sha256": file.sha256, "bytes": file.bytes} for role, file in record.inputs.items()}}

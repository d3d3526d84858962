"""`pellucid quantize --auto`: a mix made for the model and a budget."""
from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pellucid.catalog import ancestry, gate
from pellucid.cli import _options as o
from pellucid.cli import convert
from pellucid.cli._frame import next_step, note
from pellucid.cli._shown import harmless
from pellucid.cli.compare import bar, held_out_file
from pellucid.cli.imatrix import read_text
from pellucid.errors import BadRequest
from pellucid.model.report import size
from pellucid.records import Record, input_file, place_for
from pellucid.weights.drafts import check_free


def quantize(source: str, out: Path, *, fit: str, text: Path | None, tokens: int, formats: str | None, imatrix: Path | None, tokenizer: bool,
             threads: int | None, accept_unread: Any, permission: str | None, force: bool, quiet: bool, json: bool, split: str | None) -> None:
    """Measures, chooses, says what was chosen, converts, and records both."""
    if out.suffix != ".gguf":
        raise BadRequest(f"{out} is to hold packed tensors: write NAME.gguf", field="out")
    from pellucid.audit.auto import FORMATS, Watch, check_asked, plan
    among = FORMATS if formats is None else tuple(each.strip().upper() for each in formats.split(","))
    check_asked(fit, among)
    record, measured = out.with_suffix(".auto.record.json"), out.with_suffix(".imatrix.gguf")
    check_free(out, force)
    place_for(record)
    gate.check(ancestry.of_model(source), ("modify",), Path.cwd(), permission)  # stopped before minutes are spent, where a license stops it
    if imatrix is None:
        check_free(measured, force)
    file = text or held_out_file()
    written = read_text(file, "--text")
    loaded = o.load_model(source, accept_unread=accept_unread, quiet=quiet, threads=threads, dtype="float32", activations="exact")
    if text is None and not quiet:
        note(f"no --text: sensitivity is measured on {file.name} of the package, prose of old books. Give --text FILE like what the model will read\n")
    started = time.perf_counter()
    from pellucid.weights.imatrix import read_imatrix, write_imatrix
    given = None if imatrix is None else read_imatrix(imatrix)
    with bar(quiet) as (begin, report):
        found = plan(loaded, written, fit, source=file.name, tokens=tokens, imatrix=given, tokenizer=tokenizer, watch=Watch(started=begin, report=report),
                     formats=among)
    seconds = time.perf_counter() - started
    if imatrix is None:
        write_imatrix(measured, found.imatrix, overwrite=force)
        imatrix = measured
    facts = {"fit": fit, "budget_bytes": found.budget, "tensor_bytes": found.allocation.n_bytes + found.fixed, "bits_per_weight": found.bits_per_weight,
             "estimated_kl": found.allocation.damage, "bound_kl": found.allocation.bound, "measured_tokens": found.n_tokens, "imatrix": str(imatrix),
             "mix": {name: asdict(choice) for name, choice in found.allocation.chosen.items()}}
    settings = {"model": source, "text": os.path.abspath(file), "fit": fit, "tokens": tokens, "formats": formats, "threads": threads}
    choices = {name: [asdict(choice) for choice in each] for name, each in found.choices.items()}
    Record(kind="quantize-auto", settings=settings, seed=None, inputs={**loaded.inputs(), "text_file": input_file(file), "imatrix": input_file(imatrix)},
           output={**facts, "choices": choices}, measured={"seconds": seconds}).save(record)
    if not quiet:
        note(_table(found))
        note(f"sensitivity  {len(found.choices)} matrices on {found.n_tokens:,} tokens, {seconds:.0f} s · record {record}\n")
    done = convert.say(source, out, to="gguf", dtype=None, quantize=found.base, tensor_types=[f"{name}={format}" for name, format in found.overrides],
                       imatrix=imatrix, split=split, tokenizer=tokenizer, accept_unread=accept_unread or (), permission=permission, force=force, quiet=quiet,
                       json=json, also={"auto": {**facts, "record": str(record)}}, onward=False)
    if not quiet:
        if found.head and done.n_bytes > found.budget:
            note(f"note  the file has {done.n_bytes - found.budget:,} bytes more than {fit}: its head is larger than what was kept for it")
        next_step("pellucid", "compare", source, str(out), *(["--text", "OTHER.txt"] if text else []))


def _table(found: Any) -> str:
    """The mix, kind by kind, and what it comes to."""
    from rich.console import Console
    from rich.table import Table
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, how in (("tensors", "left"), ("formats", "left"), ("size", "right"), ("KL, estimated", "right")):
        table.add_column(column, justify=how, overflow="fold")  # type: ignore[arg-type]
    for kind, formats, n_bytes, damage in found.table():
        table.add_row(harmless(kind), formats, size(n_bytes), f"{damage:.5f}")
    total, mix = found.allocation.n_bytes + found.fixed, found.allocation
    table.add_row("all, with what is never packed", f"{found.bits_per_weight:.3f} bits per weight", size(total), f"{mix.damage:.5f}")
    console = Console(highlight=False, markup=False, emoji=False, width=120)
    with console.capture() as printed:
        console.print(table)
    lines = [line.rstrip() for line in printed.get().splitlines()]
    return "\n".join([*lines, f"by these estimates no mix of this size loses less than {mix.bound:.5f} nats a token"])

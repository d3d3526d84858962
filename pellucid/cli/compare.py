"""`pellucid compare`: two checkpoints on the same text."""
from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from pellucid.cli import _options as o
from pellucid.cli._frame import Json, emit, next_step, note
from pellucid.cli._shown import harmless
from pellucid.cli.imatrix import read_text
from pellucid.errors import BadRequest
from pellucid.model.report import size
from pellucid.records import Record, input_file, place_for, record_of
from pellucid.weights.hub_cache import shipped_folder

SHOWN_TENSORS = 10
HELD_OUT = "held_out.txt"  # in the folder of the shipped model: pages of books it never saw

Text = Annotated[Path | None, typer.Option("--text", metavar="FILE", help="Text in UTF-8, like what the models will read; else pages of old books that the "
                                                                         "model in the package never saw.")]


def command(
    a: Annotated[str, typer.Argument(metavar="A", help="The model as it was: a folder, a file, or owner/name[@revision] that was pulled.")],
    b: Annotated[str, typer.Argument(metavar="B", help="What became of it, with the same tokenizer.")],
    text: Text = None,
    tokens: Annotated[int, typer.Option("--tokens", help="Score about so many, in windows spread over the text; 0 scores all.")] = 16_384,
    window: Annotated[int, typer.Option("--window", help="Tokens that are read together.")] = 1024,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the report as one page, with plots.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the resampling that gives the intervals.")] = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "float32",
    ops: o.OpsName = "auto",
    activations: o.Activations = "exact",
    threads: o.Threads = None,
    accept_unread: o.AcceptUnread = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the page where it is there.")] = False,
    quiet: o.Quiet = False,
    json: Json = False,
) -> None:
    """Say what quantizing, merging or tuning changed: perplexity and bits per byte of both models, the Kullback-Leibler divergence from A's
    predictions to B's, flips of the likeliest token, each with its 95 % interval, and the tensors that changed most.

    Both compute in float32 unless --dtype says otherwise, so that what is seen is not their rounding.

    \b
    pellucid compare shipped shipped.Q4_K_M.gguf
    pellucid compare ./model ./model.Q4_K_M.gguf --text notes.txt --html damage.html
    """
    if tokens < 0:
        raise BadRequest(f"--tokens {tokens}: a count of tokens, or 0 for all of the text", field="tokens")
    _check_page(html, force)
    file = text or held_out_file()
    written = read_text(file, "--text")
    if text is None and not quiet:
        note(f"no --text: {file.name} of the package, prose of old books. Give --text FILE for what the models will really read\n")
    models = [o.load_model(name, accept_unread=accept_unread, quiet=quiet, device=device, dtype=dtype, ops=ops, activations=activations, threads=threads)
              for name in (a, b)]
    from pellucid.audit.compare import Watch, compare
    with bar(quiet) as (started, report):
        found = compare(models[0], models[1], written, names=(a, b), tokens=tokens or None, window=window, seed=seed,
                        watch=Watch(started=started, report=report))
    facts = {**found.as_dict(), "text_file": str(file), "html": None if html is None else str(html)}
    if html is not None:
        _write(html, found)
        settings = {"a": a, "b": b, "text": os.path.abspath(file), "tokens": tokens, "window": window, "device": device, "dtype": dtype, "ops": ops,
                    "activations": activations, "threads": threads}
        inputs = {**{f"a/{role}": each for role, each in models[0].inputs().items()}, **{f"b/{role}": each for role, each in models[1].inputs().items()}}
        output = {name: value for name, value in facts.items() if name not in ("tensors", "passages")}
        facts["record"] = str(record_of(html))
        Record(kind="compare", settings=settings, seed=seed, inputs={**inputs, "text": input_file(file)}, output={**output, "page": input_file(html).sha256},
               measured={"seconds": found.seconds}, notes=list(found.notes)).save(record_of(html))
    if json:
        emit(facts)
    else:
        _print(found, file)
    if not quiet:
        for told in found.notes:
            note(f"note  {told}")
        if html is not None:
            note(f"{html}  {size(html.stat().st_size)}, record {record_of(html)}")
            next_step("pellucid", "run", b, "-p", "Once upon a time")
        else:
            next_step("pellucid", "compare", a, b, *(["--text", str(text)] if text else []), "--html", "damage.html")


def held_out_file() -> Path:
    """The text in the package. Raises BadRequest where this copy of the package has none."""
    file = shipped_folder() / HELD_OUT  # whatever lies under that name where one stands
    if not file.is_file():
        raise BadRequest("no text. Give one with --text FILE: a few pages or more of what the model will read and write, in UTF-8", field="text")
    return file


def _check_page(html: Path | None, force: bool) -> None:
    """Before two models are loaded and read for minutes."""
    if html is None:
        return
    if html.suffix not in (".html", ".htm"):
        raise BadRequest(f"--html {html.name} is no page's name: write NAME.html", field="html")
    from pellucid.weights.drafts import check_free
    check_free(html, force)
    place_for(record_of(html))


def _write(html: Path, found: Any) -> None:
    from pellucid.audit.page import page
    fresh = html.with_name(f".{html.name}.{os.getpid()}")
    try:
        fresh.write_text(page(found), encoding="utf-8")
        os.replace(fresh, html)
    finally:
        fresh.unlink(missing_ok=True)


def _print(found: Any, file: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from pellucid.audit.shown import row_texts
    d = found.damage
    print("\n".join(f"{letter}  {harmless(name)}, {size(n)}" for letter, name, n in zip("AB", found.names, found.n_bytes, strict=True)), end="\n\n")
    numbers = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(3):
        numbers.add_column(overflow="fold")
    for name, *texts in row_texts(found):  # one number a line: eighty columns have no room for more
        for who, text in zip(("A", "B", "B beside A"), texts, strict=True):
            if text:
                numbers.add_row(name, who, text)
    tensors = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("most changed", "A", "B", "error"):
        tensors.add_column(column, overflow="fold")
    for each in (each for each in found.tensors.changed[:SHOWN_TENSORS] if each.error != 0):
        tensors.add_row(harmless(each.name), f"{each.format_a} {size(each.bytes_a)}", f"{each.format_b} {size(each.bytes_b)}", f"{100 * each.error:.3g} %")
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 160
    with console.capture() as printed:
        console.print(numbers)
        console.print()
        console.print(tensors if tensors.row_count else "no tensor changed: every number is the same")
    print("\n".join(line.rstrip() for line in printed.get().splitlines()))
    left = f" · {len(found.tensors.left_out)} tensors are not in both" if found.tensors.left_out else ""
    print(f"\n{file.name}: {d.n_tokens:,} of {found.n_text:,} tokens scored, windows of {found.window:,} · {found.draws.shown}{left}")


@contextlib.contextmanager
def bar(quiet: bool) -> Iterator[tuple[Any, Any]]:
    """A bar with rate and time left on a terminal, one for each stage."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text as Shown

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Shown:
            return Shown("" if task.speed is None else f"{task.speed:,.0f}/s")
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn(),
                   console=Console(stderr=True), disable=quiet or not sys.stderr.isatty(), transient=True)
    task = bar.add_task("", total=None, visible=False)
    with bar:
        yield (lambda what, n: bar.reset(task, description=what, total=n, visible=True)), (lambda n: bar.advance(task, n))

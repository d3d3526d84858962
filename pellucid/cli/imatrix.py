"""`pellucid imatrix`: which columns of a model's matrices count, measured on text."""
from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from pellucid.cli import _options as o
from pellucid.cli._frame import Json, emit, next_step, note
from pellucid.errors import BadRequest, BadTokenizer

Text = Annotated[Path, typer.Option("--text", metavar="FILE", help="Calibration text in UTF-8, like what the model will read and write.")]


def command(
    model: o.Model,
    text: Text,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="NAME.gguf, or NAME.dat for older readers.")],
    chunk: Annotated[int, typer.Option("--chunk", help="Tokens that are read together.")] = 512,
    most: Annotated[int | None, typer.Option("--chunks", help="Read no more windows than this.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file where it is there.")] = False,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    threads: o.Threads = None,
    accept_unread: o.AcceptUnread = None,
    quiet: o.Quiet = False,
    json: Json = False,
) -> None:
    """Measure on text what the columns of each matrix are multiplied with, so that quantizing errs where it counts least.

    Writes an importance matrix that `pellucid quantize --imatrix` reads, and llama.cpp too.

    \b
    pellucid imatrix shipped --text book.txt -o shipped.imatrix.gguf
    pellucid imatrix Qwen/Qwen3-0.6B --text notes.txt -o qwen3.imatrix.gguf --chunks 200
    """
    if chunk < 1 or (most is not None and most < 1):
        raise BadRequest(f"--chunk {chunk}{'' if most is None else f' and --chunks {most}'}: at least 1 of each", field="chunk")
    _check_out(out, force)
    written = read_text(text, "--text")
    loaded = o.load_model(model, accept_unread=accept_unread, quiet=quiet, threads=threads, device=device, dtype=dtype)
    started = time.perf_counter()
    imatrix = measured(loaded, written, text, chunk=chunk, most=most, quiet=quiet)
    from pellucid.records import Record, input_file, record_of
    from pellucid.weights.imatrix import write_imatrix
    file = write_imatrix(out, imatrix, overwrite=force)
    seconds = time.perf_counter() - started
    facts = {"out": str(out), "sha256": file.sha256, "n_bytes": file.n_bytes, "n_matrices": len(imatrix.entries), "n_chunks": imatrix.n_chunks,
             "chunk": imatrix.chunk, "n_tokens": imatrix.n_chunks * imatrix.chunk, "unseen_experts": imatrix.n_unseen, "seconds": round(seconds, 3)}
    record = record_of(out)
    settings = {"model": model, "text": os.path.abspath(text), "chunk": chunk, "chunks": most, "device": device, "dtype": dtype, "threads": threads}
    Record(kind="imatrix", settings=settings, seed=None, inputs={**loaded.inputs(), "text": input_file(text)}, output=facts,
           measured={"seconds": seconds}).save(record)
    if json:
        emit({**facts, "record": str(record)})
    else:
        print(f"{file.sha256}  {out}")
    if not quiet:
        unseen = f" · {imatrix.n_unseen} experts were chosen by no token and count like the others of their layer: more text" if imatrix.n_unseen else ""
        note(f"{out}  {len(imatrix.entries)} matrices, {imatrix.n_chunks} windows of {imatrix.chunk:,} tokens, {seconds:.1f} s{unseen}")
        next_step("pellucid", "quantize", model, f"{Path(model).name.removesuffix('.gguf')}.Q4_K_M.gguf", "--to", "Q4_K_M", "--imatrix", str(out))


def measured(model: Any, text: str, source: Path, *, chunk: int, most: int | None, quiet: bool) -> Any:
    """The imatrix of a loaded model, with a bar on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from pellucid.model.importance import measure, windows
    if model.tokenizer is None:
        raise BadTokenizer("the model has no tokenizer files, and calibration text is read by one. Put them beside its weights")
    tokenizer = model.tokenizer
    texts = windows(tokenizer.encode(text), min(chunk, model.spec.n_ctx), bos=tokenizer.bos_id if tokenizer.adds_bos else None, most=most)
    bar = Progress(TextColumn("reading"), BarColumn(), MofNCompleteColumn(), TextColumn("tokens"), TimeRemainingColumn(), console=Console(stderr=True),
                   disable=quiet or not sys.stderr.isatty(), transient=True)
    with bar:
        task = bar.add_task("", total=sum(map(len, texts)))
        return measure(model.decoder, texts, datasets=[source.name], report=lambda n: bar.advance(task, n))


def read_text(path: Path, option: str) -> str:
    """Raises BadRequest for a file that cannot be read as UTF-8."""
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"{option} {str(path)!r} cannot be read: {error}. Give a file of text in UTF-8", field="text") from None


def _check_out(out: Path, force: bool) -> None:
    """Before a model is loaded and read for minutes."""
    from pellucid.weights.drafts import check_free
    if out.suffix not in (".gguf", ".dat"):
        raise BadRequest(f"-o {out.name} says no format: an imatrix is written as NAME.gguf, or as NAME.dat for older readers", field="out")
    check_free(out, force)

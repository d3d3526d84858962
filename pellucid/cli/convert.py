"""`pellucid convert`: safetensors <-> GGUF."""
from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from pellucid.cli import _options as o
from pellucid.cli._frame import Json, emit, next_step, note
from pellucid.errors import BadRequest
from pellucid.model.report import size
from pellucid.weights.hub import resolve

Source = Annotated[str, typer.Argument(metavar="IN", help="A folder, a .gguf file, or owner/name[@revision] that was pulled.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="NAME.gguf, or a folder for safetensors.")]
TensorType = Annotated[list[str] | None, typer.Option("--tensor-type", metavar="PATTERN=TYPE", help="Another format for the tensors whose GGUF names "
                                                                                                   "match; may be repeated.")]
Imatrix = Annotated[Path | None, typer.Option("--imatrix", metavar="FILE", help="Which columns count, as `pellucid imatrix` or llama.cpp wrote it.")]
Split = Annotated[str | None, typer.Option("--split-max-size", metavar="SIZE", help="Split into files of no more, such as 2GB.")]
WithoutTokenizer = Annotated[bool, typer.Option("--without-tokenizer", help="Leave tokenizer and chat template out.")]
Permission = Annotated[str | None, typer.Option("--permission", metavar="REFERENCE", help="To one, where a license stops what pellucid.toml declares; "
                                                                                                "it is recorded.")]
Force = Annotated[bool, typer.Option("--force", help="Replace OUT where it is there.")]


def command(
    source: Source,
    out: Out,
    to: Annotated[str | None, typer.Option("--to", metavar="gguf|safetensors", help="By itself what OUT's name says.")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", metavar="f32|f16|bf16", help="Of matrices; by itself what they have, packed ones f32 in "
                                                                                     "safetensors.")] = None,
    quantize: Annotated[str | None, typer.Option("--quantize", metavar="Q8_0|Q4_K_M|...", help="Pack the matrices, in a mix that llama.cpp's users "
                                                                                             "know by name.")] = None,
    tensor_type: TensorType = None,
    imatrix: Imatrix = None,
    split_max_size: Split = None,
    without_tokenizer: WithoutTokenizer = False,
    base: Annotated[str | None, typer.Option("--base", metavar="MODEL", help="Of an adapter: the model it is for; by itself the one that it names.")] = None,
    accept_unread: o.AcceptUnread = None,
    permission: Permission = None,
    force: Force = False,
    quiet: o.Quiet = False,
    json: Json = False,
) -> None:
    """Write a model, or an adapter, in another format. Prints the files and their hashes; a run record is written beside them.

    One tensor is in memory at a time. OUT is there whole, or as it was. What is rounded is counted; what is packed is copied bit for bit
    from GGUF to GGUF.

    \b
    pellucid convert shipped shipped.gguf
    pellucid convert Qwen/Qwen3-0.6B qwen3.gguf --quantize Q4_K_M
    pellucid convert model.gguf ./model --dtype bf16
    pellucid convert big.gguf parts.gguf --split-max-size 2GB
    pellucid convert ./adapter adapter.gguf --base ./model
    """
    say(source, out, to=to, dtype=dtype, quantize=quantize, tensor_types=tensor_type or (), imatrix=imatrix, split=split_max_size,
        tokenizer=not without_tokenizer, accept_unread=accept_unread or (), base=base, permission=permission, force=force, quiet=quiet, json=json)


def say(source: str, out: Path, *, tensor_types: Any, split: str | None, force: bool, quiet: bool, json: bool, also: Mapping[str, Any] | None = None,
        onward: bool = True, **how: Any) -> Any:
    """Converts, with a bar, and says what came of it, which is returned. also: more for the JSON object; onward: whether the next command is said."""
    overrides, path = [_override(text) for text in tensor_types], resolve(source)
    max_bytes = o.n_bytes(split, "--split-max-size")
    from pellucid.model.convert import Watch, convert  # torch comes with it
    with progress(out.name, quiet) as (started, report):
        done = convert(path, out, name=None if path == Path(source).expanduser() else source, overrides=overrides, max_bytes=max_bytes, overwrite=force,
                       watch=Watch(started=started, report=report, note=lambda text: None if quiet else note(text)), **how)
    if json:
        emit({"out": str(done.out), "to": done.to, "n_bytes": done.n_bytes, "files": {str(file.path): file.sha256 for file in done.files},
              "kept": done.kept, "rounded": done.rounded, "types": done.types, "notes": list(done.notes), "seconds": round(done.seconds, 3),
              "record": str(done.record), **(also or {})})
    else:
        for file in done.files:
            print(f"{file.sha256}  {file.path}")
    if not quiet:
        kept = [f"{done.kept['copied']} tensors copied bit for bit", f"{done.kept['exact']} exact in another format", f"{done.kept['rounded']} rounded"]
        rounded = f" ({', '.join(f'{n} {pair}' for pair, n in done.rounded.items())})" if done.rounded else ""
        note(f"{done.out}  {size(done.n_bytes)}, {' + '.join(f'{name} {size(n)}' for name, n in done.types.items())} · "
             f"{' · '.join(kept)}{rounded} · {done.seconds:.1f} s")
        for text in done.notes:
            note(f"note  {text}")
        note(f"record  {done.record}")
        if onward:
            next_step("pellucid", *(["show", str(done.out)] if done.base is None else ["run", done.base, "-p", "Once", "--adapter", str(done.out)]))
    return done


def _override(text: str) -> tuple[str, str]:
    pattern, equals, format = text.rpartition("=")
    if not equals or not pattern or not format:
        raise BadRequest(f"--tensor-type {text!r} is not PATTERN=TYPE, such as ffn_down=Q6_K", field="tensor_type")
    return pattern, format


@contextlib.contextmanager
def progress(name: str, quiet: bool) -> Iterator[tuple[Any, Any]]:
    """A bar with rate and time left on a terminal; elsewhere one line when it starts."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    bar = Progress(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
                   console=Console(stderr=True), disable=quiet or not sys.stderr.isatty(), transient=True)
    task = bar.add_task(name, total=None, visible=False)

    def started(n: int) -> None:
        if not quiet:
            note(f"writing {name}: {size(n)}")
        bar.update(task, total=n, visible=True)

    with bar:
        yield started, lambda n: bar.advance(task, n)

"""`pellucid merge`: a base and an adapter -> one checkpoint."""
from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Annotated

import typer

from pellucid.cli import _options as o
from pellucid.cli import convert
from pellucid.cli._frame import Json, emit, next_step, note
from pellucid.cli.compare import held_out_file, read_text


def command(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model that the adapter was made for: a folder, a .gguf file, or owner/name[@revision].")],
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="A folder as peft saves one, or a .gguf file.")],
    out: convert.Out,
    dtype: Annotated[str | None, typer.Option("--dtype", metavar="f32|f16|bf16", help="Of matrices; by itself what the base has.")] = None,
    quantize: Annotated[str | None, typer.Option("--quantize", metavar="Q8_0|Q4_K_M|...", help="Pack the matrices of a .gguf.")] = None,
    text: Annotated[Path | None, typer.Option("--text", metavar="FILE", help="What both are asked about, like what the adapter learned; else pages of books.")]
    = None,
    accept_unread: o.AcceptUnread = None,
    permission: convert.Permission = None,
    any_base: o.AnyBase = False,
    force: convert.Force = False,
    quiet: o.Quiet = False,
    json: Json = False,
) -> None:
    """Write a model with an adapter in it. Base and adapter together are held against the result, and nothing is kept that has lost the fine-tune.

    \b
    pellucid merge shipped ./out/adapter ./merged
    pellucid merge ./model ./adapter merged.gguf --quantize Q8_0 --text like_mine.txt
    """
    file = text or held_out_file()
    written = read_text(file, "--text")
    if text is None and not quiet:
        note(f"no --text: {file.name} of the package, prose of old books. Give --text FILE like what the adapter learned\n")
    from pellucid.model.convert import Watch
    from pellucid.train.merge import merge
    started = time.perf_counter()
    survived = merge(base, adapter, out, written, dtype=dtype, quantize=quantize, permission=permission, overwrite=force, any_base=any_base,
                     accept_unread=tuple(accept_unread or ()), watch=Watch(note=lambda line: None if quiet else note(line)))
    seconds = time.perf_counter() - started
    if json:
        emit({"out": str(out), "seconds": seconds, "share": survived.share, **dataclasses.asdict(survived)})
    if quiet:
        return
    note(f"merged      {out} in {seconds:.1f} s\n"
         f"checked     {survived.share:.1%} of what the adapter changes is in it, top-1 agreement {survived.top1:.1%}, KL {survived.kl:.2g} nats a token "
         f"(the base's is {survived.base_kl:.2g}) on {survived.tokens:,} tokens")
    next_step("pellucid", "run", str(out), "-p", "...")

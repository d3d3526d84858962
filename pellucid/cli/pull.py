"""`pellucid pull`: a repository of the hub -> this disk."""
from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Annotated

import typer

from pellucid.cli._frame import Json, emit, next_step, note
from pellucid.model.report import size
from pellucid.weights import hub


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A repository: owner/name, or owner/name@revision.")],
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit; the main branch otherwise.")] = None,
    file: Annotated[list[str] | None, typer.Option("--file", help="Only files matching this pattern; may be repeated.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every file, other frameworks' copies of the weights too.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Use no network: only say whether the model is here, and where.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Hash files that are already here, too; bring broken ones again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be brought, and bring nothing.")] = False,
    json: Json = False,
) -> None:
    """Download a model, pinned to a commit and verified. Prints the folder.

    Brings the configuration, the tokenizer and one copy of the weights (safetensors where there are any). A download that stopped goes on
    where it stopped. Gated repositories: log in with `hf auth login` or HF_TOKEN.

    \b
    pellucid pull Qwen/Qwen3-0.6B
    pellucid pull Qwen/Qwen3-0.6B@c1899de          pinned
    pellucid pull ggml-org/models --file tinyllamas/stories260K.gguf
    """
    if dry_run:
        _say_plan(hub.plan(model, revision=revision, files=file or (), everything=everything), json)
        return
    with _progress() as (started, report):
        pulled = hub.pull(model, revision=revision, files=file or (), everything=everything, offline=offline, verify=verify,
                          started=started, report=report)
    rate = f", {size(pulled.downloaded_bytes / max(pulled.seconds, 1e-3))}/s" if pulled.downloaded_bytes else ""
    note(f"{pulled.repo}  {pulled.revision} = commit {pulled.commit[:12]} · {len(pulled.files)} files, {size(pulled.n_bytes)} · "
         f"{size(pulled.downloaded_bytes)} downloaded in {pulled.seconds:.1f} s{rate} · license {pulled.license or 'not said'}")
    if json:
        emit(asdict(pulled))
    else:
        print(pulled.path)
    if any(file.endswith((".safetensors", ".bin")) for file in pulled.files):
        next_step("pellucid", "chat", pulled.repo if pulled.revision == "main" else f"{pulled.repo}@{pulled.revision}")
    else:
        next_step("pellucid", "models", "--local")


def _say_plan(plan: hub.Plan, json: bool) -> None:
    if json:
        emit({"repo": plan.repo, "revision": plan.revision, "commit": plan.commit, "n_bytes": plan.n_bytes, "license": plan.license,
              "missing_bytes": plan.missing_bytes, "files": [asdict(file) for file in plan.files], "left_out": plan.left_out})
    else:
        for file in plan.files:
            print(f"{size(file.n_bytes):>9}  {file.path}")
    note(f"{plan.repo}  {plan.revision} = commit {plan.commit[:12]} · {size(plan.n_bytes)}, "
         f"{size(plan.missing_bytes)} to come · {len(plan.left_out)} files left out")
    next_step("pellucid", "pull", f"{plan.repo}@{plan.revision}")


@contextlib.contextmanager
def _progress() -> Iterator[tuple[Callable[[hub.Plan], None], Callable[[int], None]]]:
    """A bar with rate and time left on a terminal; elsewhere one line when it starts."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    bar = Progress(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
                   console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)
    task = bar.add_task("", total=None, visible=False)

    def started(plan: hub.Plan) -> None:
        here = plan.n_bytes - plan.missing_bytes
        note(f"pulling {plan.repo}@{plan.commit[:12]}: {size(plan.missing_bytes)} to come"
             + (f", {size(here)} already here" if here else ""))
        bar.update(task, description=plan.repo, total=plan.n_bytes, completed=here, visible=True)

    with bar:
        yield started, lambda n: bar.advance(task, n)

"""The command line: one table of commands, one lazily imported file each.

A command file `pellucid/cli/<name>.py` defines `command(...)`: typer annotations on its parameters, help text in its docstring, errors
raised as PellucidError, results to stdout, everything else to stderr (`_frame.note`), at the end `_frame.next_step`. It returns None or
an exit code. `--debug` and the words for errors belong to the frame. This file imports neither typer nor torch: `pellucid --help` answers
at once.
"""
from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    # name: (module, one line for `pellucid --help`)
    "run": ("pellucid.cli.run", "one completion of a prompt"),
    "chat": ("pellucid.cli.chat", "a conversation in the terminal"),
    "serve": ("pellucid.cli.serve", "OpenAI's API over models of this machine"),
    "keys": ("pellucid.cli.keys", "who may use a server, and what they have used"),
    "tune": ("pellucid.cli.tune", "train a model, or an adapter for it, on data of your own"),
    "merge": ("pellucid.cli.merge", "a model and an adapter into one checkpoint, checked"),
    "imatrix": ("pellucid.cli.imatrix", "which columns of the matrices count, measured on text"),
    "show": ("pellucid.cli.show", "what a checkpoint is: family, sizes, license, hashes, chat template"),
    "pull": ("pellucid.cli.pull", "download a model: pinned, resumed, verified"),
    "models": ("pellucid.cli.models", "what models exist, what they need, which are on this disk"),
    "license": ("pellucid.cli.license", "whether a use of a model is allowed, and what has to be done"),
    "plan": ("pellucid.cli.plan", "what a model needs, how fast and how dear it is: before any download"),
    "rm": ("pellucid.cli.rm", "delete a downloaded model"),
    "convert": ("pellucid.cli.convert", "safetensors <-> GGUF, quantized if wanted"),
    "quantize": ("pellucid.cli.quantize", "a model in fewer bits"),
    "compare": ("pellucid.cli.compare", "two checkpoints on the same text: what quantizing, merging or tuning changed"),
    "replay": ("pellucid.cli.replay", "run a record again and say whether the output is the same"),
}


INTERRUPTED, READER_LEFT = 130, 141  # what a shell reports for SIGINT and SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0 done, 1 failed, 2 misused, 130 interrupted, 141 when the reader of stdout went away.

    stdout is flushed here, so that a closed pipe or a full disk is met here and not in the interpreter's last breath.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # what its encoding does not have is spelled out, as on stderr: LC_ALL=POSIX is no failure
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()
        return READER_LEFT
    except OSError as error:
        _silence_stdout()
        print(f"error: cannot write the output: {error.strerror}", file=sys.stderr)
        return 1


def _dispatch(args: list[str]) -> int:
    leading = []  # `pellucid --debug run ...` reads as `pellucid run --debug ...`
    while args and args[0] == "--debug":
        leading.append(args.pop(0))
    if not args or args[0] in ("--help", "-h", "help"):
        print(_help(), file=sys.stdout if args else sys.stderr)
        return 0 if args else 2
    if args[0] in ("--version", "-V"):
        from pellucid import __version__
        print(f"pellucid {__version__}")
        return 0
    from pellucid.cli import _frame
    return _frame.run(args[0], [*leading, *args[1:]], COMMANDS)


def _silence_stdout() -> None:
    """Send what is left in the buffer nowhere: it can no longer be written where it should go."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _help() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join([
        "Usage: pellucid COMMAND ...", "",
        "Run, tune, prove, audit and serve every open GPT, on hardware you own.", "",
        "Commands:", *(f"  {name:{width}}  {about}" for name, (_, about) in COMMANDS.items()), "",
        "Options:", "  --help      this text; after a command, the text of that command", "  --version   the version of Pellucid",
        "  --debug     show the traceback of an error", "",
        "A MODEL is a folder, a file, or a repository owner/name[@revision] that `pellucid pull` brought here.",
    ])

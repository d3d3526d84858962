"""What every command shares: parsing, the words for errors and the exit code; printing results, notes and the next command.

typer parses, the frame runs: parsing ends before the command starts, so that every exception of a command meets one place here.
"""
from __future__ import annotations

import functools
import importlib
import inspect
import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from pellucid.cli._shown import show
from pellucid.errors import PellucidError, did_you_mean, nearest

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, errors too.")]
_Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
_ParseError: Any = typer.BadParameter.__mro__[2]  # ClickException: newer typers carry a click of their own, under a private name


def run(name: str, args: Sequence[str], commands: Mapping[str, tuple[str, str]]) -> int:
    """Parse and run one command of the table; the exit code. An error becomes one line on stderr, or one JSON object with --json."""
    as_json = "--json" in args
    if name not in commands:
        return _misused(f"{name!r} is not a command.{did_you_mean(nearest(name, commands))}   (pellucid --help)", as_json)
    return _guarded(functools.partial(_run, name, commands[name][0], args, as_json), as_json, "--debug" in args)


def _run(name: str, module: str, args: Sequence[str], as_json: bool) -> int | None:
    function: Callable[..., int | None] = importlib.import_module(module).command
    parsed: dict[str, Any] = {}
    try:
        code = _parse(name, function, args, parsed)
    except _ParseError as error:
        return _misused(f"{error.format_message()}   (pellucid {name} --help)", as_json)
    if code is not None:
        return code
    del parsed["debug"]
    return function(**parsed)


def _misused(message: str, as_json: bool) -> int:
    _report({"type": "Usage", "message": message}, as_json)
    return 2


def _parse(name: str, function: Callable[..., Any], args: Sequence[str], parsed: dict[str, Any]) -> int | None:
    """Fill `parsed` with the arguments of `function` and `debug`; an exit code instead where --help was all."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)  # None: a [bracket] in a help text is no markup
    app.command(name, context_settings={"help_option_names": ["--help", "-h"]})(_with_debug(function, parsed))
    code = typer.main.get_command(app).main(list(args), prog_name=f"pellucid {name}", standalone_mode=False)
    return None if "debug" in parsed else int(code or 0)


def _with_debug(function: Callable[..., Any], parsed: dict[str, Any]) -> Callable[..., None]:
    """A function with the signature of `function` plus --debug, which only keeps its arguments."""
    def keep(**arguments: Any) -> None:
        parsed.update(arguments)

    signature = inspect.signature(function, eval_str=True)
    debug = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_Debug)
    parameters = [*signature.parameters.values(), debug]
    keep.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    keep.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    keep.__doc__ = inspect.getdoc(function)
    return keep


def _guarded(work: Callable[[], int | None], as_json: bool, debug: bool) -> int:
    """Run `work`; the exit code. A closed pipe and Ctrl-C are main's to answer."""
    try:
        return work() or 0
    except BrokenPipeError:
        raise
    except Exception as error:
        if debug:
            traceback.print_exc()
        _report(_words(error, debug), as_json)
        return error.exit_code if isinstance(error, PellucidError) else 1


def _words(error: Exception, debug: bool) -> dict[str, Any]:
    """type, message and the values an error carries (byte counts, nearest names, ...)."""
    if isinstance(error, PellucidError):
        carried = {name: value for name, value in vars(error).items() if not name.startswith("_") and value not in (None, ())}
        return {"type": type(error).__name__, "message": str(error), **carried}
    if isinstance(error, OSError) and error.strerror:
        where = f": {os.fspath(error.filename)!r}" if error.filename is not None else ""
        return {"type": type(error).__name__, "message": f"{error.strerror}{where}", "errno": error.errno}
    told = f"unexpected {type(error).__name__}: {error}".rstrip(": ")
    advice = "please report it" if debug else "run again with --debug for the traceback, and please report it"
    return {"type": type(error).__name__, "message": f"{told}; {advice}"}


def _report(words: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit({"error": words})
    else:
        note(f"error: {words['message']}")


def emit(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout, on one line; letters that stdout's encoding may not have as JSON spells them."""
    unicode = (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    print(json.dumps(value, ensure_ascii=not unicode, default=str))


def note(text: str, *, dim: bool = False) -> None:
    """A line for the person at the terminal, on stderr: harmless there, whatever a file or a model wrote into it."""
    show(f"{text}\n", sys.stderr, dim=dim)


def next_step(*words: str) -> None:
    """The next command worth typing, on stderr, quoted for a shell: next_step("pellucid", "chat", path)."""
    note(f"next: {shlex.join(words)}")

"""The frame of the command line: how fast it answers, what it lists, how errors become words and exit codes."""
from __future__ import annotations

import errno
import importlib
import importlib.util
import inspect
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import pytest
import typer

import pellucid
from pellucid import cli, errors
from pellucid.cli import _frame
from pellucid.cli._frame import Json
from tests.api.scripted import scripted_model
from tests.cli.conftest import ROOT, Said, environment

Say = Callable[..., Said]


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Make a function the command `probe`."""
    def register(function: Callable[..., Any]) -> None:
        module = ModuleType("pellucid_probe")
        module.command = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "pellucid_probe", module)
        monkeypatch.setitem(cli.COMMANDS, "probe", ("pellucid_probe", "a probe"))
    return register


def raising(error: BaseException) -> Callable[..., None]:
    def command(json: Json = False) -> None:
        raise error
    return command


# the table

def test_help_answers_in_under_400_ms(tmp_path: Path) -> None:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "pellucid", "--help"], check=True, capture_output=True, env=environment(tmp_path), cwd=ROOT)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.4


@pytest.mark.parametrize("args", [["--help"], ["--version"], *([name, "--help"] for name in cli.COMMANDS)], ids=" ".join)
def test_help_imports_no_torch(args: list[str], tmp_path: Path) -> None:
    code = f"import sys; from pellucid.cli import main; code = main({args}); print(code, 'torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(tmp_path), cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "0 False False"


def test_the_first_help_imports_nothing_but_the_standard_library(tmp_path: Path) -> None:
    code = "import sys; from pellucid.cli import main; main(['--help']); print([m for m in ('typer', 'rich', 'numpy', 'huggingface_hub') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(tmp_path), cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_lists_the_commands_that_exist_and_no_other(say: Say) -> None:
    out = say("--help").out
    listed = [line.split()[0] for line in out.split("Commands:\n")[1].split("\n\n")[0].splitlines()]
    files = {path.stem for path in Path(cli.__file__).parent.glob("*.py") if not path.stem.startswith("_")}
    assert set(listed) == set(cli.COMMANDS) == files
    assert listed == list(cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_a_typed_function_with_a_help_text(name: str, say: Say) -> None:
    command = importlib.import_module(cli.COMMANDS[name][0]).command
    assert inspect.getdoc(command)
    said = say(name, "--help")
    assert said.code == 0
    assert f"Usage: pellucid {name}" in said.out
    assert {"--debug", "--json", "--help"} <= set(said.out.split())


@pytest.mark.parametrize(("args", "code"), [([], 2), (["--help"], 0), (["-h"], 0), (["help"], 0)])
def test_no_command_shows_the_help(args: list[str], code: int, say: Say) -> None:
    said = say(*args)
    assert said.code == code
    assert "Usage: pellucid COMMAND" in (said.out if code == 0 else said.err)


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version_is_the_package_version(flag: str, program: Say) -> None:
    assert program(flag) == Said(0, f"pellucid {pellucid.__version__}\n", "")


# misuse

def test_an_unknown_command_names_the_nearest(say: Say) -> None:
    assert say("pul", "x") == Said(2, "", "error: 'pul' is not a command. Did you mean pull?   (pellucid --help)\n")


def test_an_unknown_command_like_nothing_names_none(say: Say) -> None:
    assert say("zzzzzz") == Said(2, "", "error: 'zzzzzz' is not a command.   (pellucid --help)\n")


@pytest.mark.parametrize(("args", "words"), [
    (["pull"], "Missing argument 'MODEL'."), (["pull", "a/b", "--nonsense"], "No such option: --nonsense"),
    (["pull", "a/b", "c/d"], "Got unexpected extra argument"), (["pull", "a/b", "--revision"], "Option '--revision' requires an argument."),
])
def test_misuse_is_said_in_one_line_with_the_help_to_read(args: list[str], words: str, say: Say) -> None:
    said = say(*args)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(f"error: {words}")
    assert said.err.endswith("   (pellucid pull --help)\n")
    assert said.err.count("\n") == 1


def test_a_number_that_is_none_is_misuse(probe: Any, say: Say) -> None:
    def command(n: Annotated[int, typer.Option("--n", min=1)] = 1, json: Json = False) -> None:
        raise AssertionError("must not run")
    probe(command)
    for value in ("0", "zwei"):
        assert say("probe", "--n", value).code == 2
    assert json.loads(say("probe", "--n", "0", "--json").out)["error"]["type"] == "Usage"


def test_misuse_is_json_where_json_was_asked(say: Say) -> None:
    said = say("pull", "--json")
    assert json.loads(said.out) == {"error": {"type": "Usage", "message": "Missing argument 'MODEL'.   (pellucid pull --help)"}}
    assert (said.code, said.err) == (2, "")


# errors

def every_error() -> list[errors.PellucidError]:
    special = {"PromptTooLong": errors.PromptTooLong("m", n_prompt=9, n_ctx=8), "DiskFull": errors.DiskFull("m", needed_bytes=9, free_bytes=8),
               "OutOfMemoryBudget": errors.OutOfMemoryBudget("m", needed_bytes=9, available_bytes=8), "MissingExtra": errors.MissingExtra("m", "chat"),
               "LostTuning": errors.LostTuning("m", share=0.25)}
    kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, errors.PellucidError)]
    return [special[kind.__name__] if kind.__name__ in special else kind("m") for kind in kinds]


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
def test_an_error_is_one_line_and_its_exit_code(error: errors.PellucidError, probe: Any, say: Say) -> None:
    probe(raising(error))
    assert say("probe") == Said(error.exit_code, "", f"error: {error}\n")
    assert error.exit_code in (1, 2)


def test_an_error_in_json_carries_its_values(probe: Any, say: Say) -> None:
    probe(raising(errors.DiskFull("full", needed_bytes=9, free_bytes=8)))
    said = say("probe", "--json")
    assert json.loads(said.out) == {"error": {"type": "DiskFull", "message": "full", "needed_bytes": 9, "free_bytes": 8}}
    assert (said.code, said.err) == (1, "")
    probe(raising(errors.ModelNotFound("none", ("near", "by"))))
    assert json.loads(say("probe", "--json").out)["error"]["nearest"] == ["near", "by"]


@pytest.mark.parametrize("args", [["probe", "--debug"], ["--debug", "probe"]])
def test_debug_shows_the_traceback_and_nothing_else_does(args: list[str], probe: Any, say: Say) -> None:
    probe(raising(errors.BadConfig("broken")))
    assert "Traceback" not in say("probe").err
    said = say(*args)
    assert "Traceback (most recent call last)" in said.err
    assert said.err.endswith("error: broken\n")
    assert said.code == 1


def test_the_unexpected_is_said_without_a_traceback(probe: Any, say: Say) -> None:
    probe(raising(ZeroDivisionError("division by zero")))
    assert say("probe") == Said(1, "", "error: unexpected ZeroDivisionError: division by zero; run again with --debug for the traceback, "
                                       "and please report it\n")
    assert say("probe", "--debug").err.endswith("error: unexpected ZeroDivisionError: division by zero; please report it\n")


def test_a_refusal_of_the_operating_system_names_the_file(probe: Any, say: Say) -> None:
    probe(raising(PermissionError(errno.EACCES, "Permission denied", "/there")))
    assert say("probe") == Said(1, "", "error: Permission denied: '/there'\n")
    assert json.loads(say("probe", "--json").out)["error"]["errno"] == errno.EACCES


def test_a_command_that_does_not_import_is_the_unexpected(monkeypatch: pytest.MonkeyPatch, say: Say) -> None:
    monkeypatch.setitem(cli.COMMANDS, "gone", ("pellucid.cli.gone", "not there"))
    assert say("gone").err.startswith("error: unexpected ModuleNotFoundError: No module named 'pellucid.cli.gone'; run again with --debug")


def test_an_interruption_is_quiet(probe: Any, say: Say) -> None:
    probe(raising(KeyboardInterrupt()))
    assert say("probe") == Said(130, "", "")


@pytest.mark.parametrize("code", [None, 0, 1, 3])
def test_a_command_may_return_its_exit_code(code: int | None, probe: Any, say: Say) -> None:
    def command() -> int | None:
        return code
    probe(command)
    assert say("probe").code == (code or 0)


LONG = """
import sys, types
from pellucid import cli
probe = sys.modules["probe"] = types.ModuleType("probe")
probe.command = lambda: print("x" * 1_000_000)
cli.COMMANDS["probe"] = ("probe", "")
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("args", [["--help"], ["probe"]])
def test_a_reader_that_leaves_is_no_error(args: list[str], tmp_path: Path) -> None:
    """--help fits a buffer and fails at its flush; the probe fails in the middle of a command."""
    with subprocess.Popen([sys.executable, "-c", LONG, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(tmp_path), cwd=ROOT) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["met at the flush", "met in the command"])
@pytest.mark.parametrize("args", [["models", "--json"], ["--version"]], ids=" ".join)
def test_a_disk_without_room_for_the_output_is_said(args: list[str], unbuffered: str, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "pellucid", *args], stdout=full, stderr=subprocess.PIPE, cwd=ROOT, check=False,
                              env=environment(tmp_path, PYTHONUNBUFFERED=unbuffered))
    assert (done.returncode, done.stderr) == (1, b"error: cannot write the output: No space left on device\n")


# what commands print

def test_a_bracket_in_a_help_text_is_no_markup(probe: Any, say: Say) -> None:
    def command(model: Annotated[str, typer.Argument(help="owner/name[@revision]")]) -> None:
        """Do [bold] things."""
    probe(command)
    out = say("probe", "--help").out
    assert "owner/name[@revision]" in out
    assert "Do [bold] things." in out


def test_the_next_command_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    _frame.next_step("pellucid", "chat", "my models/a'b")
    assert capsys.readouterr().err == """next: pellucid chat 'my models/a'"'"'b'\n"""


def test_files_do_not_steer_the_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, say: Say) -> None:
    folder = scripted_model(tmp_path / "m", [["a", "b"]], config={"\x1b[31mred": 3}, template="\x1b[2J{{ messages[-1].content }}")
    (folder / "README.md").write_text('---\nlicense: "\\e[2Jmit"\n---\n')
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    vouched = ["--accept-unread", "\x1b[31mred"]
    run = ["run", str(folder), "-p", "a"]
    for args in (run, [*run, *vouched], ["show", str(folder), *vouched], ["show", str(folder), "--template"]):
        said = say(*args)
        assert "\x1b[31m" not in said.err + said.out, args
        assert "\x1b[2J" not in said.err + said.out, args
        assert "␛[" in said.err + said.out, args


def test_json_is_one_line_and_keeps_letters(capsys: pytest.CaptureFixture[str]) -> None:
    _frame.emit({"text": "Grüße\n", "path": Path("/x")})
    assert capsys.readouterr().out == '{"text": "Grüße\\n", "path": "/x"}\n'

"""`pellucid chat`: turns, commands, Ctrl-C, a pipe and a real terminal."""
from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

import pellucid
from pellucid.api import Model
from pellucid.cli import _terminal, chat
from pellucid.cli._conversation import COMMANDS, Conversation, Leave, command, recommended, template_arguments
from pellucid.engine import burst
from pellucid.engine.engine import Engine
from pellucid.engine.group import PAGE
from pellucid.errors import BadRequest, MissingExtra, PellucidError
from tests.api.scripted import scripted_model
from tests.cli.conftest import Said, environment

Say = Callable[..., Said]
THOUGHT = ["\n", "<think>", "h", "m", "</think>", "o", "k"]


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    """A command sets torch's threads for its process, which here is that of the tests; their models are too small for two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def yes_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(scripted_model(tmp_path_factory.mktemp("models") / "yes", [["\n", *"YES!"]]))


@pytest.fixture(scope="module")
def yes(yes_folder: str) -> Model:
    return pellucid.load(yes_folder)


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(scripted_model(tmp_path_factory.mktemp("models") / "thinker", [THOUGHT], think="special"))


@pytest.fixture
def piped(say: Say, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    def run(lines: bytes, *args: str) -> Said:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
        return say("chat", *args)
    return run


def one_token_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst may bring an answer whole, and nothing be left to interrupt."""
    monkeypatch.setattr(burst, "MOST", 1)


def conversation(model: Model, **more) -> Conversation:
    return Conversation(model, {"temperature": 0, "max_tokens": None}, seed=5, **more)


def talk(conversation: Conversation, *lines: str, interactive: bool = True) -> None:
    chat._Chat(conversation, interactive=interactive, quiet=True, json=False).run(iter(lines))


def steer(conversation: Conversation, line: str) -> tuple[str | None, list[str]]:
    said: list[str] = []
    return command(conversation, line, said.append), said


# a pipe

def test_the_options_are_these(say: Say) -> None:
    listed = say("chat", "--help").out.split("Options:")[1]
    assert set(re.findall(r"^ +(?:-\w, )?(--[\w-]+)", listed, re.M)) == {
        "--system", "--think", "--template-arg", "--max-tokens", "--temperature", "--top-k", "--top-p", "--min-p", "--repetition-penalty",
        "--presence-penalty", "--frequency-penalty", "--logit-bias", "--stop", "--seed", "--threads", "--device", "--dtype", "--ops", "--deterministic",
        "--accept-unread", "--chat-template", "--quiet", "--json", "--debug", "--help", "--cache", "--cache-dtype", "--activations", "--draft",
        "--adapter", "--any-base",
        "--gpu-layers"}


def test_each_line_of_a_pipe_is_a_message(piped: Callable[..., Said], yes_folder: str) -> None:
    done = piped(b"hi\n\nmore", yes_folder, "--temperature", "0")
    assert (done.code, done.out) == (0, "YES!\nYES!\n")
    assert "stdin is not a terminal: each of its lines is one message" in done.err
    assert done.err.splitlines()[-1] == f"next: pellucid run {yes_folder} -p 'Once upon a time'"


def test_a_line_ends_in_lf_or_crlf(piped: Callable[..., Said], yes_folder: str) -> None:
    said = [json.loads(line)["usage"]["prompt_tokens"] for line in piped(b"hi\r\n/clear\r\nhi\n/clear\nhi\r\r\n", yes_folder, "--json", "-q").out.splitlines()]
    assert said == [said[0], said[0], said[0] + 1]  # a carriage return that ends no line is the message's


def test_json_is_one_object_an_answer_and_a_turn_goes_on_from_the_last(piped: Callable[..., Said], yes_folder: str) -> None:
    done = piped(b"hi, you there\nmore\n", yes_folder, "--temperature", "0", "--json", "--quiet", "--seed", "7")
    first, second = map(json.loads, done.out.splitlines())
    assert done.err == ""
    assert (first["text"], second["text"], first["seed"], second["seed"]) == ("YES!", "YES!", 7, 8)
    assert second["usage"]["reused_tokens"] == (first["usage"]["total_tokens"] - 1) // PAGE * PAGE > 0  # its end came out and never went in


def test_a_pipe_that_is_not_utf8_is_an_error(piped: Callable[..., Said], yes_folder: str) -> None:
    done = piped(b"hi\nGr\xfc\n", yes_folder, "-q")
    assert (done.code, done.out) == (2, "YES!\n")
    assert done.err.startswith("error: the message on stdin is not UTF-8: byte 0xfc at offset 2.")


def test_in_a_pipe_an_error_ends_the_program(piped: Callable[..., Said], yes_folder: str) -> None:
    done = piped(b"/bogus\nhi\n", yes_folder, "-q")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: /bogus is not a command.")
    too_long = piped(b"x" * 300 + b"\n", yes_folder, "-q")
    assert too_long.code == 2
    assert "this model's context holds 128" in too_long.err


def test_a_model_that_cannot_chat_says_so_before_the_first_question(piped: Callable[..., Said], tmp_path: Path) -> None:
    folder = scripted_model(tmp_path / "base", [["a", "b"]], template=None)
    done = piped(b"", str(folder), "-q")
    assert (done.code, done.out) == (1, "")
    assert "has no chat template" in done.err
    (tmp_path / "t.jinja").write_text("{{ messages[-1].content }}")
    assert piped(b"a\n", str(folder), "-q", "--chat-template", str(tmp_path / "t.jinja")).out == "b\n"


def test_finding_out_whether_a_model_can_chat_asks_it_nothing(piped: Callable[..., Said], yes_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted, submit = [], Engine.submit
    monkeypatch.setattr(Engine, "submit", lambda self, request, *more: submitted.append(request) or submit(self, request, *more))
    assert piped(b"", yes_folder, "-q").code == 0
    assert submitted == []
    assert piped(b"hi\n", yes_folder, "-q").out == "YES!\n"
    assert len(submitted) == 1
    beyond = piped(b"", yes_folder, "-q", "--logit-bias", "99999=1")
    assert (beyond.code, "logit_bias has token id 99999" in beyond.err) == (2, True)


def test_the_system_message_reaches_the_template(piped: Callable[..., Said], yes_folder: str, yes: Model) -> None:
    done = piped(b"hi\n", yes_folder, "--system", "Be brief.", "--json", "-q")
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert json.loads(done.out)["usage"]["prompt_tokens"] == len(yes.tokenizer.encode_rendered(expected))


def test_recommended_sampling_is_followed_and_said(piped: Callable[..., Said], tmp_path: Path) -> None:
    generation = {"do_sample": True, "temperature": 700.0, "top_k": 50}
    folder = str(scripted_model(tmp_path / "m", [["\n", "o", "k"]], generation=generation))
    followed = piped(b"hi\n", folder, "--seed", "3", "--max-tokens", "9")
    assert "sampling  temperature 700.0, top_k 50, as generation_config.json recommends" in followed.err
    assert followed.out != "ok\n"
    overruled = piped(b"hi\n", folder, "--seed", "3", "--temperature", "0")
    assert "sampling  top_k 50, as generation_config.json recommends" in overruled.err
    assert overruled.out == "ok\n"
    assert recommended({**generation, "do_sample": False}) == recommended({}) == {}


def test_template_arguments_reach_the_template(piped: Callable[..., Said], tmp_path: Path) -> None:
    folder = str(scripted_model(tmp_path / "m", [THOUGHT[1:]], think="plain"))
    said = json.loads(piped(b"?\n", folder, "--template-arg", "think_first=true", "--json", "-q").out)
    assert (said["thinking"], said["text"]) == ("hm", "ok")
    assert template_arguments(["a=1", "b=x y", "c=false", 'd={"e": 2}', "f="]) == {"a": 1, "b": "x y", "c": False, "d": {"e": 2}, "f": ""}
    for wrong in ("a", "=1", "a b=1"):
        with pytest.raises(BadRequest, match=f"--template-arg '{wrong}' is not KEY=VALUE, such as enable_thinking=false"):
            template_arguments([wrong])


def test_thinking_is_shown_or_hidden(piped: Callable[..., Said], thinker: str) -> None:
    assert piped(b"?\n", thinker, "-q").out == "hm\n\nok\n"
    hidden = piped(b"?\n", thinker, "-q", "--no-think")
    assert (hidden.out, hidden.err) == ("ok\n", "(thinking; /think on shows it)\n")
    assert piped(b"/think off\n?\n/think on\n?\n", thinker, "-q").out == "ok\nhm\n\nok\n"


# a conversation

def test_answers_and_thinking_become_messages(thinker: str) -> None:
    here = conversation(pellucid.load(thinker))
    talk(here, "why?")
    assert here.messages == [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "ok", "reasoning_content": "hm"}]


def test_system_is_set_said_and_removed(yes: Model) -> None:
    here = conversation(yes)
    assert steer(here, "/system") == (None, ["no system message (/system TEXT sets one)"])
    assert steer(here, "/system Be  brief. ") == (None, ["system: Be  brief."])
    talk(here, "hi")
    assert yes.tokenizer.decode(here.ask("x").generation.request.prompt_ids, special=True).startswith("<|im_start|>system\nBe  brief.<|im_end|>\n")
    assert steer(here, "/system off") == (None, ["no system message (/system TEXT sets one)"])


def test_retry_asks_the_last_question_again_with_another_seed(yes: Model) -> None:
    here = conversation(yes)
    with pytest.raises(BadRequest, match="there is nothing to retry yet"):
        steer(here, "/retry")
    talk(here, "one", "two")
    before = here.seed + here.n_answers
    assert steer(here, "/retry")[0] == "two"
    assert [m["content"] for m in here.messages] == ["one", "YES!"]
    assert here.ask("two").generation.request.sampling.seed == before
    talk(conversation(yes), "/clear", "//slash")


def test_a_doubled_slash_is_a_message(yes: Model) -> None:
    here = conversation(yes)
    talk(here, "//etc is a folder", "   ", "")
    assert [m["content"] for m in here.messages] == ["/etc is a folder", "YES!"]


def test_clear_forgets_and_keeps_the_system_message(yes: Model) -> None:
    here = conversation(yes, system="S")
    talk(here, "one")
    assert steer(here, "/clear") == (None, ["cleared; the system message stays"])
    assert (here.messages, here.system) == ([], "S")


def test_a_saved_conversation_loads_and_goes_on(yes: Model, tmp_path: Path) -> None:
    here, path = conversation(yes, system="S"), tmp_path / "talk.json"
    talk(here, "one ü")
    assert steer(here, f"/save {path}") == (None, [f"saved 2 messages to {path}"])
    talk(here, "two", f"/save {path}")  # a conversation may be saved over
    there = conversation(yes)
    assert steer(there, f"/load {path}") == (None, [f"loaded 4 messages from {path}"])
    assert (there.system, there.messages) == ("S", here.messages)
    assert [p.name for p in tmp_path.iterdir()] == ["talk.json"]


def test_nothing_else_is_saved_over_or_loaded(yes: Model, tmp_path: Path) -> None:
    here = conversation(yes)
    kind = '{"kind": "pellucid-conversation-1", '
    for content in ("my thesis", kind + '"system": null, "messages": [{"role": 3}]}', "[]", kind + '"messages": []}', kind + '"system": 5, "messages": []}',
                    "[" * 100_000, kind + '"system": null, "messages": [{"role": "user", "content": "x", "reasoning_content": 5}]}'):
        (tmp_path / "f").write_text(content)
        for name in ("/save", "/load"):
            with pytest.raises(BadRequest, match="holds something else than a conversation that /save wrote; it is left alone"):
                steer(here, f"{name} {tmp_path / 'f'}")
        assert (tmp_path / "f").read_text() == content
    with pytest.raises(BadRequest, match=r"no conversation can be read at .*: No such file"):
        steer(here, f"/load {tmp_path / 'none'}")
    for name in ("/save", "/load"):
        with pytest.raises(BadRequest, match=f"{name} needs a file: {name} FILE"):
            steer(here, name)


def test_a_slip_in_a_path_is_said_and_the_conversation_stays(yes: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = conversation(yes)
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "pipe2").symlink_to("pipe")
    talk(here, "hi", "/save /nonexistent/x", "/save ~nobody-of-that-name/x", f"/save {tmp_path}/file/x", f"/save {tmp_path}", f"/load {tmp_path}/file/x",
         f"/save {tmp_path}/pipe2", f"/load {tmp_path}/pipe", f"/save {tmp_path}/{'x' * 300}", "hi")
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "error: the conversation cannot be saved to /nonexistent/x: No such file or directory. Give another file",
        "error: /save ~nobody-of-that-name/x: there is no such home folder; write the path out",
        f"error: the conversation cannot be saved to {tmp_path}/file/x: Not a directory. Give another file",
        f"error: {tmp_path} is no file that a conversation could be in; it is left alone",
        f"error: no conversation can be read at {tmp_path}/file/x: Not a directory",
        f"error: {tmp_path}/pipe is no file that a conversation could be in; it is left alone",
        f"error: {tmp_path}/pipe is no file that a conversation could be in; it is left alone",
        f"error: the conversation cannot be saved to {tmp_path}/{'x' * 300}: File name too long. Give another file"]
    assert (captured.out, len(here.messages)) == ("YES!\nYES!\n", 4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "pipe", "pipe2"]


def test_a_link_is_saved_through(yes: Model, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for _ in ("not there yet", "there"):
        steer(conversation(yes), f"/save {tmp_path / 'link'}")
    assert ((tmp_path / "link").is_symlink(), json.loads((tmp_path / "real").read_text())["messages"]) == (True, [])


def test_a_refusal_of_the_system_ends_its_turn_only(yes: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    here = conversation(yes)
    monkeypatch.setattr(here, "ask", lambda text: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    talk(here, "hi", "/help")
    assert capsys.readouterr().err.startswith("error: [Errno 5] Input/output error\n  /system TEXT")
    monkeypatch.setattr(here, "ask", lambda text: (_ for _ in ()).throw(BrokenPipeError))
    with pytest.raises(BrokenPipeError):
        talk(here, "hi")


def test_help_lists_every_command(yes: Model) -> None:
    _, said = steer(conversation(yes), "/help")
    assert [line.split()[0] for line in said[:-1]] == list(COMMANDS)
    assert "Ctrl-C stops an answer" in said[-1]


def test_unknown_commands_get_the_nearest(yes: Model) -> None:
    with pytest.raises(BadRequest, match=r"/sytem is not a command\. Did you mean /system"):
        steer(conversation(yes), "/sytem x")
    with pytest.raises(BadRequest, match="/think maybe: on shows the model's thinking, off hides it"):
        steer(conversation(yes), "/think maybe")
    with pytest.raises(Leave):
        steer(conversation(yes), "/exit")


def test_exit_ends_the_chat(yes: Model, capsys: pytest.CaptureFixture[str]) -> None:
    here = conversation(yes)
    talk(here, "one", "/exit", "two")
    assert [m["content"] for m in here.messages] == ["one", "YES!"]


def test_at_a_terminal_an_error_ends_its_turn_only(yes: Model, capsys: pytest.CaptureFixture[str]) -> None:
    here = conversation(yes)
    talk(here, "/bogus", "x" * 200, "hi")
    captured = capsys.readouterr()
    errors = captured.err.splitlines()
    assert errors[0].startswith("error: /bogus is not a command.")
    assert re.fullmatch(r"error: the conversation has 2\d\d tokens, and the context holds 128\. /clear begins a new one, /save .*", errors[1])
    assert (captured.out, len(here.messages)) == ("YES!\n", 2)


def test_a_full_context_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = conversation(pellucid.load(scripted_model(tmp_path / "m", [["\n", *"YES!"]], n_ctx=24)))
    talk(here, "hi")
    captured = capsys.readouterr()
    assert captured.out == "YES\n"
    assert captured.err == "the context of 24 tokens is full: /clear begins a new conversation, /save FILE keeps this one first\n"


def test_a_full_cache_is_not_called_a_full_context(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = scripted_model(tmp_path / "m", [["\n", *"abcdefgh", "a"]], n_ctx=4 * PAGE)
    page = pellucid.load(folder).engine.cache.groups[0].bytes_per_page
    here = conversation(pellucid.load(folder, cache_bytes=2 * page))
    talk(here, "hi")
    assert re.fullmatch(r"the cache of \S+ \S+ is full with 64 tokens, of a context of 128; --cache gives it more: /clear begins a new conversation, .*\n",
                        capsys.readouterr().err)
    talk(here, "x" * 30)
    assert re.match(r"error: the conversation has \d\d\d tokens, and the cache \(--cache\) holds 64\. /clear", capsys.readouterr().err)


def test_a_failure_inside_an_answer_keeps_nothing_of_its_turn(yes: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    here = conversation(yes)
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", lambda self: (_ for _ in ()).throw(PellucidError("it broke")))
        talk(here, "hi")
    assert (here.messages, capsys.readouterr().err) == ([], "error: it broke\n")
    talk(here, "hi")
    assert len(here.messages) == 2


@pytest.mark.parametrize("where", ["showing", "computing"])
def test_ctrl_c_stops_the_answer_and_not_the_program(yes: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str) -> None:
    one_token_a_step(monkeypatch)
    here, step, show, n = conversation(yes), Engine.step, chat.show, [0]

    def interrupted(*args) -> object:
        n[0] += 1
        if n[0] == 3:
            raise KeyboardInterrupt
        return (step if where == "computing" else show)(*args)

    with monkeypatch.context() as patch:
        patch.setattr(*((Engine, "step", interrupted) if where == "computing" else (chat, "show", interrupted)))
        talk(here, "hi")
    captured = capsys.readouterr()
    assert captured.err == "(stopped)\n"
    assert captured.out == "YE\n"
    kept = here.messages[-1]["content"]
    assert kept == ("YE" if where == "computing" else "YES")  # what was computed is kept, shown or not
    talk(here, "more")
    assert here.messages[-1]["content"] == "YES!"


def test_json_tells_an_interruption_from_the_models_own_end(yes: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    one_token_a_step(monkeypatch)
    here, step, n = conversation(yes), Engine.step, [0]

    def interrupted(engine: Engine) -> bool:
        n[0] += 1
        if n[0] == 3:
            raise KeyboardInterrupt
        return step(engine)
    monkeypatch.setattr(Engine, "step", interrupted)
    chat._Chat(here, interactive=True, quiet=True, json=True).run(iter(["hi", "hi"]))
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["text"], first["finish_reason"], first["stopped_by"]) == ("YE", "stop", "interrupt")
    assert (second["text"], second["finish_reason"], second["stopped_by"]) == ("YES!", "stop", yes.tokenizer.eos_id)


def test_ctrl_c_in_a_pipe_ends_the_program(yes: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "step", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        talk(conversation(yes), "hi", interactive=False)


# a terminal

@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], list[str]]]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with create_pipe_input() as keys:
        def enter(text: str) -> list[str]:
            keys.send_text(text)
            return list(_terminal.terminal_lines(list(COMMANDS), lambda: "status", input=keys, output=DummyOutput()))
        yield enter


def test_enter_sends_and_ctrl_d_leaves(typed: Callable[[str], list[str]]) -> None:
    assert typed("hello\rmore\r\x04") == ["hello", "more"]


def test_escape_enter_and_a_backslash_begin_a_new_line(typed: Callable[[str], list[str]]) -> None:
    assert typed("one\x1b\rtwo\rthree\\\rfour\r\x04") == ["one\ntwo", "three\nfour"]


def test_pasted_lines_are_one_message(typed: Callable[[str], list[str]]) -> None:
    assert typed("\x1b[200~one\ntwo\x1b[201~\r\x04") == ["one\ntwo"]


def test_ctrl_c_while_typing_drops_the_line(typed: Callable[[str], list[str]]) -> None:
    assert typed("wrong\x03right\r\x04") == ["right"]


def test_what_was_typed_is_there_next_time(typed: Callable[[str], list[str]]) -> None:
    typed("first\rsecond\r\x04")
    assert oct(_terminal.history_file().stat().st_mode & 0o777) == "0o600"
    assert typed("\x1b[A\x1b[A\r\x04") == ["first"]


def test_without_a_home_that_can_be_written_a_chat_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with create_pipe_input() as keys:
        keys.send_text("hello\r\x04")
        typed = list(_terminal.terminal_lines(list(COMMANDS), lambda: "status", input=keys, output=DummyOutput()))
    assert typed == ["hello"]
    assert capsys.readouterr().err.startswith("what you type is not kept for the next chat: [Errno 20] Not a directory")


def test_without_prompt_toolkit_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prompt_toolkit", None)
    words = "a conversation in the terminal needs the extra 'chat', which is not installed. Try: pip install 'pellucid[chat]'"
    with pytest.raises(MissingExtra, match=re.escape(words)):
        next(_terminal.terminal_lines([], lambda: ""))


def test_a_conversation_at_a_real_terminal(tmp_path: Path) -> None:
    """Ctrl-C, by its signal, ends an answer that would go on to the end of a long context; the program stays, and Ctrl-D leaves it."""
    folder = scripted_model(tmp_path / "loop", [["\n", *"abcdefgh", "a"]], n_ctx=50_000)
    command = [sys.executable, "-m", "pellucid", "chat", str(folder), "--temperature", "0"]
    master, slave = pty.openpty()
    running = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, cwd=tmp_path, start_new_session=True, preexec_fn=_take_terminal,
                               env=environment(tmp_path, TERM="xterm", XDG_STATE_HOME=str(tmp_path / "state")))
    os.close(slave)
    screen = _Screen(master)
    try:
        for keys, *shown in ((b"hello\r", "abcdefghabcdefgh"), (b"\x03", "(stopped)", "tokens/s"), (b"/think off\r", "thinking is hidden"),
                             (b"\x04", "next: pellucid run")):
            if keys != b"\x03":
                screen.until("of 50,000 tokens")  # the prompt is there: a key pressed before would go elsewhere
            os.write(master, keys)
            for text in shown:
                screen.until(text)
        assert running.wait(timeout=30) == 0
    finally:
        running.kill()
        running.wait()
        os.close(master)
    assert "hello" in (tmp_path / "state" / "pellucid" / "chat_history").read_text()


def _take_terminal() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where a suite runs in the background
    import fcntl
    import termios
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class _Screen:
    """What the program wrote, read as it comes."""

    def __init__(self, fd: int) -> None:
        self.fd, self.seen = fd, ""

    def until(self, text: str, seconds: float = 40) -> None:
        """Waits for the text and forgets everything up to it."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, f"no {text!r} in {self.seen[-2000:]!r}"
            if select.select([self.fd], [], [], 0.2)[0]:
                with contextlib.suppress(OSError):  # the other side is closed
                    self.seen += os.read(self.fd, 65536).decode(errors="replace")
                if "\x1b[6n" in self.seen:  # asked where the cursor is, as a terminal is
                    self.seen = self.seen.replace("\x1b[6n", "")
                    os.write(self.fd, b"\x1b[1;1R")
        self.seen = self.seen.partition(text)[2]

"""`pellucid run`: text to stdout, the rest to stderr, one JSON object, records; and what bad input is told."""
from __future__ import annotations

import inspect
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pellucid.cli import _options, chat, run
from pellucid.cli._shown import harmless, show
from pellucid.records import Record
from pellucid.weights import hub_cache
from tests.api.scripted import scripted_model
from tests.cli.conftest import Said, environment
from tests.conftest import SHARED

Say = Callable[..., Said]
STORIES = str(SHARED / "stories260k")


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    """A command sets torch's threads for its process, which here is that of the tests; their models are too small for two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def abc(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(scripted_model(tmp_path_factory.mktemp("models") / "abc", [list("abcdefghijkl"), ["x", "\x1b", "[", "!"]]))


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    return lambda raw: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))


def test_the_options_are_these(say: Say) -> None:
    listed = say("run", "--help").out.split("Options:")[1]
    assert set(re.findall(r"^ +(?:-\w, )?(--[\w-]+)", listed, re.M)) == {
        "--prompt", "--max-tokens", "--temperature", "--top-k", "--top-p", "--min-p", "--repetition-penalty", "--presence-penalty", "--frequency-penalty",
        "--logit-bias", "--stop", "--seed", "--threads", "--device", "--dtype", "--ops", "--deterministic", "--accept-unread", "--chat-template", "--record",
        "--quiet", "--json", "--debug", "--help", "--min-tokens", "--ignore-eos", "--bad-word", "--prefix", "--n", "--best-of", "--logprobs", "--cache",
        "--cache-dtype", "--activations", "--schema", "--draft", "--adapter", "--any-base",
        "--gpu-layers"}


def test_text_goes_to_stdout_and_the_rest_to_stderr(say: Say, abc: str) -> None:
    done = say("run", abc, "-p", "a", "--temperature", "0")
    assert (done.code, done.out) == (0, "bcdefghijkl\n")
    lines = done.err.splitlines()
    assert lines[0].startswith("abc      family llama · 1 layers")
    assert re.fullmatch(r"12 tokens, stopped · [\d,.]+ tokens/s · prompt 1 tokens, first token after [\d.]+ m?s", lines[-2])
    assert lines[-1] == f"next: pellucid chat {abc}"


def test_a_drawn_seed_is_said(say: Say, abc: str) -> None:
    assert re.search(r" · seed \d+$", say("run", abc, "-p", "a").err.splitlines()[-2])


def test_quiet_leaves_stderr_empty(say: Say, abc: str) -> None:
    assert say("run", abc, "-p", "a", "--max-tokens", "2", "--quiet") == (0, "bc\n", "")


def test_without_a_model_the_shipped_one_runs() -> None:
    assert _options.SHIPPED == hub_cache.SHIPPED
    assert inspect.signature(run.command).parameters["model"].default == inspect.signature(chat.command).parameters["model"].default == hub_cache.SHIPPED


def test_json_is_one_object(say: Say, abc: str) -> None:
    done = say("run", abc, "-p", "xa", "--max-tokens", "3", "--temperature", "0", "--seed", "4", "--json")
    (line,) = done.out.splitlines()
    said = json.loads(line)
    assert {k: said[k] for k in ("model", "text", "finish_reason", "stopped_by", "seed", "record")} == {
        "model": abc, "text": "bcd", "finish_reason": "length", "stopped_by": None, "seed": 4, "record": None}
    assert len(said["token_ids"]) == 3
    assert said["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "reused_tokens": 0, "thinking_tokens": 0, "total_tokens": 5}
    assert 0 < said["prefill_seconds"] < said["seconds"]
    assert said["tokens_per_second"] > 0
    assert said["load_seconds"] > 0


def test_a_schema_is_met_or_the_command_fails(say: Say, abc: str, tmp_path: Path) -> None:
    file = tmp_path / "n.json"
    file.write_text('{"type": "array", "items": {"const": 0}, "minItems": 2, "maxItems": 2}')
    done = say("run", abc, "-p", "a", "--temperature", "0", "--schema", str(file), "-q")
    assert (done.code, done.out, done.err) == (0, "[0,0]\n", "")
    cut = say("run", abc, "-p", "a", "--temperature", "0", "--schema", str(file), "-q", "--max-tokens", "2")
    assert (cut.code, cut.out, cut.err) == (1, "[0\n", "error: the output is cut: max_tokens was reached before the schema was complete\n")
    told = say("run", abc, "-p", "a", "--temperature", "0", "--schema", str(file), "-q", "--max-tokens", "2", "--json")
    assert told.code == 1
    assert json.loads(told.out)["verdict"] == {"status": "cut", "reason": "max_tokens was reached before the schema was complete"}


def test_a_schema_that_cannot_be_is_told_before_a_model_is_loaded(say: Say, abc: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_options, "load_model", lambda *_, **__: pytest.fail("a model was loaded for it"))
    file = tmp_path / "wrong.json"
    file.write_text('{"type": "object", "requierd": ["a"]}')
    done = say("run", abc, "-p", "a", "--schema", str(file))
    assert (done.code, done.err) == (2, "error: schema at #/requierd: 'requierd' is not a keyword of JSON Schema. Did you mean required?\n")
    missing = say("run", abc, "-p", "a", "--schema", str(tmp_path / "none.json"))
    assert missing.code == 2
    assert missing.err.startswith(f"error: --schema '{tmp_path / 'none.json'}' cannot be read: ")


def test_the_prompt_may_come_from_stdin_less_one_newline(say: Say, abc: str, stdin: Callable[[bytes], None]) -> None:
    for raw in (b"a", b"a\n", b"a\r\n"):
        stdin(raw)
        assert say("run", abc, "--max-tokens", "2", "-q").out == "bc\n"
    stdin(b"a\n\n")
    done = say("run", abc, "--max-tokens", "2", "-q", "--json")
    assert json.loads(done.out)["usage"]["prompt_tokens"] == 2


def test_stdin_that_is_not_utf8_is_an_error(say: Say, abc: str, stdin: Callable[[bytes], None]) -> None:
    stdin("Grüße".encode("latin1"))
    done = say("run", abc)
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: the prompt on stdin is not UTF-8: byte 0xfc at offset 2. Convert it first: iconv -f latin1 -t utf-8\n"


def test_no_prompt_at_a_terminal_is_an_error(say: Say, abc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert say("run", abc) == (2, "", "error: no prompt. Give one with -p PROMPT, or pipe it in\n")


def test_sampling_flags_reach_the_model(say: Say, abc: str) -> None:
    def text(*flags: str) -> str:
        return say("run", abc, "-p", "a", "-q", "--max-tokens", "4", *flags).out.removesuffix("\n")
    assert text("--temperature", "1000", "--top-k", "1") == "bcde"
    assert text("--temperature", "0", "--stop", "de", "--stop", "zz") == "bc"
    assert text("--temperature", "0", "--logit-bias", "68=100") == "eeee"
    assert text("--temperature", "0", "--logit-bias", "68=100", "--presence-penalty", "2", "--frequency-penalty", "2") == "eeee"  # 100 - 2 - 2 * 3 > 40
    assert text("--temperature", "0", "--logit-bias", "68=43", "--presence-penalty", "2", "--frequency-penalty", "2") == "efgh"  # 43 - 4 < 40
    assert text("--temperature", "9", "--min-p", "1") == text("--temperature", "9", "--top-p", "0.001") == "bcde"
    assert text("--temperature", "500", "--seed", "1") == text("--temperature", "500", "--seed", "1") != text("--temperature", "500", "--seed", "2")


@pytest.mark.parametrize(("flags", "code", "message"), [
    (["--logit-bias", "x=1"], 2, "error: --logit-bias 'x=1' is not ID=VALUE, such as 198=-100"),
    (["--logit-bias", "12"], 2, "error: --logit-bias '12' is not ID=VALUE"),
    (["--logit-bias", "5=1e39"], 2, "error: logit_bias of token 5 is 1e+39, more than float32 holds; 100 or -100 is enough to force or forbid a token"),
    (["--stop", "\udcff"], 2, "error: stop='\\udcff' holds half a character (a lone surrogate), which no text does. Was it bytes that are not UTF-8?"),
    (["--logit-bias", "9999=1"], 2, "error: logit_bias has token id 9999, and this model's vocabulary has ids 0 to"),
    (["--temperature", "-1"], 2, "error: temperature=-1.0 is out of range"),
    (["--max-tokens", "0"], 2, "error: max_tokens=0 is out of range"),
    (["--stop", ""], 2, "error: stop must be a string or several, none of them empty"),
    (["--ops", "magic"], 2, "error: ops='magic' is not a backend"),
    (["--dtype", "int3"], 2, "error: dtype='int3' is not one the decoder runs in"),
    (["--device", "abacus"], 2, "error: device='abacus' is not here"),
    (["--threads", "0"], 2, "error: threads=0 is out of range"),
    (["--chat-template", "nope"], 2, "error: no chat template 'nope'"),
    (["--record", "/nowhere/r.json"], 2, "error: a run record cannot be written to /nowhere/r.json: there is no folder /nowhere"),
    (["--record", "/"], 2, "error: a run record cannot be written to /: it is a folder"),
    (["-p", "a" * 200], 2, "error: the prompt has 200 tokens; this model's context holds 128"),
])
def test_what_cannot_be_is_one_line_and_an_exit_code(say: Say, abc: str, flags: list[str], code: int, message: str) -> None:
    done = say("run", abc, "-p", "a", "--quiet", *flags)
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith(message)
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("flags", [
    ["--temperature", "nan"], ["--seed", "-1"], ["--stop", ""], ["--max-tokens", "0"], ["--logit-bias", "1=inf"], ["--top-p", "7"]])
@pytest.mark.parametrize("command", ["run", "chat"])
def test_options_that_cannot_be_are_told_before_a_model_is_loaded(say: Say, abc: str, monkeypatch: pytest.MonkeyPatch, command: str, flags: list[str]) -> None:
    monkeypatch.setattr(_options, "load_model", lambda *_, **__: pytest.fail("a model was loaded for it"))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    done = say(command, abc, *(["-p", "a"] if command == "run" else []), *flags)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert flags[0].removeprefix("--").replace("-", "_") in done.err


def test_an_empty_prompt_starts_from_bos_or_is_an_error(say: Say, abc: str, tmp_path: Path) -> None:
    assert say("run", abc, "-p", "", "-q", "--max-tokens", "1").code == 0
    without = scripted_model(tmp_path / "nobos", [["a", "b"]], bos=False)
    done = say("run", str(without), "-p", "", "-q")
    assert (done.code, done.err) == (2, "error: the prompt is empty, and 'nobos' has no beginning-of-sequence token to start from. Give it a word\n")


def test_errors_are_json_where_json_was_asked_for(say: Say, tmp_path: Path) -> None:
    done = say("run", str(tmp_path / "nothing"), "-p", "a", "--json")
    assert done.code == 2
    assert json.loads(done.out)["error"]["type"] == "ModelNotFound"


def test_an_unread_key_stops_the_load_and_may_be_vouched_for(say: Say, tmp_path: Path) -> None:
    folder = str(scripted_model(tmp_path / "odd", [["a", "b"]], config={"frobnicate": 3}))
    refused = say("run", folder, "-p", "a")
    assert (refused.code, refused.out) == (1, "")
    assert "--accept-unread frobnicate" in refused.err
    accepted = say("run", folder, "-p", "a", "--accept-unread", "frobnicate", "--record", str(tmp_path / "r.json"))
    assert accepted.out == "b\n"
    assert "on your word: frobnicate" in accepted.err
    assert Record.read(tmp_path / "r.json").accepted_unread == ["frobnicate"]


def test_a_record_is_written_and_its_replay_is_next(say: Say, abc: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    done = say("run", abc, "-p", "a", "--seed", "3", "--temperature", "300", "--max-tokens", "9", "--record", str(path))
    assert done.err.splitlines()[-1] == f"next: pellucid replay {path}"
    record = Record.read(path)
    assert (record.output["text"], record.seed, record.settings["request"]["temperature"]) == (done.out.removesuffix("\n"), 3, 300.0)


def test_control_characters_do_not_reach_a_terminal(say: Say, abc: str) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True
    screen, pipe = Terminal(), io.StringIO()
    for to in (screen, pipe):
        show("a\x1b[31m\tb\n\x07\x9b\x7f", to)
    assert (screen.getvalue(), pipe.getvalue()) == ("a␛[31m\tb\n␇\ufffd␡", "a\x1b[31m\tb\n\x07\x9b\x7f")
    assert harmless("grüße 🧀\n") == "grüße 🧀\n"
    assert say("run", abc, "-p", "x", "-q").out == "\x1b[!\n"  # into a pipe goes what was written


def test_what_the_output_may_say_and_how_much_is_told_of_it(say: Say, abc: str) -> None:
    def wrote(*flags: str) -> str:
        return say("run", abc, "-p", "h", "-q", "--temperature", "0", *flags).out
    assert wrote() == "ijkl\n"
    assert wrote("--prefix", "?ef") == "?efghijkl\n"
    assert "k" not in wrote("--bad-word", "k", "--bad-word", "q")
    told = json.loads(wrote("--json", "--logprobs", "2", "--max-tokens", "3"))
    assert [len(told["token_ids"]), len(told["logprobs"]), [len(best) for best in told["top_logprobs"]]] == [3, 3, [2, 2, 2]]
    assert len(json.loads(wrote("--json", "--min-tokens", "8", "--max-tokens", "9"))["token_ids"]) >= 8
    assert len(json.loads(wrote("--json", "--ignore-eos", "--max-tokens", "20"))["token_ids"]) == 20


def test_several_completions_are_numbered_and_the_best_come_first(say: Say) -> None:
    done = say("run", "-p", "The", "-q", "--n", "2", "--best-of", "3", "--max-tokens", "4", "--seed", "3")
    assert [part.split("]")[0] for part in done.out.rstrip("\n").split("\n\n")] == ["[1", "[2"]
    told = json.loads(say("run", "-p", "The", "-q", "--n", "2", "--max-tokens", "4", "--seed", "3", "--json").out)
    assert [choice["seed"] for choice in told["choices"]] == [3, 4]
    assert say("run", "-p", "The", "-q", "--n", "2", "--best-of", "1").err == "error: best_of=1 is out of range: at least n (2), or None for n\n"


@pytest.mark.parametrize(("size", "found"), [("4GB", 4 * 10**9), ("1.5 GiB", 3 * 2**29), ("300000000", 300_000_000), ("2g", 2 * 10**9), ("7 kb", 7000)])
def test_a_size_is_read_as_it_is_written(size: str, found: int) -> None:
    assert _options.n_bytes(size) == found


def test_drafts_are_counted_and_change_nothing(say: Say) -> None:
    asked = ("run", "-p", "a rose is a rose is a rose is a", "--temperature", "0", "--max-tokens", "24", "--dtype", "float32")
    plain, drafted = say(*asked), say(*asked, "--draft", "lookup")
    assert plain.out == drafted.out
    assert re.search(r"^drafts: \d+ of \d+ right$", drafted.err, re.M)
    assert "drafts" not in plain.err


def test_a_cache_that_cannot_be_is_refused(say: Say, abc: str) -> None:
    for size in ("many", "0", "-3GB", "4XB"):
        assert say("run", abc, "-p", "a", "--cache", size).err == f"error: --cache {size!r} is not a size, such as 512MB or 4GB\n"
    assert say("run", abc, "-p", "a", "--cache-dtype", "int4").err == "error: cache_dtype='int4' is not one of auto, same, float16, int8\n"
    assert "one page of 32 tokens takes" in say("run", abc, "-p", "a", "-q", "--cache", "100").err
    assert say("run", abc, "-p", "a", "-q", "--temperature", "0", "--cache", "2MB", "--cache-dtype", "int8").out == "bcdefghijkl\n"


def test_a_record_never_replaces_a_file_of_the_model(say: Say, tmp_path: Path) -> None:
    folder = scripted_model(tmp_path / "m", [["a", "b"]])
    before = (folder / "tokenizer_config.json").read_bytes()
    done = say("run", str(folder), "-p", "a", "--record", str(folder / "tokenizer_config.json"))
    assert (done.code, done.out) == (2, "")
    assert done.err == (f"error: a run record cannot be written to {folder}/tokenizer_config.json: it holds something else than a run record, "
                        f"which is left alone. Give another file\n")
    assert (folder / "tokenizer_config.json").read_bytes() == before


def test_json_is_one_object_where_the_record_fails_late(say: Say, abc: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    done = say("run", abc, "-p", "a", "--json", "-q", "--record", str(tmp_path / "r.json"))
    assert (done.code, json.loads(done.out)["error"]["message"]) == (1, "No space left on device")
    assert say("run", abc, "-p", "a", "-q", "--record", str(tmp_path / "r.json")) == (1, "bcdefghijkl\n", "error: No space left on device\n")


def test_the_example_of_a_stop_string_stops(say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a shell reads it: a stop string of backslashes and letters would never be met."""
    scripted_model(tmp_path / "model", [[":", *"ab\n\n"]])
    monkeypatch.chdir(tmp_path)
    (example,) = (line.strip() for line in str(inspect.getdoc(run.command)).splitlines() if "--stop" in line)
    read = subprocess.run(["bash", "-c", f"pellucid() {{ printf '%s\\0' \"$@\"; }}; {example}"], capture_output=True, text=True, check=True).stdout
    said = json.loads(say(*read.removesuffix("\0").split("\0"), "--json").out)
    assert (said["text"], said["finish_reason"], said["stopped_by"]) == ("ab", "stop", "\n\n")


def test_a_stdout_that_is_not_utf8_gets_what_it_can_hold(tmp_path: Path) -> None:
    folder = str(scripted_model(tmp_path / "m", [["x", "🧀", "!"]]))

    def written(encoding: str, *flags: str) -> bytes:
        done = subprocess.run([sys.executable, "-m", "pellucid", "run", folder, "-p", "x", "-q", *flags], capture_output=True, check=False,
                              env=environment(tmp_path, PYTHONIOENCODING=encoding))
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout
    assert written("ascii") == b"\\U0001f9c0!\n"
    assert json.loads(written("latin1", "--json"))["text"] == "🧀!"


@pytest.mark.shared
def test_the_program_writes_the_published_story(program: Say) -> None:
    golden = json.loads((SHARED / "stories260k" / "golden_greedy.json").read_text())
    done = program("run", STORIES, "-p", "", "--max-tokens", str(len(golden["token_ids"]) - 1), "--temperature", "0", "--seed", "1", "--json")
    said = json.loads(done.out)
    assert (said["text"], said["token_ids"], said["finish_reason"]) == (golden["expected_text"], golden["token_ids"][1:], "length")


def test_each_piece_is_flushed_before_the_next_is_computed(say: Say, abc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Watched(io.StringIO):
        seen: list[str] = []  # noqa: RUF012  what a reader of the pipe has at each flush

        def flush(self) -> None:
            self.seen.append(self.getvalue())
    monkeypatch.setattr(sys, "stdout", Watched())
    assert say("run", abc, "-p", "a", "-q", "--max-tokens", "3", "--temperature", "0").code == 0
    assert list(dict.fromkeys(Watched.seen)) == ["b", "bc", "bcd", "bcd\n"]


def test_half_precision_runs(say: Say, abc: str) -> None:
    for dtype in ("bfloat16", "float16"):
        assert say("run", abc, "-p", "a", "-q", "--temperature", "0", "--dtype", dtype).out == "bcdefghijkl\n"


def test_threads_are_set_and_a_small_model_takes_few(say: Say, abc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(3)
    done = say("run", abc, "-p", "a")
    assert "threads  1: a model of this size gains nothing from more (--threads N)\n" in done.err
    assert torch.get_num_threads() == 1
    assert "threads" not in say("run", abc, "-p", "a", "--threads", "2").err
    assert torch.get_num_threads() == 2
    monkeypatch.setattr(_options, "PARAMETERS_PER_THREAD", 50_000)  # 78,000 numbers for a token: two threads of three, and two of two
    assert "threads" not in say("run", abc, "-p", "a").err
    torch.set_num_threads(3)
    assert "threads  2: " in say("run", abc, "-p", "a").err

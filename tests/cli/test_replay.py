"""`pellucid replay`: the same is exit code 0, anything else is 1 and says what changed first."""
from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.api.scripted import scripted_model
from tests.cli.conftest import Said
from tests.conftest import SHARED

Say = Callable[..., Said]


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    """A command sets torch's threads for its process, which here is that of the tests; their models are too small for two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def recorded(say: Say, tmp_path: Path) -> Path:
    folder = scripted_model(tmp_path / "abc", [list("abcdefghijkl")])
    say("run", str(folder), "-p", "a", "--seed", "3", "--temperature", "0", "--max-tokens", "6", "--record", str(tmp_path / "r.json"))
    return tmp_path / "r.json"


def edit(path: Path, **changes) -> None:
    raw = json.loads(path.read_text())
    raw["output"] |= changes.pop("output", {})
    path.write_text(json.dumps(raw | changes))


def test_the_same_is_exit_code_0(say: Say, recorded: Path) -> None:
    done = say("replay", str(recorded))
    assert done.code == 0
    assert done.out.startswith("same: 6 tokens and the text, sha256 ")
    assert done.err == f"next: pellucid show {recorded.parent / 'abc'}\n"


def test_the_same_from_another_folder(say: Say, recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(recorded.parent)
    say("run", "abc", "-p", "a", "--temperature", "400", "--record", "relative.json")
    monkeypatch.chdir("/")
    assert say("replay", str(recorded.parent / "relative.json")).code == 0


def test_a_changed_model_is_named_before_the_first_difference(say: Say, recorded: Path) -> None:
    scripted_model(recorded.parent / "abc", [[*"abcd", *"zyx"]])
    done = say("replay", str(recorded))
    assert done.code == 1
    assert done.err.splitlines()[0].startswith(f"changed  model.safetensors changed: {recorded.parent / 'abc' / 'model.safetensors'} had sha256 ")
    assert done.out == "different from token 4 of 6 on: recorded 'e' (68), now 'z' (89), after …'bcd'\n"


def test_a_shorter_output_ends_where_the_other_goes_on(say: Say, recorded: Path) -> None:
    scripted_model(recorded.parent / "abc", [[*"abcd"]])
    done = say("replay", str(recorded))
    assert done.out == "different from token 4 of 6 on: recorded 'e' (68), now '<|im_end|>' (258), after …'bcd'\n"
    edit(recorded, output={"token_ids": json.loads(recorded.read_text())["output"]["token_ids"][:3], "text": "bcd", "text_sha256": _sha("bcd")})
    done = say("replay", str(recorded))
    assert done.out == "different from token 4 of 3 on: recorded the end, now '<|im_end|>' (258), after …'bcd'\n"


def test_text_and_reason_count_too(say: Say, recorded: Path) -> None:
    edit(recorded, output={"finish_reason": "stop"})
    assert say("replay", str(recorded))[:2] == (1, "different: it stopped because of 'length', recorded was 'stop'\n")
    edit(recorded, output={"text": "BCD", "text_sha256": _sha("BCD")})
    assert say("replay", str(recorded))[:2] == (1, "different: the same ids became another text: 'bcdefg', recorded was 'BCD'\n")


def test_other_versions_are_said(say: Say, recorded: Path) -> None:
    edit(recorded, versions={**json.loads(recorded.read_text())["versions"], "torch": "0.0.1"})
    done = say("replay", str(recorded))
    assert done.code == 0
    assert done.err.startswith("version  torch was 0.0.1, is ")


def test_json_says_all_of_it(say: Say, recorded: Path) -> None:
    said = json.loads(say("replay", str(recorded), "--json").out)
    assert (said["same"], said["difference"], said["changed_inputs"], said["changed_versions"], said["text"]) == (True, None, [], {}, "bcdefg")
    scripted_model(recorded.parent / "abc", [[*"abcd", *"zyx"]])
    said = json.loads(say("replay", str(recorded), "--json").out)
    assert (said["same"], said["difference"]) == (False, {"at": 3, "recorded_id": 68, "replayed_id": 89})
    assert said["recorded"]["text"] == "bcdefg"


@pytest.mark.parametrize(("content", "message"), [
    ("{", "where a run record was expected, is not JSON"),
    ("{}", "is not a run record of a format this version reads")])
def test_what_is_no_record_is_refused(say: Say, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "r.json").write_text(content)
    done = say("replay", str(tmp_path / "r.json"))
    assert (done.code, done.out) == (1, "")
    assert message in done.err


def test_an_edited_text_is_noticed(say: Say, recorded: Path) -> None:
    edit(recorded, output={"text": "something else"})
    assert "Was the file edited?" in say("replay", str(recorded)).err


def test_a_record_that_is_not_there_is_refused(say: Say, tmp_path: Path) -> None:
    done = say("replay", str(tmp_path / "none.json"))
    assert (done.code, done.err) == (2, f"error: no run record can be read at {tmp_path}/none.json: No such file or directory. "
                                        f"`pellucid run --record FILE` writes one\n")


@pytest.mark.shared
def test_a_drawn_story_replays_in_another_process(say: Say, program: Callable[..., Said], tmp_path: Path) -> None:
    path = str(tmp_path / "story.json")
    assert say("run", str(SHARED / "stories260k"), "-p", "Once", "--temperature", "0.9", "--top-p", "0.95", "--max-tokens", "60", "--record", path).code == 0
    done = program("replay", path)
    assert (done.code, done.out[:5]) == (0, "same:")


def _sha(text: str) -> str:
    import hashlib
    return hashlib.sha256(text.encode()).hexdigest()

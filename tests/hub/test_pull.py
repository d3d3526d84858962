"""Pulling from a hub on loopback: what is brought, what survives a broken connection, what a hub may not do."""
from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, hf_hub_download, snapshot_download

from pellucid.errors import BadRequest, DiskFull, GatedRepository, HubError, ModelNotFound, NotCached
from pellucid.weights import hub as pellucid_hub
from pellucid.weights import hub_cache, transfer
from pellucid.weights.hub import Pulled
from tests.hub.fixtures import NAME, WEIGHTS, repository
from tests.hub.server import Hub, Repo

COMMIT, NEXT = "a" * 40, "b" * 40
PART = hashlib.sha256(WEIGHTS).hexdigest() + ".incomplete"


def pull(name: str = NAME, **how: Any) -> Pulled:
    return pellucid_hub.pull(name, **{"waits": (), **how})


def part(cache: Path) -> Path:
    return hub_cache.storage(NAME, cache) / "blobs" / PART


def on_disk(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# what is brought

def test_a_pull_brings_the_model_and_nothing_twice(hub: Hub) -> None:
    pulled = pull()
    wanted = ["config.json", "tokenizer.json", "tokenizer_config.json", "README.md", "LICENSE", "chat_template.jinja", "model.safetensors"]
    assert on_disk(pulled.path) == {name: hub.repos[NAME].files[name] for name in wanted}
    assert (pulled.repo, pulled.revision, pulled.commit, pulled.license) == (NAME, "main", COMMIT, "apache-2.0")
    n_bytes = sum(map(len, {hub.repos[NAME].files[name] for name in wanted}))  # two files of equal content lie on the disk once
    assert pulled.n_bytes == pulled.downloaded_bytes == n_bytes


def test_a_pull_lies_where_huggingface_hub_finds_it(hub: Hub, cache: Path) -> None:
    pulled = pull()
    hub.requests.clear()
    assert Path(snapshot_download(NAME, cache_dir=cache, local_files_only=True)) == pulled.path
    assert Path(hf_hub_download(NAME, "model.safetensors", cache_dir=cache, revision=COMMIT)) == pulled.path / "model.safetensors"
    assert hub.requests == []


def test_the_revision_is_recorded_with_every_hash(hub: Hub, cache: Path) -> None:
    pull()
    record = json.loads((hub_cache.storage(NAME, cache) / "pellucid" / f"{COMMIT}.json").read_text())
    assert (record["repo"], record["revision"], record["commit"], record["endpoint"]) == (NAME, "main", COMMIT, hub.url)
    assert record["files"]["model.safetensors"]["sha256"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert record["files"]["model.safetensors"]["n_bytes"] == len(WEIGHTS)
    assert record["files"]["config.json"]["git_id"] == hub.repos[NAME].sibling("config.json")["blobId"]


def test_the_record_keeps_what_an_earlier_pull_of_the_commit_brought(hub: Hub, cache: Path) -> None:
    pull(files=["tf_model.h5"])
    pull(files=["onnx/*"])
    assert set(hub_cache.read_record(NAME, COMMIT, cache)["files"]) == {"tf_model.h5", "onnx/model.onnx"}


def test_every_file_is_asked_for_at_the_commit_not_at_the_branch(hub: Hub) -> None:
    pull()
    asked = [r.path for r in hub.requests if "/resolve/" in r.path]
    assert asked
    assert all(f"/resolve/{COMMIT}/" in path for path in asked)


def test_a_second_pull_downloads_nothing(hub: Hub) -> None:
    pull()
    hub.requests.clear()
    assert pull().downloaded_bytes == 0
    assert [r.path for r in hub.requests] == [f"/api/models/{NAME}/revision/main"]


def test_a_moved_branch_is_pulled_beside_the_old_commit_and_shares_its_blobs(hub: Hub) -> None:
    old = pull()
    hub.repos[NAME].commit = NEXT
    hub.repos[NAME].files["config.json"] = b'{"model_type": "llama", "new": 1}'
    new = pull()
    assert (old.commit, new.commit) == (COMMIT, NEXT)
    assert new.downloaded_bytes == len(hub.repos[NAME].files["config.json"])
    assert pellucid_hub.resolve(NAME) == new.path
    assert pellucid_hub.resolve(f"{NAME}@{COMMIT}") == old.path
    assert (old.path / "config.json").read_bytes() == b'{"model_type": "llama"}'


@pytest.mark.parametrize("revision", ["v1.0", "refs/pr/3", NEXT])
def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: Hub, revision: str) -> None:
    hub.repos[NAME].branches = {"v1.0": NEXT, "refs/pr/3": NEXT}
    assert pull(f"{NAME}@{revision}").commit == pull(revision=revision).commit == NEXT
    assert pellucid_hub.resolve(f"{NAME}@{revision}").name == NEXT


@pytest.mark.parametrize(("files", "chosen"), [
    (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin"],
     ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]),
    (["model.safetensors", "model-00001-of-00001.safetensors", "model.safetensors.index.json"], ["model.safetensors"]),
    (["model.fp16.safetensors", "model.safetensors", "adapter/model.safetensors"], ["model.safetensors"]),
    (["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"], ["pytorch_model-00001-of-00001.bin"]),
    (["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json", "training_args.bin"],
     ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"]),
    (["only.Q4_K_M.gguf", "imatrix.dat"], ["only.Q4_K_M.gguf"]),
], ids=["shards before pickle", "whole before shards", "no variants", "one pickle shard", "pickle shards", "one gguf"])
def test_one_copy_of_the_weights_is_chosen(hub: Hub, files: list[str], chosen: list[str]) -> None:
    hub.repos["acme/other"] = Repo({"config.json": b"{}", **{name: name.encode() for name in files}})
    planned = pellucid_hub.plan("acme/other")
    assert {file.path for file in planned.files} == {"config.json", *chosen}
    assert set(planned.left_out) == set(files) - set(chosen)


def test_all_brings_everything_and_file_exactly_what_matches(hub: Hub) -> None:
    assert set(on_disk(pull(files=["*.h5", "onnx/*"]).path)) == {"tf_model.h5", "onnx/model.onnx"}
    assert on_disk(pull(everything=True).path) == hub.repos[NAME].files


def test_several_gguf_files_are_a_question_back(hub: Hub) -> None:
    hub.repos["acme/packed"] = Repo({"a.Q4.gguf": b"4444", "a.Q8.gguf": b"88888888"})
    with pytest.raises(BadRequest, match=r"acme/packed holds 2 GGUF files; choose with --file: a.Q4.gguf \(0.0 GB\), a.Q8.gguf"):
        pull("acme/packed")
    pulled = pull("acme/packed", files=["*Q8*"])
    assert pellucid_hub.resolve("acme/packed") == pulled.path / "a.Q8.gguf"
    pull("acme/packed", files=["*"])
    with pytest.raises(BadRequest, match=r"'acme/packed' holds 2 GGUF files here; name one by its path: .*a.Q4.gguf, .*a.Q8.gguf"):
        pellucid_hub.resolve("acme/packed")


def test_a_repository_without_weights_says_what_it_holds(hub: Hub) -> None:
    hub.repos["acme/flax"] = Repo({"config.json": b"{}", "flax_model.msgpack": b"f"})
    with pytest.raises(BadRequest, match=r"acme/flax holds no weights that Pellucid reads .* it holds config.json, flax_model.msgpack. --all or --file"):
        pull("acme/flax")


def test_a_pattern_without_a_match_names_the_nearest_file(hub: Hub) -> None:
    with pytest.raises(BadRequest, match=r"no file of acme/tiny-llama matches 'model.safetensor'. Did you mean model.safetensors"):
        pull(files=["model.safetensor"])


# connections that break

def test_a_cut_connection_is_taken_up_where_it_broke(hub: Hub) -> None:
    hub.cut_after["model.safetensors"] = [1_000_000, 700_001]
    seen: list[int] = []
    pulled = pull(waits=(0.0,), report=seen.append)
    assert (pulled.path / "model.safetensors").read_bytes() == WEIGHTS
    assert [r.range for r in hub.asked("model.safetensors") if r.address == "storage"] == [None, "bytes=1000000-", "bytes=1700001-"]
    assert sum(seen) == pulled.n_bytes


def test_the_next_pull_goes_on_where_the_last_one_stopped(hub: Hub, cache: Path) -> None:
    hub.cut_after["model.safetensors"] = [2_000_000]
    with pytest.raises(HubError, match=r"model.safetensors: .* after 2000000 of 3000001 bytes. What arrived is kept: run the same command again"):
        pull(files=["model.safetensors"])
    assert part(cache).stat().st_size == 2_000_000
    assert not (hub_cache.storage(NAME, cache) / "snapshots").exists()
    with pytest.raises(ModelNotFound, match=r"the download of 'acme/tiny-llama' stopped before it was whole. Go on with: pellucid pull acme/tiny-llama"):
        pellucid_hub.resolve(NAME)
    hub.requests.clear()
    pulled = pull(files=["model.safetensors"])
    assert [r.range for r in hub.asked("model.safetensors") if r.address == "storage"] == ["bytes=2000000-"]
    assert (pulled.path / "model.safetensors").read_bytes() == WEIGHTS
    assert pulled.downloaded_bytes == 1_000_001
    assert not part(cache).exists()


def test_an_end_without_a_length_is_not_taken_for_the_end(hub: Hub) -> None:
    hub.chunked = True
    hub.cut_after["model.safetensors"] = [1234]
    assert (pull(waits=(0.0,)).path / "model.safetensors").read_bytes() == WEIGHTS


def test_a_server_that_ignores_range_starts_the_file_over(hub: Hub) -> None:
    hub.ignore_range = True
    hub.cut_after["model.safetensors"] = [1_000_000]
    seen: list[int] = []
    pulled = pull(waits=(0.0,), report=seen.append)
    assert (pulled.path / "model.safetensors").read_bytes() == WEIGHTS
    assert sum(seen) == pulled.n_bytes


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_hub_is_asked_again(hub: Hub, status: int) -> None:
    hub.refuse["model.safetensors"] = [status]
    assert (pull(waits=(0.0,)).path / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), ("999999", 300.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.5), (None, 0.5)])
def test_a_busy_hub_is_given_the_time_it_asks_for(hub: Hub, monkeypatch: pytest.MonkeyPatch, header: str | None, seconds: float) -> None:
    waited: list[float] = []
    monkeypatch.setattr(threading.Event, "wait", lambda self, timeout=None, wait=threading.Event.wait: (
        waited.append(timeout) if timeout in (7.0, 300.0, 0.5) else wait(self, timeout)))
    hub.refuse["model.safetensors"], hub.retry_after = [429], header
    pull(waits=(0.5,))
    assert waited == [seconds]


def test_a_hub_that_stays_broken_is_said_with_its_status(hub: Hub) -> None:
    hub.refuse["model.safetensors"] = [500] * 3
    with pytest.raises(HubError, match=r"model.safetensors: the hub answered 500 after 0 of 3000001 bytes"):
        pull(waits=(0.0, 0.0))
    assert len([r for r in hub.asked("model.safetensors") if r.address == "storage"]) == 3


@pytest.mark.parametrize(("status", "advice"), [(403, "This account may not read it"), (404, "A file that its listing names is not there")])
def test_a_refusal_is_not_asked_again(hub: Hub, status: int, advice: str) -> None:
    hub.refuse["config.json"] = [status]
    with pytest.raises(HubError, match=rf"127.0.0.1 refused acme/tiny-llama with {status}.*{advice}"):
        pull(waits=(0.0,))
    assert len(hub.asked("config.json")) == 1


def test_a_dead_hub_is_said_with_its_address(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(HubError, match=rf"cannot reach {nobody}: .*refused.*HF_ENDPOINT; models that are on this disk still work"):
        pull(endpoint=nobody)
    pull()
    with pytest.raises(HubError, match=r"the copy on this disk still works \(pellucid show acme/tiny-llama\)"):
        pull(endpoint=nobody)


# bytes that are wrong

@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_corrupt_file_is_refused_and_deleted(hub: Hub, cache: Path, file: str) -> None:
    hub.corrupt[file] = 1
    with pytest.raises(HubError, match=rf"{file} arrived corrupt and was deleted: \d+ bytes with hash [0-9a-f]+, expected \d+ bytes with [0-9a-f]+"):
        pull()
    wrong = hub.repos[NAME].sibling(file)
    blobs = hub_cache.storage(NAME, cache) / "blobs"
    assert not list(blobs.glob(f"{wrong.get('lfs', {}).get('sha256', wrong['blobId'])}*"))
    assert on_disk(pull().path)[file] == hub.repos[NAME].files[file]


def test_wrong_bytes_of_an_earlier_attempt_are_fetched_once_more(hub: Hub, cache: Path) -> None:
    part(cache).parent.mkdir(parents=True)
    part(cache).write_bytes(b"\0" * 1_000_000)
    pulled = pull()
    assert (pulled.path / "model.safetensors").read_bytes() == WEIGHTS
    assert [r.range for r in hub.asked("model.safetensors") if r.address == "storage"] == ["bytes=1000000-", None]


def test_a_partial_file_longer_than_the_file_is_fetched_again(hub: Hub, cache: Path) -> None:
    part(cache).parent.mkdir(parents=True)
    part(cache).write_bytes(WEIGHTS + b"more")
    assert (pull().path / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.timeout(30)
def test_an_answer_without_end_does_not_fill_the_disk(hub: Hub) -> None:
    hub.chunked = hub.endless = True
    with pytest.raises(HubError, match=r"model.safetensors arrived corrupt and was deleted: \d+ bytes"):
        pull(files=["model.safetensors"])
    hub.endless = False


def test_verify_finds_and_mends_what_broke_on_the_disk(hub: Hub) -> None:
    weights = pull().path / "model.safetensors"
    weights.resolve().write_bytes(b"\1" + WEIGHTS[1:])
    assert pull().downloaded_bytes == 0
    assert pull(verify=True).downloaded_bytes == len(WEIGHTS)
    assert weights.read_bytes() == WEIGHTS


def test_a_deleted_blob_is_brought_again(hub: Hub) -> None:
    weights = pull().path / "model.safetensors"
    weights.resolve().unlink()
    assert pull().downloaded_bytes == len(WEIGHTS)
    assert weights.read_bytes() == WEIGHTS


@pytest.mark.parametrize("path", ["../../evil.json", "/etc/evil.json", "a/../../evil.json", "a\\..\\evil.json", "./evil.json", ""])
def test_a_path_that_leaves_the_folder_is_refused(hub: Hub, path: str, tmp_path: Path) -> None:
    hub.edit_listing = lambda listing: {**listing, "siblings": [*listing["siblings"], {**listing["siblings"][0], "rfilename": path}]}
    with pytest.raises(HubError, match=r"acme/tiny-llama lists a file with an unsafe path: .*Nothing was downloaded"):
        pull(everything=True)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("edit", [{"blobId": "../../evil"}, {"blobId": None}, {"size": None}, {"lfs": {"size": 1, "sha256": "x/y", "pointerSize": 1}}])
def test_a_hash_that_is_none_is_refused(hub: Hub, edit: dict[str, Any]) -> None:
    hub.edit_listing = lambda listing: {**listing, "siblings": [{**listing["siblings"][0], **edit}]}
    with pytest.raises(HubError, match=r"lists 'config.json' without a size or a hash to check it by"):
        pull(everything=True)


def test_a_hub_without_commits_is_refused(hub: Hub) -> None:
    hub.edit_listing = lambda listing: {**listing, "sha": "main"}
    with pytest.raises(HubError, match=r"names no commit for acme/tiny-llama@main: 'main'. Is it a Hugging Face hub?"):
        pull()


# who may read

def test_a_gated_repository_says_where_to_accept_and_how_to_log_in(hub: Hub) -> None:
    hub.repos[NAME].gated = True
    with pytest.raises(GatedRepository, match=rf"acme/tiny-llama is gated: .*Accept it at {hub.url}/acme/tiny-llama, log in with `hf auth login`"):
        pull()


def test_a_token_without_access_is_told_apart_from_no_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos[NAME].gated = True
    monkeypatch.setenv("HF_TOKEN", "token-without-access")
    with pytest.raises(GatedRepository, match=r"the token that is set has no access yet"):
        pull()


def test_a_token_opens_a_gated_repository_and_never_reaches_the_storage(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos[NAME].gated = True
    monkeypatch.setenv("HF_TOKEN", "good-token")
    assert (pull().path / "model.safetensors").read_bytes() == WEIGHTS
    assert {r.authorization for r in hub.requests if r.address == "hub"} == {"Bearer good-token"}
    assert {r.authorization for r in hub.requests if r.address == "storage"} == {None}


def test_a_refused_token_says_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "expired")
    with pytest.raises(HubError, match=r"refused acme/tiny-llama with 401.*The token is not accepted: log in again"):
        pull()


def test_a_missing_repository_names_the_nearest(hub: Hub) -> None:
    with pytest.raises(ModelNotFound, match=r"knows no repository 'acme/tiny-lama', or it is private: then log in.* Did you mean acme/tiny-llama\?") as error:
        pull("acme/tiny-lama")
    assert error.value.nearest == (NAME,)


def test_a_missing_repository_with_a_token_does_not_ask_for_a_login(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "good-token")
    with pytest.raises(ModelNotFound, match=r"knows no repository 'acme/nothing', or it is private to another account"):
        pull("acme/nothing")


def test_a_missing_revision_names_those_there_are(hub: Hub) -> None:
    hub.repos[NAME].branches = {"v1.0": NEXT}
    with pytest.raises(ModelNotFound, match=r"acme/tiny-llama has no revision 'v1.1'. It has main, v1.0. Did you mean v1.0\?"):
        pull(f"{NAME}@v1.1")


@pytest.mark.parametrize("name", ["tiny-llama", "a/b/c", "../b", "a b/c", "", "acme/tiny@", "acme/.."])
def test_what_is_no_repository_is_misuse(hub: Hub, name: str) -> None:
    with pytest.raises(BadRequest, match=r"is not a repository: expected owner/name"):
        pull(name)
    assert hub.requests == []


def test_a_name_the_hub_forbids_is_misuse(hub: Hub) -> None:
    with pytest.raises(BadRequest, match=r"'acme/tiny--llama' cannot be a repository's name"):
        pull("acme/tiny--llama")


def test_two_revisions_are_misuse(hub: Hub) -> None:
    with pytest.raises(BadRequest, match=r"two revisions: 'acme/tiny-llama@a' and 'b'. Give one"):
        pull(f"{NAME}@a", revision="b")


# offline

def test_offline_uses_what_is_here_and_asks_nobody(hub: Hub) -> None:
    pulled = pull()
    hub.requests.clear()
    again = pull(offline=True)
    assert (again.path, again.commit, again.downloaded_bytes, again.license) == (pulled.path, pulled.commit, 0, "apache-2.0")
    assert hub.requests == []


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_offline_and_not_here_is_said(hub: Hub, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", how == "environment")
    with pytest.raises(NotCached, match=r"offline, and 'acme/tiny-llama@v1' is not on this disk .*without --offline and HF_HUB_OFFLINE"):
        pull(f"{NAME}@v1", offline=how == "argument")
    assert hub.requests == []


def test_a_plan_offline_is_said(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NotCached, match=r"offline, and acme/tiny-llama is not whole on this disk"):
        pellucid_hub.plan(NAME)


# disks

def test_the_disk_is_asked_before_the_first_byte(hub: Hub, cache: Path) -> None:
    planned = pellucid_hub.plan(NAME)
    with pytest.raises(DiskFull, match=r"acme/tiny-llama needs 0.00 GB more \(3000052 bytes\), 0.00 GB \(3000051 bytes\) are free in") as error:
        pull(free=lambda folder: planned.missing_bytes - 1)
    assert (error.value.needed_bytes, error.value.free_bytes) == (3_000_052, 3_000_051)
    assert not any("/resolve/" in r.path for r in hub.requests)
    pull(free=lambda folder: planned.missing_bytes)


def test_what_an_interrupted_pull_left_is_not_asked_of_the_disk_again(hub: Hub) -> None:
    hub.cut_after["model.safetensors"] = [2_000_000]
    with pytest.raises(HubError):
        pull()
    pull(free=lambda folder: 1_000_051)


def test_a_disk_that_fills_up_midway_leaves_nothing_that_looks_whole(hub: Hub, cache: Path) -> None:
    part(cache).parent.mkdir(parents=True)
    part(cache).symlink_to("/dev/full")  # every write to it fails as on a full disk
    with pytest.raises(DiskFull, match=r"acme/tiny-llama needs .* are free in .*what arrived so far is kept"):
        pull()
    assert not (hub_cache.storage(NAME, cache) / "snapshots").exists()
    assert not part(cache).with_suffix("").exists()
    assert [model.interrupted for model in pellucid_hub.local_models()] == [True]
    part(cache).unlink()
    assert (pull().path / "model.safetensors").read_bytes() == WEIGHTS


def test_a_write_that_takes_only_a_part_is_gone_on_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write = os.write
    monkeypatch.setattr(transfer.os, "write", lambda fd, data: write(fd, bytes(data)[:7]))
    with (tmp_path / "x").open("wb", buffering=0) as out:
        transfer._write(out.fileno(), WEIGHTS[:100])
    assert (tmp_path / "x").read_bytes() == WEIGHTS[:100]


def test_a_file_system_without_links_gets_copies(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(self: Path, target: str) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", no_links)
    path = pull().path / "model.safetensors"
    assert not path.is_symlink()
    assert path.read_bytes() == WEIGHTS


def test_free_bytes_are_those_of_the_disk_that_will_hold_the_folder(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    assert abs(pellucid_hub.free_bytes(tmp_path / "not" / "yet") - free) < 1e9


# at the same time

def test_two_pulls_of_one_repository_do_not_mix(hub: Hub) -> None:
    hub.stall.set()
    failed: list[BaseException] = []
    started = threading.Event()

    def first() -> None:
        try:
            pull(started=lambda planned: started.set())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    assert started.wait(10)
    with pytest.raises(HubError, match=r"another pull or removal of 'acme/tiny-llama' is under way \(it holds .*pellucid.lock\). Wait for it, or stop it"):
        pull()
    with pytest.raises(HubError, match=r"another pull or removal"):
        pellucid_hub.remove(NAME)
    hub.stall.clear()
    thread.join(20)
    assert failed == []
    assert (pellucid_hub.resolve(NAME) / "model.safetensors").read_bytes() == WEIGHTS


def test_the_repository_of_the_tests_has_two_files_of_equal_content() -> None:
    """Two threads must not write the same partial file: this is what the other tests then cover."""
    files = repository().files
    assert files["tokenizer.json"] == files["tokenizer_config.json"]

"""What is on the disk: names and what they mean, the list of models, deleting them."""
from __future__ import annotations

import os
from pathlib import Path

import pytest
from huggingface_hub import constants

from pellucid.errors import HubError, ModelNotFound
from pellucid.weights import hub as pellucid_hub
from pellucid.weights import hub_cache
from tests.hub.fixtures import NAME, WEIGHTS
from tests.hub.server import Hub

OLD, NEW = "a" * 40, "b" * 40


def downloaded(cache: Path, repo: str = NAME, commits: tuple[str, ...] = (OLD,), refs: dict[str, str] | None = None) -> Path:
    """A repository as huggingface_hub itself leaves it: each commit a config of its own and weights that all share."""
    folder = hub_cache.storage(repo, cache)
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / "w").write_bytes(b"w" * 1000)
    for commit in commits:
        snapshot = folder / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (folder / "blobs" / commit).write_text(f'{{"commit": "{commit}"}}')
        (snapshot / "config.json").symlink_to(f"../../blobs/{commit}")
        (snapshot / "model.safetensors").symlink_to("../../blobs/w")
    for ref, commit in ({"main": commits[0]} if refs is None else refs).items():
        (folder / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (folder / "refs" / ref).write_text(commit)
    return folder / "snapshots"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache and a current folder of its own; no hub at all."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "cache"


# names

def test_an_existing_path_wins_over_a_repository(here: Path) -> None:
    downloaded(here)
    Path(NAME).mkdir(parents=True)
    assert pellucid_hub.resolve(NAME) == Path(NAME)
    assert pellucid_hub.resolve(Path(NAME)) == Path(NAME)


def test_the_home_folder_is_understood(here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "work"))
    Path("mine.gguf").touch()
    assert pellucid_hub.resolve("~/mine.gguf") == tmp_path / "work" / "mine.gguf"


def test_a_download_of_another_program_is_found_too(here: Path) -> None:
    snapshots = downloaded(here, commits=(OLD, NEW), refs={"main": OLD, "refs/pr/1": NEW})
    assert pellucid_hub.resolve(NAME) == snapshots / OLD
    for revision in ("refs/pr/1", NEW, NEW[:7]):
        assert pellucid_hub.resolve(f"{NAME}@{revision}") == snapshots / NEW


def test_the_only_revision_needs_no_name(here: Path) -> None:
    snapshots = downloaded(here, refs={"v1": OLD})
    assert pellucid_hub.resolve(NAME) == snapshots / OLD


def test_a_short_commit_that_means_two_is_not_guessed(here: Path) -> None:
    downloaded(here, commits=(OLD, OLD[:-1] + "b"))
    with pytest.raises(ModelNotFound, match="'acme/tiny-llama@aaaaaaa' is not on this disk"):
        pellucid_hub.resolve(f"{NAME}@{OLD[:7]}")


@pytest.mark.parametrize("revision", ["../../../secret", "main/../../../../secret", "x"])
def test_a_revision_never_reads_outside_refs(here: Path, revision: str) -> None:
    downloaded(here)
    (here.parent / "secret").write_text(OLD)
    (here / "secret").write_text(OLD)
    (hub_cache.storage(NAME, here) / "secret").write_text(OLD)
    with pytest.raises(ModelNotFound, match="is not on this disk"):
        pellucid_hub.resolve(f"{NAME}@{revision}")


def test_an_unknown_repository_says_how_to_pull_it_and_what_is_near(here: Path) -> None:
    downloaded(here)
    with pytest.raises(ModelNotFound, match=r"'acme/tiny-lama' is not on this disk, neither as a path nor as a download. Did you mean acme/tiny-llama\? "
                                            "Try: pellucid pull acme/tiny-lama$") as error:
        pellucid_hub.resolve("acme/tiny-lama")
    assert error.value.nearest == (NAME,)


def test_an_unknown_revision_says_which_are_here(here: Path) -> None:
    downloaded(here)
    with pytest.raises(ModelNotFound, match=r"not on this disk, .* \(here of acme/tiny-llama: aaaaaaaaaaaa, main\). Try: pellucid pull acme/tiny-llama@v2"):
        pellucid_hub.resolve(f"{NAME}@v2")


def test_a_path_that_is_not_there_names_its_neighbours(here: Path) -> None:
    for name in ("models/stories15M", "models/other"):
        Path(name).mkdir(parents=True)
    with pytest.raises(ModelNotFound, match=r"no such path: './models/stories15m'. Did you mean models/stories15M\? A model is") as error:
        pellucid_hub.resolve("./models/stories15m")
    assert error.value.nearest == ("models/stories15M",)


def test_a_mistyped_relative_path_is_not_only_taken_for_a_repository(here: Path) -> None:
    Path("models/stories15M").mkdir(parents=True)
    with pytest.raises(ModelNotFound, match=r"'models/storys15M' is not on this disk.* Did you mean models/stories15M\?"):
        pellucid_hub.resolve("models/storys15M")


def test_a_name_without_owner_finds_the_download(here: Path) -> None:
    downloaded(here)
    with pytest.raises(ModelNotFound, match=r"no such path: 'tiny-llama'. Did you mean acme/tiny-llama\?"):
        pellucid_hub.resolve("tiny-llama")


def test_an_empty_name_is_not_the_current_folder(here: Path) -> None:
    with pytest.raises(ModelNotFound, match="no such path: ''"):
        pellucid_hub.resolve("")


def test_shipped_is_the_model_in_the_package(here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub_cache, "__file__", str(tmp_path / "pellucid" / "weights" / "hub_cache.py"))
    with pytest.raises(ModelNotFound, match=r"no shipped model in this installation: .*pellucid/shipped has no config.json. Install Pellucid again"):
        pellucid_hub.resolve("shipped")
    (tmp_path / "pellucid" / "shipped").mkdir(parents=True)
    (tmp_path / "pellucid" / "shipped" / "config.json").touch()
    assert pellucid_hub.resolve("shipped") == (tmp_path / "pellucid" / "shipped").resolve()


# the list

def test_an_empty_or_missing_cache_has_no_models(here: Path) -> None:
    assert pellucid_hub.local_models() == []
    here.mkdir()
    assert pellucid_hub.local_models() == []


def test_the_list_has_every_revision_with_its_bytes_last_used_first(here: Path) -> None:
    downloaded(here, commits=(OLD, NEW), refs={"main": NEW, "v1": OLD, "stable": OLD})
    downloaded(here, "acme/newer")
    os.utime(hub_cache.storage("acme/newer", here) / "blobs" / "w", (4e9, 1e9))
    (here / "datasets--acme--texts" / "snapshots" / OLD).mkdir(parents=True)
    models = pellucid_hub.local_models()
    assert [(model.repo, model.commit, model.revisions, model.n_bytes) for model in models[:1]] == [("acme/newer", OLD, ("main",), 1054)]
    assert {(model.repo, model.commit, model.revisions, model.n_bytes) for model in models[1:]} == {
        (NAME, OLD, ("stable", "v1"), 1054), (NAME, NEW, ("main",), 1054)}
    assert models[0].last_used == 4e9
    assert not any(model.verified or model.interrupted for model in models)


def test_what_pellucid_pulled_is_known_as_verified(hub: Hub, cache: Path) -> None:
    pellucid_hub.pull(NAME)
    downloaded(cache, "acme/foreign")
    assert {model.repo: model.verified for model in pellucid_hub.local_models()} == {NAME: True, "acme/foreign": False}


def test_two_files_of_one_blob_count_once(hub: Hub) -> None:
    pulled = pellucid_hub.pull(NAME)
    assert pellucid_hub.local_models()[0].n_bytes == pulled.n_bytes == len(WEIGHTS) + 51


# deleting

def test_removing_a_repository_frees_all_of_it(here: Path) -> None:
    downloaded(here, commits=(OLD, NEW))
    downloaded(here, "acme/other")
    (hub_cache.storage(NAME, here) / "blobs" / "z.incomplete").write_bytes(b"z" * 10)
    freed = pellucid_hub.remove(NAME)
    assert freed >= 1000 + 2 * 54 + 10
    assert not hub_cache.storage(NAME, here).exists()
    assert [model.repo for model in pellucid_hub.local_models()] == ["acme/other"]


def test_removing_one_revision_keeps_what_the_other_shares(here: Path) -> None:
    snapshots = downloaded(here, commits=(OLD, NEW), refs={"main": NEW, "v1": OLD})
    hub_cache.write_record(NAME, OLD, {}, here)
    assert pellucid_hub.remove(NAME, "v1") == 54  # its config.json alone
    assert [model.commit for model in pellucid_hub.local_models()] == [NEW]
    assert (snapshots / NEW / "model.safetensors").read_bytes() == b"w" * 1000
    assert not hub_cache.record_path(NAME, OLD, here).exists()
    assert pellucid_hub.remove(NAME, "main") >= 1054
    assert not hub_cache.storage(NAME, here).exists()


def test_a_fork_with_the_same_commit_is_left_alone(here: Path) -> None:
    names = [NAME, "fork/tiny-llama", "zfork/tiny-llama", "b/tiny-llama"]
    for name in names:
        downloaded(here, name, commits=(OLD, NEW))
    pellucid_hub.remove("zfork/tiny-llama", NEW)
    assert {(model.repo, model.commit) for model in pellucid_hub.local_models()} == {
        (name, commit) for name in names for commit in (OLD, NEW)} - {("zfork/tiny-llama", NEW)}


def test_an_interrupted_download_can_be_removed(hub: Hub) -> None:
    hub.cut_after["model.safetensors"] = [2_000_000]
    with pytest.raises(HubError):
        pellucid_hub.pull(NAME, waits=(), files=["model.safetensors"])
    assert [(model.repo, model.commit, model.interrupted, model.n_bytes) for model in pellucid_hub.local_models()] == [(NAME, None, True, 2_000_000)]
    assert pellucid_hub.remove(NAME) == 2_000_000
    assert pellucid_hub.local_models() == []


def test_bytes_in_the_store_that_repositories_share_are_freed_too(here: Path) -> None:
    """huggingface_hub keeps large files it downloaded in one store for all repositories, with links to them."""
    from huggingface_hub.utils._shared_blobs import publish_blob_to_shared_store
    for repo in (NAME, "acme/other"):
        downloaded(here, repo)
        blob = hub_cache.storage(repo, here) / "blobs" / "w"
        assert publish_blob_to_shared_store(blob_path=str(blob), xet_hash="0" * 64, cache_dir=here, expected_size=1000, replace_existing=False)
        assert blob.is_symlink()
    assert pellucid_hub.remove(NAME) == 54  # the other repository still needs the thousand
    assert pellucid_hub.remove("acme/other") == 1054
    assert not [path for path in here.rglob("*") if path.is_file() and path.stat().st_size >= 1000]


def test_a_repository_that_huggingface_hub_calls_corrupt_can_be_removed(here: Path) -> None:
    snapshots = downloaded(here)
    (snapshots.parent / "blobs" / "w").unlink()
    freed = pellucid_hub.remove(NAME)
    assert freed >= 54
    assert not snapshots.parent.exists()


def test_removing_what_is_not_here_names_what_is(here: Path) -> None:
    downloaded(here)
    with pytest.raises(ModelNotFound, match=r"nothing to delete: 'acme/tiny-lama' is not on this disk. Did you mean acme/tiny-llama\?"):
        pellucid_hub.remove("acme/tiny-lama")
    with pytest.raises(ModelNotFound, match=r"nothing to delete: 'acme/tiny-llama@v9' is not on this disk. \(here of acme/tiny-llama: aaaaaaaaaaaa, main\)"):
        pellucid_hub.remove(NAME, "v9")
    assert hub_cache.storage(NAME, here).exists()


@pytest.mark.parametrize("revision", [None, NEW])
def test_a_refusal_of_the_file_system_is_not_taken_for_a_deletion(here: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None) -> None:
    downloaded(here, commits=(OLD, NEW))

    def refuse(path: str, *args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    for name in ("unlink", "remove", "rmdir"):
        monkeypatch.setattr(os, name, refuse)
    with pytest.raises(HubError, match=r"could not delete .*: Permission denied. Look at its permissions"):
        pellucid_hub.remove(NAME, revision)


def test_a_record_that_is_not_json_says_what_to_do(here: Path) -> None:
    hub_cache.write_record(NAME, OLD, {}, here)
    hub_cache.record_path(NAME, OLD, here).write_text("{")
    with pytest.raises(HubError, match=r"a{40}.json is not JSON .* Delete it and run: pellucid pull acme/tiny-llama"):
        hub_cache.read_record(NAME, OLD, here)


def test_a_small_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    hub_cache.write_whole(path, "old")

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        hub_cache.write_whole(path, "new")
    assert [each.name for each in tmp_path.iterdir()] == ["record.json"]
    assert path.read_text() == "old"

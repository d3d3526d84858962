"""The page's files: they are what web/ is built to, they are served to everybody, and a browser is told to trust nothing else."""
from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pellucid.api import Model
from pellucid.serve.keys import Checked, Keys
from pellucid.serve.page import ASSETS, FILES, POLICY

from .conftest import Running

WEB = Path(__file__).parents[2] / "web"


def sources(root: Path) -> str:
    """As web/sources.mjs has it: of every file but what npm installs."""
    whole = hashlib.sha256()
    paths = [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and not path.relative_to(root).parts[0].startswith("node_modules")]
    for path in sorted(paths):
        whole.update(f"{path} {hashlib.sha256((root / path).read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()


def test_the_committed_files_were_built_from_these_sources() -> None:
    told = re.search(r'<meta name="sources" content="(\w+)">', (ASSETS / "index.html").read_text("utf8"))
    assert told is not None
    assert told[1] == sources(WEB), "web/ has changed since pellucid/serve/assets was built: run `make web`, and commit what it builds"


def test_a_changed_source_is_noticed(tmp_path: Path) -> None:
    shutil.copytree(WEB / "src", tmp_path / "src")
    before = sources(tmp_path)
    (tmp_path / "src" / "main.ts").write_text("changed")
    assert sources(tmp_path) != before


@pytest.mark.node
def test_building_again_gives_the_same_bytes(tmp_path: Path) -> None:
    done = subprocess.run(["npx", "--no-install", "vite", "build", "--outDir", str(tmp_path)], cwd=WEB, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {path.name: path.read_bytes() for path in ASSETS.iterdir()}


@pytest.mark.node
@pytest.mark.parametrize("check", [["tsc", "--noEmit"], ["vitest", "run"]], ids=lambda check: check[0])
def test_types_and_logic_of_the_sources_hold(check: list[str]) -> None:
    done = subprocess.run(["npx", "--no-install", *check], cwd=WEB, capture_output=True, text=True, check=False, env=os.environ | {"NO_COLOR": "1"})
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", FILES)
def test_each_file_comes_with_a_policy_and_is_not_kept_beyond_its_time(server: Running, path: str) -> None:
    answer = server.client.get(path)
    assert answer.status_code == 200
    assert answer.content == (ASSETS / FILES[path]).read_bytes()
    assert answer.headers["content-security-policy"] == POLICY
    assert "unsafe" not in POLICY
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["etag"]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_page_names_no_other_address_and_holds_nothing_inline() -> None:
    html = (ASSETS / "index.html").read_text("utf8")
    assert set(re.findall(r'(?:src|href)="([^"]+)"', html)) == set(FILES) - {"/"}
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", html)
    css = (ASSETS / "page.css").read_text("utf8")
    assert "url(" not in css
    assert "@import" not in css


def test_a_server_with_keys_shows_the_page_and_nothing_behind_it(serve: Callable[..., Running], abc: Model, tmp_path: Path) -> None:
    keys = Keys(f"sqlite:///{tmp_path}/keys.db")
    keys.add("alice")
    guarded = serve(keys=Checked(keys), abc=abc)
    assert {path: guarded.client.get(path).status_code for path in FILES} == dict.fromkeys(FILES, 200)
    assert {guarded.client.get(path).status_code for path in ("/v1/models", "/report/abc", "/assets/../keys.py", "/assets/licenses.md")} == {401}


def test_the_page_is_no_part_of_the_apis_document(server: Running) -> None:
    assert not set(FILES) & set(server.client.get("/openapi.json").json()["paths"])

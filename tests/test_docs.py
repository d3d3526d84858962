"""What the README and the documents say is run and compared, so that they stay true."""
from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def run(command: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, check=False, timeout=280)


@pytest.mark.parametrize("line", [line for block in blocks("bash") for line in block.splitlines() if line])
def test_a_command_of_the_readme_does_what_the_readme_shows(line: str) -> None:
    """The words may differ from one CPU to the next, as sums in bfloat16 do; that it writes, and what it says about it, may not."""
    done = run([sys.executable, "-m", *shlex.split(line)])
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 20
    [shown] = blocks("text")
    for said in done.stderr.splitlines():
        label = said.split("  ")[0].split(" · ")[0].strip()  # "weights", "60 tokens, ...": what follows is measured
        assert label in shown, f"the README does not show {said!r}"


def test_the_python_of_the_readme_runs() -> None:
    [code] = blocks("python")
    done = run([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr
    assert "length" in done.stdout


def test_the_readme_names_the_two_commands_and_the_makefile_has_them() -> None:
    assert "    make demo\n    make test\n" in README
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("make test")


def test_make_demo_ends_with_the_shipped_model_writing() -> None:
    """The last command of `make demo`, with this environment in place of a fresh one."""
    # The suite itself runs under make, where another make says which directory it enters and leaves.
    recipe = run(["make", "-n", "--no-print-directory", "demo", f"VENV={sys.prefix}"], MAKEFLAGS="", MAKELEVEL="0").stdout.splitlines()
    command = shlex.split(recipe[-1])
    assert command[0].endswith("bin/pellucid")
    done = run([sys.executable, "-m", "pellucid", *command[1:]])
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 100
    for part in ("family llama", "tokens/s", "next: pellucid"):
        assert part in done.stderr


def test_every_file_the_documents_point_to_exists() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf8")):
            assert (page.parent / target).exists(), f"{page.name} points to {target}"


def test_the_walk_through_a_family_shows_the_file_as_it_is() -> None:
    shown = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "add-a-family.md").read_text(encoding="utf8"), re.S)
    assert shown is not None
    assert shown[1] == (ROOT / "pellucid" / "families" / "granite.py").read_text(encoding="utf8")

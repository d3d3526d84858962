"""The command line, in this process (`say`) and as a program of its own (`program`)."""
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from pellucid.cli import main
from tests.hub.fixtures import cache, hub

__all__ = ["cache", "hub"]

ROOT = Path(__file__).parents[2]


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run `pellucid` in this process: the exit code, stdout and stderr."""
    def run(*args: str) -> Said:
        code = main(args)
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)
    return run


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    """An environment with a home of its own, no token, and no terminal's width."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "PYTHON"))}
    return {**kept, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_COLOR": "1", **more}


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., Said]:
    """Run `python -m pellucid` as a program: the exit code, stdout and stderr. Keyword arguments are environment variables."""
    def run(*args: str, stdin: str = "", **variables: str) -> Said:
        done = subprocess.run([sys.executable, "-m", "pellucid", *args], input=stdin, capture_output=True, text=True, encoding="utf-8",
                              cwd=tmp_path, env=environment(tmp_path, **variables), timeout=60, check=False)
        return Said(done.returncode, done.stdout, done.stderr)
    return run

"""The kernels' build: where there is no compiler the package is still installed, and says so."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def cmake(*args: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("cmake", path=PATH)
    assert program is not None, "cmake is one of the packages that make test installs"
    return subprocess.run([program, *args], env=os.environ | {"PATH": PATH} | env, capture_output=True, text=True, check=False, timeout=200)


def test_without_a_compiler_the_rest_is_installed_and_the_build_says_what_is_missing(tmp_path: Path) -> None:
    configured = cmake("-S", ROOT, "-B", tmp_path / "build", "-G", "Ninja", CXX=str(tmp_path / "no-compiler"))
    assert configured.returncode == 0, configured.stderr
    said = " ".join(configured.stderr.split())
    assert "no C++ compiler was found: Pellucid is installed without its CPU kernels, and packed weights run many times slower" in said
    assert "apt-get install g++ python3-dev" in said
    assert cmake("--build", tmp_path / "build").returncode == 0
    installed = cmake("--install", tmp_path / "build", "--prefix", tmp_path / "out")
    assert installed.returncode == 0, installed.stderr
    assert not list(tmp_path.rglob("_native*"))

"""The kernels' build: where there is no compiler the package is still installed, and says so."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pellucid.errors import StaleKernels
from pellucid.ops import built
from pellucid.ops.panels import native

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


@pytest.mark.native
def test_a_module_built_from_other_sources_is_refused(tmp_path: Path) -> None:
    here = ROOT / "pellucid" / "ops" / "cpu"
    built.check(native, here)
    assert native.sources == built.digest(here)
    with pytest.raises(StaleKernels, match=r"_native\S+ was built from other sources \(older ones\) than those beside it .*make native"):
        built.check(SimpleNamespace(__file__=native.__file__), here)
    for suffix in ("cpp", "h", "cmake"):
        for path in here.glob(f"*.{suffix}"):
            shutil.copy(path, tmp_path)
    built.check(native, tmp_path)
    (tmp_path / "pool.cpp").write_text("// another\n" + (tmp_path / "pool.cpp").read_text())
    with pytest.raises(StaleKernels, match=native.sources[:12]):
        built.check(native, tmp_path)


def test_an_installed_package_has_no_sources_and_loads(tmp_path: Path) -> None:
    built.check(SimpleNamespace(__file__="_native.so", sources="0"), tmp_path)


def checked(build: Path, *options: str) -> str:
    """The check program, built with these options of CMake."""
    configured = cmake("-S", ROOT / "tests" / "ops" / "cpu", "-B", build, "-G", "Ninja", *options)
    assert configured.returncode == 0, configured.stderr
    built = cmake("--build", build)
    assert built.returncode == 0, built.stdout[-4000:]
    assert "warning:" not in built.stdout
    return str(build / "check")


@pytest.mark.native
def test_kernels_and_pool_hold_under_the_address_and_undefined_behavior_sanitizers(tmp_path: Path) -> None:
    program = checked(tmp_path, "-DCHECK_OPTIONS=-O1;-g;-fsanitize=address,undefined;-fno-sanitize-recover=all")
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout == f"{len(native.formats())} formats, variants {' '.join(native.variants())}: 0 failed\n"


@pytest.mark.native
@pytest.mark.cross
def test_kernels_for_arm_hold_in_an_emulator(tmp_path: Path) -> None:
    program = checked(tmp_path, "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
                      "-DCMAKE_EXE_LINKER_FLAGS=-static")
    done = subprocess.run(["qemu-aarch64", "-cpu", "max", program], capture_output=True, text=True, check=False, timeout=200)
    assert (done.returncode, done.stdout) == (0, f"{len(native.formats())} formats, variants neon portable: 0 failed\n"), done.stderr[-4000:]

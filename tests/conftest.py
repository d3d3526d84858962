"""What every test may use: the data folder beside the repository, and skips that say why."""
from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from pellucid.ops.panels import native

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports the kernels, which are then run on the CPU


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what this machine cannot run. Every kind of skip is a row in SKIPS.md."""
    for item in items:
        if item.get_closest_marker("shared") and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason="needs the data folder ../shared/data"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("triton") and find_spec("triton") is None:
            item.add_marker(pytest.mark.skip(reason="needs Triton: pip install triton"))
        if item.get_closest_marker("native") and native is None:
            item.add_marker(pytest.mark.skip(reason="needs the kernels for the CPU: make native"))
        if item.get_closest_marker("linux") and not Path("/proc/self/smaps").exists():
            item.add_marker(pytest.mark.skip(reason="needs Linux's /proc"))
        if item.get_closest_marker("browser") and not (shutil.which("chromium") and find_spec("playwright")):
            item.add_marker(pytest.mark.skip(reason="needs Debian's chromium, and playwright"))
        if item.get_closest_marker("curl") and not shutil.which("curl"):
            item.add_marker(pytest.mark.skip(reason="needs curl"))
        if item.get_closest_marker("node") and not (shutil.which("node") and (ROOT / "web" / "node_modules").is_dir()):
            item.add_marker(pytest.mark.skip(reason="needs Node 20.19 or newer, and what web/ is built with: make web"))
        if item.get_closest_marker("cross") and not (shutil.which("aarch64-linux-gnu-g++") and shutil.which("qemu-aarch64")):
            item.add_marker(pytest.mark.skip(reason="needs aarch64-linux-gnu-g++ and qemu-aarch64"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The data folder beside the repository; for tests marked `shared`."""
    return SHARED

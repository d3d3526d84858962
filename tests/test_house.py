"""The house stands as docs/design says: imports go one way, torch stays out of the light parts, public names are few."""
from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pellucid

PACKAGE = Path(pellucid.__file__).parent
FLOORS = [["errors"], ["spec"], ["records", "cost"], ["tokenizer", "weights"], ["families"], ["catalog"], ["ops"], ["model"], ["engine"], ["api"],
          ["data"], ["guard"], ["evaluate"], ["audit"], ["train"], ["serve"], ["cli"]]
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
TORCH_FREE = ["errors", "spec", "records", "cost", "families", "families._describe", "catalog", "catalog.families", "catalog.models",
              "catalog.licenses", "catalog.gate", "catalog.verdict", "weights.names", "weights.header", "weights.gguf", "weights.packed",
              "weights.mixes", "weights.gguf_write", "weights.hub", "cli", "catalog.subject", "catalog.planning", "catalog.hardware"]


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, room) of every import of this package in a file, wherever in the file it stands."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "pellucid" else [node.module or ""]
        found += [(node.lineno, name.split(".")[1]) for name in names if name.startswith("pellucid.")]
    return found


def climbs(path: Path, room: str) -> list[str]:
    return [f"{path.relative_to(PACKAGE)}:{line} imports {other}" for line, other in imports(path)
            if other in FLOOR and other != room and FLOOR[other] >= FLOOR[room]]


def test_a_module_imports_only_from_its_left() -> None:
    climbing = []
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if room in ("__init__", "__main__"):
            continue  # the front door opens onto every room
        assert room in FLOOR, f"{room} has no floor in the house"
        climbing += climbs(path, room)
    assert not climbing


def test_a_climbing_import_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "spec.py").write_text("def f():\n    from pellucid.model.decoder import Decoder\n")
    assert climbs(tmp_path / "spec.py", "spec") == ["spec.py:2 imports model"]


@pytest.mark.parametrize("module", TORCH_FREE)
def test_importing_this_imports_no_torch(module: str) -> None:
    code = f"import sys, pellucid, pellucid.{module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_public_names_are_these() -> None:
    assert sorted(pellucid.__all__) == ["Model", "__version__", "errors", "load", "load_tokenizer"]
    for name in pellucid.__all__:
        assert getattr(pellucid, name) is not None


def test_the_package_imports_no_test_oracle() -> None:
    """transformers, sentencepiece and the like judge the package; it must not lean on them."""
    oracles = {"transformers", "sentencepiece", "tiktoken", "gguf", "peft", "trl", "openai", "anthropic", "langchain_openai", "schemathesis", "playwright"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not oracles & {n.split(".")[0] for n in names}, f"{path}:{node.lineno}"


def test_every_skip_is_a_row_of_skips_md() -> None:
    """Skips are markers that tests/conftest.py judges; none stands in a test of its own."""
    tests = Path(__file__).parent
    rows = set(re.findall(r"^\| `(\w+)` \|", (tests / "SKIPS.md").read_text(encoding="utf8"), re.M))
    assert rows == set(re.findall(r'get_closest_marker\("(\w+)"\)', (tests / "conftest.py").read_text(encoding="utf8")))
    skips = re.compile(r"mark\.skip|pytest\.skip|importorskip")
    assert not [path.name for path in tests.rglob("*.py") if path.name not in ("conftest.py", "test_house.py") and skips.search(path.read_text("utf8"))]

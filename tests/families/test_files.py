"""Where a family may be spoken of: in its own file, which holds five things, and nowhere in the decoder."""
from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pellucid import families
from pellucid.model import decoder
from pellucid.weights.names import NameTable
from tests.families import report

FOLDER = Path(families.__file__).parent
ALLOWED = {"WEIGHTS", "CHAT", "GGUF", "spec"}


def defined(path: Path) -> set[str]:
    """The names that a file defines at its top level; imports aside."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf8")).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Assign(targets=targets):
                names |= {ast.unparse(target) for target in targets}
            case ast.AnnAssign(target=target) | ast.AugAssign(target=target):
                names.add(ast.unparse(target))
            case ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant()):
                pass
            case other:
                names.add(ast.unparse(other))  # a statement that runs: nothing of the sort belongs here
    return names


def mentioned(text: str) -> set[str]:
    """The families that a text names, in whatever case and with whatever number after."""
    words = set(re.findall(r"\w+", text.lower())) | {word.lower() for word in re.findall(r"[A-Z][a-z]+\d*", text)}
    return {name for name in families.NAMES if name in words or name.rstrip("0123456789") in words}


def test_the_decoder_names_no_family():
    assert mentioned(Path(decoder.__file__).read_text(encoding="utf8")) == set()


def test_a_name_in_the_decoder_would_be_noticed():
    assert mentioned("if spec.family == 'gemma2':") == {"gemma2"}
    assert "llama" in mentioned("# as Llama does")
    assert "qwen3_moe" in mentioned("a qwen3_moe layer")
    assert "mixtral" in mentioned("class MixtralBlock:")
    assert mentioned("an option of the falconer") == set()


@pytest.mark.parametrize("name", families.NAMES)
def test_a_family_file_holds_its_five_things_and_nothing_else(name):
    path = FOLDER / f"{name}.py"
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf8")))
    assert defined(path) - ALLOWED == set()
    module = families.family(name)
    assert callable(module.spec)
    assert NameTable(module.WEIGHTS).place("no.such.tensor") is None
    assert len(path.read_text(encoding="utf8").splitlines()) <= 60


def test_a_sixth_thing_would_be_noticed(tmp_path):
    (tmp_path / "x.py").write_text('"""X."""\nimport os\nWEIGHTS = {}\ndef helper(): ...\nSIZE: int = 3\nif os: pass\n')
    assert defined(tmp_path / "x.py") == {"WEIGHTS", "helper", "SIZE", "if os:\n    pass"}


def test_families_import_no_torch():
    code = "import sys\nfrom pellucid import families\nfor name in families.NAMES: families.family(name)\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_page_of_families_is_up_to_date():
    """Its rows and proofs are those of today; the numbers are of the day it says. Written by `python -m tests.families.report`."""
    page = report.PAGE.read_text(encoding="utf8")
    rows = [line.strip("| ").split(" | ")[:2] for line in page.splitlines() if line.startswith("| ")][2:]
    assert rows == [[name, report.summary(name)] for name in families.NAMES]
    assert page.split("## What each case proves\n\n")[1].splitlines() == report.proofs()

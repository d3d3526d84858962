"""Where a family may be spoken of: in its own file, which holds five things, and nowhere in the decoder."""
from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import gguf
import pytest
import transformers

from pellucid import families
from pellucid.catalog import families as catalog
from pellucid.model import decoder
from pellucid.weights.names import NameTable
from tests.families import report
from tests.families.build import TOLERANCE
from tests.families.cases import CASES

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


def test_the_page_of_families_is_that_of_the_catalog_and_of_today():
    """The numbers are of the day each row says. Written by `python -m tests.families.report`."""
    assert report.PAGE.read_text(encoding="utf8").splitlines()[4:] == report.page().splitlines()[4:]  # less torch's version


def test_the_catalog_speaks_of_every_family_and_of_no_other():
    facts = tomllib.loads((Path(catalog.__file__).with_name("families.toml")).read_text(encoding="utf8"))
    assert list(facts) == ["sources", *families.NAMES]
    assert {"read_on", "vllm", "llama_cpp", "transformers"} == set(facts["sources"])
    proven = {case.family for case in CASES}
    for row in catalog.table():
        assert row.checkpoints
        assert row.particular
        assert (row.proof is not None) == (row.name in proven)


def test_what_was_measured_is_within_bounds_and_of_the_cases_there_are():
    for row in catalog.table():
        cases = [case for case in CASES if case.family == row.name]
        if row.proof is not None:
            assert (row.proof.cases, row.proof.against) == (len(cases), report.against(cases)), f"measure {row.name} again"
            assert row.proof.error < TOLERANCE
            assert row.proof.cached < TOLERANCE


def test_what_the_catalog_says_of_other_engines_is_what_their_lists_say():
    names = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    for row in catalog.table():
        assert row.transformers == ("yes" if {row.name, row.name.replace("_", "-")} & set(transformers.CONFIG_MAPPING) else "no"), row.name
        assert re.fullmatch(r"yes|no|unknown|until 0\.\d+", row.vllm), row.name
        assert row.llama_cpp in ("no", "unknown") or gguf.MODEL_TENSORS[names[row.llama_cpp]], row.name


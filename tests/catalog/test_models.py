"""The catalog of checkpoints: every row is whole, its counts follow from its widths, its facts name where they were read."""
from __future__ import annotations

import datetime
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pellucid import cost, families
from pellucid.catalog import lineage, uses, verdict
from pellucid.catalog import models as catalog
from pellucid.catalog.models import Row
from pellucid.errors import BadConfig, ModelNotFound
from pellucid.families._describe import describe
from pellucid.spec import LatentAttention
from tests.test_real_configs import counted, fits

ROWS = catalog.table()
KNOWN = [row for row in ROWS.values() if row.shape]
CHILDREN = [row for row in ROWS.values() if row.base or row.distills]
ENOUGH = 150
# The story of open GPTs: what has to be there, by the name it goes by, and rows of it.
STORY = {
    "GPT-2": "gpt2 gpt2-medium gpt2-large gpt2-xl", "GPT-Neo 125M-2.7B": "gpt-neo-125m gpt-neo-1.3b gpt-neo-2.7b", "GPT-J": "gpt-j-6b",
    "GPT-NeoX-20B": "gpt-neox-20b", "Pythia": "pythia-70m pythia-160m pythia-410m pythia-1b pythia-1.4b pythia-2.8b pythia-6.9b pythia-12b",
    "Dolly 1": "dolly-v1-6b", "Dolly 2": "dolly-v2-3b dolly-v2-7b dolly-v2-12b",
    "OPT 125M-175B": "opt-125m opt-350m opt-1.3b opt-2.7b opt-6.7b opt-13b opt-30b opt-66b opt-175b",
    "Galactica": "galactica-125m galactica-1.3b galactica-6.7b galactica-30b galactica-120b", "BLOOM": "bloom bloom-560m bloom-7b1",
    "BLOOMZ": "bloomz bloomz-7b1", "Cerebras-GPT": "cerebras-gpt-111m cerebras-gpt-13b", "LLaMA 1": "llama-7b llama-13b llama-30b llama-65b",
    "Alpaca": "alpaca-7b", "Vicuna": "vicuna-7b-v1.1 vicuna-13b-v1.5", "StableVicuna": "stable-vicuna-13b",
    "StableLM": "stablelm-base-alpha-7b stablelm-3b-4e1t stablelm-2-12b", "StableCode": "stablecode-completion-alpha-3b stable-code-3b",
    "OpenAssistant": "oasst-pythia-12b oasst-llama-30b", "GPT4All": "gpt4all-j gpt4all-13b-snoozy", "h2oGPT": "h2ogpt-oasst1-12b",
    "FinGPT": "fingpt-13b", "Falcon 7B-180B": "falcon-7b falcon-40b falcon-180b", "Falcon 3": "falcon3-1b falcon3-3b falcon3-7b falcon3-10b",
    "Llama 2": "llama-2-7b llama-2-13b llama-2-70b", "Llama 3": "llama-3-8b llama-3-70b", "Llama 3.1": "llama-3.1-8b llama-3.1-70b llama-3.1-405b",
    "Llama 3.2": "llama-3.2-1b llama-3.2-3b llama-3.2-11b-vision", "Llama 3.3": "llama-3.3-70b-instruct", "Llama 4": "llama-4-scout llama-4-maverick",
    "Code Llama": "codellama-7b codellama-13b codellama-34b codellama-70b", "MPT": "mpt-7b mpt-30b", "StarCoder 1": "starcoder",
    "StarCoder 2": "starcoder2-3b starcoder2-7b starcoder2-15b", "Mistral 7B": "mistral-7b-v0.1",
    "Mistral, further": "mistral-nemo-instruct mistral-large-2407", "Magistral": "magistral-small-2506",
    "Mixtral": "mixtral-8x7b-v0.1 mixtral-8x22b-v0.1", "Qwen 1": "qwen-1.8b qwen-7b qwen-14b qwen-72b", "Qwen 1.5": "qwen1.5-32b qwen1.5-110b",
    "Qwen 2": "qwen2-0.5b qwen2-1.5b qwen2-7b qwen2-72b", "Qwen 2.5": "qwen2.5-0.5b qwen2.5-7b qwen2.5-72b",
    "Qwen 3": "qwen3-0.6b qwen3-8b qwen3-235b-a22b", "Yi": "yi-6b yi-34b yi-1.5-9b", "DeepSeek LLM": "deepseek-llm-7b deepseek-llm-67b",
    "DeepSeek Coder": "deepseek-coder-1.3b deepseek-coder-33b", "DeepSeek V2": "deepseek-v2-lite deepseek-v2",
    "DeepSeek V3": "deepseek-v3-base deepseek-v3", "DeepSeek R1": "deepseek-r1",
    "R1's distills": "deepseek-r1-distill-qwen-1.5b deepseek-r1-distill-qwen-7b deepseek-r1-distill-llama-8b "
    "deepseek-r1-distill-qwen-14b deepseek-r1-distill-qwen-32b deepseek-r1-distill-llama-70b",
    "OLMo 1": "olmo-1b olmo-7b", "OLMo 2": "olmo-2-7b olmo-2-13b olmo-2-32b-instruct", "OLMo 3": "olmo-3-7b olmo-3.1-32b-instruct",
    "Granite": "granite-3.1-2b-instruct granite-3.3-8b-instruct", "Sarvam": "sarvam-30b sarvam-105b",
    "Nemotron": "nemotron-4-340b nemotron-mini-4b-instruct", "Minitron": "minitron-4b minitron-8b", "Grok-1": "grok-1",
    "PanGu": "pangu-alpha-200b openpangu-embedded-7b", "Phi": "phi-1.5 phi-2 phi-3.5-mini-instruct phi-4",
    "Gemma": "gemma-2b gemma-2-9b gemma-3-1b-it gemma-4-31b-it", "GLM": "chatglm2-6b chatglm3-6b glm-4-9b-chat glm-4.5",
    "gpt-oss": "gpt-oss-20b gpt-oss-120b", "Kimi K2": "kimi-k2-instruct", "SmolLM": "smollm-1.7b smollm2-135m smollm3-3b",
    "Whisper": "whisper-large-v3", "LLaVA": "llava-1.5-7b llava-1.5-13b"}
# Kinds that are not run yet: their widths are not read.
NOT_RUN = {"llama-3.2-11b-vision", "llava-1.5-7b", "llava-1.5-13b", "pangu-alpha-200b", "whisper-large-v3"}
# Whose license nobody read: unknown, and so allowed nothing.
UNLICENSED = ["fingpt-13b", "glm-4-9b-0414", "gpt4all-13b-snoozy", "gpt4all-j",
              "llama-3.1-nemotron-70b-instruct", "llava-1.5-13b", "llava-1.5-7b", "olmo-2-32b-instruct",
              "olmo-3-7b", "pangu-alpha-200b", "qwen2.5-72b", "qwen2.5-72b-instruct",
              "qwen2.5-math-1.5b", "qwen2.5-math-7b", "smollm2-1.7b", "stable-code-3b",
              "stablecode-completion-alpha-3b"]
SOURCED = ("size", "shape", "context", "released", "license", "base", "distills", "tokens", "languages", "data", "data_licenses", "open")


def spec_of(row: Row) -> Any:
    return describe(catalog.config_of(row), where=f"the shape of {row.name}").spec


@pytest.mark.parametrize("told", STORY)
def test_every_model_of_the_story_has_its_rows(told: str) -> None:
    assert [name for name in STORY[told].split() if name not in ROWS] == []


def test_there_are_enough_rows_and_only_kinds_that_are_not_run_lack_widths() -> None:
    assert len(ROWS) >= ENOUGH
    assert {name for name, row in ROWS.items() if not row.shape} == NOT_RUN


def test_rows_whose_license_is_unknown_are_these_and_are_allowed_nothing() -> None:
    assert sorted(name for name, row in ROWS.items() if row.license is None) == sorted(UNLICENSED)
    for name in UNLICENSED:
        assert verdict.judge(lineage.of_row(ROWS[name], ROWS), uses.Use(uses=frozenset({"research"}))).answer in ("unknown", "not allowed"), name


@pytest.mark.parametrize("row", KNOWN, ids=lambda row: row.name)
def test_the_counts_of_a_row_follow_from_its_widths_and_round_to_what_was_published(row: Row) -> None:
    spec = spec_of(row)
    assert (row.family, row.parameters, row.active) == (spec.family, cost.parameters(spec), cost.active_parameters(spec))
    assert sum(numbers for numbers, _ in row.cache) == cost.cache_bytes_per_token(spec, 1)
    for n in (1, 5000, 300_000):
        seen = sum(mixer.n_cached * (n if isinstance(mixer, LatentAttention) else cost.seen(mixer, n)) for mixer in spec.mixers)
        assert row.cache_numbers(n) == seen
    if row.counting == "to the nearest ten":
        assert row.size == f"{round(counted(spec, None) / 1e10) * 10}B"
    else:
        assert fits(row.size, counted(spec, row.counting), row.counting), f"{cost.parameters(spec):,} of {row.size}"


@pytest.mark.parametrize("name", [row.name for row in ROWS.values()])
def test_every_fact_of_a_row_names_where_it_was_read(name: str) -> None:
    row, told = ROWS[name], catalog.sources()
    assert set(row.sources) <= set(told)
    named = [fact for facts in row.sources.values() for fact in facts]
    expected = [fact for fact in SOURCED if getattr(row, fact) not in (None, ())] + [f"scores.{score}" for score in row.scores]
    assert sorted(set(named)) == sorted(expected)
    assert re.fullmatch(r"[a-z0-9.-]+", name)
    assert row.repo is None or re.fullmatch(r"[\w.-]+/[\w.-]+", row.repo)
    assert row.family is None or row.family in families.NAMES
    assert row.data in (None, *catalog.DATA)
    assert row.counting in catalog.COUNTING
    assert all(0 < score <= 100 for score in row.scores.values())
    assert row.released is None or datetime.date(2018, 6, 1) < row.released <= catalog.as_of()
    assert (row.parameters is None) == (row.shape is None) == (row.active is None)


def test_no_source_is_listed_that_no_row_names() -> None:
    assert set(catalog.sources()) == {key for row in ROWS.values() for key in row.sources}


def test_no_shape_stands_in_the_file_that_no_row_has() -> None:
    import tomllib
    shapes = tomllib.loads((catalog.FOLDER / "shapes.toml").read_text("utf8"))
    assert set(shapes) == {row.shape for row in KNOWN}
    assert all(shape["read_from"].strip() for shape in shapes.values())


@pytest.mark.parametrize("row", CHILDREN, ids=lambda row: row.name)
def test_what_a_row_was_made_from_is_in_the_catalog_and_no_circle(row: Row) -> None:
    if row.distills:
        assert row.distills in ROWS or row.distills == "nemotron-4-15b", "which was never published"
        assert row.distills != row.base
    above, at = [row.name], row.base
    while at is not None:
        assert at in ROWS
        assert at not in above
        above.append(at)
        at = ROWS[at].base


@pytest.mark.parametrize(("asked", "name"), [("llama-3.1-8b", "llama-3.1-8b"), ("Meta-Llama/Llama-3.1-8B", "llama-3.1-8b"), ("DeepSeek-R1", "deepseek-r1")])
def test_a_row_is_found_by_its_name_or_its_repository_in_any_case(asked: str, name: str) -> None:
    assert catalog.find(asked).name == name


@pytest.mark.parametrize(("asked", "near"), [("qwen3-5b", "qwen3-8b"), ("llama3 8b", "llama-3-8b"), ("llama-3.1-8B-Instruc", "llama-3.1-8b-instruct"),
                                           ("mistral-7b", "mistral-7b-v0.1")])
def test_a_name_that_misses_gets_the_right_one_told(asked: str, near: str) -> None:
    with pytest.raises(ModelNotFound, match="Did you mean") as miss:
        catalog.find(asked)
    assert near in miss.value.nearest
    assert "(pellucid models)" in str(miss.value)


def test_a_distill_is_never_taken_for_what_it_imitates() -> None:
    with pytest.raises(ModelNotFound, match=r"deepseek-r1-distill-llama-8b is llama-3\.1-8b taught by deepseek-r1, not deepseek-r1 itself"):
        catalog.find("deepseek-r1:8b")
    assert catalog.find("deepseek-r1").count > 600e9


def test_what_is_not_known_of_a_row_counts_as_not_so() -> None:
    rows = [Row(name="a", maker="m", kinds=("base",), size="7B", context=4096, scores={"mmlu": 50.0}, open=("weights",), license="MIT", languages=("de",)),
            Row(name="b", maker="m", kinds=("chat", "code"), size="7B")]
    for filters in ({"context": 1}, {"least": {"mmlu": 0.0}}, {"opened": ["weights"]}, {"license": "MIT"}, {"language": "de"}):
        assert [row.name for row in catalog.chosen(rows, **filters)] == ["a"]
    assert [row.name for row in catalog.chosen(rows, kinds=["code"])] == ["b"]
    assert catalog.chosen(rows, runs=True) == []
    assert len(catalog.chosen(rows)) == 2


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "pellucid").mkdir()
    return tmp_path / "pellucid" / "models.toml"


def test_rows_of_ones_own_stand_beside_the_others(own: Path) -> None:
    config = json.dumps(catalog.config_of(ROWS["gpt2"]))
    own.write_text(f"[mine]\nmaker = 'me'\nkinds = ['chat']\nsize = '124M'\nbase = 'gpt2'\nconfig = '{config}'\n")
    row = catalog.find("mine")
    assert (row.mine, row.base, row.count) == (True, "gpt2", 124_000_000)
    assert catalog.config_of(row)["model_type"] == "gpt2"
    assert len(catalog.table()) == len(ROWS) + 1


@pytest.mark.parametrize(("text", "message"), [
    ("[gpt2]\nmaker = 'me'\nkinds = []\nsize = '1B'\n", "'gpt2' is in the catalog already"),
    ("[x]\nmaker = 'me'\nkinds = []\nsize = '1B'\nlicence = 'MIT'\n", "says 'licence', which nobody reads. Did you mean license"),
    ("[x]\nmaker = 'me'\n", "does not say 'kinds'; a row needs maker, kinds, size"),
    ("[x]\nmaker = 'me'\nkinds = ['fast']\nsize = '1B'\n", "has kinds 'fast'; it may be base, chat"),
    ("[x]\nmaker = 'me'\nkinds = []\nsize = '1B'\nreleased = '2024'\n", "write a date without quotes"),
    ("x = 1\n", "'x' stands outside a row"), ("[x\n", "cannot be read")])
def test_a_row_of_ones_own_that_does_not_read_is_refused_by_name(own: Path, text: str, message: str) -> None:
    own.write_text(text)
    with pytest.raises(BadConfig, match=re.escape(message)):
        catalog.table()


def test_widths_that_nobody_read_are_not_made_up() -> None:
    with pytest.raises(ModelNotFound, match=r"does not know the widths of 'whisper-large-v3', only that it has 1.55B parameters"):
        catalog.config_of(ROWS["whisper-large-v3"])


def test_the_whole_catalog_reads_without_torch_and_without_the_shapes() -> None:
    code = "import sys\nfrom pellucid.catalog import models\nmodels.table()\nsys.exit('torch' in sys.modules or models._read.cache_info().currsize)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""config.json is a stranger's text: whatever stands in it, it is described or refused by name, never with a traceback."""
from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from pellucid.errors import BadConfig, PellucidError
from pellucid.families._describe import Description, describe
from tests.weights.build import CONFIG

RECORDED = sorted((Path(__file__).parent / "recorded").glob("*.json"))
WRONG: list[Any] = [-1, 0, 0.5, "x", [], [1], {}, {"a": 1}, math.nan, 1e300]
# Keys that describe numbers of the model under any family's name; every other value is the family's business.
COUNTS = {"hidden_size", "n_embd", "num_hidden_layers", "n_layer", "num_attention_heads", "n_head", "vocab_size", "intermediate_size", "num_experts_per_tok",
          "num_local_experts", "max_position_embeddings", "n_positions", "rotary_dim"}


@pytest.mark.parametrize("path", RECORDED, ids=lambda p: p.stem)
def test_any_value_anywhere_is_described_or_refused_by_name(path: Path) -> None:
    config = json.loads(path.read_text())["config"]
    assert isinstance(describe(config), Description)
    for where in (config, config.get("text_config", {})):
        for key, right in list(where.items()):
            for wrong in WRONG:
                where[key] = wrong
                try:
                    describe(config)
                except PellucidError:
                    refused = True
                else:
                    refused = False
                assert refused or key not in COUNTS, f"{key}={wrong!r} was taken for a count"
            where[key] = right


def message(**facts: Any) -> str:
    with pytest.raises(BadConfig) as raised:
        describe(CONFIG | facts)
    return str(raised.value)


@pytest.mark.parametrize(("facts", "expected"), [
    ({"rms_norm_eps": "small"}, "config.json makes norm.eps 'small', and a positive number was expected. Is the file as its authors wrote it?"),
    ({"rms_norm_eps": math.nan}, "makes norm.eps nan, and a positive number was expected"),
    ({"vocab_size": 50.5}, "makes n_vocab 50.5, and a whole number from 0 was expected"),
    ({"vocab_size": True}, "makes n_vocab True, and a whole number from 0 was expected"),
    ({"tie_word_embeddings": "no"}, "makes tied 'no', and true or false was expected"),
    ({"rope_theta": -1.0}, "makes layers.0.mixer.rope.theta -1.0, and a positive number was expected")])
def test_a_value_of_the_wrong_kind_names_what_it_makes(facts: dict[str, Any], expected: str) -> None:
    assert expected in message(**facts)


def test_sizes_that_no_decoder_can_have() -> None:
    assert "3 query heads cannot share 2 key/value heads evenly" in message(num_attention_heads=3)
    assert message(num_key_value_heads=0).startswith("config.json describes no decoder of family 'llama': n_kv_heads is 0, and no decoder has fewer than 1")

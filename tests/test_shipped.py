"""The shipped model is what its card says, and its recipe does what its words say."""
from __future__ import annotations

import hashlib
import itertools
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import pellucid
from pellucid import cost
from pellucid.families import family
from pellucid.families._config import Config
from pellucid.tokenizer.template import chat_ids
from pellucid.weights.hub import resolve

ROOT = Path(__file__).parent.parent
FOLDER = resolve("shipped")
CARD = (FOLDER / "README.md").read_text(encoding="utf8")


@pytest.fixture(scope="module", autouse=True)
def _scripts_on_the_path():
    sys.path.insert(0, str(ROOT / "scripts" / "shipped"))
    yield
    sys.path.remove(str(ROOT / "scripts" / "shipped"))


@pytest.fixture(scope="module")
def model() -> pellucid.Model:
    return pellucid.load("shipped")


def test_it_is_small_and_its_widths_fit_every_packed_format() -> None:
    assert sum(f.stat().st_size for f in FOLDER.iterdir()) <= 16_000_000
    config = Config(json.loads((FOLDER / "config.json").read_text()))
    spec = family("llama").spec(config)
    config.finish()
    assert 5_000_000 <= cost.parameters(spec) <= 10_000_000
    [mixer], [mlp] = {layer.mixer for layer in spec.layers}, {layer.mlp for layer in spec.layers}
    for width in (spec.n_vocab, spec.d_model, mlp.d_ff, mixer.n_heads * mixer.d_head, mixer.n_kv_heads * mixer.d_head):
        assert width % 256 == 0


def test_the_card_describes_these_very_weights() -> None:
    assert hashlib.sha256((FOLDER / "model.safetensors").read_bytes()).hexdigest() in CARD
    for said in ("license: apache-2.0", "7,212,288 parameters", "held out", "bits per byte", "## Limits", "## Licence", "tokens"):
        assert said in CARD


def test_the_card_claims_what_the_weights_reach(model: pellucid.Model) -> None:
    """On a page of a held-out book, which is too short for the card's number but not for another model's."""
    claimed = float(re.search(r"\*\*([\d.]+) bits per byte\*\*", CARD)[1])  # type: ignore[index]
    text = ("Tess had hitherto been one of those who had borne their fate with patience; and as she walked along the lane in the evening light she "
            "thought of the house that she had left, and of her mother, and of the little children who would be asking when she was to return.")
    ids = [model.tokenizer.bos_id, *model.tokenizer.encode(text)]
    nats = -model.logits(ids)[:-1].log_softmax(-1).gather(1, torch_ids(ids[1:])).sum().item()
    assert nats / np.log(2) / len(text.encode()) == pytest.approx(claimed, abs=0.5)
    assert claimed < 1.6


def torch_ids(ids: list[int]):
    import torch
    return torch.tensor(ids)[:, None]


def test_its_template_renders_system_tools_and_generations(model: pellucid.Model) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."},
                {"role": "user", "content": "Why?"}]
    template = model.tokenizer.chat_template
    text, spans = template.render_with_spans(messages, add_generation_prompt=True)
    assert [text[a:b] for a, b in spans] == [" I.<|end|>"]
    assert text.startswith("<|begin|>Be brief.\n\nQuestion: Who?")
    assert text.endswith("Question: Why?\n\nAnswer:")
    assert '{"name": "look"}' in template.render(messages, tools=[{"name": "look"}])
    ids = chat_ids(model.tokenizer, messages)
    assert (ids[0], ids.count(0), ids.count(1)) == (0, 1, 1)  # one begin; one end, after the answer


def test_transformers_reads_the_same_model(model: pellucid.Model) -> None:
    import torch
    import transformers
    theirs = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    ids = tokenizer("It was a bright cold day in the old town.")["input_ids"]
    assert ids == [model.tokenizer.bos_id, *model.tokenizer.encode("It was a bright cold day in the old town.")]
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits[0]
    found = pellucid.load("shipped", dtype="float32").logits(ids)
    assert ((found - expected).abs().max() / expected.abs().max()).item() < 2e-5


def test_greedy_text_is_english_and_the_same_twice(model: pellucid.Model) -> None:
    first, second = (model.generate("The captain of the ship", max_tokens=40, temperature=0) for _ in range(2))
    assert first.token_ids == second.token_ids
    assert {"the", "of", "and", "to", "a"} & set(first.text.split())


def test_whole_books_are_held_out_by_their_names() -> None:
    from prepare import is_held_out
    listed = re.search(r"never trained on: (.*) \|", CARD)[1].split("; ")  # type: ignore[index]
    names = [", ".join(part) for part in (title.split(", ") for title in listed)]
    assert "Thomas Hardy, Tess of the d'Urbervilles" in names
    assert is_held_out("Thomas Hardy/Tess of the d'Urbervilles")
    assert not is_held_out("Lewis Carroll/Alice's Adventures in Wonderland")


def test_chapters_are_cut_at_their_headings_and_the_title_page_is_left_out() -> None:
    from prepare import chapters
    book = "# Title: T\n\n## Author: A\n\n-------\n\n## One\n\n" + "a " * 150 + "\n\n\n\n## Two\n\n" + "b " * 150 + "\n\n## Three\n\nshort"
    first, second = chapters(book)
    assert first.startswith("## One\n\na a")
    assert second.startswith("## Two")


def test_every_window_is_seen_once_a_pass_and_a_resumption_goes_on_where_it_was() -> None:
    from train import windows
    ids = np.zeros(512 * 7 + 1, dtype=np.uint16)
    first_pass = list(itertools.islice(windows(ids, seed=3, start=0), 7))
    assert sorted(first for _, first in first_pass) == [512 * k for k in range(7)]
    assert [n for n, _ in first_pass] == list(range(7))
    assert list(itertools.islice(windows(ids, seed=3, start=4), 6)) == list(itertools.islice(windows(ids, seed=3, start=0), 10))[4:]


def test_the_rate_warms_up_stays_and_falls() -> None:
    from train import DECAY_FROM, WARMUP_STEPS, rate
    assert rate(0.0, 0) == 1 / WARMUP_STEPS
    assert rate(0.3, 1000) == rate(DECAY_FROM, 1000) == 1.0
    assert rate(1.0, 1000) == pytest.approx(0.05)
    assert rate((1 + DECAY_FROM) / 2, 1000) == pytest.approx(0.525)

"""Only what the assistant wrote is learned, token for token as the model would write it; what cannot be learned from says where it stands."""
from __future__ import annotations

from typing import Any

import pytest

import pellucid
from pellucid.cli._options import SHIPPED
from pellucid.data.example import Comparison, Example, Verdict
from pellucid.data.render import Rendering
from pellucid.data.rows import Read
from pellucid.data.shapes import detect, said
from pellucid.errors import BadData, BadRequest
from pellucid.tokenizer import Tokenizer
from pellucid.tokenizer.template import ChatTemplate, chat_ids
from pellucid.weights.hub import resolve
from tests.api.scripted import CHATML, bytes_tokenizer

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there"},
        {"role": "user", "content": "Bye <|im_end|>"}, {"role": "assistant", "content": "So long."}]
MARKED = CHATML.replace("{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}",
                        "{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
                        "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}")
FORGETS = CHATML.replace("m.content", "(m.content if loop.last or m.role != 'assistant' else '...')")
OPEN = CHATML.replace("<|im_end|>", "")


@pytest.fixture(scope="session")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("chatml")
    bytes_tokenizer().save(str(folder / "tokenizer.json"))
    return pellucid.load_tokenizer(str(folder))


@pytest.fixture(scope="session")
def shipped() -> Tokenizer:
    return pellucid.load_tokenizer(str(resolve(SHIPPED)))


def rendering(tokenizer: Tokenizer, template: str | None = CHATML, **facts: Any) -> Rendering:
    stop = tokenizer.id_of("<|im_end|>") if template is not None else tokenizer.eos_id
    chosen = None if template is None else ChatTemplate(template, special_tokens=tokenizer.special_tokens)
    return Rendering(**{"tokenizer": tokenizer, "stop_ids": {stop}, "max_length": 400, "template": chosen} | facts)


def items(how: Rendering, row: dict[str, Any], shape: str | None = None) -> list[Any]:
    read = Read(row, "rows:7")
    return [item for one in said(read, shape or detect(list(row), "rows"), {}) for item in how.items(one)]


def learned(tokenizer: Tokenizer, example: Example) -> list[str]:
    """The runs of learned tokens, as text."""
    runs: list[list[int]] = []
    for i, (token, flag) in enumerate(zip(example.ids, example.learned, strict=True)):
        if flag and not example.learned[i - 1]:
            runs.append([])
        if flag:
            runs[-1].append(token)
    return [tokenizer.decode(run, special=True) for run in runs]


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["what each answer adds", "generation blocks"])
def test_the_assistants_words_and_their_end_are_learned_and_nothing_else(chatml: Tokenizer, template: str) -> None:
    how = rendering(chatml, template)
    [example] = items(how, {"messages": TALK})
    assert learned(chatml, example) == ["Hi there<|im_end|>", "So long.<|im_end|>"]
    whole = chat_ids(chatml, TALK, template=how.template, add_generation_prompt=False)
    assert [*example.ids, *chatml.encode("\n")] == whole  # but for what follows the last target
    prompt = chat_ids(chatml, TALK[:-1], template=how.template)
    assert list(example.ids[: len(prompt)]) == prompt  # what the model sees when it is asked, a special token spelled by a message included
    [example] = items(rendering(chatml, template, train_on="all"), {"messages": TALK})
    assert example.learned == (False, *(True,) * (len(example.ids) - 1))


def test_the_shipped_models_answer_is_what_it_would_write(shipped: Tokenizer) -> None:
    how = rendering(shipped, None)
    [example] = items(how, {"messages": TALK[1:3]})
    prompt = chat_ids(shipped, TALK[1:2])
    assert list(example.ids[: len(prompt)]) == prompt
    assert example.learned == (False,) * len(prompt) + (True,) * (len(example.ids) - len(prompt))
    assert example.ids[-1] == shipped.eos_id


def test_a_template_that_writes_earlier_turns_anew_gives_an_example_an_answer(chatml: Tokenizer) -> None:
    how = rendering(chatml, FORGETS)
    each = items(how, {"messages": TALK})
    assert [learned(chatml, one) for one in each] == [["Hi there<|im_end|>"], ["So long.<|im_end|>"]]
    assert "..." in chatml.decode(each[1].ids, special=True)


def test_every_shape_says_its_items(chatml: Tokenizer) -> None:
    how = rendering(chatml)
    rows = [({"instruction": "Add", "input": "1 and 2", "output": "3"}, "Add\n\n1 and 2"), ({"conversations": [{"from": "human", "value": "Q"},
            {"from": "gpt", "value": "3"}]}, "Q"), ({"prompt": [{"role": "user", "content": "Q"}], "completion": [{"role": "assistant", "content": "3"}]}, "Q")]
    for row, asked in rows:
        [example] = items(how, row)
        assert learned(chatml, example) == ["3<|im_end|>"]
        assert asked in chatml.decode(example.ids)
    [pair] = items(how, {"chosen": TALK, "rejected": [*TALK[:-1], {"role": "assistant", "content": "No."}]})
    assert isinstance(pair, Comparison)
    assert (learned(chatml, pair.chosen), learned(chatml, pair.rejected)) == (["So long.<|im_end|>"], ["No.<|im_end|>"])
    pairs = items(how, {"prompt": TALK[1:2], "responses": ["a", "b", "c"]})
    assert [(learned(chatml, p.chosen)[0][0], learned(chatml, p.rejected)[0][0]) for p in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    [verdict] = items(how, {"prompt": TALK[1:2], "completion": "yes", "label": False})
    assert isinstance(verdict, Verdict)
    assert not verdict.good


def test_a_text_is_learned_whole_in_parts_that_fit(shipped: Tokenizer) -> None:
    how = rendering(shipped, None, max_length=8)
    parts = items(how, {"text": "It was a dark and stormy night, and the rain fell in torrents."})
    assert all(part.n_learned == len(part.ids) - 1 for part in parts)
    whole = [i for part in parts for i in part.ids]
    assert whole == [*shipped.encode("It was a dark and stormy night, and the rain fell in torrents.", special=True), shipped.eos_id]


@pytest.mark.parametrize(("row", "words"), [
    ({"messages": [{"role": "user", "content": "Q"}]}, "rows:7 ends with a message of the 'user'"),
    ({"messages": [{"content": "Q"}]}, "message 1 of messages has no role"),
    ({"messages": []}, "a list of messages was expected"),
    ({"messages": [*TALK[:2], {"role": "assistant", "content": "  "}]}, "message 3, the assistant's, is empty: .* Fill it in, or take the row out"),
    ({"prompt": "Q", "completion": ""}, "completion is empty: .* Fill it in, or take the row out"),
    ({"chosen": TALK, "rejected": TALK}, "are the same"),
    ({"chosen": "a", "rejected": "b"}, "has no prompt"),
    ({"prompt": "Q", "completion": "a", "label": "maybe"}, "label is 'maybe'"),
    ({"messages": [*TALK[:2], {"role": "assistant", "content": "a", "reasoning_content": "hm"}]}, "data.reasoning: learn, or ignore"),
    ({"conversations": [{"from": "alien", "value": "x"}]}, "turn 1 is"),
    ({"text": " "}, "text is empty"),
])
def test_a_row_that_nothing_can_be_learned_of_is_named(chatml: Tokenizer, row: dict[str, Any], words: str) -> None:
    with pytest.raises(BadData, match=words) as raised:
        items(rendering(chatml), row)
    assert raised.value.origins == ("rows:7",)


def test_columns_of_no_shape_or_of_two_are_refused() -> None:
    with pytest.raises(BadRequest, match=r"no shape that is read.*columns: "):
        detect(["question", "answer"], "rows")
    with pytest.raises(BadRequest, match="2 shapes: messages, text"):
        detect(["messages", "text"], "rows")
    with pytest.raises(BadData, match=r"has no column 'anser'.*Did you mean answer"):
        said(Read({"question": "a", "answer": "b"}, "r:1"), "prompt", {"prompt": "question", "completion": "anser"})


def test_a_template_whose_answers_never_end_is_an_error(chatml: Tokenizer) -> None:
    with pytest.raises(BadData, match=r"does not end the assistant's turn.*go on for ever"):
        items(rendering(chatml, OPEN), {"messages": TALK[1:3]})
    outside = MARKED.replace("m.content + '<|im_end|>' }}{% endgeneration %}", "m.content }}{% endgeneration %}{{ '<|im_end|>' }}")
    with pytest.raises(BadData, match="move it inside"):
        items(rendering(chatml, outside), {"messages": TALK[1:3]})


def test_what_is_too_long_is_counted_and_cut_only_where_the_recipe_says_so(chatml: Tokenizer) -> None:
    how = rendering(chatml, max_length=30)
    assert items(how, {"messages": TALK[1:3]}) == []
    assert list(how.too_long_rows) == ["rows:7"]
    [example] = items(rendering(chatml, max_length=30, too_long="cut"), {"messages": TALK[1:3]})
    assert len(example.ids) == 30
    with pytest.raises(BadData, match="no token is learned of it in its first 10 tokens"):
        items(rendering(chatml, max_length=10, too_long="cut"), {"messages": TALK[1:3]})


def test_turns_that_the_recipe_ignores_are_not_learned(chatml: Tokenizer) -> None:
    template = CHATML.replace("m.content", "(m.thinking | default('')) + m.content")
    talk = [*TALK[:2], {"role": "assistant", "content": "a", "reasoning_content": "hm "}, *TALK[3:]]
    assert learned(chatml, items(rendering(chatml, template, reasoning="learn"), {"messages": talk})[0]) == ["hm a<|im_end|>", "So long.<|im_end|>"]
    assert learned(chatml, items(rendering(chatml, template, reasoning="ignore"), {"messages": talk})[0]) == ["So long.<|im_end|>"]
    with pytest.raises(BadData, match="empty or ignored"):
        items(rendering(chatml, template, reasoning="ignore"), {"messages": talk[:3]})



"""What a model makes of a few prompts before it is tuned and after: the recipe's, or those of rows that are held out."""
from __future__ import annotations

from collections.abc import Sequence

import pellucid
from pellucid.api import Model
from pellucid.data.example import Item, examples
from pellucid.train.outcome import ADAPTER, Outcome
from pellucid.train.report import Sample
from pellucid.train.tuning import Tuning, template_of

HELD_OUT, MOST = 3, 128  # prompts of held-out rows where the recipe names none; tokens of an answer


def samples(tuning: Tuning, outcome: Outcome) -> list[Sample]:
    """The likeliest answers of the model as it was and of what was written. Nothing of a model that gives numbers."""
    if outcome.kind == "reward":
        return []
    recipe = tuning.recipe
    prompts: Sequence[str | list[int]] = recipe.eval.samples or [ids for item in tuning.data.held_out[:HELD_OUT] if (ids := _prompt(item))]
    if not prompts:
        return []
    how = dict(accept_unread=recipe.model.accept_unread, quantize=recipe.model.quantize, chat_template=template_of(recipe.model))
    before = pellucid.load(recipe.model.path, **how, adapters={"tuned": outcome.out} if outcome.kind == ADAPTER else {})
    after = before if outcome.kind == ADAPTER else pellucid.load(outcome.out)
    name = "tuned" if outcome.kind == ADAPTER else None
    said = [(_answer(before, prompt, None), _answer(after, prompt, name)) for prompt in prompts]
    tokenizer = before.tokenizer
    return [Sample(prompt if isinstance(prompt, str) else tokenizer.decode(prompt), *pair) for prompt, pair in zip(prompts, said, strict=True)]


def _prompt(item: Item) -> list[int]:
    """What comes before the first learned token."""
    first = examples(item)[0]
    begin = first.learned.index(True)
    return list(first.ids[:begin]) if begin > 1 else []


def _answer(model: Model, prompt: str | list[int], adapter: str | None) -> str:
    if isinstance(prompt, str) and model.tokenizer.chat_template is not None:
        return model.chat([{"role": "user", "content": prompt}], temperature=0, max_tokens=MOST, adapter=adapter).text
    return model.generate(prompt, temperature=0, max_tokens=MOST, adapter=adapter).text

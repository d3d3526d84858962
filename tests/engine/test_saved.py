"""A saved prompt is what the model would compute, and a file that is not is refused with what is wrong."""
from __future__ import annotations

import dataclasses
import json
import os
import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pellucid import errors
from pellucid.engine.engine import Engine
from pellucid.engine.group import PAGE
from pellucid.engine.request import Request, Sampling
from pellucid.engine.saved import load_prefix, save_prefix
from pellucid.errors import BadCheckpoint, BadRequest, OutOfMemoryBudget, PromptTooLong
from pellucid.model.decoder import Decoder
from tests.engine.test_engine import FAMILIES, GREEDY, N_CTX, all_free, pages, small

SHA = "ab" * 32


def prompt(decoder: Decoder, n: int = 4 * PAGE + 5) -> list[int]:
    rng = random.Random(n)
    return [rng.randrange(3, decoder.spec.n_vocab) for _ in range(n)]


def saved(tmp_path: Path, name: str = "llama-biases", n: int = 4 * PAGE + 5, **how: object) -> tuple[Decoder, list[int], Path]:
    decoder, file = small(name), tmp_path / "prompt.safetensors"
    ids = prompt(decoder, n)
    save_prefix(Engine(decoder, **how), ids, file, model_sha256=SHA)
    return decoder, ids, file


def rewritten(file: Path, tensors: dict[str, torch.Tensor] | None = None, **facts: str | None) -> None:
    """The same file with some facts changed, or left out."""
    with safe_open(file, "pt") as old:
        metadata = {k: v for k, v in (old.metadata() | facts).items() if v is not None}
    save_file(tensors or {k: v.clone() for k, v in load_file(file).items()}, file, metadata)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "llama-dynamic"])
def test_what_begins_with_a_saved_prompt_goes_on_as_if_it_had_been_computed(tmp_path, name, deterministic):
    decoder, file, n = small(name, deterministic=deterministic), tmp_path / "prompt.safetensors", 5 * PAGE + 7
    ids = prompt(decoder, n)
    told = save_prefix(Engine(decoder), ids, file, model_sha256=SHA)
    assert (told.ids, told.n_left, told.n_bytes) == (tuple(ids[: 5 * PAGE]), 7, file.stat().st_size)

    engine = Engine(decoder)
    assert load_prefix(engine, file, model_sha256=SHA).ids == told.ids
    assert all_free(engine)
    request = Request(prompt_ids=[*ids, 9, 8], sampling=Sampling(seed=1), max_tokens=20, logprobs=True)
    [[ours]], [[theirs]] = engine.run([request]), Engine(decoder).run([request])
    assert (ours.n_reused, theirs.n_reused) == (5 * PAGE, 0)
    assert ours.token_ids == theirs.token_ids
    assert max(abs(a - b) for a, b in zip(ours.logprobs, theirs.logprobs, strict=True)) <= (0 if deterministic else 2e-4)


def test_an_int8_cache_is_saved_as_it_is(tmp_path):
    decoder, ids, file = saved(tmp_path, cache_dtype="int8")
    assert {t.dtype for t in load_file(file).values()} == {torch.int8, torch.float32}
    engine = Engine(decoder, cache_dtype="int8")
    load_prefix(engine, file, model_sha256=SHA)
    request = Request(prompt_ids=ids, sampling=GREEDY, max_tokens=20)
    [[ours]], [[theirs]] = engine.run([request]), Engine(decoder, cache_dtype="int8").run([request])
    assert (ours.n_reused, ours.token_ids) == (4 * PAGE, theirs.token_ids)


def test_of_a_window_only_what_is_seen_is_kept(tmp_path):
    decoder, _, file = saved(tmp_path, "mistral-window", 6 * PAGE)
    window = Engine(decoder).cache.groups[0].window
    assert {len(t) for t in load_file(file).values()} == {-(-(window - 1) // PAGE)}


def test_pages_that_are_there_are_not_brought_twice_and_saving_computes_only_what_is_missing(tmp_path):
    decoder, ids, file = saved(tmp_path)
    engine = Engine(decoder)
    engine.run([Request(prompt_ids=ids[: 2 * PAGE + 1], sampling=GREEDY, max_tokens=1)])
    for _ in range(2):
        load_prefix(engine, file, model_sha256=SHA)
        assert len(engine.cache.groups[0].named) == 4
    before = engine.report().n_computed_tokens
    save_prefix(engine, ids, file, model_sha256=SHA)  # a saved prompt may be replaced
    assert engine.report().n_computed_tokens - before == 5


def test_a_loaded_prompt_stays_while_nobody_needs_its_room(tmp_path):
    decoder, ids, file = saved(tmp_path)
    engine = Engine(decoder, cache_bytes=pages(decoder, 6), max_rows=1, step_tokens=64)
    load_prefix(engine, file, model_sha256=SHA)
    engine.run([Request(prompt_ids=[5] * PAGE, sampling=GREEDY, max_tokens=5)])
    assert engine.run([Request(prompt_ids=ids, sampling=GREEDY, max_tokens=1)])[0][0].n_reused == 4 * PAGE
    engine.run([Request(prompt_ids=[7] * 5 * PAGE, sampling=GREEDY, max_tokens=5)])
    assert engine.run([Request(prompt_ids=ids, sampling=GREEDY, max_tokens=1)])[0][0].n_reused < 4 * PAGE
    assert all_free(engine)


def test_a_prompt_that_does_not_fit_beside_what_is_in_use_is_refused_and_changes_nothing(tmp_path):
    decoder, _, file = saved(tmp_path)
    engine = Engine(decoder, cache_bytes=pages(decoder, 5), max_rows=1, step_tokens=64)
    generation = engine.submit(Request(prompt_ids=[5] * 40, sampling=GREEDY, max_tokens=30))
    next(generation)
    with pytest.raises(OutOfMemoryBudget, match=r"holds 128 tokens, which need 4 pages more, and 3 of 5 are free .* Load it when less runs"):
        load_prefix(engine, file, model_sha256=SHA)
    assert len(list(generation)) == 29
    assert all_free(engine)
    load_prefix(engine, file, model_sha256=SHA)


def test_other_files_are_refused_each_with_what_is_wrong(tmp_path):
    decoder, ids, file = saved(tmp_path)
    whole, engine = file.read_bytes(), Engine(decoder)
    with safe_open(file, "pt") as told:
        facts = told.metadata()
    tensors = load_file(file)
    first = sorted(tensors)[0]
    other_ids = json.dumps([*ids[: 4 * PAGE - 1], 3 + (ids[4 * PAGE - 1] == 3)])
    changed = {**tensors, first: tensors[first] + 1}
    for error, words, change in [
        (BadRequest, "computed by another model: model_sha256 is cdcdcdcdcdcd..., and abababababab... runs here. Save the prompt with this",
         {"model_sha256": "cd" * 32}),
        (BadRequest, "computed by this model with other settings: spec_sha256", {"spec_sha256": "cd" * 32}),
        (BadRequest, "of a cache of other numbers: cache is same, bfloat16, and same, float32 runs here", {"cache": "same, bfloat16"}),
        (BadRequest, "of pages of another size: page is 16, and 32 runs here", {"page": "16"}),
        (BadCheckpoint, "no saved prompt that this version reads: pellucid='saved prompt 9' in its header (only 'saved prompt 1')",
         {"pellucid": "saved prompt 9"}),
        (BadCheckpoint, "does not say what it holds: turns missing in its header", {"turns": None}),
        (BadCheckpoint, "its 128 ids are not those its pages are named after", {"ids": other_ids}),
        (BadCheckpoint, "its 0 ids are not those its pages are named after", {"ids": "[]"}),
        (BadCheckpoint, "what its header has for ids are none (Expecting value", {"ids": "nothing"}),
        (BadCheckpoint, "what its header has for ids are none (ids has token id 99999", {"ids": json.dumps([99999] * PAGE)}),
        (BadCheckpoint, "was changed since it was written: its tensors hash to", {"tensors": changed}),
        (BadCheckpoint, f"does not hold what this model keeps of a prompt; first: {first}", {"tensors": {k: t for k, t in tensors.items() if k != first}}),
        (errors.MisshapenTensor, f"{first} is torch.float32 (3, 32,", {"tensors": {**tensors, first: tensors[first][:3].clone()}}),
    ]:
        rewritten(file, **change)
        with pytest.raises(error) as caught:
            load_prefix(engine, file, model_sha256=SHA)
        assert words in str(caught.value)
        file.write_bytes(whole)
    file.write_bytes(whole[:-100])
    with pytest.raises(errors.TruncatedFile, match=r"its header describes [\d,]+\. It is no saved prompt, or no longer a whole one: save the prompt again"):
        load_prefix(engine, file, model_sha256=SHA)
    file.write_bytes(b"not a file of tensors")
    with pytest.raises(errors.BadHeader):
        load_prefix(engine, file, model_sha256=SHA)
    file.unlink()
    with pytest.raises(BadRequest, match=r"there is no file .*prompt.safetensors. Save a prompt first"):
        load_prefix(engine, file, model_sha256=SHA)
    assert not engine.cache.groups[0].named
    file.write_bytes(whole)
    assert load_prefix(engine, file, model_sha256=facts["model_sha256"]).ids == tuple(ids[: 4 * PAGE])


def test_other_numbers_in_the_cache_are_refused(tmp_path):
    decoder, _, file = saved(tmp_path)
    with pytest.raises(BadRequest, match=r"of a cache of other numbers: cache is same, float32, and int8, float32 runs here. Give the engine that cache_dtype"):
        load_prefix(Engine(decoder, cache_dtype="int8"), file, model_sha256=SHA)


def test_what_was_not_computed_bitwise_is_not_taken_for_it(tmp_path):
    _, _, file = saved(tmp_path)
    with pytest.raises(BadRequest, match="deterministic=True promises the same bits: computed is any order, fused, exact, and deterministic, fused, "
                                         "exact runs here"):
        load_prefix(Engine(small("llama-biases", deterministic=True)), file, model_sha256=SHA)
    exact = small("llama-biases", deterministic=True)
    save_prefix(Engine(exact), prompt(exact), file, model_sha256=SHA)
    load_prefix(Engine(small("llama-biases")), file, model_sha256=SHA)  # the other way it is within rounding


def test_a_longer_context_is_no_other_model(tmp_path):
    decoder, _, file = saved(tmp_path)
    longer = Engine(decoder)
    longer.spec = dataclasses.replace(decoder.spec, n_ctx=2 * N_CTX)
    load_prefix(longer, file, model_sha256=SHA)


def test_what_cannot_be_saved_says_why(tmp_path):
    decoder, file = small("llama-biases"), tmp_path / "prompt.safetensors"
    engine = Engine(decoder)
    with pytest.raises(BadRequest, match="the prompt has 31 tokens, and whole pages of 32 are saved"):
        save_prefix(engine, prompt(decoder, 31), file, model_sha256=SHA)
    with pytest.raises(PromptTooLong):
        save_prefix(engine, prompt(decoder, N_CTX), file, model_sha256=SHA)
    turning = small("llama-dynamic")
    with pytest.raises(BadRequest, match="turns all tokens by other angles once there are 71: what is computed of 70 serves nothing longer"):
        save_prefix(Engine(turning), prompt(turning, 70), file, model_sha256=SHA)
    assert list(tmp_path.iterdir()) == []


def test_nothing_but_a_saved_prompt_is_replaced(tmp_path, monkeypatch):
    decoder, ids, file = saved(tmp_path)
    engine, whole = Engine(decoder), file.read_bytes()
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    for place, words in [(notes, "it holds something else than a saved prompt"), (tmp_path, "it is a folder"), (tmp_path / "pipe", "it is no regular file"),
                         (tmp_path / "no" / "prompt", "there is no folder")]:
        with pytest.raises(BadRequest, match=words) as caught:
            save_prefix(engine, ids, place, model_sha256=SHA)
        assert caught.value.field == "file"
    monkeypatch.setattr("pellucid.engine.saved.os.replace", lambda *_: (_ for _ in ()).throw(OSError("no room")))
    with pytest.raises(OSError, match="no room"):
        save_prefix(engine, ids, file, model_sha256=SHA)
    assert (notes.read_text(), file.read_bytes()) == ("mine", whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "pipe", "prompt.safetensors"]

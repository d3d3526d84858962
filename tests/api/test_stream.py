"""Completions as they come: dropped ones cost nothing more, several at once are read as they are computed."""
from __future__ import annotations

import gc

import pytest

import pellucid
from pellucid.engine.engine import MAX_ROWS, Engine
from pellucid.errors import PellucidError

from .conftest import ABC
from .scripted import scripted_model


def nobody_waits(engine: Engine) -> bool:
    report = engine.report()
    return (report.n_running, report.n_waiting, report.cache_used_share) == (0, 0, 0.0)


@pytest.mark.parametrize("taken", ["text", "parts", "nothing"])
def test_a_dropped_stream_is_cancelled_without_the_garbage_collector(abc_folder, taken):
    model = pellucid.load(abc_folder)
    gc.disable()
    try:
        stream = model.stream("a", temperature=0)
        if taken == "text":
            assert next(stream) == "b"
        elif taken == "parts":
            assert next(stream.parts()) == ("text", "b")
        del stream
        model.engine.step()
        assert nobody_waits(model.engine)
    finally:
        gc.enable()


def test_parts_outlive_the_name_of_their_stream(abc):
    assert "".join(piece for _, piece in abc.stream("a", temperature=0).parts()) == "bcdefghijkl"
    assert "".join(abc.stream("a", temperature=0)) == "bcdefghijkl"


def test_a_batch_larger_than_the_rows_computes_nothing_past_a_stop_string(tmp_path):
    model = pellucid.load(scripted_model(tmp_path / "m", [[*"abcdefgh", "a"]]))  # round and round, to the end of the context
    prompts = ["abcdefgh"[i % 8] for i in range(2 * MAX_ROWS + 9)]
    done = model.batch(prompts, temperature=0, max_tokens=None, stop=["ab"])
    assert [c.text for c in done] == ["abcdefgh"[i % 8 + 1:] if i % 8 else "bcdefgh" for i in range(len(prompts))]
    assert {c.stopped_by for c in done} == {"ab"}
    assert model.engine.report().n_output_tokens == sum(len(c.token_ids) for c in done)
    assert nobody_waits(model.engine)


def test_what_one_of_a_batch_raises_cancels_the_others(abc_folder, monkeypatch):
    model = pellucid.load(abc_folder)
    step = Engine.step

    def faulty(engine):
        step(engine)
        for sequence in engine.scheduler.running[2:3]:
            engine.exits.fail(sequence, PellucidError("it broke"))

    monkeypatch.setattr(Engine, "step", faulty)
    with pytest.raises(PellucidError, match="it broke") as raised:
        model.batch(["a", "b", "c", "d"], temperature=0)
    assert raised.value.__traceback__ is not None  # whose frames hold the streams: they are not cancelled by being dropped
    assert nobody_waits(model.engine)


def test_reading_what_is_there_computes_nothing(abc_folder):
    model = pellucid.load(abc_folder)
    stream = model.stream("a", temperature=0)
    assert stream.read_ready()
    assert model.engine.report().n_steps == 0
    model.engine.step()
    assert stream.read_ready()
    assert stream.generation.ids == model.tokenizer.encode("b")
    assert stream.result.text == "".join(ABC[1:])
    assert not stream.read_ready()

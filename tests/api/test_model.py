"""The Python API over models whose every continuation is known."""
from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from typing import get_type_hints

import numpy as np
import pytest
import torch

import pellucid
from pellucid.api import Model
from pellucid.api.completion import OPTIONS, SAMPLING, Options
from pellucid.engine.engine import Engine
from pellucid.engine.group import PAGE
from pellucid.engine.request import Sampling
from pellucid.errors import BadConfig, BadRequest, BadTemplate, BadTokenizer, EmptyPrompt, ModelNotFound, PromptTooLong, TruncatedFile
from pellucid.records import Record
from pellucid.weights import hub_cache

from .conftest import ABC, THOUGHT
from .scripted import scripted_model


def ids(model: Model, text: str) -> list[int]:
    return model.tokenizer.encode(text)


# generate


def test_generate_returns_text_ids_reason_and_usage(abc):
    done = abc.generate("xa", max_tokens=5, temperature=0, seed=3)
    assert (done.text, done.finish_reason, done.stopped_by, done.thinking, done.seed) == ("bcdef", "length", None, None, 3)
    assert list(done.token_ids) == ids(abc, "bcdef")
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.total_tokens) == (2, 5, 7)
    assert 0 < done.prefill_seconds < done.seconds
    assert done.tokens_per_second == pytest.approx(4 / (done.seconds - done.prefill_seconds))


def test_the_end_of_sequence_id_stops_and_is_reported_but_not_shown(abc):
    done = abc.generate("a", temperature=0)
    end = abc.tokenizer.eos_id
    assert (done.text, done.finish_reason, done.stopped_by, done.token_ids[-1]) == ("bcdefghijkl", "stop", end, end)
    assert done.usage.completion_tokens == 12


def test_ignore_eos_goes_on_past_it(abc):
    done = abc.generate("kl", temperature=0, max_tokens=3, ignore_eos=True)
    end = abc.tokenizer.eos_id
    assert (done.token_ids, done.finish_reason) == ((end, end, end), "length")


def test_every_end_id_of_generation_config_stops(tmp_path):
    folder = scripted_model(tmp_path / "m", [ABC])
    tokenizer = pellucid.load_tokenizer(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [*tokenizer.encode("c"), *tokenizer.encode("h")]}))
    model = pellucid.load(folder)
    assert model.stop_ids() == {*tokenizer.encode("ch"), tokenizer.eos_id}
    assert [model.generate(p, temperature=0).text for p in ("a", "e", "j")] == ["b", "fg", "kl"]


@pytest.mark.parametrize("where", ["config.json", "generation_config.json"])
def test_an_end_id_outside_the_vocabulary_is_refused(tmp_path, where):
    folder = scripted_model(tmp_path / "m", [ABC])
    stated = json.loads((folder / "config.json").read_text()) if where == "config.json" else {}
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / where).write_text(json.dumps(stated | {"eos_token_id": [1, 999_999]}))
    with pytest.raises(BadConfig, match=r"'m' has eos_token_id 999,999, and its vocabulary has 259 ids, so that nothing would end an answer there\. Mend"):
        pellucid.load(folder)


@pytest.mark.parametrize(("stop", "text", "met"), [
    ("def", "bc", "def"), (["zz", "ef"], "bcd", "ef"), ("f", "bcde", "f"), (["fg", "f"], "bcde", "f"), ("zz", "bcdefghijkl", None),
    (["klm", "l?"], "bcdefghijkl", None)])
def test_stop_strings_span_tokens(abc, stop, text, met):
    done = abc.generate("a", temperature=0, stop=stop)
    assert (done.text, done.finish_reason) == (text, "stop")
    assert done.stopped_by == (met or abc.tokenizer.eos_id)
    pieces = list(abc.stream("a", temperature=0, stop=stop))
    assert "".join(pieces) == text
    assert all(pieces)


def test_generation_ends_with_the_token_that_completes_a_stop_string(abc):
    assert list(abc.generate("a", temperature=0, stop="def").token_ids) == ids(abc, "bcdef")


def test_a_stop_string_that_is_a_special_token_stops_as_an_id(abc):
    done = abc.generate("x", temperature=0, stop="<|im_end|>", ignore_eos=True)
    assert (done.text, done.finish_reason, done.stopped_by) == ("", "stop", abc.tokenizer.id_of("<|im_end|>"))


def test_a_full_context_ends_the_output(abc):
    long = "x" * (abc.spec.n_ctx - 4) + "a"
    done = abc.generate(long, temperature=0, max_tokens=None)
    assert (done.text, done.finish_reason) == ("bcd", "context")


def test_a_prompt_that_does_not_fit_says_both_counts(abc):
    with pytest.raises(PromptTooLong, match="the prompt has 200 tokens; this model's context holds 128"):
        abc.generate("x" * 200)


def test_logprobs_are_those_of_the_full_pass(abc):
    done = abc.generate("a", temperature=0, max_tokens=4, logprobs=True)
    full = abc.logits(ids(abc, "abcd")).log_softmax(-1)
    assert done.logprobs == pytest.approx([full[t, i].item() for t, i in enumerate(ids(abc, "bcde"))], abs=1e-5)


def test_an_unsaid_seed_is_drawn_and_repeats_the_run(abc):
    first = abc.generate("a", temperature=30.0, max_tokens=12)
    assert abc.generate("a", temperature=30.0, max_tokens=12, seed=first.seed).token_ids == first.token_ids
    assert abc.generate("a", temperature=30.0, max_tokens=12).seed != first.seed


def test_sampling_settings_reach_the_sampler(abc):
    b = ids(abc, "q")[0]
    assert abc.generate("a", temperature=0, max_tokens=3, logit_bias={b: 100.0}).text == "qqq"
    assert abc.generate("a", temperature=1000.0, top_k=1, max_tokens=3).text == "bcd"
    assert abc.generate("a", temperature=2.0, top_p=0.01, max_tokens=3).text == "bcd"
    assert abc.generate("a", temperature=2.0, min_p=1.0, max_tokens=3).text == "bcd"
    assert len({abc.generate("a", temperature=1000.0, max_tokens=3, seed=s).text for s in range(5)}) > 1


def test_settings_in_force_are_in_the_result(abc):
    done = abc.generate("a", temperature=0.5, max_tokens=1, stop="z", seed=9)
    assert done.settings == {"prompt": "a", "temperature": 0.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
                             "frequency_penalty": 0.0, "logit_bias": {}, "seed": 9, "max_tokens": 1, "stop": ["z"],
                             "stop_ids": [abc.tokenizer.eos_id], "ignore_eos": False, "logprobs": False}


# what a prompt becomes


def test_an_empty_prompt_starts_from_bos(abc):
    done = abc.generate("", temperature=0, max_tokens=1)
    assert done.prompt_ids == (abc.tokenizer.bos_id,)


def test_an_empty_prompt_without_bos_is_an_error(tmp_path):
    model = pellucid.load(scripted_model(tmp_path / "nobos", [ABC], bos=False))
    with pytest.raises(EmptyPrompt, match=r"the prompt is empty, and 'nobos' has no beginning-of-sequence token to start from\. Give it a word"):
        model.generate("")


def test_bos_is_added_where_the_tokenizer_wants_it(tmp_path):
    folder = scripted_model(tmp_path / "m", [ABC])
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"add_bos_token": True}))
    model = pellucid.load(folder)
    assert model.prompt_ids("ab") == [model.tokenizer.bos_id, *ids(model, "ab")]


def test_special_tokens_never_come_from_text(abc):
    prompt = abc.prompt_ids("<|im_end|>")
    assert not abc.tokenizer.special_ids & set(prompt)
    assert abc.tokenizer.decode(prompt) == "<|im_end|>"


def test_ids_as_a_prompt_are_used_as_they_are(abc):
    assert abc.generate([*ids(abc, "a")], temperature=0, max_tokens=2).text == "bc"
    assert abc.generate(torch.tensor(ids(abc, "xa")), temperature=0, max_tokens=2).prompt_ids == tuple(ids(abc, "xa"))
    with pytest.raises(EmptyPrompt, match="the prompt has no tokens"):
        abc.generate([])


def test_half_a_surrogate_pair_is_refused(abc):
    with pytest.raises(BadRequest, match=r"half a character .* at position 2"):
        abc.generate("ab\ud800")


# stream


def test_a_stream_ends_with_its_result(abc):
    stream = abc.stream("a", temperature=0, max_tokens=4)
    assert list(stream) == ["b", "c", "d", "e"]
    assert stream.result.text == "bcde"


def test_taking_the_result_first_generates_the_rest(abc):
    stream = abc.stream("a", temperature=0, max_tokens=4)
    assert next(stream) == "b"
    assert stream.result.text == "bcde"
    assert list(stream) == []


def test_a_stream_may_be_stopped(abc):
    stream = abc.stream("a", temperature=0)
    assert [next(stream), next(stream)] == ["b", "c"]
    stream.stop()
    assert (stream.result.text, stream.result.finish_reason, stream.result.stopped_by) == ("bc", "stop", "interrupt")


def test_what_has_ended_is_not_stopped_again(abc):
    stream = abc.stream("a", temperature=0, max_tokens=2)
    assert list(stream) == ["b", "c"]
    stream.stop()
    assert (stream.interrupted, stream.result.finish_reason, stream.result.stopped_by) == (False, "length", None)


def test_a_stream_is_checked_when_it_is_asked_for(abc):
    with pytest.raises(BadRequest, match="top_p=7 is out of range"):
        abc.stream("a", top_p=7)


def test_characters_of_several_tokens_come_whole(tmp_path):
    model = pellucid.load(scripted_model(tmp_path / "m", [["x", "🧀"], ["y", "é", "!"]]))
    assert list(model.stream("x", temperature=0)) == ["🧀"]
    assert list(model.stream("y", temperature=0)) == ["é", "!"]


def test_a_character_cut_short_by_max_tokens_is_one_replacement(tmp_path):
    model = pellucid.load(scripted_model(tmp_path / "m", [["x", "🧀"]]))
    assert list(model.stream("x", temperature=0, max_tokens=3)) == ["\ufffd"]
    assert model.generate("x", temperature=0, max_tokens=3, stop="\ufffd").text == ""


# chat


def test_chat_renders_the_template_and_answers(abc):
    done = abc.chat([{"role": "user", "content": "hi"}], temperature=0)
    assert (done.text, done.finish_reason) == ("YES", "stop")
    assert abc.tokenizer.decode(list(done.prompt_ids), special=True) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_a_stream_of_messages_is_a_chat(abc):
    messages = [{"role": "user", "content": "hi"}]
    assert "".join(abc.stream(messages, temperature=0)) == "YES"


def test_a_conversation_goes_on_from_what_was_computed(abc):
    first = [{"role": "user", "content": "hi, " * 5}]
    done = abc.chat(first, temperature=0, reuse=True)
    assert done.usage.reused_tokens == 0
    turns = [*first, {"role": "assistant", "content": done.text}, {"role": "user", "content": "more"}]
    again = abc.chat(turns, temperature=0, reuse=True)
    whole = done.usage.prompt_tokens + 3  # YES; its <|im_end|> came out and never went in
    assert again.usage.reused_tokens == whole // PAGE * PAGE > 0
    assert again.text == "YES"
    assert abc.chat(turns, temperature=0).usage.reused_tokens == 0  # unless it is asked for: the same seed gives the same bits


def test_a_deterministic_model_takes_over_what_there_is(abc_folder):
    model = pellucid.load(abc_folder, deterministic=True)
    first, second = (model.generate("ab" * 30, temperature=0, logprobs=True, max_tokens=3) for _ in range(2))
    assert (first.usage.reused_tokens, second.usage.reused_tokens) == (0, 59 // PAGE * PAGE)
    assert (first.token_ids, first.logprobs) == (second.token_ids, second.logprobs)


def test_threads_that_come_together_make_one_engine(abc_folder, monkeypatch):
    model, made = pellucid.load(abc_folder), []

    def slow(self, *args, init=Engine.__init__, **more):
        time.sleep(0.05)  # the other thread looks meanwhile
        made.append(self)
        init(self, *args, **more)

    monkeypatch.setattr(Engine, "__init__", slow)
    together, said = threading.Barrier(2), []

    def ask():
        together.wait()
        said.append(model.generate("a", temperature=0).text)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == ["bcdefghijkl"] * 2
    assert made == [model.engine]


def test_a_batch_is_its_prompts_one_by_one(abc):
    prompts = ["A", "AB", "a" * 50]
    together = abc.batch(prompts, temperature=0, max_tokens=5, stop=["Q"])
    assert [c.text for c in together] == [abc.generate(p, temperature=0, max_tokens=5, stop=["Q"]).text for p in prompts]
    assert abc.batch([], temperature=0) == []


def test_several_completions_of_a_prompt_have_seeds_of_their_own():
    story = pellucid.load("shipped", dtype="float32")
    done = story.generate("Once", n=2, best_of=4, seed=5, temperature=1.3, max_tokens=6)
    assert done.choices[0].text == done.text
    assert len(done.choices) == 2
    singles = {seed: story.generate("Once", seed=seed, temperature=1.3, max_tokens=6, logprobs=True) for seed in range(5, 9)}
    best = sorted(singles, key=lambda seed: -sum(singles[seed].logprobs) / len(singles[seed].logprobs))[:2]
    assert [choice.seed for choice in done.choices] == best
    assert [choice.token_ids for choice in done.choices] == [singles[seed].token_ids for seed in best]
    assert len(done.as_dict()["choices"]) == 2
    assert {(c.logprobs, c.settings["logprobs"]) for c in (done, *done.choices)} == {(None, False)}  # chosen by, and not asked for
    told = story.generate("Once", n=2, best_of=4, seed=5, temperature=1.3, max_tokens=6, logprobs=True)
    assert [len(choice.logprobs) for choice in told.choices] == [len(choice.token_ids) for choice in done.choices]
    with pytest.raises(BadRequest, match="top_logprobs=2 wants logprobs=True"):
        story.generate("Once", best_of=4, top_logprobs=2)
    assert not story.generate("Once", max_tokens=1).choices
    with pytest.raises(BadRequest, match="a stream is one completion"):
        story.stream("Once", n=2)
    with pytest.raises(BadRequest, match=r"best_of=1 is out of range: at least n \(2\)"):
        story.generate("Once", n=2, best_of=1)


def test_output_i_of_a_seed_is_the_single_output_of_seed_plus_i():
    story = pellucid.load("shipped", dtype="float32")
    several = story.generate("Once", n=3, seed=1, temperature=1.3, max_tokens=8)
    assert [choice.seed for choice in several.choices] == [1, 2, 3]
    assert len({choice.token_ids for choice in several.choices}) == 3
    for choice in several.choices:
        assert choice.token_ids == story.generate("Once", seed=choice.seed, temperature=1.3, max_tokens=8).token_ids


def test_what_the_output_may_say_can_be_bound(abc):
    free = abc.generate("h", temperature=0)
    assert free.text == "ijkl"
    assert abc.generate("h", temperature=0, prefix="?ef").text == "?efghijkl"
    assert "k" not in abc.generate("h", temperature=0, bad_words=["k"]).text
    assert "k" not in abc.generate("h", temperature=0, bad_words=[abc.tokenizer.encode("k")]).text
    assert abc.generate("h", temperature=0, bad_words=["zk"]).text == "ijkl"
    longer = abc.generate("h", temperature=0, min_tokens=7, max_tokens=9)
    assert len(longer.token_ids) >= 7 > len(free.token_ids) == 5


def test_continuations_are_scored_as_the_model_would_write_them():
    story = pellucid.load("shipped", dtype="float32")
    pairs = [("It was a dark", " and stormy night"), ("It was a dark ", "and stormy night"), ("", "Once upon a time")]
    first, second, whole = story.score(pairs)
    assert first == second  # the space is the continuation's, wherever it stood
    ids = story.prompt_ids("It was a dark and stormy night")
    n = len(story.prompt_ids("It was a dark"))
    logprobs_TV = story.logits(ids).log_softmax(-1)
    assert list(first.logprobs) == pytest.approx([float(logprobs_TV[i - 1, ids[i]]) for i in range(n, len(ids))], abs=1e-4)
    assert len(whole.logprobs) == len(story.prompt_ids("Once upon a time")) - 1
    assert story.score([(ids[:n], ids[n:])])[0].greedy == first.greedy
    with pytest.raises(EmptyPrompt, match="the continuation is empty"):
        story.score([("a", "")])
    with pytest.raises(BadRequest, match="must both be text, or both token ids"):
        story.score([("a", [3])])
    for pairs, words in [("ab", "pairs must be a list, and str 'ab' came"), ([("a", "b", "c")], "a pair is (context, continuation), and ('a', 'b', 'c') came"),
                         (["ab"], "a pair is (context, continuation), and 'ab' came"), ([5], "a pair is (context, continuation), and 5 came")]:
        with pytest.raises(BadRequest, match=re.escape(words)):
            story.score(pairs)


def test_one_text_is_not_taken_for_a_list_of_its_letters():
    story = pellucid.load("shipped")
    with pytest.raises(BadRequest, match=r"texts must be a list, and str 'abc' came\. Give \['abc'\]"):
        story.embed("abc")
    with pytest.raises(BadRequest, match=r"prompts must be a list, and str 'abc' came\. Give \['abc'\]"):
        story.batch("abc")


def test_a_token_that_begins_in_the_context_is_scored_whole(tmp_path):
    story = pellucid.load("shipped", dtype="float32")
    tokenizer = story.tokenizer
    bos, [th], [the] = tokenizer.bos_id, tokenizer.encode("Th"), tokenizer.encode("The")
    assert th != the
    [score] = story.score([("Th", "e")])  # its ids would have been none, and their sum 0.0 the best there is
    assert list(score.logprobs) == pytest.approx([float(story.logits([bos, the])[0].log_softmax(-1)[the])], abs=1e-4)
    context, whole = story.prompt_ids("Once upon a ti"), story.prompt_ids("Once upon a time")
    assert (len(context), len(whole)) == (7, 6)  # "t", "i" and "time"
    assert (context[:5], context[5] == whole[5]) == (whole[:5], False)
    assert story.score([("Once upon a ti", "me")]) == story.score([(whole[:5], whole[5:])])
    plain = pellucid.load(scripted_model(tmp_path / "m", [ABC], bos=False))
    with pytest.raises(EmptyPrompt, match=r"nothing is left to score of 'a' after '': together they are the ids \[\d+\], and the context alone \[\]\. "
                                          r"Expected an id .* Give a longer continuation"):
        plain.score([("", "a")])


@pytest.mark.parametrize("draft", ["lookup", "shipped"])
def test_drafts_change_nothing_but_the_time(draft):
    plain, drafted = (pellucid.load("shipped", dtype="float32", deterministic=True, draft=d) for d in (None, draft))
    for how in ({"temperature": 0}, {"temperature": 0.8, "seed": 3, "top_p": 0.9}):
        prompt = "the sea, the sea, the sea, the sea, the"
        assert drafted.generate(prompt, max_tokens=24, **how).token_ids == plain.generate(prompt, max_tokens=24, **how).token_ids
    assert drafted.engine.report().n_accepted > 0
    assert plain.settings["draft"] is None


def test_a_draft_of_another_vocabulary_is_refused(abc_folder):
    with pytest.raises(BadRequest, match=r"the draft model has [\d,]+ tokens in its vocabulary, and the model [\d,]+"):
        pellucid.load("shipped", draft=abc_folder)


def test_a_saved_prompt_is_taken_over(tmp_path, abc_folder):
    story = pellucid.load("shipped", deterministic=True)
    text = "It was the best of times, it was the worst of times. " * 6
    saved = story.save_prompt(text, tmp_path / "p.safetensors")
    assert len(saved.ids) + saved.n_left == len(story.prompt_ids(text))
    other = pellucid.load("shipped", deterministic=True)
    assert other.load_prompt(tmp_path / "p.safetensors").ids == saved.ids
    first, again = (model.generate(text + "And", temperature=0, max_tokens=6, reuse=True) for model in (story, other))
    assert (again.text, again.usage.reused_tokens) == (first.text, len(saved.ids))
    talk = [{"role": "system", "content": text}]
    kept = story.save_prompt(talk, tmp_path / "s.safetensors")
    fresh = pellucid.load("shipped", deterministic=True)
    fresh.load_prompt(tmp_path / "s.safetensors")
    assert fresh.chat([*talk, {"role": "user", "content": "hi"}], temperature=0, max_tokens=2).usage.reused_tokens == len(kept.ids)
    with pytest.raises(BadRequest, match="another model"):
        pellucid.load(abc_folder).load_prompt(tmp_path / "p.safetensors")


def test_texts_have_vectors():
    story = pellucid.load("shipped", dtype="float32")
    texts = ["The sea was calm.", "The ocean lay still.", "He paid five pounds."]
    vectors_ND = story.embed(texts)
    assert vectors_ND.shape == (3, story.spec.d_model)
    torch.testing.assert_close(vectors_ND.norm(dim=-1), torch.ones(3))
    hidden_TD = story.decoder(torch.tensor(story.prompt_ids(texts[1])))
    torch.testing.assert_close(story.embed(texts[1:2], normalize=False)[0], hidden_TD.mean(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(story.embed(texts[1:2], pooling="last", normalize=False)[0], hidden_TD[-1], atol=1e-4, rtol=1e-4)
    assert story.embed([]).shape == (0, story.spec.d_model)
    mlp = "blocks.1.mlp.up"
    assert story.embed([], activation=mlp).shape[1] == story.embed(texts[:1], activation=mlp).shape[1] != story.spec.d_model
    with pytest.raises(BadRequest, match=r"activation 'blocks\.3\.mpl' is not a module of this model\. Did you mean blocks\.3\.mlp"):
        story.embed(texts, activation="blocks.3.mpl")


def test_log_probabilities_of_prompt_and_output_are_told(abc):
    done = abc.generate("ab", temperature=0, max_tokens=1, logprobs=True, top_logprobs=2, prompt_logprobs=0)
    assert done.as_dict()["logprobs"] == [pytest.approx(0.0, abs=1e-3)]
    assert done.top_logprobs[0][0][0] == done.token_ids[0]
    assert len(done.prompt_logprobs) == len(done.prompt_ids) - 1


def test_a_model_without_a_template_cannot_chat(tmp_path):
    model = pellucid.load(scripted_model(tmp_path / "m", [ABC], template=None))
    with pytest.raises(BadTemplate, match="--chat-template"):
        model.chat([{"role": "user", "content": "hi"}])
    assert model.generate("a", temperature=0, max_tokens=1).text == "b"


def test_a_supplied_template_takes_the_models_place(tmp_path, abc_folder):
    (tmp_path / "t.jinja").write_text("{{ messages[0].content }}a")
    model = pellucid.load(abc_folder, chat_template=tmp_path / "t.jinja")
    assert model.chat([{"role": "user", "content": "x"}], temperature=0).text == "bcdefghijkl"
    assert model.settings["chat_template"] == str(tmp_path / "t.jinja")


def test_tools_documents_and_arguments_reach_the_template(tmp_path, abc_folder):
    (tmp_path / "t.jinja").write_text("{{ tools[0].name }}|{{ documents[0].text }}|{{ mood }}|{{ messages[0].content }}")
    model = pellucid.load(abc_folder, chat_template=str(tmp_path / "t.jinja"))
    done = model.chat([{"role": "user", "content": "a"}], tools=[{"name": "T"}], documents=[{"text": "D"}], template_args={"mood": "M"}, temperature=0)
    assert (model.tokenizer.decode(done.prompt_ids), done.text) == ("T|D|M|a", "bcdefghijkl")


def test_a_template_that_is_neither_file_nor_name_is_refused(abc_folder):
    with pytest.raises(BadRequest, match="nowhere"):
        pellucid.load(abc_folder, chat_template="nowhere.jinja")


@pytest.mark.parametrize("think", ["special", "plain"])
def test_thinking_is_told_from_the_answer(tmp_path, think):
    model = pellucid.load(scripted_model(tmp_path / "m", [THOUGHT], think=think))
    stream = model.stream_chat([{"role": "user", "content": "?"}], temperature=0)
    assert list(stream.parts()) == [("thinking", "h"), ("thinking", "m"), ("text", "o"), ("text", "k")]
    assert (stream.result.thinking, stream.result.text) == ("hm", "ok")
    assert stream.result.usage.thinking_tokens == 4  # the marks count with it
    assert list(model.stream_chat([{"role": "user", "content": "?"}], temperature=0)) == ["o", "k"]


@pytest.mark.parametrize("think", ["special", "plain"])
def test_thinking_that_the_template_opened_is_thinking(tmp_path, think):
    model = pellucid.load(scripted_model(tmp_path / "m", [THOUGHT[1:]], think=think))
    done = model.chat([{"role": "user", "content": "?"}], temperature=0, template_args={"think_first": True})
    assert (done.thinking, done.text) == ("hm", "ok")
    assert done.usage.thinking_tokens == 3  # h, m and the mark that ends it


def test_thinking_that_never_ends_is_whole(tmp_path):
    model = pellucid.load(scripted_model(tmp_path / "m", [["\n", "<think>", "h", "<", "/"]], think="plain"))
    done = model.chat([{"role": "user", "content": "?"}], temperature=0)
    assert (done.thinking, done.text) == ("h</", "")


def test_generate_leaves_thinking_in_the_text(tmp_path):
    model = pellucid.load(scripted_model(tmp_path / "m", [THOUGHT], think="plain"))
    done = model.generate("\n", temperature=0)
    assert (done.thinking, done.text, done.usage.thinking_tokens) == (None, "<think>hm</think>ok", 0)


# logits


def test_logits_are_float32_and_add_nothing(abc):
    logits = abc.logits(ids(abc, "xab"))
    assert (logits.shape, logits.dtype) == ((3, abc.spec.n_vocab), torch.float32)
    assert logits.argmax(-1).tolist()[1:] == ids(abc, "bc")
    assert not logits.requires_grad
    logits.add_(1.0)  # the caller's own: not an inference tensor


def test_logits_are_float32_in_bfloat16_too(tmp_path):
    model = pellucid.load(scripted_model(tmp_path / "m", [ABC], dtype=torch.bfloat16))
    assert model.report.dtype == "bf16"
    assert model.logits(ids(model, "a")).dtype == torch.float32
    assert model.generate("a", temperature=0, max_tokens=3).text == "bcd"


def test_logits_refuse_what_cannot_be(abc):
    with pytest.raises(EmptyPrompt, match="ids is empty"):
        abc.logits([])
    with pytest.raises(PromptTooLong, match="129 ids do not fit this model's context of 128"):
        abc.logits([1] * 129)
    with pytest.raises(BadRequest, match=r"ids has token id 99999, and this model's vocabulary has ids 0 to \d+"):
        abc.logits([99999])
    with pytest.raises(BadRequest, match="ids is a string where token ids are wanted"):
        abc.logits("text")
    assert abc.logits([1] * 128).shape[0] == 128


def test_a_folder_without_tokenizer_files_takes_ids_and_refuses_text(tmp_path, abc):
    folder = scripted_model(tmp_path / "bare", [ABC])
    (folder / "tokenizer.json").unlink()
    model = pellucid.load(folder)
    torch.testing.assert_close(model.logits([5, 6]), abc.logits([5, 6]), rtol=0, atol=0)
    for ask in (lambda: model.generate("a"), lambda: model.chat([{"role": "user", "content": "a"}]), lambda: model.generate([5]), lambda: model.tokenizer):
        with pytest.raises(BadTokenizer, match=r"'bare' has no tokenizer files in .*: looked for tokenizer\.json, tokenizer\.model.*model\.logits\(ids\)"):
            ask()


# load


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path):
    folder = scripted_model(tmp_path / "m", [ABC])
    scripted_model(tmp_path / "other", [ABC], think="special")
    (folder / "tokenizer.json").write_bytes((tmp_path / "other" / "tokenizer.json").read_bytes())
    with pytest.raises(BadTokenizer, match="the tokenizer knows 261 tokens, and the model's embedding has 259 rows"):
        pellucid.load(folder)


def test_load_refuses_what_this_version_cannot_do(tmp_path, abc_folder):
    with pytest.raises(BadRequest, match=r"quantize='q4_k_m' is no format .* \(nf4, int8, q8_0, q6_k, q5_k, q4_k\)\. Mixes of several are written: pellucid"):
        pellucid.load(abc_folder, quantize="q4_k_m")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(TruncatedFile, match=r"m\.gguf has 4 bytes, and a GGUF file starts with 24"):
        pellucid.load(tmp_path / "m.gguf")
    with pytest.raises(ModelNotFound):
        pellucid.load(tmp_path / "nothing")
    with pytest.raises(BadRequest, match=r"accept_unread='foo' must be a list of keys: \['foo'\]"):
        pellucid.load(abc_folder, accept_unread="foo")
    with pytest.raises(BadRequest, match=r"threads=0 is out of range: at least 1 \(this machine has \d+ CPUs\)"):
        pellucid.load(abc_folder, threads=0)


def test_threads_are_torchs(abc_folder):
    before = torch.get_num_threads()
    try:
        pellucid.load(abc_folder, threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_accepted_keys_are_recorded(tmp_path):
    folder = scripted_model(tmp_path / "m", [ABC], config={"frobnicate": 3})
    model = pellucid.load(folder, accept_unread=["frobnicate"])
    done = model.generate("a", temperature=0, max_tokens=1)
    assert model.record(done).accepted_unread == ["frobnicate"]


# options


def test_an_unknown_option_gets_the_nearest_name(abc):
    for ask in (lambda **o: abc.generate("a", **o), lambda **o: abc.stream("a", **o), lambda **o: abc.chat([{"role": "user", "content": "a"}], **o)):
        with pytest.raises(BadRequest, match=r"'max_token' is not an option\. Did you mean max_tokens"):
            ask(max_token=3)


@pytest.mark.parametrize(("options", "message"), [
    ({"schema": {"type": "objekt"}}, "schema at #/type: 'objekt' is not a type"),
    ({"choice": ["a"], "regex": "a"}, "regex and choice are both given, and an output is held to one thing. Leave one out"),
    ({"regex": "a(?=b)"}, "regex has look-ahead at position 1"),
    ({"stop": ""}, "stop must be a string or several, none of them empty; got ''"),
    ({"stop": [""]}, r"stop must be a string or several, none of them empty; got \[''\]"),
    ({"stop": 3}, "stop must be a string or several, none of them empty; got 3"),
    ({"ignore_eos": "yes"}, "ignore_eos must be True or False, got 'yes'"),
    ({"logprobs": 5}, "logprobs must be True or False, got 5"),
    ({"stop": ["a", "\udcff"]}, "stop='.udcff' holds half a character .* Was it bytes that are not UTF-8"),
    ({"reuse": 5}, "reuse must be True or False, got 5"),
    ({"bad_words": "x"}, "bad_words must be a list of words, each text or token ids; got 'x'"),
    ({"bad_words": [""]}, "bad_words has an empty word"),
    ({"n": 0}, "n=0 is out of range: at least 1"),
    ({"n": 2, "temperature": 0}, "n=2, and at temperature 0 all outputs are the same"),
    ({"min_tokens": 9, "max_tokens": 3}, r"min_tokens=9 is out of range: from 0 to max_tokens \(3\)"),
    ({"max_tokens": 0}, "max_tokens=0 is out of range"),
    ({"logit_bias": {9999: 1.0}}, "logit_bias has token id 9999"),
])
def test_options_that_cannot_be_say_why(abc, options, message):
    with pytest.raises(BadRequest, match=message):
        abc.generate("a", **options)


@pytest.mark.parametrize("prompt", [5, None, 2.5, [1, "a"], object()])
def test_a_prompt_that_is_none_is_a_bad_request(abc, prompt):
    with pytest.raises(BadRequest, match="prompt must be token ids, one integer each; got") as caught:
        abc.generate(prompt)
    assert caught.value.field == "prompt"


@pytest.mark.parametrize("name", ["messages", "tools", "documents", "add_generation_prompt", "_generation_begins"])
def test_a_template_argument_takes_no_name_that_is_filled_in(abc, name):
    with pytest.raises(BadRequest, match=f"'{name}' is no name for a template argument: messages, tools, documents, add_generation_prompt and names that "
                                         f"begin with an underscore are filled in for the template") as caught:
        abc.chat([{"role": "user", "content": "a"}], template_args={name: 3})
    assert caught.value.field == "template_args"
    for wrong in (5, ["a"], {3: 4}):
        with pytest.raises(BadRequest, match=r"template_args is .*; expected an object of names and values"):
            abc.chat([{"role": "user", "content": "a"}], template_args=wrong)


def test_a_template_argument_may_be_called_what_the_package_calls_its_own(tmp_path):
    model = pellucid.load(scripted_model(tmp_path / "m", [ABC], template="{{ messages[0].content }}{{ template }}{{ tokenizer }}"))
    done = model.chat([{"role": "user", "content": "x"}], template_args={"template": "b", "tokenizer": "a"}, temperature=0, max_tokens=2)
    assert (model.tokenizer.decode(list(done.prompt_ids)), done.text) == ("xba", "bc")


def test_numbers_of_numpy_are_numbers_and_a_record_holds_them(abc, tmp_path):
    options = {"temperature": np.float32(0.5), "top_k": np.int64(3), "top_p": np.float16(0.5), "seed": np.int64(5), "max_tokens": np.int32(2),
               "logit_bias": {np.int64(7): np.float32(1.5)}}
    done = abc.generate("a", **options)
    assert done.token_ids == abc.generate("a", temperature=0.5, top_k=3, top_p=0.5, seed=5, max_tokens=2, logit_bias={7: 1.5}).token_ids
    abc.record(done).save(tmp_path / "r.json")
    request = Record.read(tmp_path / "r.json").settings["request"]
    assert {name: request[name] for name in options} == {"temperature": 0.5, "top_k": 3, "top_p": 0.5, "seed": 5, "max_tokens": 2, "logit_bias": {"7": 1.5}}


def test_the_options_are_the_samplers_and_these():
    assert set(SAMPLING) < set(OPTIONS)
    assert set(OPTIONS) - set(SAMPLING) == {"max_tokens", "stop", "ignore_eos", "logprobs", "schema", "min_tokens", "bad_words", "prefix",
                                             "top_logprobs", "prompt_logprobs", "n", "best_of", "reuse", "compact", "regex", "choice", "lark", "gbnf",
                                             "tags", "adapter"}
    assert set(get_type_hints(Options)) == set(OPTIONS)
    assert set(Sampling.__slots__) == set(SAMPLING)


# the front door


def test_a_tokenizer_is_found_under_the_names_that_models_have(tmp_path, monkeypatch):
    monkeypatch.setattr(hub_cache, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(hub_cache, "__file__", str(tmp_path / "pellucid/weights/hub_cache.py"))
    scripted_model(tmp_path / "cache/models--acme--abc/snapshots" / ("0" * 40), [ABC])
    scripted_model(tmp_path / "pellucid/shipped", [ABC], think="special")
    assert pellucid.load_tokenizer("acme/abc").n_vocab == 259
    assert pellucid.load_tokenizer("shipped").n_vocab == 261
    with pytest.raises(ModelNotFound, match=r"'acme/abd' is not on this disk, neither as a path nor as a download\. Did you mean acme/abc\? Try: pellucid"):
        pellucid.load_tokenizer("acme/abd")


def test_importing_pellucid_imports_no_torch():
    code = "import sys, pellucid; assert pellucid.__version__ and dir(pellucid); sys.exit('torch' in sys.modules or 'tokenizers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_names_the_package_does_not_have_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'pellucid' has no attribute 'laod'"):
        pellucid.laod  # noqa: B018
    assert {"load", "Model", "load_tokenizer", "errors"} <= set(dir(pellucid))



"""What may be asked, and what a wrong question is told."""
from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from pellucid.engine.request import Request, Result, Sampling, check_names, check_vocabulary
from pellucid.errors import BadRequest


@pytest.mark.parametrize(("options", "field", "message"), [
    ({"temperature": -0.5}, "temperature", "temperature=-0.5 is out of range: 0 (greedy), or a number from 1e-06"),
    ({"temperature": 1e-9}, "temperature", "temperature=1e-09 is out of range: 0 (greedy)"),
    ({"temperature": float("nan")}, "temperature", "temperature must be a finite number, got nan"),
    ({"temperature": "hot"}, "temperature", "temperature must be a finite number, got 'hot'"),
    ({"temperature": True}, "temperature", "temperature must be a finite number, got True"),
    ({"top_k": -1}, "top_k", "top_k=-1 is out of range: 0 (all tokens) or the count of tokens to keep"),
    ({"top_k": 1.5}, "top_k", "top_k must be an integer, got 1.5"),
    ({"top_p": 0}, "top_p", "top_p=0 is out of range: above 0 and at most 1"),
    ({"top_p": 1.01}, "top_p", "top_p=1.01 is out of range: above 0 and at most 1"),
    ({"min_p": 1.5}, "min_p", "min_p=1.5 is out of range: from 0 to 1"),
    ({"repetition_penalty": 0}, "repetition_penalty", "repetition_penalty=0 is out of range: above 0 (1 changes nothing)"),
    ({"presence_penalty": 2.5}, "presence_penalty", "presence_penalty=2.5 is out of range: from -2 to 2"),
    ({"frequency_penalty": -3}, "frequency_penalty", "frequency_penalty=-3 is out of range: from -2 to 2"),
    ({"seed": -1}, "seed", "seed=-1 is out of range: from 0 to 2**63 - 1"),
    ({"seed": None}, "seed", "seed must be an integer, got None"),
    ({"logit_bias": [3]}, "logit_bias", "logit_bias must map token ids to numbers, got list [3]"),
    ({"logit_bias": {"3": 1.0}}, "logit_bias", "a token id of logit_bias must be an integer, got '3'"),
    ({"top_p": np.bool_(True)}, "top_p", "top_p must be a finite number, got"),
    ({"seed": np.float64(3)}, "seed", "seed must be an integer, got"),
    ({"temperature": 10**400}, "temperature", "temperature must be a finite number, got 1000"),
    ({"logit_bias": {3: -1e39}}, "logit_bias", "logit_bias of token 3 is -1e+39, more than float32 holds; 100 or -100 is enough to force or forbid a token"),
    ({"logit_bias": {3: float("inf")}}, "logit_bias", "logit_bias of token 3 must be a finite number, got inf"),
])
def test_a_setting_out_of_range_is_named_with_its_range(options, field, message):
    with pytest.raises(BadRequest, match=re.escape(message)) as caught:
        Sampling.of(**options)
    assert caught.value.field == field


def test_an_unknown_option_gets_the_nearest_names():
    with pytest.raises(BadRequest, match=r"'temprature' is not an option\. Did you mean temperature\?") as caught:
        Sampling.of(temprature=0.5)
    assert caught.value.field == "temprature"
    with pytest.raises(BadRequest, match=r"'xyzzy' is not an option\. Known: apple, pear\."):
        check_names(["xyzzy"], ["apple", "pear"])


def test_max_tokens_is_none_or_at_least_one():
    assert Request(prompt_ids=[1], max_tokens=None).max_tokens is None
    with pytest.raises(BadRequest, match=r"max_tokens=0 is out of range: at least 1, or None"):
        Request(prompt_ids=[1], max_tokens=0)
    with pytest.raises(BadRequest, match=r"max_tokens must be an integer, got 2\.0"):
        Request(prompt_ids=[1], max_tokens=2.0)


@pytest.mark.parametrize("ids", [[3, 1, 4], (3, 1, 4), np.array([3, 1, 4]), torch.tensor([3, 1, 4]), [np.int64(3), torch.tensor(1), 4]])
def test_ids_come_from_any_sequence_of_integers(ids):
    request = Request(prompt_ids=ids)
    assert request.prompt_ids == (3, 1, 4)
    assert {type(i) for i in request.prompt_ids} == {int}


@pytest.mark.parametrize(("ids", "message"), [
    ("a prompt", "prompt is a string where token ids are wanted; a tokenizer makes ids of text"),
    ([1, 2.5], "prompt must be token ids, one integer each; got list [1, 2.5]"),
    (torch.ones(2, 2, dtype=torch.int64), "prompt must be token ids, one integer each; got Tensor"),
    (torch.tensor(7), "prompt must be token ids, one integer each; got Tensor tensor(7)"),
    (7, "prompt must be token ids, one integer each; got int 7"),
])
def test_what_is_no_row_of_ids_is_refused(ids, message):
    with pytest.raises(BadRequest, match=re.escape(message)):
        Request(prompt_ids=ids)


def test_an_id_outside_the_vocabulary_is_named():
    check_vocabulary([0, 9], 10, "prompt")
    for wrong in (10, -1):
        with pytest.raises(BadRequest, match=rf"prompt has token id {wrong}, and this model's vocabulary has ids 0 to 9"):
            check_vocabulary([0, wrong], 10, "prompt")


def test_a_request_is_frozen_and_its_bias_is_its_own():
    bias = {3: 1.0}
    sampling = Sampling(logit_bias=bias)
    bias[3] = 99.0
    assert sampling.logit_bias == {3: 1.0}
    with pytest.raises(AttributeError):
        sampling.temperature = 0.1


@pytest.mark.parametrize(("options", "field", "message"), [
    ({"max_tokens": -3}, "max_tokens", "max_tokens=-3 is out of range: at least 1, or None for all there is room for"),
    ({"min_tokens": -1}, "min_tokens", "min_tokens=-1 is out of range: from 0 to max_tokens (None)"),
    ({"min_tokens": 5, "max_tokens": 4}, "min_tokens", "min_tokens=5 is out of range: from 0 to max_tokens (4)"),
    ({"min_tokens": 1.0}, "min_tokens", "min_tokens must be an integer, got 1.0"),
    ({"prefix_ids": "yes"}, "prefix_ids", "prefix_ids is a string where token ids are wanted"),
    ({"prefix_ids": [1, 2, 3], "max_tokens": 2}, "prefix_ids", "prefix_ids are 3, and max_tokens is 2: what is forced counts as output"),
    ({"prefix_ids": [4, 9], "stop_ids": [9]}, "prefix_ids", "prefix_ids has the stop id 9 at place 1: the output would end there"),
    ({"bad_words": "no"}, "bad_words", "bad_words must be sequences of token ids, got str 'no'"),
    ({"bad_words": 7}, "bad_words", "bad_words must be sequences of token ids, got int 7"),
    ({"bad_words": [3, 4]}, "bad_words", "bad_words must be token ids, one integer each; got int 3"),
    ({"bad_words": [[3], []]}, "bad_words", "bad_words has an empty word at place 1: it would forbid everything. Leave it out"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "top_logprobs=21 is out of range: from 0 to 20"),
    ({"top_logprobs": -1}, "top_logprobs", "top_logprobs=-1 is out of range: from 0 to 20"),
    ({"top_logprobs": 2}, "top_logprobs", "top_logprobs=2 wants logprobs=True, and logprobs is False. Ask for both"),
    ({"prompt_logprobs": 21}, "prompt_logprobs", "prompt_logprobs=21 is out of range: None, or from 0 to 20"),
    ({"prompt_logprobs": True}, "prompt_logprobs", "prompt_logprobs must be an integer, got True"),
    ({"n": 0}, "n", "n=0 is out of range: at least 1"),
    ({"n": 3, "best_of": 2}, "best_of", "best_of=2 is out of range: at least n (3), or None for n"),
    ({"n": 3, "sampling": Sampling(temperature=0)}, "n", "n=3, and at temperature 0 all outputs are the same. Ask for one, or raise it"),
    ({"best_of": 2, "sampling": Sampling(temperature=0)}, "best_of", "best_of=2, and at temperature 0 all outputs are the same"),
])
def test_a_request_that_cannot_be_is_told_its_field(options, field, message):
    with pytest.raises(BadRequest, match=re.escape(message)) as caught:
        Request(prompt_ids=[1], **options)
    assert caught.value.field == field


def test_a_request_keeps_plain_numbers():
    request = Request(prompt_ids=[1], bad_words=[np.array([3, 4]), [np.int64(5)]], prefix_ids=torch.tensor([6, 7]), n=np.int64(2), prompt_logprobs=0)
    assert (request.bad_words, request.prefix_ids, request.n, request.prompt_logprobs) == (((3, 4), (5,)), (6, 7), 2, 0)
    assert type(request.n) is int


def test_what_is_chosen_among_needs_scores():
    assert (Request(prompt_ids=[1], n=2).n_generated, Request(prompt_ids=[1], n=2, best_of=5).n_generated) == (2, 5)
    assert [Request(prompt_ids=[1], **o).scores for o in ({}, {"n": 2}, {"n": 2, "best_of": 2}, {"best_of": 2}, {"logprobs": True})] == [
        False, False, False, True, True]


def test_the_cumulative_logprob_is_the_sum():
    def result(logprobs):
        return Result(token_ids=(1, 2), finish_reason="length", logprobs=logprobs, n_prompt=1, n_reused=0, prefill_seconds=0.1, seconds=0.2)
    assert result((-0.5, -1.25)).cumulative_logprob == -1.75
    assert result(None).cumulative_logprob is None

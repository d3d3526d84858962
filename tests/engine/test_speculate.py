"""Drafts change how many steps an output takes, never the output: at every temperature, in any company, wherever it ends."""
from __future__ import annotations

import dataclasses
import random
import time
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.engine.engine import Engine
from pellucid.engine.request import Request, Result, Sampling
from pellucid.engine.sequence import Sequence
from pellucid.engine.speculate import FORGET_AFTER, MOST, PLAIN_EVERY, PROBE, UNMEASURED, Pace, PromptLookup, paying
from pellucid.model.decoder import Decoder
from tests.engine.test_engine import FAMILIES, GREEDY, N_CTX, all_free, pages, requests, scheduled, small


class Steady(Pace):
    """Asks for as many drafts every time: what is proven here must not hang on a clock."""

    def __init__(self, n: int = 5) -> None:
        super().__init__()
        self.n = n

    def counts(self, sequences):
        return [self.n] * len(sequences)


class Guesser:
    """Knows some outputs and drafts them, every so often with a wrong id among the right ones."""

    def __init__(self, known: dict[tuple[int, ...], tuple[int, ...]], wrong: float = 0.0) -> None:
        self.known, self.wrong, self.rng = known, wrong, random.Random(1)
        self.forgotten: list[Sequence] = []

    def furnish(self, spec, *, n_bytes, max_rows, step_tokens):
        return 0

    def propose(self, sequences, most):
        return [[i if self.rng.random() >= self.wrong else (i + 1) % 40 for i in self._next(s, n)] for s, n in zip(sequences, most, strict=True)]

    def _next(self, s: Sequence, n: int) -> tuple[int, ...]:
        return self.known.get(tuple(s.ids[: s.n_prompt]), ())[len(s.output_ids) :][:n]

    def forget(self, sequence):
        self.forgotten.append(sequence)


def drafting(decoder: Decoder, proposer: object, n: int = 5, **how: int) -> Engine:
    engine = Engine(decoder, proposer=proposer, **how)
    engine.speculation.pace = Steady(n)
    return engine


def plainly(decoder: Decoder, asked: list[Request]) -> list[Result]:
    return [one for one, in Engine(decoder).run(asked)]


def guesser(decoder: Decoder, asked: list[Request], **how: float) -> Guesser:
    return Guesser({r.prompt_ids: result.token_ids for r, result in zip(asked, plainly(decoder, asked), strict=True)}, **how)


def same(ours: Result, theirs: Result) -> bool:
    """Whether the ids are, but after a place where two were likely alike within float rounding."""
    if ours.token_ids == theirs.token_ids:
        return ours.finish_reason == theirs.finish_reason
    at = next(i for i, (a, b) in enumerate(zip(ours.token_ids, theirs.token_ids, strict=False)) if a != b)
    return abs(ours.logprobs[at] - theirs.logprobs[at]) < 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_the_output_is_the_same_with_drafts_and_without(name):
    """Greedy and drawn, with penalties, in batches that come and go, with few pages, past windows; drafts right, wrong and partly right.

    Of one schedule each: where rounding may take a draw the other way, in one of 100,000, random ones would now and then.
    """
    decoder, rng = small(name), random.Random(4)
    asked = requests(decoder, 4, 5)
    engine = drafting(decoder, guesser(decoder, asked, wrong=0.25), max_rows=4, step_tokens=40, cache_bytes=pages(decoder, 9))
    for result, expected in zip(scheduled(engine, asked, rng), plainly(decoder, asked), strict=True):
        assert same(result, expected)
    assert all_free(engine)


@pytest.mark.parametrize("name", ["llama-biases", "mistral-window", "deepseek_v3-released", "llama4_text-scout", "llama-dynamic", "qwen3_moe-renormalized"])
@settings(max_examples=1, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_deterministic_means_bitwise_with_drafts_as_well(name, seed):
    decoder, rng = small(name, deterministic=True), random.Random(seed)
    asked = [dataclasses.replace(request, max_tokens=20) for request in requests(decoder, seed, 3)]
    engine = drafting(decoder, guesser(decoder, asked, wrong=0.25), max_rows=3, step_tokens=rng.choice([12, 40, 300]), cache_bytes=pages(decoder, 9))
    for result, expected in zip(scheduled(engine, asked, rng), plainly(decoder, asked), strict=True):
        assert (result.token_ids, result.logprobs, result.finish_reason) == (expected.token_ids, expected.logprobs, expected.finish_reason)
    assert 0 < engine.report().n_accepted < engine.report().n_drafted


def test_what_is_preempted_with_its_drafts_goes_on_as_before():
    decoder = small("llama-biases")
    asked = [Request(prompt_ids=[5 + i] * 40, sampling=Sampling(seed=i), max_tokens=60) for i in range(4)]
    engine = drafting(decoder, guesser(decoder, asked, wrong=0.1), cache_bytes=pages(decoder, 8), max_rows=4, step_tokens=64)
    results = [one for one, in engine.run(asked)]
    report = engine.report()
    assert report.n_preempted > 0 < report.n_accepted
    assert [r.token_ids for r in results] == [r.token_ids for r in plainly(decoder, asked)]


def test_right_drafts_save_their_steps_and_the_report_counts_them():
    decoder = small("llama-biases")
    asked = [Request(prompt_ids=[5, 6, 7], sampling=Sampling(seed=3), max_tokens=25)]
    engine = drafting(decoder, guesser(decoder, asked), n=5)
    [[result]] = engine.run(asked)
    report = engine.report()
    assert len(result.token_ids) == 25
    assert report.n_steps == 1 + 4  # the prompt's, and six ids a step
    assert (report.n_drafted, report.n_accepted, report.accepted_share) == (20, 20, 1.0)
    assert Engine(decoder).report().accepted_share is None


def test_an_output_ends_where_it_would_have_ended_whatever_is_drafted_past_it():
    """At a stop id among the drafts, at max_tokens among them, and at the end of the context."""
    decoder = small("llama-biases")
    long = Request(prompt_ids=[5, 6, 7], sampling=Sampling(seed=3), logprobs=True)
    [whole] = plainly(decoder, [long])
    assert (len(whole.token_ids), whole.finish_reason) == (N_CTX - 3, "context")
    drafts = Guesser({long.prompt_ids: (*whole.token_ids, 9, 9, 9, 9)})
    stop = next(i for i in whole.token_ids[9:] if i not in whole.token_ids[:9])
    for request in (long, dataclasses.replace(long, stop_ids={stop}), dataclasses.replace(long, max_tokens=9), dataclasses.replace(long, max_tokens=1)):
        engine = drafting(decoder, drafts)
        [[result]] = engine.run([request])
        assert same(result, plainly(decoder, [request])[0])
        assert engine.report().n_output_tokens == len(result.token_ids)
        assert all_free(engine)


@dataclasses.dataclass
class Even:
    """Even ids only, and so many of them. Told what came, and refuses what it forbids."""

    n: int
    came: list[int] = dataclasses.field(default_factory=list)

    def start(self):
        return Even(self.n)

    @property
    def done(self):
        return len(self.came) == self.n

    failure = None

    def mask(self, words_W):
        words_W.fill_(0x55555555)

    def advance(self, token_id):
        assert token_id % 2 == 0
        self.came.append(token_id)

    def rollback(self, n):
        del self.came[len(self.came) - n :]


@pytest.mark.parametrize("wrong", [0.0, 0.3])
def test_every_place_of_a_draft_is_chosen_under_its_own_mask(wrong):
    decoder = small("llama-biases")
    asked = [Request(prompt_ids=[5, 6, 7 + i], sampling=Sampling(seed=i), constraint=Even(11)) for i in range(3)]
    asked.append(Request(prompt_ids=[5, 6, 7], sampling=Sampling(seed=9), max_tokens=20))
    engine = drafting(decoder, guesser(decoder, asked, wrong=wrong), n=4)
    results = [one for one, in engine.run(asked)]
    assert [(r.token_ids, r.finish_reason) for r in results] == [(r.token_ids, r.finish_reason) for r in plainly(decoder, asked)]
    assert all(i % 2 == 0 for result in results[:3] for i in result.token_ids)
    assert engine.report().n_accepted > 0
    assert engine.report().n_steps < 1 + 19


class Always(Guesser):
    """Drafts the same ids whoever asks, whatever came."""

    def __init__(self, ids: list[int]) -> None:
        super().__init__({})
        self.ids = ids

    def _next(self, s: Sequence, n: int) -> tuple[int, ...]:
        return tuple(self.ids[:n])


def test_what_is_drawn_with_drafts_has_the_models_distribution(decoder):
    """The id in a draft's place and the one after a draft that was right, over 3,000 seeds, against softmax: chi-square."""
    prompt, T = [5, 6, 7], 0.8
    with torch.inference_mode():
        first_V = (decoder.unembed(decoder(torch.tensor([*prompt, 8])))[-1] / T).softmax(-1)
        draft = int(first_V.argmax())
        second_V = (decoder.unembed(decoder(torch.tensor([*prompt, 8, draft])))[-1] / T).softmax(-1)
    asked = [Request(prompt_ids=prompt, sampling=Sampling(temperature=T, seed=s), max_tokens=3, prefix_ids=(8,)) for s in range(3000)]
    engine = drafting(decoder, Always([draft]), n=1)
    came = [result.token_ids[1:] for [result] in engine.run(asked)]
    assert engine.report().n_accepted == sum(first == draft for first, _ in came) > 300
    for found, p_V in ((Counter(first for first, _ in came), first_V), (Counter(second for first, second in came if first == draft), second_V)):
        n = found.total()
        often = (n * p_V >= 5).nonzero()[:, 0].tolist()  # the rest are counted as one
        pairs = [(found[i], n * float(p_V[i])) for i in often]
        pairs.append((n - sum(c for c, _ in pairs), n - sum(e for _, e in pairs)))
        chi2 = sum((c - e) ** 2 / e for c, e in pairs)
        assert chi2 < len(often) + 4 * (2 * len(often)) ** 0.5  # four standard deviations over its mean


def test_an_interrupted_pass_with_drafts_changes_nothing(monkeypatch):
    decoder = small("llama-biases")
    asked = [Request(prompt_ids=[5, 6, 7], sampling=GREEDY, max_tokens=20)]
    [expected] = plainly(decoder, asked)
    generation = drafting(decoder, guesser(decoder, asked)).submit(asked[0])
    ids = [next(generation)]
    with monkeypatch.context() as patch:
        patch.setattr(decoder.blocks[1], "forward", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            next(generation)
    assert (*ids, *generation) == expected.token_ids


def test_drafts_leave_half_of_a_step_to_prompts_and_take_no_page_that_others_need():
    decoder = small("llama-biases")
    asked = [Request(prompt_ids=[5 + i] * 3, sampling=GREEDY, max_tokens=30) for i in range(2)]
    engine = drafting(decoder, guesser(decoder, asked), n=30, max_rows=4, step_tokens=20)
    started = [engine.submit(request) for request in asked]
    engine.step()
    third = engine.submit(Request(prompt_ids=[9] * 100, sampling=GREEDY, max_tokens=1))
    engine.step()
    assert engine.report().n_drafted == 9  # half of the 18 that two rows leave
    assert third._sequence.n_computed == 20 - 2 - 9
    assert all(len(list(generation)) == n for generation, n in zip([*started, third], (30, 30, 1), strict=True))


def test_a_proposer_is_told_of_every_end():
    decoder = small("llama-biases")
    asked = [Request(prompt_ids=[5, 6, 7 + i], sampling=GREEDY, max_tokens=9) for i in range(3)]
    proposer = guesser(decoder, asked)
    engine = drafting(decoder, proposer)
    first, second, third = (engine.submit(request) for request in asked)
    next(first)
    first.cancel()
    list(second)
    del third
    assert len(proposer.forgotten) == 3
    assert not engine.speculation.pace._habits


# Whether they pay

def step(pace: Pace, sequences: list[object], *, plain: float, each: float, right: float, rng: random.Random) -> int:
    """One step of sequences whose drafts cost `each` seconds and are right so often; how many there were."""
    counts, n = pace.counts(sequences), len(sequences)
    pace.measured(n, sum(counts), plain + each * sum(counts), asked=any(counts))
    for sequence, count in zip(sequences, counts, strict=True):
        if count:
            pace.told(sequence, count, next((i for i in range(count) if rng.random() > right), count), n)
    return sum(counts)


def drafted(n_steps: int = 400, n_rows: int = 4, **how: float) -> float:
    """Drafts a row and step, once everything is known."""
    pace, rows, rng = Pace(), [object() for _ in range(n_rows)], random.Random(2)
    counts = [step(pace, rows, rng=rng, **how) for _ in range(n_steps)]
    assert counts[:3] == [0, 0, 0]  # without, to know what that takes
    return sum(counts[50:]) / len(counts[50:]) / n_rows


def test_as_many_are_drafted_as_pay():
    """The j-th is right with p**j, and costs a share of what an id without drafts takes: 4 rows, 1 s a step, so 0.25 s an id."""
    assert drafted(plain=1.0, each=0.0, right=0.95) > 0.9 * MOST  # for nothing
    assert 2 < drafted(plain=1.0, each=0.05, right=0.7) < 5  # 0.7**4 = 0.24 > 0.2 > 0.7**5
    assert drafted(plain=1.0, each=0.25, right=0.9) < 0.3  # a batch that computes all the time: a draft costs what an id does
    assert drafted(plain=1.0, each=0.01, right=0.0) < 0.3  # nothing is guessed right


def test_a_step_without_drafts_is_measured_again_and_again_and_so_are_drafts_that_were_given_up():
    pace, rows, rng = Pace(), [object()], random.Random(2)
    counts = [step(pace, rows, plain=1.0, each=0.01, right=0.95, rng=rng) for _ in range(4 * PLAIN_EVERY)]
    assert 3 + 2 <= counts.count(0) <= 3 + 4
    dear = [step(pace, rows, plain=1.0, each=9.0, right=0.95, rng=rng) for _ in range(FORGET_AFTER)]
    assert sum(count > 0 for count in dear) < 12  # given up after RECENT measurements at the latest; tried again after rests that double
    again = [step(pace, rows, plain=1.0, each=0.01, right=0.95, rng=rng) for _ in range(3 * FORGET_AFTER)]
    assert sum(again[-100:]) > 50 * PROBE


def test_a_price_that_is_long_past_is_forgotten():
    pace = Pace()
    for _ in range(2):
        pace.measured(1, 0, 1.0, asked=False)
    pace.measured(1, 1, 9.0, asked=True)
    assert pace.price(1) == 8.0
    for _ in range(FORGET_AFTER):
        pace.measured(1, 0, 1.0, asked=False)
    assert pace.price(1) == UNMEASURED


def test_sequences_rest_by_themselves():
    pace, good, bad, rng = Pace(), object(), object(), random.Random(2)
    made = Counter()
    for _ in range(300):
        counts = pace.counts([good, bad])
        pace.measured(2, sum(counts), 1.0 + 0.02 * sum(counts), asked=any(counts))
        for sequence, count, p in ((good, counts[0], 0.95), (bad, counts[1], 0.0)):
            made[sequence] += count
            if count:
                pace.told(sequence, count, next((i for i in range(count) if rng.random() > p), count), 2)
    assert made[good] > 300 * 4
    assert made[bad] < 100
    pace.forget(bad)
    pace.told(bad, 4, 0, 2)
    assert bad not in pace._habits


@pytest.mark.parametrize(("wrong", "proposing", "fixed", "each", "fewest", "most"), [
    (0.0, 0.0, 1.0, 0.02, 100, 150),  # right, and nearly free: as many as there is room for
    (1.0, 0.0, 1.0, 0.02, 1, 100),  # wrong
    (0.0, 9.0, 1.0, 0.02, 1, 2 * MOST),  # right, but making them takes longer than computing ids does
    (0.0, 0.0, 0.0, 1.0, 1, 2 * MOST),  # right, and each costs what an id costs
])
def test_drafts_that_do_not_pay_are_given_up(monkeypatch, wrong, proposing, fixed, each, fewest, most):
    """On a clock that the model's own passes move: so many seconds a pass, and so many a token."""
    decoder, now = small("llama-biases"), [0.0]
    asked = [Request(prompt_ids=[5, 6, 7], sampling=GREEDY, max_tokens=150)]
    proposer, forward = guesser(decoder, asked, wrong=wrong), decoder.forward

    def compute(ids_T, *rest):
        now[0] += fixed + each * len(ids_T)
        return forward(ids_T, *rest)

    def propose(sequences, n):
        now[0] += proposing
        return Guesser.propose(proposer, sequences, n)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(decoder, "forward", compute)
    monkeypatch.setattr(proposer, "propose", propose)
    engine = Engine(decoder, proposer=proposer)
    [[result]] = engine.run(asked)
    assert result.token_ids == proposer.known[asked[0].prompt_ids]
    assert fewest <= engine.report().n_drafted <= most


@pytest.mark.parametrize(("share", "price", "n"), [(0.5, 0.3, 1), (0.5, 0.2, 2), (0.9, 0.5, 6), (0.9, 1.5, 0), (0.1, 0.2, 0), (0.9, 0.0, MOST),
                                                  (0.9, -1.0, MOST)])
def test_a_draft_is_made_while_it_saves_more_than_it_costs(share, price, n):
    assert paying(share, price) == n
    if 0 < n < MOST:
        assert share**n >= price > share ** (n + 1)


# Prompt look-up

def looked_up(ids: list[int], n: int) -> list[int]:
    """The same by looking everywhere: the longest of 4 to 2 ids that also stand earlier, the latest place of it."""
    for length in (4, 3, 2):
        for end in range(len(ids) - 1, length - 1, -1):
            if ids[end - length : end] == ids[-length:]:
                return [ids[end + i % (len(ids) - end)] for i in range(n)]
    return []


class Told:
    """As much of a sequence as a look-up reads."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids


@given(ids=st.lists(st.integers(0, 3), min_size=1, max_size=14), split=st.integers(1, 14), n=st.integers(1, 6))
def test_a_look_up_finds_what_looking_everywhere_finds(ids, split, n):
    proposer, sequence = PromptLookup(), Told(ids[:split])
    proposer.propose([sequence], [n])
    for token_id in ids[split:]:
        sequence.ids.append(token_id)
        [found] = proposer.propose([sequence], [n])
        assert found == looked_up(sequence.ids, n)


def test_what_repeats_goes_on_repeating():
    assert PromptLookup().propose([Told([1, 2, 3, 7, 8, 7, 8])], [5]) == [[7, 8, 7, 8, 7]]
    assert PromptLookup().propose([Told([1, 2, 3, 4])], [5]) == [[]]
    assert PromptLookup().propose([Told([1, 2, 1, 2])], [0]) == [[]]


class Counted(list):
    """Counts how often it is read."""

    n_reads = 0

    def __getitem__(self, i):
        Counted.n_reads += 1
        return super().__getitem__(i)


@pytest.mark.parametrize("n", [100, 20_000])
def test_a_look_up_costs_the_same_at_every_length(n):
    """After the first one, which reads everything; in a text that repeats itself all the time."""
    sequence, proposer = Told(Counted([1, 1, 2] * (n // 3))), PromptLookup()
    proposer.propose([sequence], [8])
    Counted.n_reads = 0
    for i in range(10):
        sequence.ids.append(1 + i % 2)
        proposer.propose([sequence], [8])
    assert Counted.n_reads < 10 * 120


def test_copied_text_is_guessed_from_the_prompt():
    decoder = small("llama-biases")
    text = [3 + i % 11 for i in range(44)]
    request = Request(prompt_ids=text, sampling=GREEDY, max_tokens=60, prefix_ids=tuple(text[:40]))  # forced, so that it is surely copied
    engine = drafting(decoder, PromptLookup())
    [[result]] = engine.run([request])
    assert result.token_ids == plainly(decoder, [request])[0].token_ids
    assert engine.report().n_accepted >= 30
    assert not engine.speculation.proposer._indexes

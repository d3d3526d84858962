"""Outputs held to grammars: what a mask allows is what can still become what was asked, whatever the tokenizer and however the model draws."""
from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import pre_tokenizers, trainers
from tokenizers.models import BPE

from pellucid.engine.engine import Engine
from pellucid.engine.grammar import Compiled, Constraint, Vocabulary, compile_grammar
from pellucid.engine.masks import Masks, allowed
from pellucid.engine.request import Request, Sampling
from pellucid.engine.verdict import Verdict, judge
from pellucid.errors import BadRequest, ConstraintFailed, MissingExtra
from pellucid.tokenizer import Tokenizer, load_tokenizer
from pellucid.tokenizer.ranks import LLAMA3_PATTERN
from tests.engine.conftest import N_VOCAB
from tests.tokenizer import texts
from tests.tokenizer.test_bytelevel import metadata
from tests.tokenizer.test_bytelevel import write as write_merges
from tests.tokenizer.test_sentencepiece import OPTIONS, train
from tests.tokenizer.test_tiktoken import make_ranks
from tests.tokenizer.test_tiktoken import write as write_ranks

END, THOUGHT, GAP = 258, 262, 261
TOKENS: list[bytes | None] = [*(bytes([b]) for b in range(256)), b"A", b'{"', b"<end>", None, b"", b"\n\n", b"</think>", b"ab", b"abc", b": ", b'"}',
                              b"true",
                              b"</", b"think", b">", b">\n", b">a", b"k></think>b"]
BYTES = Vocabulary(TOKENS, (END, THOUGHT), (END,))
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 6}, "n": {"type": "integer", "minimum": -3, "maximum": 40},
                                           "tags": {"type": "array", "items": {"enum": ["x", "y", None]}, "maxItems": 3}},
          "required": ["name", "n"], "additionalProperties": False}


CALL = [{"begin": ["<tool>", '{"name":"f","arguments":'], "schema": {"type": "object", "properties": {"x": {"const": 1}}, "required": ["x"],
                                                                      "additionalProperties": False}, "end": ["}", "</tool>"]}]
SPECIAL_CALL = [{**CALL[0], "begin": [THOUGHT, *CALL[0]["begin"][1:]], "end": ["}", THOUGHT]}]
BARE_CALL = [{**CALL[0], "begin": ['{"name":"f","arguments":'], "end": ["}"]}]
WHOLE = '{"name":"f","arguments":{"x":1}}'


@pytest.mark.parametrize(("source", "parts", "stops_at"), [
    ({"tags": CALL}, ["no call < at all"], None),
    ({"tags": CALL}, [f"hi <tool>{WHOLE}</tool> and <tool>{WHOLE}</tool> more"], None),
    ({"tags": CALL}, ["<tool>", "more"], "more"),
    ({"tags": CALL}, [f"<tool>{WHOLE}</tool>", "<tool>", "{'"], "{'"),
    ({"tags": SPECIAL_CALL}, ["hi", THOUGHT, WHOLE, THOUGHT, " more"], None),
    ({"tags": SPECIAL_CALL}, ["hi", THOUGHT, "more"], "more"),
    ({"tags": BARE_CALL, "separator": ["; "], "alone": True}, [f"{WHOLE}; {WHOLE}"], None),
    ({"tags": BARE_CALL, "separator": ["; "], "alone": True}, ["see {'"], None),
    ({"tags": BARE_CALL, "separator": ["; "], "alone": True}, ["{'"], "{'"),
    ({"tags": BARE_CALL, "separator": ["; "], "alone": True}, [WHOLE, " more"], " more"),
], ids=str)
def test_what_begins_as_a_tag_goes_on_as_one_and_the_rest_is_free(source: dict[str, Any], parts: list[Any], stops_at: str | None) -> None:
    constraint = compile_grammar("tags", source, BYTES).start()
    for part in parts:
        try:
            for each in [part] if isinstance(part, int) else part.encode():
                constraint.advance(each)
        except ConstraintFailed:
            assert part == stops_at
            return
    assert stops_at is None
    assert constraint.can_end


def test_tags_that_are_none_are_refused_and_so_is_a_keyword_that_cannot_be_enforced() -> None:
    for source in (None, {}, {"tags": [{"begin": [], "schema": {}, "end": []}]}, {"tags": [{"begin": ["a"]}]}):
        with pytest.raises(BadRequest, match="tags are"):
            compile_grammar("tags", source, BYTES)
    with pytest.raises(BadRequest, match="fromat"):
        compile_grammar("tags", {"tags": [{**CALL[0], "schema": {"type": "string", "fromat": "date"}}]}, BYTES)


def words_of(constraint: Constraint) -> torch.Tensor:
    words_W = torch.zeros(constraint.vocabulary.n_words, dtype=torch.int32)
    constraint.mask(words_W)
    return words_W


def ids_of(words_W: torch.Tensor) -> set[int]:
    bits = words_W[:, None] >> torch.arange(32) & 1
    return set(bits.flatten().nonzero()[:, 0].tolist())


def mask(constraint: Constraint) -> set[int]:
    return ids_of(words_of(constraint))


def told(constraint: Constraint, data: bytes) -> Constraint:
    for byte in data:
        constraint.advance(byte)
    return constraint


def drawn(compiled: Compiled, seed: int, most: int = 3000) -> tuple[list[int], str]:
    """(ids, finish reason) of a model that knows nothing, but closes what is open half of the time."""
    rng, constraint, ids = random.Random(seed), compiled.start(), list[int]()
    while len(ids) < most:
        may = sorted(mask(constraint))
        closing = [i for i in may if i in compiled.vocabulary.eos_ids or compiled.vocabulary.tokens[i] in (b'"', b"}", b"]")]
        ids.append(rng.choice(closing if closing and rng.random() < 0.5 else may))
        constraint.advance(ids[-1])
        if ids[-1] in compiled.vocabulary.eos_ids or constraint.done:
            return ids, "stop"
    return ids, "length"


def text_of(compiled: Compiled, ids: Sequence[int]) -> str | None:
    answer = compiled.answer(ids)
    return None if answer is None else b"".join(compiled.vocabulary.text[i] for i in answer).decode()


def judged(compiled: Compiled, ids: list[int], reason: Any) -> Verdict:
    return judge(text_of(compiled, ids), compiled, reason)


# Tokenizers

def byte_level(folder: Path) -> Tokenizer:
    library = Library(BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.train_from_iterator(texts.TRAINING, trainers.BpeTrainer(vocab_size=900, special_tokens=["<|endoftext|>"], show_progress=False,
                                                                     initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    model = json.loads(library.to_str())["model"]
    return load_tokenizer(write_merges(folder, (model["vocab"], model["merges"])))


def tiktoken(folder: Path) -> Tokenizer:
    return load_tokenizer(write_ranks(folder / "tokenizer.model", make_ranks(LLAMA3_PATTERN)), pattern=LLAMA3_PATTERN)


def sentencepiece(kind: str) -> Callable[[Path], Tokenizer]:
    def load(folder: Path) -> Tokenizer:
        (folder / "tokenizer.model").write_bytes(train(**OPTIONS[kind]))
        return load_tokenizer(folder / "tokenizer.model")
    return load


KINDS = {"byte-level": byte_level, "tiktoken": tiktoken, "llama": sentencepiece("llama"), "gemma": sentencepiece("gemma"),
         "unigram": sentencepiece("llm-jp"),
         "unigram without bytes": sentencepiece("t5")}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return KINDS[request.param](tmp_path_factory.mktemp("kind"))


def end_of(tokenizer: Tokenizer) -> int:
    return tokenizer.n_vocab if tokenizer.eos_id is None else tokenizer.eos_id  # ranks alone name no end: a row of the model's past them


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    end = end_of(tokenizer)
    if end < tokenizer.n_vocab:
        return Vocabulary.of(tokenizer, tokenizer.n_vocab + 70, [end])  # a model's matrix has more rows than its tokenizer has ids
    return Vocabulary([*(tokenizer.words.bytes_of(i) for i in range(tokenizer.n_vocab)), b"<end>"], (), (end,))


def test_every_kind_of_tokenizer_allows_exactly_what_continues_a_choice(tokenizer: Tokenizer) -> None:
    """Against the definition: an id may come if some choice begins with what came and with its bytes; the end, if a choice is what came."""
    vocabulary = vocabulary_of(tokenizer)
    choices = ["the quick brown fox", "the question", "the", "test of", "hello world", " hello"]
    compiled = compile_grammar("choice", choices, vocabulary)
    rng = random.Random(1)
    for _ in range(12):
        constraint, came = compiled.start(), b""
        while True:
            expected = {i for i, t in enumerate(vocabulary.text) if t and any(c.encode().startswith(came + t) for c in choices)}
            ends = {end_of(tokenizer)} if came.decode() in choices else set()
            assert mask(constraint) == expected | ends
            assert constraint.can_end == bool(ends)
            assert constraint.done == (not expected)
            if not expected or (ends and rng.random() < 0.3):
                break
            chosen = rng.choice(sorted(expected))
            constraint.advance(chosen)
            came += vocabulary.text[chosen]


@pytest.mark.parametrize(("kind", "source"), [("schema", SCHEMA), ("regex", r"\d{2,4}\.[a-z]+( \w+)?"), ("choice", ["yes", "no", "yes and no"])])
def test_what_any_kind_of_tokenizer_writes_is_valid_and_decodes_as_it_was_judged(tokenizer: Tokenizer, kind: str, source: Any) -> None:
    vocabulary = vocabulary_of(tokenizer)
    if kind == "schema" and b"{" not in vocabulary.text:  # without bytes, only what the training text had
        with pytest.raises(BadRequest, match=r"the schema at # cannot be enforced: no token of this vocabulary continues it. Change it there"):
            compile_grammar(kind, source, vocabulary)
        return
    compiled = compile_grammar(kind, source, vocabulary)
    before = tokenizer.encode("x:")
    for seed in range(6):
        ids, reason = drawn(compiled, seed)
        assert judged(compiled, ids, reason) == Verdict("valid")
        assert tokenizer.decode(compiled.answer(ids) or (), after=before) == text_of(compiled, ids)


def test_a_vocabulary_is_made_once_for_a_tokenizer_and_its_ends(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path)
    first = Vocabulary.of(tokenizer, tokenizer.n_vocab, [0])
    assert Vocabulary.of(tokenizer, tokenizer.n_vocab, (0,)) is first
    assert Vocabulary.of(tokenizer, tokenizer.n_vocab, [0, 5]) is not first
    assert Vocabulary.of(tokenizer, tokenizer.n_vocab, [0, 5]).eos_ids == (0, 5)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["gpt-2", "mpt"])
def test_a_real_vocabulary_writes_what_was_asked(shared: Path, tmp_path: Path, name: str) -> None:
    fields = metadata(shared / "tokenizer_vectors" / f"ggml-vocab-{name}.gguf")
    vocab = {token: i for i, token in enumerate(fields["tokenizer.ggml.tokens"])}
    added = {str(i): {"content": t, "special": True} for t, i in vocab.items() if fields["tokenizer.ggml.token_type"][i] == 3}
    tokenizer = load_tokenizer(write_merges(tmp_path, (vocab, [m.split(" ") for m in fields["tokenizer.ggml.merges"]]), added_tokens_decoder=added))
    compiled = compile_grammar("schema", SCHEMA, Vocabulary.of(tokenizer, tokenizer.n_vocab + 3, [fields["tokenizer.ggml.eos_token_id"]]))
    for seed in range(3):
        ids, reason = drawn(compiled, seed)
        assert judged(compiled, ids, reason) == Verdict("valid")


# Any schema, any draw

def grown(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def an_object(members: dict[str, Any], required: list[bool], closed: Any) -> dict[str, Any]:
        return {"type": "object", "properties": members, "required": [n for n, r in zip(members, required, strict=False) if r],
                "additionalProperties": closed}
    names = st.sampled_from(["a", "b c", "é/~", "zz", '"q"', "\n"])
    return st.one_of(
        st.builds(an_object, st.dictionaries(names, inner, max_size=3), st.lists(st.booleans(), min_size=3, max_size=3),
                  st.sampled_from([False, False, {"type": "null"}])),
        st.builds(lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more}, inner, st.integers(0, 2),
                  st.integers(0, 2)),
        st.builds(lambda parts, rest: {"type": "array", "prefixItems": parts, "items": rest, "maxItems": 3}, st.lists(inner, min_size=1, max_size=2),
                  st.one_of(st.just(False), inner)),
        st.builds(lambda parts: {"anyOf": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda one,
                  two: {"type": "object", "properties": {"p": one}, "allOf": [{"properties": {"q": two}, "required": ["q"]}, {"required": ["p"]}]},
                  inner, inner),
        st.builds(lambda one: {"$defs": {"d": one}, "title": "t"} | one, inner))


LEAVES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([{"type": "null"}, {"type": "boolean"}, {"const": {"k": [1, None, "v"]}}, {"enum": [1.5, "b", None, [True]]},
                     {"type": ["integer", "null"], "minimum": 7, "maximum": 9},
                     {"type": "string", "maxLength": 3}, {"type": "string", "pattern": r"^\w{1,3}[.\d]$"},
                     {"type": "string", "pattern": "a|b", "maxLength": 4},
                     {"type": "object", "patternProperties": {"^x": {"type": "boolean"}}, "additionalProperties": False, "maxProperties": 2}]),
    st.builds(lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size}, st.integers(-200, 200), st.integers(0, 50)),
    st.builds(lambda low, size, step: {"type": "number", "minimum": low, "exclusiveMaximum": low + size, "multipleOf": step},
              st.integers(-3, 3), st.integers(1, 9), st.sampled_from([0.1, 0.25, 1])),
    st.builds(lambda f: {"type": "string", "format": f},
              st.sampled_from(["date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"])))
SCHEMAS = st.recursive(LEAVES, grown, max_leaves=6)


@settings(max_examples=120, deadline=None)
@given(schema=SCHEMAS, seed=st.integers(0, 1000))
def test_a_model_that_knows_nothing_writes_what_any_schema_asks(schema: dict[str, Any], seed: int) -> None:
    compiled = compile_grammar("schema", schema, BYTES)
    ids, reason = drawn(compiled, seed)
    verdict = judged(compiled, ids, reason)
    assert verdict.status == ("valid" if reason == "stop" else "cut"), (verdict, text_of(compiled, ids))


@settings(max_examples=60, deadline=None)
@given(pattern=st.from_regex(r"(?:[ab./\n é]|\\[dwsDWSn/.]|\[\^?[a-c\d_]{1,3}\]|\([ab]\|c?\)){1,4}[*+?]?(?:x{1,3})?", fullmatch=True),
       seed=st.integers(0, 100))
def test_a_regex_is_matched_whole_by_what_is_written_under_it(pattern: str, seed: int) -> None:
    compiled = compile_grammar("regex", pattern, BYTES)
    ids, reason = drawn(compiled, seed, most=200)
    assert reason == "length" or judged(compiled, ids, reason) == Verdict("valid")


@settings(max_examples=60, deadline=None)
@given(choices=st.lists(st.text(min_size=1, max_size=12).filter(lambda t: not re.search("[\ud800-\udfff]", t)), min_size=1, max_size=5, unique=True),
       data=st.data())
def test_each_of_any_choices_can_be_written_byte_by_byte(choices: list[str], data: st.DataObject) -> None:
    constraint, wanted = compile_grammar("choice", choices, BYTES).start(), data.draw(st.sampled_from(choices))
    assert told(constraint, wanted.encode()).can_end


def test_any_json_object_and_nothing_else() -> None:
    compiled = compile_grammar("json", None, BYTES)
    assert told(compiled.start(), b'{"a": [1, {"b": null}], "c":\n  "\\u0000"}').done
    assert mask(compiled.start()) == {ord("{"), 257}


def test_forms_of_space_in_json_have_a_bound() -> None:
    """A model that only likes spaces gets on all the same."""
    constraint = told(compile_grammar("schema", {"type": "array"}, BYTES).start(), b"[\n" + b" " * 40)
    assert not {ord(" "), ord("\t"), ord("\n")} & mask(constraint)
    assert not {ord(" "), ord("\t"), ord("\n")} & mask(told(compile_grammar("schema", {"type": "array"}, BYTES).start(), b"[ "))


def test_tokens_that_read_alike_are_allowed_alike() -> None:
    assert {ord("A"), 256} == mask(compile_grammar("choice", ["A"], BYTES).start())


# Lark and GBNF

GRAMMARS = [("lark", 'start: "a" N ("," N)*\nN: /[0-9]/ // a digit\n', ["a1", "a1,2"], ["a", "b", "a1,"]),
            ("lark", 'start: "v" %json {"type": "integer", "minimum": 3, "maximum": 4} "!"', ["v3!"], ["v5!", "v3"]),
            ("gbnf", 'root ::= "ab" [c-e]+ num "\\u00e9\\u0041/"\nnum ::= [0-9]{2} ("," [0-9])* # digits', ["abc12éA/", "abcd12,3éA/"],
             ["ab12éA/", "abc1éA/"])]


@pytest.mark.parametrize(("kind", "source", "good", "bad"), GRAMMARS)
def test_grammars_hold_what_they_say(kind: str, source: str, good: list[str], bad: list[str]) -> None:
    compiled = compile_grammar(kind, source, BYTES)
    for text in good:
        assert told(compiled.start(), text.encode()).can_end
        assert judge(text, compiled, "stop") == Verdict("valid")
    for text in bad:
        assert judge(text, compiled, "stop").status == "invalid"
    for seed in range(5):
        ids, reason = drawn(compiled, seed)
        assert judged(compiled, ids, reason) == Verdict("valid")


def test_the_judge_of_a_grammar_says_where_a_text_leaves_it() -> None:
    compiled = compile_grammar("lark", GRAMMARS[0][1], BYTES)
    assert judge("a1;", compiled, "stop").reason == "the Lark grammar allows no b';' at byte 2: 'a1;'"
    assert judge("a", compiled, "stop").reason == "the Lark grammar wants more after 'a'"


# After a mark

@pytest.mark.parametrize("spelled", [[THOUGHT], list(b"</think>"), [268, 269, 270], [*b"</thin", ord("k"), 271], [*b"<</</th</", 269, ord(">")]])
def test_a_grammar_begins_after_its_mark_however_that_is_cut_into_tokens(spelled: list[int]) -> None:
    assert TOKENS[268:] == [b"</", b"think", b">", b">\n", b">a", b"k></think>b"]
    compiled = compile_grammar("choice", ["ab", "b"], BYTES, after="</think>")
    constraint = compiled.start()
    for i in [*b"so: {", *spelled[:-1]]:
        assert allowed(words_of(constraint), i)
        constraint.advance(i)
        assert END not in mask(constraint)
        assert not constraint.can_end
    assert len(mask(constraint)) > 200
    constraint.advance(spelled[-1])
    assert mask(constraint) == {ord("a"), 263, ord("b"), *(i for i, t in enumerate(BYTES.text) if t and not t.strip(b" \n\r\t"))}
    constraint.advance(GAP)
    constraint.advance(263)
    assert constraint.done
    ids = [*b"so: {", *spelled, GAP, 263, END]
    assert compiled.answer(ids) == (GAP, 263)
    assert judged(compiled, ids, "stop") == Verdict("valid")


def test_no_token_reaches_past_the_mark_but_with_space() -> None:
    constraint = told(compile_grammar("choice", ["ab"], BYTES, after="</think>").start(), b"</think")
    assert [TOKENS[i] for i in range(256, len(TOKENS)) if i not in mask(constraint)] == [b"<end>", None, b"", b">a", b"k></think>b"]
    start = compile_grammar("choice", ["ab"], BYTES, after="</think>").start()
    assert 273 not in mask(start)
    assert 272 in mask(start)
    with pytest.raises(ConstraintFailed, match=r"token 272 \('>a'\) cannot come after 7 tokens under the choice: only ids that its mask allows can"):
        constraint.advance(272)
    constraint.advance(271)  # as if nothing had been asked
    assert 263 in mask(constraint)


def test_space_after_a_mark_has_a_bound_and_belongs_to_the_gap_only() -> None:
    constraint = compile_grammar("choice", ["ab"], BYTES, after=[THOUGHT]).start()
    constraint.advance(THOUGHT)
    for _ in range(8):
        assert GAP in mask(constraint)
        constraint.advance(GAP)
    assert mask(constraint) == {ord("a"), 263}


def test_ids_can_be_the_mark() -> None:
    compiled = compile_grammar("choice", ["b"], BYTES, after=[GAP, GAP, THOUGHT])
    constraint = compiled.start()
    for i in [GAP, THOUGHT, GAP, GAP, GAP]:
        constraint.advance(i)
        assert END not in mask(constraint)
        assert 259 not in mask(constraint)  # an id that stands for nothing
    constraint.advance(THOUGHT)
    assert ord("b") in mask(constraint)
    assert ord("c") not in mask(constraint)
    assert compiled.answer([GAP, THOUGHT]) is None
    assert judge(None, compiled, "stop") == Verdict("cut", "the output ended before its mark came, after which the answer begins")


# Taking back

@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 10**6)), max_size=40), marked=st.booleans())
def test_ids_taken_back_leave_no_trace(steps: list[tuple[int, int]], marked: bool) -> None:
    """Any walk of advances and rollbacks ends where a walk of the ids that stayed ends."""
    compiled = compile_grammar("schema", SCHEMA, BYTES, after="</think>" if marked else None)
    constraint, ids = compiled.start(), [THOUGHT] * marked
    for i in ids:
        constraint.advance(i)
    for back, pick in steps:
        may = sorted(mask(constraint))
        if ids and back == 3:
            n = pick % (min(len(ids), 5) + 1)
            constraint.rollback(n)
            ids = ids[: len(ids) - n]
        elif END not in ids:
            ids.append(may[pick % len(may)])
            constraint.advance(ids[-1])
    fresh = compiled.start()
    for i in ids:
        fresh.advance(i)
    if END not in ids:
        assert mask(constraint) == mask(fresh)
    assert (constraint.done, constraint.can_end) == (fresh.done, fresh.can_end)


def test_an_end_is_taken_back_too() -> None:
    for choices, text in ((["ab"], b"ab"), (["ab", "abc"], b"ab")):
        constraint = told(compile_grammar("choice", choices, BYTES).start(), text)
        before = mask(constraint)
        constraint.advance(END)
        assert constraint.done
        constraint.rollback(1)
        assert mask(constraint) == before
        constraint.rollback(2)
        assert mask(constraint) == {ord("a"), 263} | ({264} if len(choices) == 2 else set())
    with pytest.raises(ValueError, match="1 ids cannot be taken back of 0"):
        constraint.rollback(1)


# Masks beside the model

def test_masks_of_a_batch_are_those_of_each_alone_now_and_after_every_draft() -> None:
    compiled = [compile_grammar("schema", SCHEMA, BYTES), compile_grammar("regex", "[ab]*c", BYTES),
                compile_grammar("choice", ["abc"], BYTES, after="</think>")]
    constraints = [told(compiled[0].start(), b'{"na'), None, told(compiled[1].start(), b"ab"), compiled[2].start()]
    drafts = [list(b'me":'), [1, 2], [*b"bz"], [*b"x", THOUGHT, 263]]
    masks = Masks(len(TOKENS))
    masks.begin(constraints, drafts)
    filled = masks.end()
    assert filled.errors == {}
    assert filled.words_RW is not None
    rows = iter(filled.words_RW)
    for constraint, draft in zip(constraints, drafts, strict=True):
        alive = True
        for i in [None, *draft]:
            row = next(rows)
            if constraint is not None and i is not None and alive and (alive := i in mask(constraint)):
                constraint.advance(i)
            if constraint is None or not alive:
                assert (row == -1).all()
            else:
                assert ids_of(row) == mask(constraint)
    masks.begin([None, None])
    assert masks.end().words_RW is None
    masks.close()


def test_a_grammar_that_outgrows_its_limits_fails_alone_and_says_so() -> None:
    """Copies of a matcher share a lexer, whatever llguidance says of deep_copy: one past its limits would take all others along."""
    wild = compile_grammar("regex", ".{0,500}(ab|.{0,300}c){30}", BYTES, max_states=3000)
    good, bad, beside = compile_grammar("choice", ["abc"], BYTES).start(), wild.start(), told(wild.start(), b"ab")
    expected, rng, masks, n = mask(beside), random.Random(0), Masks(len(TOKENS)), 0
    while True:
        masks.begin([good, bad, beside])
        filled = masks.end()
        assert filled.words_RW is not None
        assert ids_of(filled.words_RW[0]) == {ord("a"), 263, 264}
        assert ids_of(filled.words_RW[2]) == expected
        if filled.errors:
            break
        bad.advance(rng.choice(sorted(ids_of(filled.words_RW[1]) - {END})))
        n += 1
    masks.close()
    assert list(filled.errors) == [1]
    assert not filled.words_RW[1].any()
    assert re.fullmatch(f"the regex cannot go on after {n} tokens: lexer error: too many (states: 3000 >= 3000|expressions constructed). Bound its "
                        f"repetitions, "
                        "or split the request", str(filled.errors[1]))
    assert not mask(bad)
    told(beside, b"ab").rollback(3)
    assert mask(beside) == mask(told(wild.start(), b"a"))


def test_a_dead_end_of_the_vocabulary_is_said_when_it_is_met() -> None:
    """'é' is two bytes, and this vocabulary has none of them: a choice can begin and never be finished."""
    poor = Vocabulary([b"a", b"b", b"<end>"], (), (2,))
    constraint = compile_grammar("choice", ["aé", "ab"], poor).start()
    constraint.advance(0)
    assert mask(constraint) == {1}
    dead = compile_grammar("choice", ["aé"], poor).start()
    dead.advance(0)
    assert mask(dead) == set()
    assert str(dead.failure).startswith("the choice cannot go on after 1 tokens: ")


# In the engine

ENGINE = Vocabulary([*(bytes([b]) for b in b'{}[]":, \n-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJK'), b"<end>", *[None] * 3], (), (57,))


class Knowing:
    """A proposer that is right about the first two of any three ids; engine/speculate.py's Proposer."""

    def __init__(self, outputs: dict[tuple[int, ...], Sequence[int]]) -> None:
        self.outputs = outputs

    def furnish(self, spec: Any, **_: int) -> int:
        return 0

    def propose(self, sequences: Sequence[Any], most: Sequence[int]) -> list[list[int]]:
        drafts = []
        for sequence, n in zip(sequences, most, strict=True):
            rest = list(self.outputs[tuple(sequence.ids[: sequence.n_prompt])][len(sequence.ids) - sequence.n_prompt :])
            drafts.append([*rest[:2], (rest[2] + 1) % N_VOCAB][:n] if len(rest) > 3 else [])
        return drafts

    def forget(self, sequence: Any) -> None: ...


def test_outputs_of_the_engine_are_what_was_asked_batched_and_with_drafts_as_alone(decoder: Any) -> None:
    assert (ENGINE.n_vocab, ENGINE.tokens[57]) == (N_VOCAB, b"<end>")
    compiled = [compile_grammar("choice", ["yes", "no", "yes or no"], ENGINE), compile_grammar("regex", "[a-c]{2,12}", ENGINE), None,
                compile_grammar("schema", {"type": "array", "items": {"enum": [1, "a"]}, "minItems": 1, "maxItems": 3}, ENGINE)]
    requests = [Request(prompt_ids=[i, 5, 9], sampling=Sampling(seed=i), constraint=c, stop_ids=frozenset((57,)), max_tokens=30) for i,
                c in enumerate(compiled)]
    alone = [Engine(decoder, cache_bytes=2**22).run([request])[0][0].token_ids for request in requests]
    knowing = Knowing({tuple(r.prompt_ids): ids for r, ids in zip(requests, alone, strict=True)})
    for proposer in (None, knowing):
        engine = Engine(decoder, cache_bytes=2**22, proposer=proposer)
        held = [i for i, c in enumerate(compiled) if c is not None or proposer is None]
        for i, [result] in zip(held, engine.run([requests[i] for i in held]), strict=True):
            assert result.token_ids == alone[i]
            if (c := compiled[i]) is not None:
                assert judged(c, list(result.token_ids), result.finish_reason).status == ("valid" if result.finish_reason == "stop" else "cut")
        assert (engine.report().n_accepted > 0) == (proposer is not None)


def test_the_engine_goes_on_when_a_grammar_fails(decoder: Any) -> None:
    poor = Vocabulary([t if t in (b"a", b"b", b"<end>") else None for t in ENGINE.tokens], (), (57,))
    dead, fine = compile_grammar("choice", ["ac"], poor), compile_grammar("choice", ["ab"], poor)
    engine = Engine(decoder, cache_bytes=2**22)
    one, other = (engine.submit(Request(prompt_ids=[1, 2], constraint=c, stop_ids=frozenset((57,)))) for c in (dead, fine))
    assert [poor.tokens[i] for i in other] == [b"a", b"b"]
    with pytest.raises(ConstraintFailed, match="the choice cannot go on after 1 tokens"):
        list(one)


# Errors

def refusal(kind: str, source: Any, **options: Any) -> str:
    with pytest.raises(BadRequest) as caught:
        compile_grammar(kind, source, BYTES, **options)
    return str(caught.value)


@pytest.mark.parametrize(("kind", "source", "message"), [
    ("scheme", {}, "'scheme' is not an option. Did you mean schema?"),
    ("schema", "{", "schema is text that is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
    ("schema", {"properties": {"a": {"type": "string", "pattern": "^a$", "minLength": 2}}, "type": "object", "required": ["a"]},
     "the schema at #/properties/a cannot be enforced: Unsatisfiable schema: Regex is empty: (And (SearchRegex /^a$/) (Regex /(?s:.{2,})/)). Change "
     "it there"),
    ("schema", '{"type": "string", "type": "integer"}', "schema has 'type' twice in one object. Which of the two is meant, nothing says; leave one out"),
    ("lark", 'start: %json {"type": "string", "type": "integer"}',
     "schema has 'type' twice in one object. Which of the two is meant, nothing says; leave one out"),
    ("schema", {"properties": {"a": {"allOf": [{"type": "integer", "minimum": 5}, {"maximum": 3}]}}},
     "the schema at #/properties/a cannot be enforced: Unsatisfiable schema: minimum (5) is greater than maximum (3). Change it there"),
    ("schema", {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#/$defs/x", "maximum": 1}}], "$defs": {"x": {"minimum": 2, "type": "number"}}},
     "the schema at #/anyOf/1/items cannot be enforced: Unsatisfiable schema: minimum (2) is greater than maximum (1). Change it there"),
    ("schema", {"items": {"type": "integer", "multipleOf": 7, "minimum": 8, "maximum": 13}},
     "the schema at #/items cannot be enforced: Unsatisfiable schema: range [14, 7] does not contain a multiple of 7. Change it there"),
    ("schema", {"$ref": "#/$defs/x", "$defs": {"x": {"items": {"patternProperties": {"^a": {}, "b$": {}}}}}},
     "the schema at #/$defs/x/items cannot be enforced: patternProperty regexes /^a/ and /b$/ are not disjoint. Change it there"),
    ("json", {}, "json takes no source, got {}; a schema goes under 'schema'"),
    ("regex", "", "regex is empty: nothing could be written"),
    ("regex", "a(?=b)", "regex has look-ahead at position 1: 'a(?=b)'. It cannot be enforced token by token; say it without, as an alternation of "
                        "what may stand there"),
    ("choice", [], "choice must be a list of strings, at least one; got []"),
    ("choice", "ab", "choice must be a list of strings, at least one; got 'ab'"),
    ("choice", ["a", 1], "choice 1 is 1; expected a text of at least one character"),
    ("choice", ["a", "a"], "choice 1 is 'a', which is there before. Name each once"),
    ("lark", " ", "lark must be the text of a grammar, got ' '"),
    ("lark", "start: foo", 'the Lark grammar cannot be enforced: at 1(8): unknown name: "foo". Change it there'),
    ("lark", 'start: %json {"type": "string", "minLenth": 3}', "lark at #/minLenth: 'minLenth' is not a keyword of JSON Schema. Did you mean "
                                                               "minLength, maxLength?"),
    ("lark", 'start: %json {"type": }', "lark has a %json that is not JSON: Expecting value: line 1 column 23 (char 22)"),
    ("lark", "start: <|tool|>", "lark asks for a special token, which the finished text cannot be checked for: '<|tool|>'. Take it out"),
    ("lark", 'start[temperature=0.2]: "a"',
     "lark asks for a temperature of its own, which is set for the whole request: '[temperature='. Take it out"),
    ("lark", "start: @other", "lark asks for another grammar, and there is one: '@o'. Take it out"),
    ("lark", "\n".join(["start: r0", *(f"r{i}: r{i + 1}" for i in range(1500)), 'r1500: "a"']),
     "lark has 1,502 rules in 17,303 characters; at most 1,000 in 1,000,000 can be compiled safely. Shorten it"),
    ("gbnf", "root ::= x", "gbnf is not a grammar: Rule 'x' not found. A rule reads: name ::= ...; the first is root"),
    ("gbnf", 'root ::= "\\ud800"', "gbnf has \\ud800, which is no character"),
    ("gbnf", "root ::= " + "(" * 5000 + '"a"' + ")" * 5000, "gbnf is nested too deep. Flatten it"),
    ("gbnf", 3, "gbnf must be the text of a grammar, got 3"),
])
def test_a_source_that_cannot_be_enforced_is_refused_and_told_why(kind: str, source: Any, message: str) -> None:
    assert refusal(kind, source) == message


def test_marks_that_nothing_can_follow_are_refused() -> None:
    assert refusal("json", None, after="") == "after='' is no text to wait for. Give a mark such as '</think>', or leave it out"
    assert refusal("json", None, after=[]) == "after=[] is empty: nothing could come after it"
    assert refusal("json", None, after=[END]) == f"after=[{END}] has an id that ends the output: nothing could come after it"
    assert refusal("json", None, after=[9999]).startswith(f"after has token id 9999, and this model's vocabulary has ids 0 to {len(TOKENS) - 1}.")


def test_vocabularies_that_cannot_follow_a_grammar_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"the model names no token that ends an output, and a grammar needs one. Give its id as a stop id"):
        Vocabulary([b"a"], (), ())
    with pytest.raises(BadRequest, match="stop_ids has token id 7"):
        Vocabulary([b"a"], (), (7,))
    with pytest.raises(BadRequest, match=r"the choice cannot be enforced: no token of this vocabulary continues it. Change it there"):
        compile_grammar("choice", ["z"], Vocabulary([b"a", b"<end>"], (), (1,)))
    library = Library(BPE({"a": 0, "b": 1}, []))
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(BadRequest, match=r"this tokenizer puts spaces between its tokens, so no token's text is known before the next one"):
        Vocabulary.of(load_tokenizer(tmp_path), 2, [1])


def test_without_llguidance_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtra, match=re.escape("an output held to a grammar needs the extra 'grammar', which is not installed. Try: pip "
                                                     "install 'pellucid[grammar]'")):
        compile_grammar("json", None, BYTES)


def test_a_mask_of_another_size_or_kind_is_a_bug_that_is_noticed() -> None:
    with pytest.raises(ValueError, match=r"a mask is \(9,\) int32 in one piece on the CPU; got \(8,\) torch.int32"):
        compile_grammar("json", None, BYTES).start().mask(torch.zeros(8, dtype=torch.int32))

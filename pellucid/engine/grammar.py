"""What an output has to be, held token by token: JSON Schema, regular expressions, choices, Lark and GBNF grammars over llguidance.

    vocabulary = Vocabulary.of(tokenizer, n_vocab, stop_ids)          # once for a model
    compiled = compile_grammar("schema", {"type": "object"}, vocabulary)   # once for a schema; Request(constraint=compiled)
    constraint = compiled.start()                                     # one for a sequence
    constraint.mask(words_W); constraint.advance(token_id)            # at every step

A mask allows exactly the ids after which the text can still become what was asked. The tokenizer is only read for the bytes of its ids, so every kind
works alike, and no tokenization is forced on the model. llguidance: https://github.com/guidance-ai/llguidance (MIT).
"""
from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pellucid.engine.mark import IdsMark, Mark, TextMark
from pellucid.engine.request import check_vocabulary, token_ids
from pellucid.engine.sampler import WORD
from pellucid.engine.source import Source, read_source
from pellucid.errors import BadRequest, ConstraintFailed, MissingExtra

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from pellucid.tokenizer import Tokenizer


SPECIAL = b"\xff"  # llguidance's mark before the text of an id that text never becomes: toktrie's SPECIAL_TOKEN_MARKER, docs/special_tokens.md
MAX_STATES = 50_000  # of the lexer, at one to two kilobytes each; llguidance's own limit is five times as many
REMEMBERED = 16  # grammars of a vocabulary that are kept ready
MAX_GAP = 8  # ids of white space between the mark and the answer


class Vocabulary:
    """The ids of a model as a grammar sees them. Raises BadRequest where they cannot end an output.

    tokens: the bytes of every id; None for an id that stands for nothing, which no mask allows.
    special: ids that text never becomes. eos_ids: those that end an output.
    """

    def __init__(self, tokens: Sequence[bytes | None], special: Collection[int], eos_ids: Collection[int]) -> None:
        self.n_vocab, self.n_words = len(tokens), -(-len(tokens) // WORD)
        self.eos_ids = tuple(sorted(eos_ids))
        if not self.eos_ids:
            raise BadRequest("the model names no token that ends an output, and a grammar needs one. Give its id as a stop id", field="stop_ids")
        check_vocabulary(self.eos_ids, self.n_vocab, "stop_ids")
        hidden = {*special, *self.eos_ids}
        self.tokens = tuple(t or b"" for t in tokens)
        self.text = tuple(b"" if i in hidden else t for i, t in enumerate(self.tokens))  # what an id adds to a text
        self._compiled: dict[tuple[str, str, str | None], Compiled] = {}
        self._marked = [SPECIAL + (t or b"?") if i in hidden else t for i, t in enumerate(self.tokens)]

    @classmethod
    def of(cls, tokenizer: Tokenizer, n_vocab: int, eos_ids: Iterable[int]) -> Vocabulary:
        """Of a tokenizer, made once. n_vocab: the rows of the model's output, at least the tokenizer's ids."""
        if tokenizer.words.joiner:
            raise BadRequest("this tokenizer puts spaces between its tokens, so no token's text is known before the next one: it cannot follow a "
                             "grammar",
                             field="tokenizer")
        made: dict[object, Vocabulary] = vars(tokenizer).setdefault("_vocabularies", {})  # beside its cached properties, so it lives as long
        key = (n_vocab, frozenset(eos_ids))
        if key not in made:
            bytes_of = tokenizer.words.bytes_of
            made[key] = cls([bytes_of(i) for i in range(n_vocab)], tokenizer.special_ids | tokenizer.hidden_ids, key[1])
        return made[key]

    def grammar(self, kind: str, source: Any, after: str | None = None) -> Compiled:
        """`compile_grammar`, the last few remembered."""
        key = (kind, json.dumps(source), after)
        compiled = self._compiled.pop(key, None) or compile_grammar(kind, source, self, after=after)
        self._compiled[key] = compiled  # the newest last
        while len(self._compiled) > REMEMBERED:
            self._compiled.pop(next(iter(self._compiled)), None)  # another thread may have been first
        return compiled

    @cached_property
    def ll(self) -> LLTokenizer:
        made: LLTokenizer = library().LLTokenizer(_Wrapper(self._marked, self.eos_ids[0]), eos_token=list(self.eos_ids))
        return made

    @cached_property
    def space_ids(self) -> frozenset[int]:
        """Ids of nothing but white space."""
        return frozenset(i for i, t in enumerate(self.text) if t and not t.strip(b" \n\r\t"))

    @cached_property
    def space_words(self) -> Tensor:
        return self.words(self.space_ids)

    def words(self, ids: Iterable[int]) -> Tensor:
        """A mask (W,) int32 of these ids."""
        bits = torch.zeros(self.n_words * WORD, dtype=torch.int64)
        bits[torch.tensor(sorted(ids), dtype=torch.int64)] = 1
        return (bits.view(-1, WORD) << torch.arange(WORD)).sum(-1).to(torch.int32)  # the highest bit wraps to the sign, as it should


class _Wrapper:
    """What LLTokenizer asks of a tokenizer: python_ext/src/py.rs @ c75b0d90."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    special_token_ids: tuple[int, ...] = ()  # they carry SPECIAL already

    def __init__(self, tokens: list[bytes], eos_id: int) -> None:
        self.tokens, self.eos_token_id = tokens, eos_id

    def __call__(self, text: object) -> list[int]:
        raise RuntimeError("llguidance asks for a tokenization, which no_forcing rules out")


class Compiled:
    """A grammar made ready for a vocabulary; engine/request.py's Grammar. Outputs share what the lexer learns, so later ones are faster.

    source: what it was made from. mark: what the model has to say first, such as the end of its thinking; until then anything may come but an end.
    """

    def __init__(self, source: Source, vocabulary: Vocabulary, mark: Mark | None, max_states: int) -> None:
        self.source, self.vocabulary, self.mark, self.max_states = source, vocabulary, mark, max_states
        self._template = self.fresh()

    def start(self) -> Constraint:
        return Constraint(self)

    def fresh(self, lark: str | None = None) -> LLMatcher:
        """A matcher that shares nothing, which takes as long as compiling does. lark: of another grammar."""
        lib = library()
        limits = lib.LLParserLimits(max_lexer_states=self.max_states, verbose_errors=False)
        matcher: LLMatcher = lib.LLMatcher(self.vocabulary.ll, self.source.lark if lark is None else lark, log_level=0, limits=limits)
        return matcher

    def copy(self) -> LLMatcher:
        """A matcher at the beginning; all copies share one lexer, whatever LLMatcher.deep_copy says of it (llguidance 1.9.1; a test holds it)."""
        return self._template.deep_copy()

    def renew(self) -> None:
        """Later copies share another lexer: one output took this one past its limits, and with it every copy."""
        self._template = self.fresh()

    def text(self, ids: Sequence[int]) -> str | None:
        """The text of an output that the grammar speaks of, to be judged; None where the mark never came."""
        answer = self.answer(ids)
        return None if answer is None else b"".join(self.vocabulary.text[i] for i in answer).decode(errors="replace")

    def answer(self, ids: Sequence[int]) -> tuple[int, ...] | None:
        """The ids of an output that the grammar speaks of: those after the mark, without the end. None where the mark never came."""
        ids = ids[:-1] if ids and ids[-1] in self.vocabulary.eos_ids else ids
        if self.mark is None:
            return tuple(ids)
        state = 0
        for i, each in enumerate(ids):
            state = self.mark.step(state, each)
            if state < 0:
                return tuple(ids[i + 1 :])
        return None


class Constraint:
    """One output under a grammar; engine/request.py's Constraint. Ids come one by one and can be taken back."""

    def __init__(self, compiled: Compiled) -> None:
        self.compiled, self.vocabulary = compiled, compiled.vocabulary
        self._matcher = compiled.copy()
        self._state = 0 if compiled.mark is not None else -1  # of the mark; negative once it has come
        self._gap = 0 if compiled.mark is not None else MAX_GAP  # ids of white space that came after it
        self.failure: ConstraintFailed | None = None
        self._past: list[tuple[int, int, int | None]] = []  # for each id that came: state and gap before it, and the id if the matcher was told

    @property
    def done(self) -> bool:
        """Whether the output is complete and nothing but an end may follow."""
        return self._state < 0 and self._matcher.is_stopped() and not self._matcher.is_error()

    @property
    def can_end(self) -> bool:
        return self._state < 0 and (self.done or self._matcher.is_accepting())

    def mask(self, words_W: Tensor) -> None:
        """Fills words_W (W,) int32, contiguous, on the CPU: with nothing at all, and `failure` says why, where the grammar outgrew its limits."""
        if (words_W.dtype, words_W.shape, words_W.is_contiguous(), words_W.device.type) != (torch.int32, (self.vocabulary.n_words,), True, "cpu"):
            raise ValueError(f"a mask is ({self.vocabulary.n_words},) int32 in one piece on the CPU; got {tuple(words_W.shape)} {words_W.dtype}")
        if self.failure is not None:
            words_W.zero_()
            return
        if self._state >= 0:
            assert self.compiled.mark is not None
            words_W.copy_(self.compiled.mark.words(self._state))
            return
        _fill(self._matcher, words_W)
        if self._matcher.is_error():
            self._mend()
            _fill(self._matcher, words_W)
        if self._matcher.is_error():  # it has filled in the end, as if all were well: python_ext/src/llmatcher.rs, compute_mask_or_eos
            self.failure = ConstraintFailed(f"the {self.compiled.source.name} cannot go on after {len(self._past)} tokens: "
                                            f"{told(self._matcher.get_error())}. Bound its repetitions, or split the request")
            words_W.zero_()  # no id can be chosen, so the sampler fails this row and no other
        elif self._gap < MAX_GAP and not self._matcher.is_stopped():
            words_W |= self.vocabulary.space_words

    def _mend(self) -> None:
        """The same state with a lexer of its own: the shared one may have been outgrown by another output."""
        self.compiled.renew()
        self._matcher = self.compiled.fresh()
        for _, _, token_id in self._past:
            if token_id is not None and not self._matcher.is_error():
                self._matcher.consume_token(token_id)

    def advance(self, token_id: int) -> None:
        """An id has come. Raises ConstraintFailed, and stays as it was, for one that the mask forbids."""
        before = (self._state, self._gap)
        if self._state >= 0:
            fed, ok = False, self._advance_mark(token_id)
        elif self._matcher.is_stopped():
            fed, ok = False, token_id in self.vocabulary.eos_ids and not self._matcher.is_error()
        else:
            fed = ok = self._matcher.try_consume_tokens([token_id]) == 1
            if not fed and self._matcher.is_error() and self.failure is None:
                self._mend()
                fed = ok = self._matcher.try_consume_tokens([token_id]) == 1
            if fed:
                self._gap = MAX_GAP
            elif self._gap < MAX_GAP and token_id in self.vocabulary.space_ids:
                self._gap, ok = self._gap + 1, True
        if not ok:
            known = self.vocabulary.tokens[token_id] if 0 <= token_id < self.vocabulary.n_vocab else b""
            raise ConstraintFailed(f"token {token_id} ({known.decode(errors='replace')!r:.40}) cannot come after {len(self._past)} tokens under the "
                                   f"{self.compiled.source.name}: only ids that its mask allows can")
        self._past.append((*before, token_id if fed else None))

    def _advance_mark(self, token_id: int) -> bool:
        assert self.compiled.mark is not None
        if token_id in self.vocabulary.eos_ids or not self.compiled.mark.allows(self._state, token_id):
            return False
        self._state = self.compiled.mark.step(self._state, token_id)
        return True

    def rollback(self, n: int) -> None:
        """The last n ids did not come after all."""
        if not 0 <= n <= len(self._past):
            raise ValueError(f"{n} ids cannot be taken back of {len(self._past)}")
        if not n:
            return
        undone, self._past = self._past[-n:], self._past[: len(self._past) - n]
        fed = sum(token_id is not None for _, _, token_id in undone)
        if fed and (self._matcher.is_error() or not self._matcher.rollback(fed)):
            self._mend()  # from what is left of the past
        self._state, self._gap, _ = undone[0]


def compile_grammar(kind: str, source: Any, vocabulary: Vocabulary, *, after: str | Sequence[int] | None = None,
                    max_states: int = MAX_STATES) -> Compiled:
    """A grammar, checked and compiled. Raises BadRequest, naming what is wrong and where; MissingExtra without llguidance.

    kind and source: "schema" (an object, or its JSON), "compact" (the same, written without white space), "json" (any JSON object; no source), "regex"
        (of the whole output), "choice" (a list of strings), "lark" and "gbnf" (their text).
    after: begin only after this text or these ids, such as "</think>"; white space may follow it.
    max_states: how far the lexer may grow, at one to two kilobytes a state.
    """
    library()
    return compile_source(read_source(kind, source), vocabulary, _mark(after, vocabulary), max_states)


def compile_source(read: Source, vocabulary: Vocabulary, mark: Mark | None = None, max_states: int = MAX_STATES) -> Compiled:
    """A source that was read, compiled. Raises BadRequest where it cannot be."""
    compiled = Compiled(read, vocabulary, mark, max_states)
    probe = compiled.copy()
    if not probe.is_error():  # a first mask, so that what can never begin is said now
        _fill(probe, torch.zeros(vocabulary.n_words, dtype=torch.int32))
    if probe.is_error():
        raise read.refused(told(probe.get_error()), lambda lark: told(compiled.fresh(lark).get_error()))
    if hidden := read.hidden(lambda lark: told(compiled.fresh(lark).get_error())):
        raise hidden
    return compiled


def _fill(matcher: LLMatcher, words_W: Tensor) -> None:
    """words_W is held here while llguidance writes through its address, without the interpreter's lock."""
    matcher.unsafe_compute_mask_ptr(words_W.data_ptr(), words_W.numel() * 4)


def _mark(after: str | Sequence[int] | None, vocabulary: Vocabulary) -> Mark | None:
    if after is None:
        return None
    if isinstance(after, str):
        if not after.strip():
            raise BadRequest(f"after={after!r} is no text to wait for. Give a mark such as '</think>', or leave it out", field="after")
        return TextMark(after.encode(), vocabulary)
    ids = token_ids(after, "after")
    check_vocabulary(ids, vocabulary.n_vocab, "after")
    if not ids or set(ids) & set(vocabulary.eos_ids):
        raise BadRequest(f"after={ids} {'has an id that ends the output' if ids else 'is empty'}: nothing could come after it", field="after")
    return IdsMark(ids, vocabulary)


def library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise MissingExtra("an output held to a grammar", "grammar") from None
    return llguidance


def told(error: str) -> str:
    """llguidance's message in one line, without the parser's state."""
    words = " ".join(error.replace("<non-verbose/>", "").split())[:300]
    return {"NoExtensionBias": "no token of this vocabulary continues it"}.get(words, words)


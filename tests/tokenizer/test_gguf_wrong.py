"""GGUF metadata that makes no tokenizer: each way it can be wrong is an error of its own, and no corruption crashes."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pellucid
from pellucid.errors import BadRequest, BadTemplate, BadTokenizer, PellucidError
from pellucid.tokenizer import load_tokenizer as load_files
from tests.tokenizer import ggufs
from tests.tokenizer.ggufs import NORMAL, UNKNOWN
from tests.tokenizer.test_gguf import PLAIN, VOCAB, bpe


def fails(path: Path, error: type[Exception] = BadTokenizer, **facts: Any) -> str:
    with pytest.raises(error) as raised:
        bpe(path, **facts)
    return str(raised.value)


WRONG: list[tuple[Mapping[str, Any], str]] = [
    ({"pre": "qwen3"}, "splits text in a way that is not known: tokenizer.ggml.pre='qwen3'. Did you mean qwen35, qwen2"),
    ({"pre": "zzz"}, "tokenizer.ggml.pre='zzz'. Known are default, gpt-2, "),
    ({"pre": None}, "has no tokenizer.ggml.pre, so nothing says how text is split before merging"),
    ({"merges": None}, "has no tokenizer.ggml.merges, so nothing says which tokens join. Convert the model again"),
    ({"merges": [("a", "zzz")]}, "its vocabulary and merges contradict each other: Error while initializing BPE: Token `zzz` out of vocabulary"),
    ({"merges": [("q", "q")]}, "its vocabulary and merges contradict each other: Error while initializing BPE: Token `qq` out of vocabulary"),
    ({"merges": [("aa",)]}, "tokenizer.ggml.merges has 'aa', and two tokens with a space between were expected"),
    ({"token_scores": [0.0]}, f"tokenizer.ggml.scores has 1 items and tokenizer.ggml.tokens {len(VOCAB):,}, and each token has one"),
    ({"eos_token_id": len(VOCAB)}, f"tokenizer.ggml.eos_token_id is {len(VOCAB)}, and the file has {len(VOCAB):,} tokens, from 0"),
    ({"add_bos_token": True}, "every text has a bos_token, as add_bos_token or the kind 'gpt2' of its tokenizer says, and there is no "
                              "tokenizer.ggml.bos_token_id. Convert the model again"),
    ({"special": {"<|endoftext|>": 9}}, "tokenizer.ggml.token_type has 9, and kinds go from 1 to 6"),
    ({"change": lambda w: w.add_uint32("tokenizer.ggml.add_eos_token", 1)}, "tokenizer.ggml.add_eos_token is 1, and true or false was expected"),
    ({"change": lambda w: w.add_uint32("tokenizer.chat_template", 1)}, "tokenizer.chat_template is 1, and a text was expected"),
    ({"change": lambda w: w.add_uint32("tokenizer.ggml.unknown_token_id", 1 << 31)}, "tokenizer.ggml.unknown_token_id is 2147483648, and the file has"),
]


@pytest.mark.parametrize(("facts", "expected"), WRONG, ids=[expected[:40] for _, expected in WRONG])
def test_metadata_that_makes_no_tokenizer(tmp_path: Path, facts: Mapping[str, Any], expected: str) -> None:
    found = fails(tmp_path, **facts)
    assert expected in found
    assert found.startswith(str(tmp_path / "m.gguf"))


SMALL = {
    "gpt2": {"tokens": ["<s>", *"abc", "ab"], "kinds": [3, 1, 1, 1, 1], "merges": [("a", "b")], "pre": "llama-bpe", "chat_template": "{{ bos_token }}"},
    "llama": {"tokens": ["<unk>", "<s>", *"abc▁", "ab"], "kinds": [2, 3, 1, 1, 1, 1, 4], "scores": [0.0, 0.0, -1.0, -2.0, -3.0, -4.0, -5.0]},
    "t5": {"tokens": ["<unk>", "<s>", *"abc▁", "ab"], "kinds": [2, 3, 1, 1, 1, 1, 4], "scores": [0.0, 0.0, -1.0, -2.0, -3.0, -4.0, -5.0]},
    "bert": {"tokens": ["[CLS]", "[SEP]", "[UNK]", "▁a", "b"], "kinds": [3, 3, 3, 1, 1], "sep_token_id": 1, "unk_token_id": 2},
}


@pytest.mark.parametrize("model", SMALL)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(24, 800), byte=st.integers(0, 255), cut=st.integers(0, 100))
def test_a_corrupted_vocabulary_is_an_error_or_reads_text(tmp_path: Path, model: str, at: int, byte: int, cut: int) -> None:
    whole = tmp_path / "whole.gguf"
    if not whole.exists():
        ggufs.write(whole, model, **({"bos_token_id": 0, "eos_token_id": 1} | SMALL[model]))
        assert pellucid.load_tokenizer(whole).encode("ab c")
    content = bytearray(whole.read_bytes())
    content[at % len(content)] = byte
    (tmp_path / "m.gguf").write_bytes(content[: len(content) - cut] if cut < 30 else content)
    try:
        ours = pellucid.load_tokenizer(tmp_path / "m.gguf")
    except PellucidError:
        return
    assert isinstance(ours.decode(ours.encode("ab c <s>", special=True)), str)


def test_a_pattern_of_the_callers_stands_for_a_pre_that_is_not_known(tmp_path: Path) -> None:
    file = ggufs.byte_level(tmp_path / "m.gguf", "zzz", **PLAIN)
    assert pellucid.load_tokenizer(file, pattern=r"\S+|\s+").encode("a  b")
    with pytest.raises(BadTokenizer, match="split pattern does not compile"):
        pellucid.load_tokenizer(file, pattern="(a")
    file = ggufs.write(tmp_path / "m.gguf", "llama", ["<unk>", "a"], [UNKNOWN, NORMAL], scores=[0.0, -1.0])
    with pytest.raises(BadRequest, match=r"pattern='\\\\S': .* has a tokenizer of kind 'llama', which does not split text before merging\. Leave it out"):
        pellucid.load_tokenizer(file, pattern=r"\S")


def test_a_template_that_does_not_compile(tmp_path: Path) -> None:
    assert "chat template 'default' does not compile, line 1" in fails(tmp_path, BadTemplate, chat_template="{% if %}")
    assert "expected ','. Mend it, or pass another" in fails(tmp_path, BadTemplate, chat_template="{{ messages[0")


def test_lists_that_are_missing_or_none(tmp_path: Path) -> None:
    def raised(model: str | None, tokens: list[str] | None, kinds: list[int] | None, **facts: Any) -> str:
        with pytest.raises(BadTokenizer) as error:
            pellucid.load_tokenizer(ggufs.write(tmp_path / "m.gguf", model, tokens, kinds, **facts))
        return str(error.value)

    assert "has no tokenizer: tokenizer.ggml.model is None. The model takes token ids only" in raised(None, None, None)
    assert "tokenizer.ggml.model is 'none'" in raised("none", None, None)
    assert "a kind that is not read: tokenizer.ggml.model='plamo3' (read: gpt2, gemma4, llama, t5, rwkv, plamo2, bert). Did you mean plamo2" in raised(
        "plamo3", ["a"], [1])
    assert "says that its tokenizer is 'gpt2', and has no tokenizer.ggml.tokens" in raised("gpt2", None, None, pre="gpt-2")
    assert "has no tokenizer.ggml.token_type, so nothing tells its special tokens from text" in raised("gpt2", ["a"], None, pre="gpt-2", merges=[])
    assert "tokenizer.ggml.token_type has 2 items and tokenizer.ggml.tokens 1" in raised("gpt2", ["a"], [1, 1], pre="gpt-2")
    assert "tokenizer.ggml.tokens has 'a' 2 times, and which of those ids text becomes" in raised("gpt2", ["a", "b", "a"], [1, 1, 1], pre="gpt-2")
    assert "has no tokenizer.ggml.scores, so nothing says which pieces are likelier" in raised("llama", ["<unk>", "a"], [2, 1])
    assert "has no token for unknown text" in raised("llama", ["a", "b"], [1, 1], scores=[0.0, -1.0])
    assert "255 of the 256 bytes have no token, first: <0x01>" in raised("llama", ["<unk>", "<0x00>"], [2, 6], scores=[0.0, -1.0])
    assert "every score of tokenizer.ggml.scores is -1000, so nothing says which pieces join first" in raised(
        "llama", ["<unk>", "a", "aa", "aaa"], [2, 1, 1, 1], scores=[-1000.0] * 4)
    assert "a BPE model with 1 unused pieces that text may come by, first: 'aa'" in raised("llama", ["<unk>", "a", "aa"], [2, 1, 5], scores=[0.0, -1.0, -2.0])
    assert "tokenizer.ggml.tokens is a list of int32, and a list of str was expected" in raised(
        "gpt2", None, None, change=lambda w: w.add_array("tokenizer.ggml.tokens", [1, 2]))
    assert "tokenizer.ggml.tokens is 'abc', and a list of str was expected" in raised(
        "gpt2", None, None, change=lambda w: w.add_string("tokenizer.ggml.tokens", "abc"))
    assert "every text has a sep_token" in raised("bert", ["[CLS]", "[UNK]", "a"], [3, 3, 1], bos_token_id=0)
    assert "has no token for unknown text" in raised("bert", ["[CLS]", "a"], [3, 1], bos_token_id=0)
    assert "has pieces of words that are spelled alike" in raised("bert", ["[UNK]", "##a", "a"], [3, 3, 1])
    with pytest.raises(BadTokenizer, match=r"pellucid\.load_tokenizer reads it"):
        load_files(tmp_path / "m.gguf")

"""tiktoken ranks and tekken.json against the tiktoken library, on ranks made here; published files are known by their bytes."""
from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
import regex
import tiktoken
from hypothesis import given, settings
from tiktoken_ext import openai_public

from pellucid.errors import BadTokenizer
from pellucid.tokenizer import Tokenizer, load_tokenizer
from pellucid.tokenizer.bytelevel import GPT2_PATTERN, QWEN_PATTERN
from pellucid.tokenizer.ranks import KNOWN, LLAMA3_PATTERN, O200K_PATTERN, Known
from tests.tokenizer import texts

CL100K = openai_public.cl100k_base.__code__.co_consts
PATTERNS = {"gpt2": GPT2_PATTERN, "qwen": QWEN_PATTERN, "llama3": LLAMA3_PATTERN, "o200k": O200K_PATTERN, "r50k": openai_public.r50k_pat_str,
            "cl100k": next(c for c in CL100K if isinstance(c, str) and c.startswith("'(?i:"))}


def make_ranks(pattern: str, n: int = 700) -> dict[bytes, int]:
    """Ranks by byte pair encoding, counted in the plainest way."""
    ranks = {bytes([b]): b for b in range(256)}
    words = Counter(tuple(bytes([b]) for b in w.encode()) for text in texts.TRAINING for w in regex.findall(pattern, text))
    while len(ranks) < n:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, count in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += count
        left, right = max(pairs, key=lambda p: (pairs[p], p))
        ranks[left + right] = len(ranks)
        merged: Counter[tuple[bytes, ...]] = Counter()
        for word, count in words.items():
            out, i = [], 0
            while i < len(word):
                joined = word[i:i + 2] == (left, right)
                out.append(left + right if joined else word[i])
                i += 1 + joined
            merged[tuple(out)] += count
        words = merged
    return ranks


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    return make_ranks(LLAMA3_PATTERN)


def write(file: Path, ranks: dict[bytes, int]) -> Path:
    file.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    return file


@pytest.mark.parametrize("name", PATTERNS)
def test_ids_are_those_of_tiktoken_for_every_pattern_in_use(ranks: dict[bytes, int], tmp_path: Path, name: str) -> None:
    oracle = tiktoken.Encoding(name, pat_str=PATTERNS[name], mergeable_ranks=ranks, special_tokens={})
    ours = load_tokenizer(write(tmp_path / "x.tiktoken", ranks), pattern=PATTERNS[name])
    assert [ours.encode(t) for t in texts.ALL] == [oracle.encode(t, disallowed_special=()) for t in texts.ALL]
    lists = [[(k * k + 31 * j * k) % len(ranks) for j in range(10)] for k in range(len(ranks))]
    assert [ours.decode(ids) for ids in lists] == [oracle.decode(ids) for ids in lists]


_cache: dict[str, tuple[tiktoken.Encoding, Tokenizer]] = {}


@settings(max_examples=150, deadline=None)
@given(text=texts.texts)
def test_ids_are_those_of_tiktoken_on_any_text(ranks: dict[bytes, int], tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    if not _cache:
        _cache["both"] = (tiktoken.Encoding("o", pat_str=O200K_PATTERN, mergeable_ranks=ranks, special_tokens={}),
                          load_tokenizer(write(tmp_path_factory.mktemp("r") / "x.tiktoken", ranks), pattern=O200K_PATTERN))
    oracle, ours = _cache["both"]
    assert ours.encode(text) == oracle.encode(text, disallowed_special=())


def test_a_word_of_the_table_is_one_token_even_where_no_pair_leads_to_it(tmp_path: Path) -> None:
    ranks = {bytes([b]): b for b in range(256)} | {b"xyz": 256, b"ab": 257, b"bc": 258, b"aaa": 259, b"aa": 260}
    oracle = tiktoken.Encoding("w", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens={})
    ours = load_tokenizer(write(tmp_path / "x.tiktoken", ranks), pattern=r"\S+|\s+")
    samples = ["xyz", "xyzx", "abc", "aaa", "aaaaa", "aaaa b", "xy z"]
    assert [ours.encode(t) for t in samples] == [oracle.encode(t) for t in samples]
    assert ours.encode("xyz") == [256]


def test_ranks_without_a_known_pattern_are_an_error_that_says_where_to_put_it(ranks: dict[bytes, int], tmp_path: Path) -> None:
    write(tmp_path / "some.tiktoken", ranks)
    with pytest.raises(BadTokenizer, match=r"without the pattern that splits text.*known here \(Llama 3, Llama 4, Qwen\). Pass pattern=.*pat_str"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(("file", "key"), [("config.json", "pat_str"), ("tokenizer_config.json", "pat_str"), ("tokenizer_config.json", "pattern")])
def test_the_pattern_comes_from_the_models_config(ranks: dict[bytes, int], tmp_path: Path, file: str, key: str) -> None:
    write(tmp_path / "some.tiktoken", ranks)
    (tmp_path / file).write_text(json.dumps({key: O200K_PATTERN}))
    oracle = tiktoken.Encoding("o", pat_str=O200K_PATTERN, mergeable_ranks=ranks, special_tokens={})
    assert [load_tokenizer(tmp_path).encode(t) for t in texts.SCRIPTS] == [oracle.encode(t) for t in texts.SCRIPTS]


def test_a_known_file_brings_its_pattern_and_special_tokens(ranks: dict[bytes, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published files are not here: a file of ours is put on the list under its own hash, with Llama 3's facts."""
    file = write(tmp_path / "tokenizer.model", ranks)
    llama3 = next(k for k in KNOWN.values() if k.name == "Llama 3")
    monkeypatch.setitem(KNOWN, hashlib.sha256(file.read_bytes()).hexdigest(), llama3)
    ours = load_tokenizer(tmp_path)
    oracle = tiktoken.Encoding("l", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens={t: len(ranks) + i for i, t in enumerate(llama3.special)})
    text = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi 12345<|eot_id|>"
    assert ours.encode_rendered(text) == oracle.encode(text, allowed_special="all")
    assert ours.encode(text) == oracle.encode(text, disallowed_special=())
    assert ours.encode("hi", special=True) == [ours.bos_id, *oracle.encode("hi")]
    assert ours.bos_id == len(ranks)
    assert ours.eos_id == len(ranks) + 1


def test_a_known_file_is_known_with_the_line_ends_of_windows(ranks: dict[bytes, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "x.tiktoken", ranks)
    monkeypatch.setitem(KNOWN, hashlib.sha256(file.read_bytes()).hexdigest(), next(k for k in KNOWN.values() if k.name == "Llama 3"))
    expected = load_tokenizer(file).encode("It's 12345 <|eot_id|>")
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert load_tokenizer(file).encode("It's 12345 <|eot_id|>") == expected


def test_a_config_renames_the_reserved_tokens_of_a_known_file(ranks: dict[bytes, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "qwen.tiktoken", ranks)
    monkeypatch.setitem(KNOWN, hashlib.sha256(file.read_bytes()).hexdigest(), next(k for k in KNOWN.values() if k.name == "Qwen"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {str(len(ranks) + 5): {"content": "<img>", "special": True}}}))
    ours = load_tokenizer(tmp_path)
    assert ours.encode("e\u0301te\u0301") == ours.encode("\u00e9t\u00e9")  # Qwen's code puts text into NFC first
    assert ours.encode_rendered("<img><|im_end|>") == [len(ranks) + 5, len(ranks) + 2]
    assert ours.id_of("<|extra_2|>") is None
    assert (ours.bos_id, ours.eos_id, ours.adds_bos, ours.n_vocab) == (None, len(ranks), False, len(ranks) + 208)


@pytest.mark.parametrize(("name", "n_ranks", "ids"), [
    # Ids that the models' published configs use.
    ("Llama 3", 128000, {"<|begin_of_text|>": 128000, "<|end_of_text|>": 128001, "<|start_header_id|>": 128006, "<|eom_id|>": 128008, "<|eot_id|>": 128009,
                         "<|python_tag|>": 128010, "<|reserved_special_token_245|>": 128255}),
    ("Llama 4", 200000, {"<|begin_of_text|>": 200000, "<|header_start|>": 200005, "<|eom|>": 200007, "<|eot|>": 200008, "<|finetune_right_pad|>": 200018,
                         "<|image_start|>": 200080, "<|patch|>": 200092, "<|reasoning_reserved_special_token_0|>": 201134}),
    ("Qwen", 151643, {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, "<|extra_0|>": 151646, "<|extra_204|>": 151850}),
])
def test_special_tokens_of_known_files_have_the_published_ids(name: str, n_ranks: int, ids: dict[str, int]) -> None:
    known: Known = next(k for k in KNOWN.values() if k.name == name)
    assert len(set(known.special)) == len(known.special) == {"Llama 3": 256, "Llama 4": 2048, "Qwen": 208}[name]
    assert {text: n_ranks + known.special.index(text) for text in ids} == ids


def tekken(ranks: dict[bytes, int], **changes: object) -> dict[str, object]:
    config = {"pattern": O200K_PATTERN, "num_vocab_tokens": len(ranks), "default_vocab_size": 20 + 600, "default_num_special_tokens": 20, "version": "v3"}
    config |= {k: v for k, v in changes.items() if k in config}
    vocab = [{"rank": r, "token_bytes": base64.b64encode(t).decode(), "token_str": None} for t, r in ranks.items()]
    return {"config": config, "vocab": vocab, "version": 1, "type": "Tekken"} | {k: v for k, v in changes.items() if k not in config}


def test_tekken_ids_are_ranks_after_the_special_tokens(ranks: dict[bytes, int], tmp_path: Path) -> None:
    """Only the first default_vocab_size - default_num_special_tokens ranks count, though the file holds more."""
    (tmp_path / "tekken.json").write_text(json.dumps(tekken(ranks)))
    kept = {t: r for t, r in ranks.items() if r < 600}
    oracle, ours = tiktoken.Encoding("k", pat_str=O200K_PATTERN, mergeable_ranks=kept, special_tokens={}), load_tokenizer(tmp_path)
    assert [ours.encode(t) for t in texts.ALL] == [[i + 20 for i in oracle.encode(t, disallowed_special=())] for t in texts.ALL]
    assert ours.encode_rendered("<s>[INST]hi[/INST]</s>") == [1, 3, *[i + 20 for i in oracle.encode("hi")], 4, 2]
    assert ours.adds_bos
    assert (ours.bos_id, ours.eos_id, ours.n_vocab) == (1, 2, 620)


def test_tekken_takes_its_own_list_of_special_tokens_and_fills_the_rest(ranks: dict[bytes, int], tmp_path: Path) -> None:
    listed = [{"rank": i, "token_str": t, "is_control": True} for i, t in enumerate(["<unk>", "<s>", "</s>", "[THINK]"])]
    (tmp_path / "tekken_240911.json").write_text(json.dumps(tekken(ranks, special_tokens=listed, version="v13")))
    ours = load_tokenizer(tmp_path / "tekken_240911.json")
    assert ours.encode_rendered("[THINK]<SPECIAL_19>") == [3, 19]
    assert ours.special_ids == set(range(20))


@pytest.mark.parametrize(("changes", "message"), [
    ({"default_vocab_size": 5000}, r"700 usable ranks, but default_vocab_size=5000 and default_num_special_tokens=20 want 4980"),
    ({"version": "v13"}, r"version 'v13' without special_tokens; only v1, v2, v3, v7"),
    ({"special_tokens": [{"rank": 33, "token_str": "<x>"}]}, r"special token '<x>' has rank 33, outside the 20 places"),
    ({"vocab": None}, "is not what Mistral saves as tekken.json: TypeError"),
])
def test_a_tekken_file_that_contradicts_itself_is_refused(ranks: dict[bytes, int], tmp_path: Path, changes: dict[str, object], message: str) -> None:
    (tmp_path / "tekken.json").write_text(json.dumps(tekken(ranks, **changes)))
    with pytest.raises(BadTokenizer, match=message):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(("damage", "message"), [
    (lambda data: data.replace(b"\n", b" 7\n", 1), r"line 1: .* is not a token in base64 and its rank"),
    (lambda data: data.replace(b" 3\n", b" 4\n"), "two tokens have the same rank"),
    (lambda data: data.split(b"\n", 1)[1], r"1 of the 256 single bytes have no rank, first: 0x00"),
    (lambda data: data.replace(b"AQ==", b"A!=="), r"line 2: b'A!== 1' is not a token in base64"),
])
def test_a_table_of_ranks_that_is_not_whole_is_refused(ranks: dict[bytes, int], tmp_path: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    file = write(tmp_path / "x.tiktoken", ranks)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(BadTokenizer, match=message):
        load_tokenizer(file, pattern=O200K_PATTERN)

"""Tokenizers out of GGUF files: the ids of the model's own tokenizer, of llama.cpp where its patterns are the model's."""
from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer, CohereTokenizer, GPT2Tokenizer, GPTNeoXTokenizer, Qwen2Tokenizer, Qwen3_5Tokenizer

import pellucid
from pellucid.tokenizer import Tokenizer
from pellucid.tokenizer import load_tokenizer as load_files
from pellucid.tokenizer.pretokenizers import PRE
from pellucid.tokenizer.template import choose
from tests.tokenizer import ggufs, texts
from tests.tokenizer.ggufs import BYTE, CONTROL, NORMAL, TEXTS, UNKNOWN, UNUSED, USER_DEFINED
from tests.tokenizer.templates import CHATML
from tests.tokenizer.test_bytelevel import published
from tests.tokenizer.test_library import llama3
from tests.tokenizer.test_sentencepiece import OPTIONS, train

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "recorded" / "pre.json").read_text("utf-8"))
VOCAB, MERGES = ggufs.windows(TEXTS)
PLAIN = {"vocab": VOCAB, "merges": MERGES, "special": {"<|endoftext|>": CONTROL}}


def bpe(path: Path, pre: str | None = "gpt-2", **facts: Any) -> Tokenizer:
    return pellucid.load_tokenizer(ggufs.byte_level(path / "m.gguf", pre, **(PLAIN | facts)))


@pytest.mark.shared
@pytest.mark.parametrize("name", ["falcon", "gpt-2", "llama-spm", "mpt", "starcoder"])
def test_real_vocabularies_give_the_published_ids(shared: Path, name: str) -> None:
    ours = pellucid.load_tokenizer(shared / "tokenizer_vectors" / f"ggml-vocab-{name}.gguf")
    samples, ids = published(shared / "tokenizer_vectors", name)
    assert [ours.encode(t) for t in samples] == ids
    assert [ours.decode(i) for i in ids] == samples
    assert (ours.bos_id, ours.eos_id) == {"falcon": (11, 11), "gpt-2": (50256, 50256), "llama-spm": (1, 2), "mpt": (0, 0), "starcoder": (0, 0)}[name]
    assert ours.adds_bos == (name == "llama-spm")
    assert {ours.bos_id, ours.eos_id} <= ours.special_ids


@pytest.mark.parametrize("group", RECORDED["groups"], ids=lambda group: group["names"][0])
def test_text_is_split_as_llama_cpp_splits_it(tmp_path: Path, group: dict[str, Any]) -> None:
    """A null stands where its regular expressions know neither cases nor marks, and the model's own pattern, which its source quotes, does."""
    for name in {PRE[name]: name for name in group["names"]}.values():  # one of those that are written alike
        ours = bpe(tmp_path, name)
        for text, expected in zip(TEXTS, group["ids"], strict=True):
            assert expected is None or ours.encode(text) == expected, (name, text)


def test_every_way_of_splitting_is_recorded_and_told_from_the_others() -> None:
    assert sorted(name for group in RECORDED["groups"] for name in group["names"]) == sorted(name for name, pre in PRE.items() if not pre.spaced)
    assert len({json.dumps(group["ids"]) for group in RECORDED["groups"]}) == len(RECORDED["groups"]) > 25
    assert sum(ids is None for group in RECORDED["groups"] for ids in group["ids"]) == 4
    for flag in ("adds_bos", "whole_words_first"):
        assert {name for name, pre in PRE.items() if getattr(pre, flag)} == set(RECORDED[flag]), flag


def words(tokenizer: Tokenizer, text: str) -> list[str]:
    """The pieces of a text whose every byte is joined to the next wherever they may be."""
    return [tokenizer.decode([i]) for i in tokenizer.encode(text)]


def test_digits_are_counted_from_the_side_the_model_counts_from(tmp_path: Path) -> None:
    for pre, expected in {"llama-bpe": ["123", "456", "7"], "gpt-2": ["1234567"], "qwen2": list("1234567"), "falcon": ["123", "456", "7"],
                          "tiny_aya": ["1", "234", "567"], "afmoe": ["1", "234", "567"], "superbpe": ["1", "234", "567"]}.items():
        vocab = {char: i for i, char in enumerate("1234567")} | {word: 10 + i for i, word in enumerate(("12", "123", "45", "456", "23", "234", "56", "567"))}
        merges = [("1", "2"), ("12", "3"), ("4", "5"), ("45", "6"), ("2", "3"), ("23", "4"), ("5", "6"), ("56", "7")]
        if pre == "gpt-2":
            vocab, merges = vocab | {"123456": 20, "1234567": 21}, [*merges, ("123", "456"), ("123456", "7")]
        vocab = {token: i for i, token in enumerate(vocab)}
        ours = pellucid.load_tokenizer(ggufs.byte_level(tmp_path / "m.gguf", pre, vocab, merges))
        assert words(ours, "1234567") == expected, pre


def test_cases_part_words_where_the_models_own_pattern_knows_them(tmp_path: Path) -> None:
    vocab = {char: i for i, char in enumerate("abAB")} | {"ab": 4, "AB": 5, "abAB": 6, "bA": 7}
    for pre, expected in {"tekken": ["ab", "AB"], "youtu": ["ab", "AB"], "llama-bpe": ["abAB"]}.items():
        ours = pellucid.load_tokenizer(ggufs.byte_level(tmp_path / "m.gguf", pre, vocab, [("a", "b"), ("A", "B"), ("ab", "AB"), ("b", "A")],
                                                        {"</s>": CONTROL}, bos_token_id=8))
        assert words(ours, "abAB") == expected, pre


@pytest.fixture(scope="module")
def trained() -> tuple[dict[str, int], list[tuple[str, str]]]:
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    library.train_from_iterator(texts.TRAINING, trainers.BpeTrainer(vocab_size=1200, show_progress=False, initial_alphabet=alphabet))
    raw = json.loads(library.to_str())["model"]
    return raw["vocab"], [tuple(m) for m in raw["merges"]]


@pytest.mark.parametrize(("pre", "theirs"), [("gpt-2", GPT2Tokenizer), ("qwen2", Qwen2Tokenizer), ("qwen35", Qwen3_5Tokenizer), ("mpt", GPTNeoXTokenizer),
                                             ("olmo", GPTNeoXTokenizer), ("command-r", CohereTokenizer)])
def test_a_vocabulary_trained_here_gives_the_ids_of_transformers(tmp_path: Path, trained: Any, pre: str, theirs: Any) -> None:
    """All but GPT-2's put text into NFC first; no key of a GGUF file says so, and llama.cpp does not."""
    vocab, merges = trained
    ours = bpe(tmp_path, pre, vocab=vocab, merges=merges, special={})
    oracle = theirs(vocab=vocab, merges=merges)._tokenizer
    plain = [t for t in texts.ALL if "<|" not in t]
    assert [ours.encode(t) for t in plain] == [oracle.encode(t, add_special_tokens=False).ids for t in plain]
    assert (ours.decode(ours.encode("e\u0301")) == "é") == (pre != "gpt-2")


def test_special_tokens_and_a_users_own_are_those_of_transformers(tmp_path: Path, trained: Any) -> None:
    vocab, merges = trained
    special = {"<|endoftext|>": CONTROL, "<|im_start|>": CONTROL, "<think>": USER_DEFINED}
    ours = bpe(tmp_path, "qwen2", vocab=vocab, merges=merges, special=special)
    theirs = Qwen2Tokenizer(vocab=vocab | {"<|endoftext|>": len(vocab)}, merges=merges, extra_special_tokens=["<|im_start|>"])
    theirs.add_tokens(["<think>"])
    assert [ours.encode(t) for t in texts.ALL] == [theirs.encode(t, split_special_tokens=True) for t in texts.ALL]
    spelled = [f"{t}<|im_start|> {t}<think>{t}" for t in texts.ALL]
    assert [ours.encode_rendered(t) for t in spelled] == [theirs.encode(t) for t in spelled]
    assert [ours.decode(theirs.encode(t)) for t in spelled] == [theirs.decode(theirs.encode(t), skip_special_tokens=True) for t in spelled]


def test_a_whole_word_is_its_token_where_llama_3_has_it_so(tmp_path: Path) -> None:
    """... even if no merge leads there: tiktoken's order, of which merges are only what could be rebuilt."""
    vocab = VOCAB | {"Hello": VOCAB.get("Hello", len(VOCAB)), "zq": len(VOCAB) + 1}
    vocab = {token: i for i, token in enumerate(sorted(vocab, key=vocab.__getitem__))}
    assert words(bpe(tmp_path, "llama-bpe", vocab=vocab, bos_token_id=0), "zq") == ["zq"]
    assert words(bpe(tmp_path, "dbrx", vocab=vocab), "zq") == ["z", "q"]


def test_a_table_of_tiktokens_needs_no_merges_in_kimi(tmp_path: Path) -> None:
    listed, unlisted = (bpe(tmp_path, "kimi-k2", merges=merges) for merges in (MERGES, None))
    assert unlisted.encode(TEXTS[1]) == listed.encode(TEXTS[1])
    assert len(unlisted.encode(TEXTS[1])) < len(TEXTS[1])


# SentencePiece

def pieces(path: Path, model: bytes, **facts: Any) -> Tokenizer:
    """The model as llama.cpp's converter writes it."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    unigram, rules = proto.trainer_spec.model_type == 1, proto.normalizer_spec
    charsmap = list(rules.precompiled_charsmap)

    def change(writer: gguf.GGUFWriter) -> None:
        if charsmap:
            writer.add_precompiled_charsmap(bytes(charsmap))

    listed = {"tokens": [p.piece for p in proto.pieces], "kinds": [p.type for p in proto.pieces], "scores": [p.score for p in proto.pieces],
              "bos_token_id": 1, "eos_token_id": 2, "unk_token_id": 0, "add_space_prefix": rules.add_dummy_prefix,
              "remove_extra_whitespaces": rules.remove_extra_whitespaces, "change": change} | facts
    return pellucid.load_tokenizer(ggufs.write(path / "m.gguf", "t5" if unigram else "llama", pre="default", **listed))


@pytest.mark.parametrize("name", [name for name in OPTIONS if "end" not in name])  # a space at the end has no key
def test_pieces_give_the_ids_and_the_text_of_sentencepiece(tmp_path: Path, name: str) -> None:
    model = train(**OPTIONS[name])
    (tmp_path / "tokenizer.model").write_bytes(model)
    ours, own = pieces(tmp_path, model), load_files(tmp_path / "tokenizer.model")
    oracle = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert [ours.encode(t) for t in texts.ALL] == oracle.encode(texts.ALL)
    assert [ours.decode(i) for i in oracle.encode(texts.ALL)] == [own.decode(i) for i in oracle.encode(texts.ALL)]
    assert (ours.bos_id, ours.eos_id, ours.n_vocab) == (1, 2, oracle.vocab_size())
    body = oracle.encode("a")
    assert ours.encode("a", special=True) == ([*body, 2] if OPTIONS[name]["model_type"] == "unigram" else [1, *body])


def test_what_stood_beside_a_sentencepiece_model_is_cut_out_first_and_filler_is_nothing(tmp_path: Path) -> None:
    model = train(**OPTIONS["llama"])
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    n = len(proto.pieces)
    added = {"<|user|>": CONTROL, "<tool>": USER_DEFINED, f"[PAD{n + 2}]": USER_DEFINED, f"[PAD{n + 3}]": UNKNOWN, "[X]": UNUSED}
    ours = pieces(tmp_path, model, tokens=[*(p.piece for p in proto.pieces), *added], kinds=[*(p.type for p in proto.pieces), *added.values()],
                  scores=[*(p.score for p in proto.pieces), *[-1000.0] * len(added)])
    (tmp_path / "tokenizer.model").write_bytes(model)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|user|>": n, "<tool>": n + 1}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"additional_special_tokens": ["<|user|>"]}))
    theirs = load_files(tmp_path / "tokenizer.model")
    spelled = [f"{t}<|user|>{t} <tool>{t}[PAD{n + 2}] [PAD{n + 3}] [X]" for t in texts.ALL]
    assert [ours.encode(t) for t in spelled] == [theirs.encode(t) for t in spelled]
    assert [ours.encode_rendered(t) for t in spelled] == [theirs.encode_rendered(t) for t in spelled]
    assert ours.special_ids == theirs.special_ids
    assert [ours.decode(theirs.encode_rendered(t)) for t in spelled] == [theirs.decode(theirs.encode_rendered(t)) for t in spelled]


def test_gemma_4s_merges_over_the_text_itself_give_the_ids_of_the_tokenizers_library(tmp_path: Path) -> None:
    library = Library(models.BPE(byte_fallback=True, fuse_unk=True))
    library.normalizer = normalizers.Replace(" ", "▁")
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{b:02X}>" for b in range(256)), "<turn|>"]
    library.train_from_iterator(texts.TRAINING, trainers.BpeTrainer(vocab_size=1100, special_tokens=specials, show_progress=False))
    raw = json.loads(library.to_str())
    raw["added_tokens"] = [t for t in raw["added_tokens"] if not t["content"].startswith("<0x")]
    library = Library.from_str(json.dumps(raw))
    tokens = sorted(raw["model"]["vocab"], key=raw["model"]["vocab"].__getitem__)
    kinds = [BYTE if t.startswith("<0x") else CONTROL if t in specials else NORMAL for t in tokens]
    ours = pellucid.load_tokenizer(ggufs.write(tmp_path / "m.gguf", "gemma4", tokens, kinds, merges=raw["model"]["merges"], bos_token_id=2, eos_token_id=1,
                                               add_bos_token=False))
    plain = [t for t in texts.ALL if "<" not in t]
    assert [ours.encode(t) for t in plain] == [library.encode(t, add_special_tokens=False).ids for t in plain]
    assert [ours.decode(ours.encode(t)) for t in plain] == [t.replace("▁", " ") for t in plain]
    assert ours.encode("a", special=True)[0] == 2  # whatever the file says: converters got it wrong
    assert {ours.token_of(i) for i in ours.end_ids} == {"<eos>", "<turn|>"}


@pytest.mark.parametrize("lowercase", [None, True, False])
def test_word_pieces_give_the_ids_of_transformers(tmp_path: Path, lowercase: bool | None) -> None:
    library = Library(models.WordPiece(unk_token="[UNK]"))
    library.normalizer, library.pre_tokenizer = normalizers.BertNormalizer(lowercase=lowercase is not False), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    library.train_from_iterator(texts.TRAINING, trainers.WordPieceTrainer(vocab_size=500, special_tokens=special, show_progress=False))
    vocab: dict[str, int] = library.get_vocab()
    names = sorted(vocab, key=vocab.__getitem__)
    tokens = [t if t in special else t[2:] if t.startswith("##") else f"▁{t}" for t in names]  # conversion/bert.py, phantom

    def change(writer: gguf.GGUFWriter) -> None:
        if lowercase is not None:
            writer.add_bool("tokenizer.ggml.normalizer.lowercase", lowercase)

    ours = pellucid.load_tokenizer(ggufs.write(tmp_path / "m.gguf", "bert", tokens, [CONTROL if t in special else NORMAL for t in tokens], change=change,
                                               bos_token_id=2, sep_token_id=3, unk_token_id=1, pad_token_id=0, mask_token_id=4))
    theirs = BertTokenizer(vocab=vocab, do_lower_case=lowercase is not False)
    assert [ours.encode(t, special=True) for t in texts.ALL] == [theirs.encode(t) for t in texts.ALL]
    assert ours.decode(ours.encode("hello worlds")) == "hello worlds"
    assert ours.special_tokens["mask_token"] == "[MASK]"


# What the file says of its tokens

SPECIAL = {"<|begin|>": CONTROL, "<|end|>": CONTROL, "<|im_end|>": USER_DEFINED, "<|fim_pre|>": CONTROL, "<tool>": USER_DEFINED}


def special(path: Path, **facts: Any) -> Tokenizer:
    return bpe(path, special=PLAIN["special"] | SPECIAL, **{"bos_token_id": len(VOCAB), "eos_token_id": 0, **facts})


def test_special_ids_ends_and_roles_are_those_of_the_metadata(tmp_path: Path) -> None:
    ours = special(tmp_path, eot_token_id=len(VOCAB) + 1, pad_token_id=0, change=lambda w: w.add_uint32("tokenizer.ggml.prefix_token_id", len(VOCAB) + 3))
    assert ours.special_tokens == {"bos_token": "<|begin|>", "eos_token": "<|endoftext|>", "eot_token": "<|end|>", "pad_token": "<|endoftext|>",
                                   "fim_pre_token": "<|fim_pre|>"}
    assert {ours.token_of(i) for i in ours.end_ids} == {"<|endoftext|>", "<|end|>", "<|im_end|>"}
    assert not ours.adds_bos
    spelled = "".join(SPECIAL) + "<|endoftext|>"
    assert ours.special_ids.isdisjoint(ours.encode(spelled))
    assert ours.id_of("<tool>") in ours.encode(spelled)  # a user's own token is text
    assert ours.id_of("<|im_end|>") not in ours.encode(spelled)  # but not where it ends answers
    assert ours.encode_rendered(spelled) == [*range(len(VOCAB), len(VOCAB) + 5), 0]
    assert ours.decode(ours.encode(spelled)) == spelled


@pytest.mark.parametrize(("listed", "expected"), [
    (["<|end|>", "<|return|>", "<|call|>"], {"<|return|>", "<|call|>"}), (["<|end|>"], {"<|end|>"}), (["</s>", "<|tool_response>"], {"<|tool_response>"})])
def test_a_spelling_that_ends_parts_of_an_answer_does_not_end_it(tmp_path: Path, listed: list[str], expected: set[str]) -> None:
    ours = bpe(tmp_path, special=dict.fromkeys(listed, CONTROL))
    assert {ours.token_of(i) for i in ours.end_ids} == expected


def test_bos_and_eos_are_added_as_the_keys_say_and_as_the_kind_does_where_they_are_silent(tmp_path: Path) -> None:
    begin, end = len(VOCAB), 0
    body = special(tmp_path).encode("a")
    for facts, expected in (({}, body), ({"add_bos_token": True}, [begin, *body]), ({"add_bos_token": True, "add_eos_token": True}, [begin, *body, end]),
                            ({"pre": "llama-bpe"}, [begin, *body]), ({"pre": "llama-bpe", "add_bos_token": False}, body)):
        assert special(tmp_path, **facts).encode("a", special=True) == expected, facts


def test_what_an_older_converter_called_text_ends_answers_and_is_none(tmp_path: Path) -> None:
    ours = bpe(tmp_path, special={"<|endoftext|>": NORMAL}, eos_token_id=0)
    assert ours.special_ids == {0}
    assert 0 not in ours.encode("<|endoftext|>")


def test_phi_3s_special_tokens_take_the_space_after_them(tmp_path: Path) -> None:
    """Its tokenizer_config.json says rstrip, and no key of a GGUF file does."""
    for name, expected in (("Phi-3 mini", "a"), ("phi", " \na")):
        ours = special(tmp_path, name=name)
        assert ours.encode_rendered("<|end|> \na") == [len(VOCAB) + 1, *ours.encode(expected)], name


def test_chat_templates_come_by_their_names(tmp_path: Path) -> None:
    ours = special(tmp_path, chat_template=[{"name": "default", "template": CHATML}, {"name": "tool_use", "template": "{{ bos_token }}tools"}])
    assert sorted(ours.chat_templates) == ["default", "tool_use"]
    messages = [{"role": "user", "content": "hi"}]
    assert choose(ours).render(messages) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert choose(ours, tools=[{}]).render(messages) == "<|begin|>tools"


def test_a_split_files_tokenizer_is_that_of_its_first_part_and_travels_to_another_process(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=1)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(list(VOCAB))
    writer.add_token_types([NORMAL] * len(VOCAB))
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    for name in "ab":
        writer.add_tensor(name, np.zeros(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(tmp_path.glob("m-*.gguf"))
    ours = [pellucid.load_tokenizer(part) for part in parts]
    assert len(parts) == 2
    assert ours[0].encode(TEXTS[0]) == ours[1].encode(TEXTS[0]) == pickle.loads(pickle.dumps(ours[1])).encode(TEXTS[0])


@settings(max_examples=60, deadline=None)
@given(text=texts.texts)
def test_no_text_becomes_a_special_id_and_all_of_it_comes_back(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    if not _cache:
        _cache.append(special(tmp_path_factory.mktemp("t"), pre="llama-bpe"))
    [ours] = _cache
    for spelled in (text, f"<|begin|>{text}<|im_end|>"):
        assert ours.special_ids.isdisjoint(ours.encode(spelled))
        assert ours.decode(ours.encode(spelled)) == spelled


_cache: list[Tokenizer] = []


def test_a_tokenizer_json_says_the_same(tmp_path: Path) -> None:
    library = llama3()
    library.save(str(tmp_path / "tokenizer.json"))
    raw = json.loads(library.to_str())
    added = {t["content"]: CONTROL if t["special"] else USER_DEFINED for t in raw["added_tokens"]}
    ours = bpe(tmp_path, "llama-bpe", vocab=raw["model"]["vocab"], merges=[tuple(m) for m in raw["model"]["merges"]], special=added,
               bos_token_id=raw["model"]["vocab"]["<|begin|>"])
    own = load_files(tmp_path / "tokenizer.json")
    for t in texts.ALL:
        assert ours.encode(t, special=True) == own.encode(t, special=True)
        assert ours.encode_rendered(f"{t}<think>{t}<|im_end|>é!") == own.encode_rendered(f"{t}<think>{t}<|im_end|>é!")

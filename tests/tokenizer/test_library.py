"""tokenizer.json as it is published, against transformers: ids, special tokens, BOS and EOS, and what plain text may never become."""
from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Library
from transformers import PreTrainedTokenizerFast

from pellucid.errors import BadRequest, BadTokenizer, ModelNotFound
from pellucid.tokenizer import Tokenizer, load_tokenizer
from pellucid.tokenizer.encode import LONG
from pellucid.tokenizer.load import _ends_of_post_processor
from pellucid.tokenizer.ranks import LLAMA3_PATTERN
from tests.tokenizer import texts

SPECIAL = ["<|begin|>", "<|end|>", "<|im_start|>", "<|im_end|>"]


def llama3() -> Library:
    library = Library(models.BPE(ignore_merges=True))
    library.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)])
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=SPECIAL, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    library.train_from_iterator(texts.TRAINING, trainer)
    begin = library.token_to_id("<|begin|>")
    library.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False),
                                                  processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", begin)])])
    library.add_tokens([AddedToken("<think>", normalized=False, special=False), AddedToken("é!", normalized=False, special=False)])
    return library


def llama2() -> Library:
    library = Library(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    specials = ["<unk>", "<|begin|>", "<|end|>", *(f"<0x{b:02X}>" for b in range(256))]
    library.train_from_iterator(texts.TRAINING, trainers.BpeTrainer(vocab_size=1100, special_tokens=specials, show_progress=False))
    raw = json.loads(library.to_str())
    raw["added_tokens"] = [t for t in raw["added_tokens"] if t["id"] < 3]
    library = Library.from_str(json.dumps(raw))
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    library.post_processor = processors.TemplateProcessing(single="<|begin|> $A <|end|>", special_tokens=[("<|begin|>", 1), ("<|end|>", 2)])
    return library


def metaspace() -> Library:
    library = Library(models.Unigram())
    library.normalizer = normalizers.NFKC()
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    library.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(vocab_size=600, special_tokens=["<unk>", *SPECIAL], unk_token="<unk>", show_progress=False)
    library.train_from_iterator(texts.TRAINING, trainer)
    return library


KINDS: dict[str, Callable[[], Library]] = {"llama3": llama3, "llama2": llama2, "metaspace": metaspace}


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedTokenizerFast, Tokenizer]:
    """(transformers, ours) over one tokenizer.json with its tokenizer_config.json."""
    folder, library = tmp_path_factory.mktemp("lib"), KINDS[request.param]()
    library.enable_truncation(7)  # left over from a training script, in many published files
    library.enable_padding(length=9)
    library.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>", "eos_token": {"content": "<|end|>", "lstrip": False}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    library.no_truncation()
    library.no_padding()
    theirs = PreTrainedTokenizerFast(tokenizer_object=library, bos_token="<|begin|>", eos_token="<|end|>", clean_up_tokenization_spaces=False)
    return theirs, load_tokenizer(folder)


def test_ids_are_those_of_transformers(pair: tuple[PreTrainedTokenizerFast, Tokenizer]) -> None:
    theirs, ours = pair
    assert [ours.encode(t) for t in texts.SCRIPTS] == [theirs.encode(t, add_special_tokens=False) for t in texts.SCRIPTS]
    spelled = [f"{t}<|end|> {t}<|begin|>\n" for t in texts.ALL]
    assert [ours.encode_rendered(t) for t in spelled] == [theirs.encode(t, add_special_tokens=False) for t in spelled]
    assert [ours.encode(t, special=True) for t in spelled] == [theirs.encode(t) for t in spelled]


def test_ids_of_a_long_text_are_those_of_transformers_too(pair: tuple[PreTrainedTokenizerFast, Tokenizer]) -> None:
    theirs, ours = pair
    long = " ".join(texts.ALL) * (1 + LONG // len(" ".join(texts.ALL)))
    assert len(long) >= LONG
    assert ours.encode_rendered(long + "<|end|>") == theirs.encode(long + "<|end|>", add_special_tokens=False)
    assert ours.special_ids.isdisjoint(ours.encode(f"<|begin|>{long}<|end|>"))


def test_text_is_that_of_transformers(pair: tuple[PreTrainedTokenizerFast, Tokenizer]) -> None:
    theirs, ours = pair
    lists = [theirs.encode(t) for t in texts.ALL]
    assert [ours.decode(ids) for ids in lists] == [theirs.decode(ids, skip_special_tokens=True) for ids in lists]
    assert [ours.decode(ids, special=True) for ids in lists] == [theirs.decode(ids) for ids in lists]


@settings(max_examples=100, deadline=None)
@given(text=texts.texts)
def test_no_text_ever_becomes_a_special_id(pair: tuple[PreTrainedTokenizerFast, Tokenizer], text: str) -> None:
    _, ours = pair
    for spelled in (text, f"<|begin|>{text}<|end|>", f"a <|end|>{text}"):
        assert ours.special_ids.isdisjoint(ours.encode(spelled))


@settings(max_examples=100, deadline=None)
@given(text=texts.texts.map(lambda t: t.replace("<|", "< |")))
def test_decoding_gives_the_text_back_where_the_vocabulary_has_bytes(pair: tuple[PreTrainedTokenizerFast, Tokenizer], text: str) -> None:
    _, ours = pair
    if ours.id_of("<unk>") is None:
        assert ours.decode(ours.encode(text + "<|end|>")) == text + "<|end|>"


def test_a_special_token_spelled_in_text_reads_back_as_the_same_text(pair: tuple[PreTrainedTokenizerFast, Tokenizer]) -> None:
    """The unigram vocabulary holds these spellings as pieces, so leaving them unmatched is not enough."""
    _, ours = pair
    text = "hello <|begin|> world <|end|> <unk>"
    assert ours.encode("<unk>") != [ours.id_of("<unk>")]
    if ours.encoder.token_of(0) != "<unk>" or ours.id_of("<0x7C>") is not None:
        assert ours.decode(ours.encode(text)) == text
    assert len(ours.encode(text)) > len(ours.encode_rendered(text))


def test_vocabulary_facts_are_those_of_transformers(pair: tuple[PreTrainedTokenizerFast, Tokenizer]) -> None:
    theirs, ours = pair
    assert ours.n_vocab == max(theirs.get_vocab().values()) + 1
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert all(ours.token_of(i) == theirs.convert_ids_to_tokens(i) and ours.id_of(ours.token_of(i)) == i for i in range(ours.n_vocab))
    assert ours.adds_bos == (theirs.encode("a")[0] == theirs.bos_token_id)


def test_it_travels_to_another_process(pair: tuple[PreTrainedTokenizerFast, Tokenizer]) -> None:
    _, ours = pair
    assert pickle.loads(pickle.dumps(ours)).encode("hello") == ours.encode("hello")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    llama3().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def config(folder: Path, **facts: Any) -> Tokenizer:
    (folder / "tokenizer_config.json").write_text(json.dumps(facts))
    return load_tokenizer(folder)


def test_an_added_token_past_the_vocabulary_has_the_id_the_config_gives_it(folder: Path) -> None:
    ours = config(folder, added_tokens_decoder={"950": {"content": "<tool>", "special": True}, "960": {"content": "<x>", "special": False, "lstrip": True}})
    assert ours.encode_rendered("a<tool>b  <x>") == [*ours.encode("a"), 950, *ours.encode("b"), 960]
    assert 950 not in ours.encode("a<tool>b")
    assert ours.encode("b  <x>")[-1] == 960  # not special: an ordinary token that happens to be written whole
    assert (ours.n_vocab, ours.decode([950, 960]), ours.decode([950, 960], special=True)) == (961, "<x>", "<tool><x>")
    assert ours.decode([955]) == "\ufffd"


def test_the_same_in_a_unigram_vocabulary(tmp_path: Path) -> None:
    metaspace().save(str(tmp_path / "tokenizer.json"))
    ours = config(tmp_path, added_tokens_decoder={"700": {"content": "<tool>", "special": True}})
    assert ours.encode_rendered("a<tool>")[-1] == 700
    assert 700 not in ours.encode("a<tool>")
    assert ours.n_vocab == 701


@pytest.mark.parametrize(("facts", "prefix", "suffix"), [
    ({}, ["<|begin|>"], []),
    ({"add_bos_token": False}, ["<|begin|>"], []),
    ({"add_eos_token": True}, ["<|begin|>"], []),
])
def test_a_post_processor_that_adds_tokens_has_the_last_word_as_in_transformers(
        folder: Path, facts: dict[str, bool], prefix: list[str], suffix: list[str]) -> None:
    ours = config(folder, tokenizer_class="PreTrainedTokenizerFast", bos_token="<|begin|>", eos_token="<|end|>", **facts)
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    assert ours.encode("hello", special=True) == theirs.encode("hello")
    assert ours.encode("hello", special=True) == [*map(ours.id_of, prefix), *ours.encode("hello"), *map(ours.id_of, suffix)]
    assert ours.adds_bos == bool(prefix)


@pytest.mark.parametrize(("facts", "prefix", "suffix"), [
    ({}, [], []),
    ({"add_bos_token": True}, ["<|begin|>"], []),
    ({"add_eos_token": True}, [], ["<|end|>"]),
    ({"add_bos_token": True, "add_eos_token": True}, ["<|begin|>"], ["<|end|>"]),
])
def test_the_config_decides_where_the_post_processor_adds_nothing(folder: Path, facts: dict[str, bool], prefix: list[str], suffix: list[str]) -> None:
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["post_processor"] = raw["post_processor"]["processors"][0]
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    ours = config(folder, bos_token="<|begin|>", eos_token="<|end|>", **facts)
    assert ours.encode("hello", special=True) == [*map(ours.id_of, prefix), *ours.encode("hello"), *map(ours.id_of, suffix)]
    assert ours.adds_bos == bool(prefix)


def test_bos_and_eos_come_from_the_special_tokens_map_and_from_config_json_where_the_vocabulary_agrees(folder: Path) -> None:
    ids = {t: llama3().token_to_id(t) for t in SPECIAL}
    (folder / "config.json").write_text(json.dumps({"bos_token_id": ids["<|im_start|>"], "eos_token_id": [ids["<|im_end|>"], 7]}))
    ours = load_tokenizer(folder)
    assert (ours.bos_id, ours.eos_id) == (ids["<|im_start|>"], ids["<|im_end|>"])
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|end|>"}}))
    assert load_tokenizer(folder).eos_id == ids["<|end|>"]
    assert config(folder, eos_token=None).eos_id is None
    (folder / "config.json").write_text(json.dumps({"bos_token_id": 40, "eos_token_id": 41}))  # defaults left over: ordinary tokens here
    ours = config(folder)
    assert ours.bos_id == ids["<|begin|>"]
    assert {40, 41}.isdisjoint(ours.special_ids)


def test_a_named_token_that_the_files_do_not_place_is_left_out_but_bos_is_not(folder: Path) -> None:
    assert config(folder, pad_token="[PAD]", additional_special_tokens=["<|im_end|>"]).id_of("[PAD]") is None
    with pytest.raises(BadTokenizer, match=r"bos_token is '<nope>', which the vocabulary of \d+ tokens does not hold"):
        config(folder, bos_token="<nope>")
    raw = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(raw | {"post_processor": None}))
    with pytest.raises(BadTokenizer, match=r"says add_eos_token=true, but no file names a eos_token"):
        config(folder, add_eos_token=True)


def test_a_vocabulary_token_that_the_config_calls_special_is_one(folder: Path) -> None:
    word = next(t for t in llama3().get_vocab() if t.isascii() and t.isalpha() and len(t) > 3)
    ours = config(folder, extra_special_tokens=[word])
    assert ours.id_of(word) in ours.special_ids
    assert ours.id_of(word) not in ours.encode(word)
    assert ours.encode_rendered(word) == [ours.id_of(word)]


def test_files_that_contradict_each_other_are_refused(folder: Path) -> None:
    with pytest.raises(BadTokenizer, match=r"gives '<\|end\|>' the id 5, the vocabulary gives it 1. One of them is from another model"):
        config(folder, added_tokens_decoder={"5": {"content": "<|end|>"}})
    with pytest.raises(BadTokenizer, match=r"gives the id 5 to '<new>', the vocabulary to '.+'"):
        config(folder, added_tokens_decoder={"5": {"content": "<new>"}})


@pytest.mark.parametrize(("facts", "message"), [
    ({"bos_token": 7}, r"has bos_token=7; expected a text"),
    ({"add_bos_token": "yes"}, r"has add_bos_token='yes'; expected true or false"),
    ({"added_tokens_decoder": {"x": {"content": "<a>"}}}, r"has 'x': .*expected an id and an object with a content"),
    ({"added_tokens_decoder": ["<a>"]}, r"added_tokens_decoder of .*json is \['<a>'\]; expected an object from ids to tokens"),
    ({"added_tokens_decoder": {"²": {"content": "<a>"}}}, r"has '²': .*expected an id and an object"),
    ({"extra_special_tokens": 3}, r"has extra_special_tokens=3; expected a list of tokens, or an object of them"),
    ({"chat_template": 3}, r"chat_template of .* is int; expected a text or a list"),
])
def test_a_config_that_is_not_understood_is_refused(folder: Path, facts: dict[str, Any], message: str) -> None:
    with pytest.raises(BadTokenizer, match=message):
        config(folder, **facts)


def test_small_files_that_are_no_json_objects_are_refused(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(BadTokenizer, match=r"tokenizer_config\.json is not JSON"):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(BadTokenizer, match=r"tokenizer_config\.json holds a list, and an object \{\.\.\.\} was expected"):
        load_tokenizer(folder)


@pytest.mark.parametrize(("file", "content", "message"), [
    ("tokenizer_config.json", b'{"a":' * 60_000, r"tokenizer_config\.json is not JSON that can be read: it is nested too deeply"),
    ("special_tokens_map.json", b'{"a": "\xff"}', r"special_tokens_map\.json is not UTF-8 text: byte 7 is 0xff"),
    ("added_tokens.json", b'{"<x>": "abc"}', r"added_tokens\.json gives '<x>' the id 'abc'; expected a whole number from 0"),
    ("added_tokens.json", b'{"<x>": null}', "gives '<x>' the id None"),
    ("added_tokens.json", b'{"<x>": -1}', "gives '<x>' the id -1"),
    ("added_tokens.json", b'{"<x>": 4294967296}', "gives '<x>' the id 4294967296"),
    ("chat_template.json", b'{"chat_template": 3}', r"chat_template of .*chat_template\.json is int; expected a text or a list"),
    ("chat_template.jinja", b"caf\xe9", r"chat_template\.jinja is not UTF-8 text: byte 3 is 0xe9"),
    ("additional_chat_templates/rag.jinja", b"\xff", r"rag\.jinja is not UTF-8 text: byte 0 is 0xff"),
])
def test_a_small_file_that_is_not_what_its_name_says_is_refused_by_name(folder: Path, file: str, content: bytes, message: str) -> None:
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_bytes(content)
    with pytest.raises(BadTokenizer, match=message):
        load_tokenizer(folder)


def test_a_byte_order_mark_in_a_small_file_does_not_matter(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xef\xbb\xbf{}")
    load_tokenizer(folder)


def test_paths_that_hold_no_tokenizer_say_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no such file or folder: .*nope.*tokenizer\.json"):
        load_tokenizer(tmp_path / "nope")
    with pytest.raises(BadTokenizer, match=r"no tokenizer in .*none of tokenizer\.json, .* It is empty"):
        load_tokenizer(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(BadTokenizer, match=r"It holds weights\.bin\."):
        load_tokenizer(tmp_path)
    with pytest.raises(BadTokenizer, match=r"weights\.bin is not a tokenizer file known here"):
        load_tokenizer(tmp_path / "weights.bin")
    for name in ("a.tiktoken", "b.tiktoken"):
        (tmp_path / name).write_bytes(b"IQ== 0\n")
    with pytest.raises(BadTokenizer, match=r"has 2 files of tiktoken ranks: a\.tiktoken, b\.tiktoken"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BadTokenizer, match=r"tokenizer\.json is not a tokenizer that the tokenizers library reads"):
        load_tokenizer(tmp_path)


A, B, Q = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}, {"SpecialToken": {"id": "Q", "type_id": 0}}
TEMPLATE_OF_A_GONE_TOKEN = {"type": "TemplateProcessing", "single": [Q, A], "pair": [A, B],
                            "special_tokens": {"Q": {"id": "Q", "ids": [1], "tokens": ["<gone>"]}}}


@pytest.mark.parametrize(("change", "message"), [
    (lambda raw: raw.update(decoder={"type": "WordPiece", "prefix": "##", "cleanup": True}),
     r"has a decoder that is not implemented.*WordPiece.*known: ByteLevel"),
    (lambda raw: raw.update(decoder={"type": "Sequence", "decoders": [raw["decoder"], {"type": "ByteFallback"}]}), "mixes ByteLevel with other decoders"),
    (lambda raw: raw.update(post_processor=TEMPLATE_OF_A_GONE_TOKEN), "bos_token is '<gone>'"),
])
def test_a_tokenizer_json_with_parts_not_known_here_is_refused(folder: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    raw = json.loads((folder / "tokenizer.json").read_text())
    change(raw)
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(BadTokenizer, match=message):
        load_tokenizer(folder)


def test_roberta_style_ends_are_read(folder: Path) -> None:
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["post_processor"] = {"type": "RobertaProcessing", "sep": ["<|end|>", 1], "cls": ["<|begin|>", 0], "trim_offsets": True, "add_prefix_space": False}
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    ours = load_tokenizer(folder)
    assert ours.encode("hello", special=True) == Library.from_file(str(folder / "tokenizer.json")).encode("hello").ids
    assert (ours.bos_id, ours.eos_id) == (0, 1)


def test_a_tokenizer_without_a_decoder_joins_with_spaces(tmp_path: Path) -> None:
    library = Library(models.WordLevel({"<unk>": 0, "hello": 1, "world": 2}, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    assert ours.decode(ours.encode("hello  world moon")) == library.decode([1, 2, 0], skip_special_tokens=False) == "hello world <unk>"


def test_what_is_no_text_or_no_id_is_a_bad_request(folder: Path) -> None:
    ours = load_tokenizer(folder)
    with pytest.raises(BadRequest, match=r"half a character \(the lone surrogate '\\ud83d' at position 2\)"):
        ours.encode("ab\ud83d")
    with pytest.raises(BadRequest, match="text to encode is bytes, not str"):
        ours.encode(b"ab")  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match=rf"99999 is not an id of this tokenizer, whose ids go from 0 to {ours.n_vocab - 1}"):
        ours.token_of(99999)
    with pytest.raises(BadRequest, match="-1 is not a token id"):
        ours.decode([-1])


def test_a_post_processor_not_known_here_is_refused_by_name() -> None:
    """No version of the library that is out writes one, so it is read from JSON directly."""
    with pytest.raises(BadTokenizer, match=r"x has a post-processor that is not implemented: 'Novel' \(known: TemplateProcessing"):
        _ends_of_post_processor('{"type": "Novel"}', "x")


def test_nothing_of_the_oracles_is_imported(folder: Path) -> None:
    import subprocess
    import sys

    code = (f"import sys; from pellucid.tokenizer import load_tokenizer; load_tokenizer({str(folder)!r}).encode('a<|end|>');"
            "print([m for m in ('torch', 'transformers', 'sentencepiece', 'tiktoken', 'google.protobuf') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"

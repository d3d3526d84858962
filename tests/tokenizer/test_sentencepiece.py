"""tokenizer.model against the sentencepiece library: the same ids and the same text, for every option a model can be trained with."""
from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings

from pellucid.errors import BadTokenizer
from pellucid.tokenizer import Tokenizer, load_tokenizer
from pellucid.tokenizer.charsmap import Charsmap
from tests.tokenizer import texts

Oracle = sentencepiece.SentencePieceProcessor
OPTIONS = {
    "llama": {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False, "split_digits": True,
                  "allow_whitespace_only_pieces": True},
    "gemma": {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False, "add_dummy_prefix": False,
                  "user_defined_symbols": ["<mark>", "▁▁▁", "\n\n"]},
    "bpe without bytes": {"model_type": "bpe", "normalization_rule_name": "nmt_nfkc"},
    "bpe, no prefix, collapsed": {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "nfkc_cf", "add_dummy_prefix": False},
    "t5": {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc", "control_symbols": ["<ctl>"]},
    "llm-jp": {"model_type": "unigram", "byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False, "split_digits": True,
                   "user_defined_symbols": ["<mark>", "▁▁▁"]},
    "unigram, collapsed identity": {"model_type": "unigram", "normalization_rule_name": "identity", "add_dummy_prefix": False},
    "unigram, case folded": {"model_type": "unigram", "byte_fallback": True, "normalization_rule_name": "nmt_nfkc_cf", "user_defined_symbols": ["[X]"]},
    "pieces across words": {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc", "split_by_whitespace": False},
    "space at the end": {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc", "treat_whitespace_as_suffix": True},
    "space at the end, bpe": {"model_type": "bpe", "byte_fallback": True, "treat_whitespace_as_suffix": True},
}


def train(**options: object) -> bytes:
    out = io.BytesIO()
    size = (1200 if options.get("model_type") == "bpe" else 500) + 256 * bool(options.get("byte_fallback"))
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts.TRAINING), model_writer=out, minloglevel=2, hard_vocab_limit=False,
                                             **{"vocab_size": size, "character_coverage": 0.98} | options)
    return out.getvalue()


@pytest.fixture(scope="module", params=OPTIONS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Oracle, Tokenizer]:
    """(the library, ours) over one trained model."""
    file = tmp_path_factory.mktemp("spm") / "tokenizer.model"
    file.write_bytes(train(**OPTIONS[request.param]))
    return Oracle(model_file=str(file)), load_tokenizer(file)


def test_ids_are_those_of_the_library_on_every_script_and_odd_text(pair: tuple[Oracle, Tokenizer]) -> None:
    oracle, ours = pair
    assert [ours.encode(t) for t in texts.ALL] == oracle.encode(texts.ALL)


@settings(max_examples=60, deadline=None)
@given(text=texts.texts)
def test_ids_are_those_of_the_library_on_any_text(pair: tuple[Oracle, Tokenizer], text: str) -> None:
    oracle, ours = pair
    assert ours.encode(text) == oracle.encode(text)


def test_ids_are_those_of_the_library_where_its_sums_begin_anew(pair: tuple[Oracle, Tokenizer]) -> None:
    """At 100,000 below zero, which a unigram model reaches after some 50,000 characters: twice here, with ties and odd text all along."""
    oracle, ours = pair
    lines = [line for text in [*texts.ALL, *texts.TRAINING] for line in text.splitlines() if line.isprintable()]
    text = " ".join(lines[7 * k % len(lines)] for k in range(20_000))[:110_000]
    assert ours.encode(text) == oracle.encode(text)


def test_text_of_any_ids_is_that_of_the_library(pair: tuple[Oracle, Tokenizer]) -> None:
    """Every id alone, then runs of ids: half characters, control pieces in the middle of bytes, spaces at the start."""
    oracle, ours = pair
    n = oracle.get_piece_size()
    lists = [[i] for i in range(n)] + [[(7 * k * k + 31 * k * j + j) % n for j in range(12)] for k in range(400)]
    assert [ours.decode(ids) for ids in lists] == oracle.decode(lists)


def test_vocabulary_and_special_ids_are_those_of_the_library(pair: tuple[Oracle, Tokenizer]) -> None:
    oracle, ours = pair
    assert (ours.n_vocab, ours.bos_id, ours.eos_id) == (oracle.get_piece_size(), oracle.bos_id(), oracle.eos_id())
    assert [ours.token_of(i) for i in range(ours.n_vocab)] == [oracle.id_to_piece(i) for i in range(ours.n_vocab)]
    assert ours.special_ids == {i for i in range(ours.n_vocab) if oracle.is_control(i)}
    assert ours.adds_bos
    assert ours.encode("hi", special=True) == [oracle.bos_id(), *oracle.encode("hi")]


def test_spelled_control_pieces_become_ids_only_when_asked(pair: tuple[Oracle, Tokenizer]) -> None:
    oracle, ours = pair
    text = "a<s>b</s>c"
    assert ours.special_ids.isdisjoint(ours.encode(text))
    assert ours.encode_rendered(text) == [*oracle.encode("a"), oracle.bos_id(), *oracle.encode("b"), oracle.eos_id(), *oracle.encode("c")]


def test_the_text_after_a_special_token_gets_no_space_where_the_config_says_legacy_false(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(train(**OPTIONS["llama"]))
    (tmp_path / "tokenizer_config.json").write_text('{"legacy": false}')
    ours, oracle = load_tokenizer(tmp_path), Oracle(model_file=str(tmp_path / "tokenizer.model"))
    without = [i for i in oracle.encode("b") if oracle.id_to_piece(i) != "▁"]
    assert ours.encode_rendered("</s>b") == [2, ours.id_of("b")] != [2, *oracle.encode("b")]
    assert without is not None
    assert ours.encode("b") == oracle.encode("b")


def test_a_config_may_name_a_reserved_piece_and_add_ids_past_the_model(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(train(**OPTIONS["t5"]))
    oracle = Oracle(model_file=str(tmp_path / "tokenizer.model"))
    reserved, n = oracle.piece_to_id("<ctl>"), oracle.get_piece_size()
    (tmp_path / "tokenizer_config.json").write_text(
        f'{{"added_tokens_decoder": {{"{reserved}": {{"content": "<turn>", "special": true}}, "{n + 3}": {{"content": "<far>", "special": true}}}}}}')
    ours = load_tokenizer(tmp_path)
    assert ours.encode_rendered("<turn>hello<far>") == [reserved, *oracle.encode("hello"), n + 3]
    assert ours.n_vocab == n + 4
    assert ours.decode([reserved, n + 3], special=True) == "<turn><far>"
    assert ours.id_of("<ctl>") is None


def test_a_config_that_renames_an_ordinary_piece_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(train(**OPTIONS["t5"]))
    n = Oracle(model_file=str(tmp_path / "tokenizer.model")).get_piece_size() - 1
    (tmp_path / "tokenizer_config.json").write_text(f'{{"added_tokens_decoder": {{"{n}": {{"content": "<turn>", "special": true}}}}}}')
    with pytest.raises(BadTokenizer, match=rf"gives the id {n} to '<turn>', the model to .*from another model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(f'{{"added_tokens_decoder": {{"{n + 1}": {{"content": "</s>", "special": true}}}}}}')
    with pytest.raises(BadTokenizer, match=rf"gives '</s>' the id {n + 1}, the model gives it 2"):
        load_tokenizer(tmp_path)


def test_normalization_rules_are_applied_like_the_library_does() -> None:
    """On 4,000 characters of every plane that has rules, alone and between combining marks."""
    normalizer = sentencepiece.SentencePieceNormalizer(rule_name="nmt_nfkc_cf", add_dummy_prefix=False, escape_whitespaces=False,
                                                       remove_extra_whitespaces=False)
    rules = Charsmap(_charsmap(train(**OPTIONS["unigram, case folded"])))
    points = [*range(0x20, 0x600), *range(0x1100, 0x1200), *range(0x1E00, 0x2200), *range(0xAC00, 0xAC40), *range(0xF900, 0xFA00), *range(0xFF00, 0xFFEF),
                          *range(0x1D400, 0x1D500)]
    samples = [chr(c) + tail for c in points for tail in ("", "\u0301", "\u11ab", "a")]
    assert ["".join(rules.split(s)) for s in samples] == [normalizer.normalize(s) for s in samples]


def _charsmap(model: bytes) -> bytes:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    return bytes(proto.normalizer_spec.precompiled_charsmap)


@pytest.mark.shared
def test_the_tokenizer_of_a_trained_model_gives_the_ids_of_the_library(shared: Path) -> None:
    oracle, ours = Oracle(model_file=str(shared / "stories260k/tokenizer.model")), load_tokenizer(shared / "stories260k")
    assert [ours.encode(t) for t in texts.ALL] == oracle.encode(texts.ALL)
    lists = [[(k * 37 + j * j) % 512 for j in range(9)] for k in range(512)]
    assert [ours.decode(ids) for ids in lists] == oracle.decode(lists)


def _field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return bytes([number << 3 & 0x7F | 0x80 if number > 15 else number << 3, *([number >> 4] if number > 15 else []), value])
    key = number << 3 | 2
    assert key < 128
    assert len(value) < 128
    return bytes([key, len(value)]) + value


PIECES = b"".join(_field(1, _field(1, text) + b"\x15" + struct.pack("<f", -1.0) + bytes([0x18, kind])) for text, kind in ((b"<unk>", 2), (b"a", 1), (b"b", 1)))


@pytest.mark.parametrize(("data", "message"), [
    (PIECES[:-4], r"wants \d+ bytes, \d+ are left. Is the file whole"),
    (b"\x0a", "a number at byte 1 does not end"),
    (b"\x0f\x01", "wire type 7 at byte 1 does not exist"),
    (b"\x12\x00", "holds no pieces"),
    (_field(1, _field(1, b"\xff\xfe")), "a piece that is not one"),
    (_field(1, _field(1, b"a") + bytes([0x18, 9])), "a piece that is not one: 9 is not a valid Kind"),
    (PIECES + _field(2, bytes([0x18, 3])), "of type 'word'; only unigram and bpe"),
    (PIECES + _field(2, bytes([0x98, 2, 1])), "says byte_fallback, but has 0 of the 256 byte pieces"),
    (PIECES + _field(2, bytes([0xC0, 2, 7])), "says unk_id=7, but has 3 pieces"),
    (PIECES + _field(3, _field(2, b"\x08\0\0\0abc")), "says its trie has 8 bytes, but 3 follow"),
    (PIECES + _field(5, _field(2, b"x")), "change text after decoding"),
    (PIECES + _field(1, _field(1, b"c") + bytes([0x18, 5])) + _field(2, bytes([0x18, 2])), "a BPE model with 1 unused pieces"),
])
def test_a_file_that_is_no_such_model_is_refused_by_name(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(BadTokenizer, match=message):
        load_tokenizer(tmp_path / "tokenizer.model")


def test_a_pair_joins_even_where_its_parts_are_no_pieces(tmp_path: Path) -> None:
    """Gemma has a piece of two tabs and none of one: the pair is one id, a tab alone its byte."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(train(**OPTIONS["llama"]))
    for text in ("\t\t", "ቀበ"):
        proto.pieces.add(piece=text, score=-0.5)
    file = tmp_path / "tokenizer.model"
    file.write_bytes(proto.SerializeToString())
    oracle, ours = Oracle(model_file=str(file)), load_tokenizer(file)
    samples = ["\t", "\t\t", "\t\t\t", "a\t\t\tb", "ቀ", "ቀበ", "ቀቀበበ"]
    assert [ours.encode(t) for t in samples] == oracle.encode(samples)
    assert oracle.get_piece_size() - 2 in ours.encode("\t\t")


def test_streaming_and_whole_text_agree_after_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(train(**OPTIONS["llama"]))
    ours = load_tokenizer(tmp_path)
    prompt, more = ours.encode("hello world"), ours.encode("hello world this is 😀")[len(ours.encode("hello world")):]
    assert ours.decode(more).startswith("this")
    assert ours.decode(more, after=prompt) == " this is 😀"



"""vocab.json + merges.txt, against transformers and against the ids that llama.cpp publishes for real vocabularies."""
from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from tokenizers import Regex, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library
from tokenizers.models import BPE
from transformers import GPT2Tokenizer, Qwen2Tokenizer

from pellucid.errors import BadTokenizer
from pellucid.tokenizer import Tokenizer, load_tokenizer
from pellucid.tokenizer.bytelevel import anchored, to_bytes, to_chars
from tests.tokenizer import texts

Parts = tuple[dict[str, int], list[list[str]]]


@pytest.fixture(scope="module")
def trained() -> Parts:
    """(vocab, merges) of a byte-level BPE trained here."""
    library = Library(BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.train_from_iterator(texts.TRAINING, trainers.BpeTrainer(vocab_size=900, special_tokens=["<|endoftext|>"], show_progress=False,
                                                                     initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    model = json.loads(library.to_str())["model"]
    return model["vocab"], model["merges"]


def write(folder: Path, parts: Parts, **config: object) -> Path:
    vocab, merges = parts
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n", "utf-8")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_gpt2_files_give_the_ids_of_transformers(trained: Parts, tmp_path: Path) -> None:
    ours, theirs = load_tokenizer(write(tmp_path, trained)), GPT2Tokenizer(vocab=trained[0], merges=[tuple(m) for m in trained[1]])
    assert [ours.encode(t) for t in texts.ALL] == [theirs.encode(t, split_special_tokens=True) for t in texts.ALL]
    assert [ours.encode_rendered(t) for t in texts.ALL] == [theirs.encode(t) for t in texts.ALL]
    assert ours.bos_id == ours.eos_id == ours.id_of("<|endoftext|>")
    assert not ours.adds_bos


def test_qwen2_files_give_the_ids_of_transformers(trained: Parts, tmp_path: Path) -> None:
    folder = write(tmp_path, trained, tokenizer_class="Qwen2TokenizerFast", eos_token="<|endoftext|>", bos_token=None, add_bos_token=False)
    ours, theirs = load_tokenizer(folder / "vocab.json"), Qwen2Tokenizer(vocab=trained[0], merges=[tuple(m) for m in trained[1]])
    assert [ours.encode(t) for t in texts.ALL] == [theirs.encode(t, split_special_tokens=True) for t in texts.ALL]
    assert ours.bos_id is None


def test_opt_files_begin_with_bos_and_with_a_space_where_the_config_says_so(trained: Parts, tmp_path: Path) -> None:
    ends = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    folder = write(tmp_path, trained, tokenizer_class="GPT2Tokenizer", add_bos_token=True, add_prefix_space=True, **ends)
    ours, theirs = load_tokenizer(folder), GPT2Tokenizer(vocab=trained[0], merges=[tuple(m) for m in trained[1]], add_prefix_space=True)
    assert ours.adds_bos
    assert [ours.encode(t, special=True) for t in texts.SCRIPTS] == [[ours.bos_id, *theirs.encode(t, add_special_tokens=False)] for t in texts.SCRIPTS]


@settings(max_examples=100, deadline=None)
@given(text=texts.texts)
def test_decoding_gives_the_text_back(trained: Parts, tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    if not _cache:
        _cache.append(load_tokenizer(write(tmp_path_factory.mktemp("t"), trained)))
    [ours] = _cache
    assert ours.decode(ours.encode(text)) == text


_cache: list[Tokenizer] = []


def test_every_byte_has_its_own_character() -> None:
    assert to_bytes(to_chars(bytes(range(256)))) == bytes(range(256))
    assert len(set(to_chars(bytes(range(256))))) == 256


@pytest.mark.parametrize(("pattern", "python"), [(r"a$", r"a\Z"), (r"^a", r"\Aa"), (r"[$^]a\$", r"[$^]a\$")])
def test_ends_in_a_pattern_are_the_ends_of_the_text(pattern: str, python: str) -> None:
    text = "a\nxa\na$a^a$\na"
    split = pre_tokenizers.Split(Regex(anchored(pattern)), behavior="removed")
    kept = [span for _, span in split.pre_tokenize_str(text)]
    gone = [m.span() for m in re.finditer(python, text)]
    assert sorted(i for a, b in kept for i in range(a, b)) == [i for i in range(len(text)) if not any(a <= i < b for a, b in gone)]


VECTORS = {  # how each model's tokenizer.json splits text
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "mpt": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "starcoder": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    "falcon": pre_tokenizers.Sequence([pre_tokenizers.Punctuation("contiguous"), pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.Digits(False),
                                       pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated")]),
}


def metadata(file: Path) -> dict[str, Any]:
    """The metadata of a GGUF file; the gguf package takes seconds over lists of this length. Types 8 text, 9 list, the others numbers."""
    data, at, numbers = file.read_bytes(), 24, "BbHhIif?  QqD"

    def take(kind: int) -> Any:
        nonlocal at
        if kind == 9:
            inner, n = struct.unpack_from("<IQ", data, at)
            at += 12
            return [take(inner) for _ in range(n)]
        code = "Q" if kind == 8 else numbers[kind].replace("D", "d")
        [value] = struct.unpack_from(f"<{code}", data, at)
        at += struct.calcsize(f"<{code}")
        if kind != 8:
            return value
        at += value
        return data[at - value:at].decode()

    def pair() -> tuple[str, Any]:
        nonlocal at
        key = take(8)
        at += 4
        return key, take(struct.unpack_from("<I", data, at - 4)[0])

    return dict(pair() for _ in range(struct.unpack_from("<Q", data, 16)[0]))


def published(folder: Path, name: str) -> tuple[list[str], list[list[int]]]:
    raw = (folder / f"ggml-vocab-{name}.gguf.inp").read_bytes().decode()
    ids = [[int(i) for i in line.split()] for line in (folder / f"ggml-vocab-{name}.gguf.out").read_text().splitlines()]
    samples = raw.split("\n__ggml_vocab_test__\n")
    assert samples.pop() == ""
    assert len(samples) == len(ids) > 40
    return samples, ids


@pytest.mark.shared
@pytest.mark.parametrize("name", VECTORS)
def test_real_vocabularies_give_the_published_ids(shared: Path, tmp_path: Path, name: str) -> None:
    """Through vocab.json + merges.txt where the format can say how text is split (GPT-2, MPT), through a tokenizer.json otherwise."""
    folder = shared / "tokenizer_vectors"
    fields = metadata(folder / f"ggml-vocab-{name}.gguf")
    vocab = {token: i for i, token in enumerate(fields["tokenizer.ggml.tokens"])}
    merges = [m.split(" ") for m in fields["tokenizer.ggml.merges"]]
    kinds = fields["tokenizer.ggml.token_type"]
    added = {str(i): {"content": token, "special": kinds[i] == 3} for token, i in vocab.items() if kinds[i] in (3, 4)}  # control, user-defined
    write(tmp_path, (vocab, merges), added_tokens_decoder=added)
    if name in ("starcoder", "falcon"):
        library = Library(BPE(vocab, [tuple(m) for m in merges]))
        library.pre_tokenizer = VECTORS[name]
        library.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    samples, ids = published(folder, name)
    assert [ours.encode(t) for t in samples] == ids


@pytest.mark.shared
def test_the_real_llama_vocabulary_gives_the_published_ids(shared: Path, tmp_path: Path) -> None:
    from sentencepiece import sentencepiece_model_pb2

    folder = shared / "tokenizer_vectors"
    fields = metadata(folder / "ggml-vocab-llama-spm.gguf")
    proto = sentencepiece_model_pb2.ModelProto()
    for text, score, kind in zip(*(fields[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores", "token_type")), strict=True):
        proto.pieces.add(piece=text, score=score, type=kind)
    proto.trainer_spec.model_type, proto.trainer_spec.byte_fallback = 2, True
    proto.normalizer_spec.name, proto.normalizer_spec.remove_extra_whitespaces = "identity", False
    (tmp_path / "tokenizer.model").write_bytes(proto.SerializeToString())
    ours = load_tokenizer(tmp_path)
    samples, ids = published(folder, "llama-spm")
    assert [ours.encode(t) for t in samples] == ids


def test_files_that_are_not_whole_are_refused_by_name(trained: Parts, tmp_path: Path) -> None:
    write(tmp_path, trained, tokenizer_class="HerbertTokenizer")
    with pytest.raises(BadTokenizer, match=r"of class 'HerbertTokenizer', whose way of splitting text is not known here \(known: GPT2Tokenizer.*pattern="):
        load_tokenizer(tmp_path)
    assert load_tokenizer(tmp_path, pattern=r"\S+|\s+").encode("a  b")
    with pytest.raises(BadTokenizer, match="split pattern does not compile: Oniguruma error"):
        load_tokenizer(tmp_path, pattern="(a")
    (tmp_path / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    with pytest.raises(BadTokenizer, match="add_prefix_space=true with a split pattern that is not GPT-2's"):
        load_tokenizer(tmp_path, pattern=r"\S+|\s+")
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b c\n")
    with pytest.raises(BadTokenizer, match=r"merges.txt, line 2: 'a b c' is not two tokens"):
        load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("a zzz\n")
    with pytest.raises(BadTokenizer, match=r"vocabulary and merges contradict each other: .*zzz"):
        load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(BadTokenizer, match=r"needs its merges in merges.txt beside it, which is not there"):
        load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("")
    (tmp_path / "vocab.json").write_text('{"a": "b"}')
    with pytest.raises(BadTokenizer, match="is not a table of token -> id"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(BadTokenizer, match=r"vocab\.json is not JSON"):
        load_tokenizer(tmp_path)

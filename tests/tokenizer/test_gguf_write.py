"""Tokenizers written to GGUF's metadata and to Hugging Face's files, and read again: the same ids, or a refusal that says what cannot be said."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
import transformers
from gguf import GGUFReader
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

import pellucid
from pellucid.errors import BadTokenizer
from pellucid.tokenizer import Tokenizer, load_tokenizer, tokenizer_of_gguf
from pellucid.tokenizer.bytelevel import GPT2_PATTERN, QWEN_PATTERN
from pellucid.tokenizer.gguf_write import PROBES, gguf_metadata
from pellucid.tokenizer.pretokenizers import PRE
from pellucid.tokenizer.save import tokenizer_files
from pellucid.tokenizer.sentencepiece import read
from pellucid.weights.gguf import open_gguf
from pellucid.weights.gguf_write import write_gguf
from tests.tokenizer.texts import ALL, TRAINING

TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
Steps = Callable[[tokenizers.Tokenizer], None]


def split(*patterns: str, nfc: bool = False, **more: Any) -> Steps:
    def change(t: tokenizers.Tokenizer) -> None:
        steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
        t.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        if nfc:
            t.normalizer = normalizers.NFC()
    return change


def steps(*each: Any) -> Steps:
    def change(t: tokenizers.Tokenizer) -> None:
        t.pre_tokenizer = pre_tokenizers.Sequence(list(each))
    return change


def byte_level(folder: Path, change: Steps | None = None, *, bos: bool = True, **config: Any) -> Tokenizer:
    """A byte-level BPE in a folder, as a repository has it: BOS by a post-processor, a user's own token, a template."""
    folder.mkdir(exist_ok=True)
    t = tokenizers.Tokenizer(models.BPE(ignore_merges=bool(config.pop("ignore_merges", False))))
    (change or split(GPT2_PATTERN))(t)
    t.train_from_iterator(TRAINING, trainers.BpeTrainer(vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    t.add_special_tokens(["<|begin|>", "<|end|>", "<|turn|>"])
    t.add_tokens([AddedToken("<own>", normalized=False)])
    t.decoder = decoders.ByteLevel()
    if bos:
        t.post_processor = processors.TemplateProcessing(single="<|begin|> $A", pair="<|begin|> $A $B",
                                                         special_tokens=[("<|begin|>", t.token_to_id("<|begin|>"))])
    t.save(str(folder / "tokenizer.json"))
    facts = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "chat_template": [{"name": "default", "template": TEMPLATE}, {"name": "tools", "template": "x"}]}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts | config))
    return load_tokenizer(folder)


def sentencepieces(folder: Path, kind: str, **how: Any) -> Tokenizer:
    folder.mkdir(exist_ok=True)
    (folder / "text").write_text("\n".join(TRAINING))
    sentencepiece.SentencePieceTrainer.Train(input=str(folder / "text"), model_prefix=str(folder / "tokenizer"), model_type=kind, vocab_size=550,
                                             byte_fallback=True, character_coverage=0.99, minloglevel=9, user_defined_symbols=["<own>"],
                                             remove_extra_whitespaces=False, normalization_rule_name="identity", **how)
    facts = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, "add_eos_token": False, "chat_template": TEMPLATE,
             "added_tokens_decoder": {"550": {"content": "<|turn|>", "special": True}, "552": {"content": "<beside>", "special": False}}}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts))
    return load_tokenizer(folder)


def spaced(folder: Path, *, prefix: bool) -> Tokenizer:
    """Llama's or Gemma's vocabulary as tokenizer.json has it: the merges of a SentencePiece model, and not its scores."""
    from pellucid.tokenizer.sentencepiece import Kind, bpe_merges
    sentencepieces(folder, "bpe")
    model = read(folder / "tokenizer.model")
    vocab = {p.text: i for i, p in enumerate(model.pieces)}
    normal = {p.text: p.score for p in model.pieces if p.kind is Kind.NORMAL}
    t = tokenizers.Tokenizer(models.BPE(vocab, bpe_merges(normal, normal), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix else replace
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    t.add_special_tokens(["<unk>", "<s>", "</s>"])
    t.add_tokens([AddedToken("<own>", normalized=False)])
    (folder / "tokenizer.model").unlink()
    t.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}))
    return load_tokenizer(folder)


def through_gguf(tokenizer: Tokenizer, path: Path, n_rows: int, **how: Any) -> Tokenizer:
    said, notes = gguf_metadata(tokenizer, n_rows, **how)
    assert notes == []
    write_gguf(path, {"general.architecture": "llama", **said}, [], overwrite=True)
    return tokenizer_of_gguf(open_gguf(path).metadata, str(path))


def through_files(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    for name, content in tokenizer_files(tokenizer, 64).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_tokenizer(folder)


def same(a: Tokenizer, b: Tokenizer) -> None:
    for text in (*ALL, *PROBES, "".join(f"{token} x" for token in a.special), "<own> a<own>b <beside>c"):
        for special in (False, True):
            text = text.replace("<unk>", "") if special else text  # SentencePiece has no such token in text, tokenizer.json may
            ids = a.encode(text, special)
            assert b.encode(text, special) == ids, (text, special)
            assert b.decode(ids) == a.decode(ids)
    assert (a.bos_id, a.eos_id, a.prefix, a.suffix, dict(a.special)) == (b.bos_id, b.eos_id, b.prefix, b.suffix, dict(b.special))
    assert {name: t.source for name, t in a.chat_templates.items()} == {name: t.source for name, t in b.chat_templates.items()}


MADE: dict[str, Callable[[Path], Tokenizer]] = {
    "gpt-2": lambda f: byte_level(f), "gpt-2 without BOS": lambda f: byte_level(f, bos=False),
    "qwen2": lambda f: byte_level(f, split(QWEN_PATTERN, nfc=True)), "deepseek-r1-qwen": lambda f: byte_level(f, split(QWEN_PATTERN)),
    "llama3": lambda f: byte_level(f, split(*PRE["llama3"].split), ignore_merges=True),
    "deepseek-v3": lambda f: byte_level(f, split(*PRE["deepseek-v3"].split)),
    "starcoder": lambda f: byte_level(f, steps(pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False))),
    "falcon": lambda f: byte_level(f, steps(pre_tokenizers.Punctuation("contiguous"), pre_tokenizers.ByteLevel(add_prefix_space=False),
                                           pre_tokenizers.Digits(), pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"))),
    "bpe": lambda f: sentencepieces(f, "bpe"), "bpe without a space": lambda f: sentencepieces(f, "bpe", add_dummy_prefix=False),
    "unigram": lambda f: sentencepieces(f, "unigram"), "llama": lambda f: spaced(f, prefix=True), "gemma": lambda f: spaced(f, prefix=False)}


@pytest.mark.parametrize("name", MADE)
def test_through_gguf_and_back_to_files_the_ids_are_the_same(tmp_path: Path, name: str) -> None:
    tokenizer = MADE[name](tmp_path / "m")
    there = through_gguf(tokenizer, tmp_path / "m.gguf", tokenizer.n_vocab + 5)
    same(tokenizer, there)
    same(there, through_files(there, tmp_path / "files"))
    fields = GGUFReader(tmp_path / "m.gguf").fields
    if name in PRE:
        assert fields["tokenizer.ggml.pre"].contents() == name
    tokens, kinds = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type"))
    assert len(tokens) == len(kinds) == tokenizer.n_vocab + 5
    assert (tokens[-1], kinds[-1]) == (f"[PAD{tokenizer.n_vocab + 4}]", 5)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_library_reads_the_model_that_is_written(tmp_path: Path, kind: str) -> None:
    tokenizer = sentencepieces(tmp_path / "m", kind)
    there = through_gguf(tokenizer, tmp_path / "m.gguf", 560)
    through_files(there, tmp_path / "files")
    before, after = (sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / each / "tokenizer.model")) for each in ("m", "files"))
    for text in ALL:
        assert after.encode(text) == before.encode(text), text
    assert (after.bos_id(), after.eos_id(), after.unk_id()) == (1, 2, 0)


def test_transformers_reads_the_files_that_are_written(tmp_path: Path) -> None:
    there = through_gguf(byte_level(tmp_path / "m"), tmp_path / "m.gguf", 500)
    through_files(there, tmp_path / "files")
    theirs: Any = transformers.AutoTokenizer.from_pretrained(tmp_path / "files")
    for text in PROBES:
        assert theirs(text)["input_ids"] == there.encode(text, special=True), text
    assert theirs.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<|begin|>[user] hi"


def test_special_ids_ends_and_flags_are_said(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path / "m")
    ids = {token: tokenizer.id_of(token) for token in ("<|begin|>", "<|end|>", "<|turn|>")}
    said, _ = gguf_metadata(tokenizer, 500, end_ids=[ids["<|end|>"] or 0, ids["<|turn|>"] or 0])
    assert {key.removeprefix("tokenizer.ggml."): value for key, value in said.items() if not isinstance(value, list | str)} == {
        "bos_token_id": ids["<|begin|>"], "eos_token_id": ids["<|end|>"], "eot_token_id": ids["<|turn|>"], "add_bos_token": True, "add_eos_token": False}
    assert (said["tokenizer.chat_template"], said["tokenizer.chat_templates"], said["tokenizer.chat_template.tools"]) == (TEMPLATE, ["tools"], "x")


CANNOT: list[tuple[Callable[[Path], Tokenizer], str]] = [
    (lambda f: byte_level(f, split(r"\w+|\W+")),
     r"splits text in a way that llama\.cpp has no name for, or none known here: "
     r"'\\\\w\+\|\\\\W\+', normalizer none\. A file that named another .* --without-tokenizer writes the weights alone"),
    (lambda f: byte_level(f, split(*PRE["llama3"].split, nfc=True)), r"It is that of llama3, .*, but for its normalizer or its treatment of whole words"),
    (lambda f: byte_level(f, steps(pre_tokenizers.ByteLevel(add_prefix_space=True))),
     r"none known here: '\{\"type\": \"ByteLevel\", \"add_prefix_space\": true"),
]


@pytest.mark.parametrize(("make", "expected"), CANNOT)
def test_a_way_of_splitting_without_a_name_is_refused(tmp_path: Path, make: Callable[[Path], Tokenizer], expected: str) -> None:
    with pytest.raises(BadTokenizer, match=expected):
        gguf_metadata(make(tmp_path / "m"), 500)


def test_a_unigram_without_its_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    t = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0, False))
    t.save(str(tmp_path / "m/tokenizer.json"))
    with pytest.raises(BadTokenizer, match=r"is a Unigram tokenizer of the tokenizers library, and BPE is written to GGUF\. Is there a tokenizer\.model\?"):
        gguf_metadata(load_tokenizer(tmp_path / "m"), 5)


def test_more_tokens_than_rows(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path / "m")
    with pytest.raises(BadTokenizer, match=rf"has {tokenizer.n_vocab} tokens, and the embedding 400 rows\. Are they of one model\?"):
        gguf_metadata(tokenizer, 400)


def test_what_no_key_can_say_is_noted(tmp_path: Path) -> None:
    def two_first(t: tokenizers.Tokenizer) -> None:
        split(GPT2_PATTERN)(t)

    byte_level(tmp_path / "m", two_first)
    raw = json.loads((tmp_path / "m/tokenizer.json").read_text())
    first = raw["post_processor"]["single"]
    raw["post_processor"]["single"] = [*first[:1], {"SpecialToken": {"id": "<|turn|>", "type_id": 0}}, *first[1:]]
    i = next(token["id"] for token in raw["added_tokens"] if token["content"] == "<|turn|>")
    raw["post_processor"]["special_tokens"]["<|turn|>"] = {"id": "<|turn|>", "ids": [i], "tokens": ["<|turn|>"]}
    next(token for token in raw["added_tokens"] if token["content"] == "<own>")["rstrip"] = True
    (tmp_path / "m/tokenizer.json").write_text(json.dumps(raw))
    _, notes = gguf_metadata(load_tokenizer(tmp_path / "m"), 500)
    assert "every text begins with '<|begin|> <|turn|>' here, and GGUF knows one token there at most" in notes
    assert "1 tokens take the white space beside them here, first '<own>'; GGUF cannot say it" in notes


def test_merges_in_an_order_no_scores_can_say_are_kept_as_merges(tmp_path: Path) -> None:
    spaced(tmp_path / "m", prefix=False)
    raw = json.loads((tmp_path / "m/tokenizer.json").read_text())
    merges = raw["model"]["merges"]
    raw["model"]["merges"] = merges[1:]  # a piece that one of its pairs no longer makes
    (tmp_path / "m/tokenizer.json").write_text(json.dumps(raw))
    said, _ = gguf_metadata(load_tokenizer(tmp_path / "m"), 800)
    assert said["tokenizer.ggml.model"] == "gemma4"
    assert len(said["tokenizer.ggml.merges"]) == len(merges) - 1


def test_the_shipped_tokenizer() -> None:
    said, notes = gguf_metadata(pellucid.load_tokenizer("shipped"), 8192)
    assert (said["tokenizer.ggml.model"], said["tokenizer.ggml.pre"], notes) == ("gpt2", "gpt-2", [])

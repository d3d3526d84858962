"""A model in one GGUF file, from text to text: its own tokenizer, template and sampling, in Python and on the command line, recorded and replayed."""
from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import load_file
from sentencepiece import sentencepiece_model_pb2

import pellucid
from pellucid.api.replay import replay
from pellucid.errors import BadConfig, BadTemplate, BadTokenizer
from pellucid.records import Record, sha256_of
from tests.cli.conftest import Said, say
from tests.families.build import build
from tests.families.case import Case
from tests.families.test_gguf import SIZES, converted, named, permuted
from tests.tokenizer.ggufs import CONTROL, NORMAL, windows
from tests.tokenizer.templates import CHATML

VOCAB, MERGES = windows(["once upon a time", "user", "assistant"], longest=3)
SPECIAL = ["<|im_start|>", "<|im_end|>"]
CASE = Case("llama", "text", "room for every byte", SIZES | {"vocab_size": len(VOCAB) + len(SPECIAL) + 3}, without=("head_dim",))
__all__ = ["say"]
MESSAGES = [{"role": "user", "content": "once upon <|im_end|>"}]
Say = Callable[..., Said]


def speaking(writer: gguf.GGUFWriter, *, more: int = 0, template: str = CHATML, eos: int = 0) -> None:
    """A vocabulary and a template; more: tokens past the embedding's rows."""
    tokens = [*VOCAB, *SPECIAL, *(f"<more {i}>" for i in range(more))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token.startswith("<|") else NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_eos_token_id(eos)
    writer.add_chat_template(template)


def made(path: Path, change: Callable[[gguf.GGUFWriter], None] = speaking, kind: Kind = Kind.Q8_0, **split: Any) -> Path:
    converted(path, build(CASE), kind, change, without=("tokenizer",), **split)
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def model(file: Path) -> pellucid.Model:
    return pellucid.load(file, cache_dtype="same")  # so that a made-up model's near ties are decided alike with pages and without


def test_text_is_continued_as_its_logits_say(model: pellucid.Model) -> None:
    ids = model.tokenizer.encode("once upon")
    for _ in range(8):
        ids.append(int(model.logits(ids)[-1].argmax()))
    done = model.generate("once upon", max_tokens=8, temperature=0)
    assert [*done.prompt_ids, *done.token_ids] == ids[: len(done.prompt_ids) + len(done.token_ids)]
    assert done.text == model.tokenizer.decode(done.token_ids, after=done.prompt_ids)
    assert "".join(model.stream("once upon", max_tokens=8, temperature=0)) == done.text


def test_a_chat_is_what_its_own_template_makes_of_it(model: pellucid.Model) -> None:
    tokenizer = model.tokenizer
    start, end = (tokenizer.id_of(token) for token in SPECIAL)
    expected = [start, *tokenizer.encode("user\nonce upon <|im_end|>"), end, *tokenizer.encode("\n"), start, *tokenizer.encode("assistant\n")]
    assert list(model.chat(MESSAGES, max_tokens=2).prompt_ids) == expected  # what a message spells stays text
    assert model.stop_ids() == {0, end}


def test_its_output_is_held_to_a_choice(model: pellucid.Model) -> None:
    assert model.generate("once", choice=["yes", "nö"], temperature=0, max_tokens=9).text in ("yes", "nö")


def test_a_split_model_speaks_too(tmp_path: Path, model: pellucid.Model) -> None:
    made(tmp_path / "tiny.gguf", split_max_tensors=7)
    parts = sorted(tmp_path.glob("tiny-*.gguf"))
    assert len(parts) > 1
    assert pellucid.load(parts[0]).chat(MESSAGES, max_tokens=6, temperature=0).token_ids == model.chat(MESSAGES, max_tokens=6, temperature=0).token_ids


def test_a_record_of_it_holds_the_file_and_replays(tmp_path: Path, file: Path, model: pellucid.Model) -> None:
    model.record(model.chat(MESSAGES, max_tokens=6, seed=3, temperature=50.0)).save(tmp_path / "record.json")
    record = Record.read(tmp_path / "record.json")
    assert {name: each.sha256 for name, each in record.inputs.items()} == {"tiny.gguf": sha256_of(file)}
    assert record.licenses == {"tiny.gguf": "Apache-2.0"}
    assert replay(record).same


def test_a_vocabulary_that_outgrows_the_embedding(tmp_path: Path) -> None:
    rows = CASE.config["vocab_size"]
    with pytest.raises(BadTokenizer, match=rf"the tokenizer knows {rows + 1} tokens, and the model's embedding has {rows} rows\."):
        pellucid.load(made(tmp_path / "m.gguf", lambda w: speaking(w, more=4)))


def test_an_end_that_no_row_is(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"'m\.gguf' has eos_token_id 999, .* Mend it in the metadata"):
        pellucid.load(made(tmp_path / "m.gguf", lambda w: speaking(w, eos=999)))


def test_a_template_that_does_not_compile_stops_the_load(tmp_path: Path) -> None:
    with pytest.raises(BadTemplate, match="chat template 'default' does not compile, line 1"):
        pellucid.load(made(tmp_path / "m.gguf", lambda w: speaking(w, template="{% for %}")))


def test_recommended_sampling_is_read_and_what_there_is_not_is_said(tmp_path: Path) -> None:
    def change(writer: gguf.GGUFWriter) -> None:
        speaking(writer)
        writer.add_sampling_temp(0.6)
        writer.add_sampling_top_k(20)
        writer.add_sampling_penalty_repeat(1.1)
        writer.add_sampling_mirostat(2)
        writer.add_array("tokenizer.ggml.suppress_tokens", [5, 6])
        writer.add_int32("tokenizer.ggml.eot_token_id", -1)  # llama.cpp's way to say that there is none

    checkpoint = pellucid.load(made(tmp_path / "m.gguf", change)).checkpoint
    assert checkpoint.generation == {"eos_token_id": [0], "do_sample": True, "temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1}
    assert sorted(checkpoint.notes) == [
        "general.sampling.mirostat=2 is recommended, and not followed: there is no such sampling here",
        "tokenizer.ggml.suppress_tokens lists 2 ids that are not to be written, and nothing holds them back here (bad_words=[[id], ...] does)"]
    with pytest.raises(BadConfig, match=r"n\.gguf: general\.sampling\.top_p is 'much', and a number was expected"):
        pellucid.load(made(tmp_path / "n.gguf", lambda w: w.add_string("general.sampling.top_p", "much")))


# The command line

def test_run_show_and_chat_take_a_file(say: Say, file: Path, model: pellucid.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    done = say("run", str(file), "-p", "once upon", "--temperature", "0", "--max-tokens", "4", "--json")
    assert json.loads(done.out)["text"] == model.generate("once upon", temperature=0, max_tokens=4).text
    shown = json.loads(say("show", str(file), "--json").out)
    assert (shown["family"], shown["format"], shown["license"], shown["n_parameters"]) == ("llama", "gguf", "Apache-2.0", model.report.n_parameters)
    assert shown["stored_bytes"].keys() == {"Q8_0", "float32"}
    assert shown["sha256"] == {"tiny.gguf": sha256_of(file)}
    assert shown["tokenizer"] == {"n_vocab": model.tokenizer.n_vocab, "bos": None, "eos": {"id": 0, "token": "<|endoftext|>"}, "adds_bos": False,
                                  "n_special": 3, "chat_template": True}
    assert say("show", str(file)).err.rstrip().endswith(f"pellucid chat {file}")
    template = say("show", str(file), "--template").out
    assert template.startswith("⟦<|im_start|>⟧system\nYou are a helpful assistant.⟦<|im_end|>⟧\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"once\n")))
    said = say("chat", str(file), "--temperature", "0", "--max-tokens", "4", "--json")
    assert json.loads(said.out)["text"] == model.chat([{"role": "user", "content": "once"}], temperature=0, max_tokens=4).text


def test_a_chat_follows_what_the_metadata_recommends_and_says_so(say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for temp, expected in ((0.0, False), (0.7, True)):
        path = made(tmp_path / f"m{temp}.gguf", lambda w, temp=temp: (speaking(w), w.add_sampling_temp(temp)))
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"once\n")))
        told = say("chat", str(path), "--max-tokens", "2").err
        assert ("sampling  temperature 0.7, as its metadata recommends" in told) == expected


# A trained one

@pytest.mark.shared
def test_the_published_story_comes_out_of_a_gguf_file(shared: Path, tmp_path: Path) -> None:
    folder = shared / "stories260k"
    golden = json.loads((folder / "golden_greedy.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    proto = sentencepiece_model_pb2.ModelProto.FromString((folder / "tokenizer.model").read_bytes())
    writer = gguf.GGUFWriter(tmp_path / "stories.gguf", "llama")
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([p.piece for p in proto.pieces])
    writer.add_token_scores([p.score for p in proto.pieces])
    writer.add_token_types([p.type for p in proto.pieces])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for name, data in load_file(next(folder.glob("*.safetensors"))).items():
        paired = "q_proj" in name or "k_proj" in name
        writer.add_tensor(named(name), permuted(data, heads if "q_proj" in name else kv) if paired else data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = pellucid.load(tmp_path / "stories.gguf")
    done = model.generate("", temperature=0, max_tokens=len(golden["token_ids"]) - 1)
    assert [*done.prompt_ids, *done.token_ids] == golden["token_ids"]
    assert done.text == golden["expected_text"]
    prompt = "Lily and the dog went"
    assert model.prompt_ids(prompt) == pellucid.load(folder).prompt_ids(prompt)

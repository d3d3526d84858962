"""One checkpoint -> another: GGUF to safetensors and to GGUF, against the gguf package and the numbers it unpacks."""
from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Kind
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import pellucid
from pellucid.errors import BadCheckpoint, BadConfig, BadRequest, BadTokenizer, DiskFull, UnsupportedModel
from pellucid.families._describe import describe_checkpoint
from pellucid.model.convert import convert
from pellucid.model.load import load_decoder
from pellucid.model.on_demand import parameter_shapes
from pellucid.records import Record, sha256_of
from pellucid.weights.assemble import assemble
from pellucid.weights.card import read_card
from pellucid.weights.checkpoint import open_checkpoint
from pellucid.weights.hub import resolve
from tests.families.build import TOLERANCE, Built, build, logits
from tests.families.case import Case
from tests.families.cases import CASES as ALL_CASES
from tests.families.test_gguf import CASES, converted
from tests.families.test_gguf_write import CANNOT, HAVE
from tests.weights.build import write
from tests.weights.quantized import SIZES as QUANTIZED_SIZES
from tests.weights.quantized import files
from tests.weights.test_gptq import CONFIG as GPTQ
from tests.weights.test_gptq import packer

PLAIN = CASES["llama-plain"]


def tensors_of(path: Path) -> dict[str, Any]:
    """Name -> (type, shape, bytes), as the gguf package reads them."""
    return {t.name: (t.tensor_type.name, t.shape.tolist(), t.data.tobytes()) for t in gguf.GGUFReader(path).tensors}


def fields_of(path: Path) -> dict[str, Any]:
    return {key: (field.contents(), field.types) for key, field in gguf.GGUFReader(path).fields.items() if not key.startswith("GGUF.")}


# GGUF -> safetensors

@pytest.mark.parametrize("name", CASES)
def test_what_gguf_packs_is_in_safetensors_as_the_package_unpacks_it(tmp_path: Path, name: str) -> None:
    built = build(CASES[name])
    expected = converted(tmp_path / "m.gguf", built, Kind.Q5_1)
    done = convert(tmp_path / "m.gguf", tmp_path / "out")
    found = load_file(tmp_path / "out/model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    n_matrices = sum(tensor.ndim == 2 for tensor in found.values())
    assert done.kept == {"copied": len(found) - n_matrices, "exact": n_matrices, "rounded": 0}
    source, target = (open_checkpoint(tmp_path / each) for each in ("m.gguf", "out"))
    assert describe_checkpoint(target).spec == describe_checkpoint(source).spec
    assert target.eos_ids == source.eos_ids == (7,)
    before, after = (logits(load_decoder(tmp_path / each, device="cpu", activations="exact")[0], built.tokens_T) for each in ("m.gguf", "out"))
    assert (before - after).abs().max() < TOLERANCE * before.abs().max()


@pytest.mark.parametrize(("kind", "dtype"), [(Kind.F32, torch.float32), (Kind.F16, torch.float16), (Kind.BF16, torch.bfloat16)])
def test_what_the_files_hold_is_what_is_written(tmp_path: Path, kind: Kind, dtype: torch.dtype) -> None:
    """Vectors are float32 in GGUF; they are the matrices' dtype again where that holds them exactly."""
    built = build(PLAIN)
    short = {name: tensor.to(dtype).float() if "input" in name else tensor for name, tensor in built.files.items()}
    converted(tmp_path / "m.gguf", type(built)(**{**vars(built), "files": short}), kind)
    done = convert(tmp_path / "m.gguf", tmp_path / "out")
    found = load_file(tmp_path / "out/model.safetensors")
    norms = {name: tensor.dtype for name, tensor in found.items() if tensor.ndim == 1}
    assert {tensor.dtype for tensor in found.values() if tensor.ndim == 2} == {dtype}
    assert {norms[name] for name in norms if "input" in name} == {dtype}
    assert {norms[name] for name in norms if "input" not in name} == {torch.float32}
    assert all(torch.equal(found[name].float(), short[name].to(found[name].dtype).float()) for name in found)
    assert done.kept["rounded"] == 0
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == str(dtype).removeprefix("torch.")


def test_rounding_is_counted_and_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    built = build(PLAIN)
    converted(tmp_path / "m.gguf", built, Kind.Q8_0)
    done = convert(tmp_path / "m.gguf", tmp_path / "out", dtype="bf16")
    n = sum(tensor.ndim == 2 for tensor in built.files.values())
    assert done.rounded["Q8_0 -> BF16"] == n
    assert done.kept["copied"] == 0
    assert {tensor.dtype for tensor in load_file(tmp_path / "out/model.safetensors").values()} == {torch.bfloat16}
    large = {name: tensor * (1e6 if name == "model.norm.weight" else 1) for name, tensor in built.files.items()}
    converted(tmp_path / "large.gguf", type(built)(**{**vars(built), "files": large}), Kind.F32)
    with pytest.raises(BadRequest, match=r"final_norm\.weight holds numbers up to \d.*, and f16 ends at 65504\. Write it in bf16 or f32"):
        convert(tmp_path / "large.gguf", tmp_path / "large", dtype="f16")
    assert not (tmp_path / "large").exists()


def test_license_and_lineage_go_along(tmp_path: Path) -> None:
    def about(writer: gguf.GGUFWriter) -> None:
        writer.add_base_model_count(2)
        writer.add_base_model_name(0, "Base")
        writer.add_base_model_organization(0, "acme")
        writer.add_base_model_repo_url(1, "https://huggingface.co/acme/other-1B")
        writer.add_license_link("https://example.org/license")
        writer.add_tags(["text", "no"])

    converted(tmp_path / "m.gguf", build(PLAIN), Kind.F32, about)
    convert(tmp_path / "m.gguf", tmp_path / "out")
    card = read_card(tmp_path / "out")
    assert (card.license, card.license_link, card.base_models, card.tags) == (
        "apache-2.0", "https://example.org/license", ("acme/Base", "acme/other-1B"), ("text", "no"))
    first = f"{sha256_of(tmp_path / 'm.gguf')}  m.gguf/m.gguf"
    assert first in (tmp_path / "out/README.md").read_text()
    record = Record.read(tmp_path / "out/record.json")
    assert (record.kind, record.output["lineage"], record.licenses) == ("convert", [first], {"m.gguf": "Apache-2.0"})
    assert {path: facts["sha256"] for path, facts in record.output["files"].items()} == {
        str(path): sha256_of(path) for path in (tmp_path / "out").iterdir() if path.name != "record.json"}
    convert(tmp_path / "out", tmp_path / "again", dtype="bf16")
    assert read_card(tmp_path / "again") == card
    lineage = Record.read(tmp_path / "again/record.json").output["lineage"]
    assert lineage[0] == first
    assert f"{sha256_of(tmp_path / 'out/model.safetensors')}  out/model.safetensors" in lineage


def test_shards_and_files_beside(tmp_path: Path) -> None:
    write(tmp_path / "m")
    for name in ("tokenizer.json", "LICENSE", "notes.txt"):
        (tmp_path / "m" / name).write_text("{}")
    done = convert(tmp_path / "m", tmp_path / "out", dtype="f16", max_bytes=5000, tokenizer=False)
    names = [file.path.name for file in done.files]
    assert "model.safetensors.index.json" in names
    assert "LICENSE" in names
    assert not {"tokenizer.json", "notes.txt"} & set(names)
    assert "tokenizer.json" in {file.path.name for file in convert(tmp_path / "m", tmp_path / "out", overwrite=True).files}
    assert load_file(tmp_path / "out/model.safetensors").keys() == load_file(tmp_path / "m/model.safetensors").keys()


# safetensors -> GGUF -> safetensors

def saved(folder: Path, built: Built, dtype: torch.dtype) -> Path:
    """The case's files, as transformers would have saved them."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(built.raw))
    save_file({name: tensor.to(dtype).contiguous() for name, tensor in built.files.items()}, folder / "model.safetensors")
    return folder


def ours_of(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by our names, as they are stored."""
    checkpoint = open_checkpoint(path)
    described = describe_checkpoint(checkpoint)
    return assemble(described.names, checkpoint.tensors(), parameter_shapes(described.spec), described.spec)[0]


SCALED = [case for case in HAVE if str(case) == "falcon-11b"]  # as Llama 3's rope is, for which its files have no tensor
ROUND = [case for case in HAVE if str(case) not in CANNOT and case not in SCALED]
RAISED = {"gemma", "gemma2", "gemma3_text", "nemotron"}  # families whose GGUF has norms with one added, which costs float32 its last bits


@pytest.mark.parametrize("case", ROUND, ids=str)
def test_a_round_trip_is_bit_exact(tmp_path: Path, case: Case) -> None:
    built = build(case)
    dtype = [torch.bfloat16, torch.float16, torch.float32][ROUND.index(case) % 3]
    if case.model_type in RAISED:
        dtype = torch.bfloat16
    done = convert(saved(tmp_path / "m", built, dtype), tmp_path / "m.gguf", tokenizer=False)
    assert done.kept["rounded"] == 0
    model, there = load_decoder(tmp_path / "m", device="cpu", dtype="float32")[0], load_decoder(tmp_path / "m.gguf", device="cpu", dtype="float32")[0]
    expected = logits(model, built.tokens_T)
    assert (logits(there, built.tokens_T) - expected).abs().max() < TOLERANCE * expected.abs().max()
    back = convert(tmp_path / "m.gguf", tmp_path / "back")
    assert back.kept["rounded"] == 0
    before, after = ours_of(tmp_path / "m"), ours_of(tmp_path / "back")
    assert before.keys() == after.keys()
    assert [name for name, tensor in before.items() if after[name].dtype != dtype or not torch.equal(after[name], tensor)] == []


def test_the_shipped_model_there_and_back_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    shipped = resolve("shipped")
    convert(shipped, tmp_path / "m.gguf", name="pellucid/shipped")
    convert(tmp_path / "m.gguf", tmp_path / "back")
    there, back = (load_file(folder / "model.safetensors") for folder in (shipped, tmp_path / "back"))
    assert list(there) == list(back)
    assert all(there[name].dtype == back[name].dtype and torch.equal(there[name], back[name]) for name in there)
    was, *others = (pellucid.load(path, dtype="float32") for path in (shipped, tmp_path / "m.gguf", tmp_path / "back"))
    expected = was.generate("It was a dark night", max_tokens=12, temperature=0).text
    asked = [{"role": "user", "content": "Who are you?"}]
    for model in others:
        assert model.generate("It was a dark night", max_tokens=12, temperature=0).text == expected
        assert model.chat(asked, max_tokens=8, temperature=0).text == was.chat(asked, max_tokens=8, temperature=0).text
        assert model.spec == was.spec
    fields = fields_of(tmp_path / "m.gguf")
    assert {key: fields[f"general.{key}"][0] for key in ("name", "organization", "license", "size_label", "type", "file_type", "tags")} == {
        "name": "shipped", "organization": "pellucid", "license": "apache-2.0", "size_label": "7.21M", "type": "model", "file_type": 32,
        "tags": ["text-generation", "llama", "period-prose"]}


def test_a_tokenizer_gguf_has_no_words_for_stops_it_unless_it_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(resolve("shipped"), folder)
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "\\w+|\\W"}, "behavior": "Isolated", "invert": False}, raw["pre_tokenizer"] | {"use_regex": False}]}
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(BadTokenizer, match=r"splits text in a way that llama\.cpp has no name for, .* --without-tokenizer writes the weights alone"):
        convert(folder, tmp_path / "m.gguf")
    assert not list(tmp_path.glob("*.gguf"))
    convert(folder, tmp_path / "m.gguf", tokenizer=False)
    convert(resolve("shipped"), tmp_path / "whole.gguf")
    convert(tmp_path / "whole.gguf", tmp_path / "bare.gguf", tokenizer=False)
    for name in ("m.gguf", "bare.gguf"):
        fields = fields_of(tmp_path / name)
        assert {key: fields[key][0] for key in fields if key.startswith("tokenizer.")} == {"tokenizer.ggml.model": "no_vocab"}
        assert fields["llama.vocab_size"][0] == 8192
        assert pellucid.load(tmp_path / name).logits([0, 5]).shape == (2, 8192)


def test_recommended_sampling_and_ends_go_along(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(resolve("shipped"), folder)
    (folder / "generation_config.json").write_text(json.dumps(
        {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [1, 40, 41]}))
    convert(folder, tmp_path / "m.gguf")
    fields = fields_of(tmp_path / "m.gguf")
    assert {key: fields[f"tokenizer.ggml.{key}_token_id"][0] for key in ("bos", "eos", "eot", "eom")} == {"bos": 0, "eos": 1, "eot": 40, "eom": 41}
    assert fields["general.sampling.top_k"][0] == 20
    convert(tmp_path / "m.gguf", tmp_path / "back")
    assert json.loads((tmp_path / "back/generation_config.json").read_text()) == {
        "eos_token_id": [1, 40, 41], "temperature": 0.6, "top_k": 20, "top_p": 0.95, "do_sample": True}


@pytest.mark.shared
def test_stories260k_writes_its_published_story_from_either_format(tmp_path: Path, shared: Path) -> None:
    source = shared / "stories260k"
    golden = pellucid.load(source, dtype="float32").generate("Once upon a time", max_tokens=40, temperature=0).text
    convert(source, tmp_path / "m.gguf")
    convert(tmp_path / "m.gguf", tmp_path / "back")
    for path in (tmp_path / "m.gguf", tmp_path / "back"):
        assert pellucid.load(path, dtype="float32").generate("Once upon a time", max_tokens=40, temperature=0).text == golden


def test_norms_with_one_added_lose_the_last_bits_of_float32_and_it_is_said(tmp_path: Path) -> None:
    case = next(case for case in ROUND if case.model_type == "gemma")
    done = convert(saved(tmp_path / "m", build(case), torch.float32), tmp_path / "m.gguf", tokenizer=False)
    assert done.rounded == {"F32 -> F32 + 1": done.kept["rounded"]}
    assert done.kept["rounded"] > 0


def test_the_package_reads_what_was_written_from_safetensors(tmp_path: Path) -> None:
    """Names, shapes, types and metadata, by hand from what llama.cpp's converter writes for such a model."""
    built = build(CASES["llama-llama3"])
    converted(tmp_path / "theirs.gguf", built, Kind.F32)
    convert(saved(tmp_path / "m", built, torch.float32), tmp_path / "mine.gguf", tokenizer=False)
    assert tensors_of(tmp_path / "mine.gguf").keys() == tensors_of(tmp_path / "theirs.gguf").keys()
    theirs, mine = fields_of(tmp_path / "theirs.gguf"), fields_of(tmp_path / "mine.gguf")
    for name, (type, shape, data) in tensors_of(tmp_path / "theirs.gguf").items():
        if name != "rope_freqs.weight":
            assert tensors_of(tmp_path / "mine.gguf")[name] == (type, shape, data), name
    missing = {key: value for key, value in theirs.items() if key.startswith("llama.") and mine.get(key) != value}
    assert missing.keys() <= {"llama.rope.dimension_count"}, "which llama.cpp takes for the width of a head"
    assert mine["general.file_type"][0] == 0  # LLAMA_FTYPE_ALL_F32
    assert mine["general.quantization_version"][0] == gguf.GGML_QUANT_VERSION


def test_matrices_of_another_dtype_and_of_a_mix(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", build(PLAIN), torch.bfloat16)
    types = {name: type for name, (type, *_) in tensors_of(convert(folder, tmp_path / "a.gguf", tokenizer=False).out).items()}
    assert {type for name, type in types.items() if "norm" in name} == {"F32"}
    assert {type for name, type in types.items() if "norm" not in name} == {"BF16"}
    done = convert(folder, tmp_path / "b.gguf", tokenizer=False, quantize="Q8_0")
    assert {type for name, (type, *_) in tensors_of(done.out).items() if "norm" not in name} == {"Q8_0"}
    assert done.rounded == {"BF16 -> Q8_0": 16}
    assert (load_decoder(done.out)[1].stored.keys(), load_decoder(done.out)[1].n_parameters) == ({"q8_0", "f32"}, load_decoder(folder)[1].n_parameters)


def test_a_scaling_llama_cpp_does_not_read(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"'falcon' cannot say how the rope of 'm' is scaled: llama\.cpp reads no rope_freqs\.weight there"):
        convert(saved(tmp_path / "m", build(SCALED[0]), torch.float32), tmp_path / "m.gguf", tokenizer=False)
    ramp = next(case for case in ROUND if str(case) == "llama-yarn_ramp")
    [note] = convert(saved(tmp_path / "r", build(ramp), torch.float32), tmp_path / "r.gguf", tokenizer=False).notes
    assert note == ("llama.cpp will compute another model than Pellucid: YaRN has a ramp from 1.2 to 0.3 turns where it takes 32 to 1 for architecture "
                    "'llama', whatever the file says")
    groups = next(case for case in ROUND if str(case) == "deepseek_v2-released")
    notes = convert(saved(tmp_path / "g", build(groups), torch.float32), tmp_path / "g.gguf", tokenizer=False).notes
    assert any("the groups of its experts are chosen by the best of each, where llama.cpp takes the two best" in note for note in notes)


@pytest.mark.parametrize(("how", "format"), [({}, "Q4_0"), ({"bits": 8}, "Q8_0"), ({"group": 16}, "F32")], ids=["int4", "int8", "groups of 16"])
def test_packed_repositories_become_the_blocks_of_gguf_that_say_the_same_bits(tmp_path: Path, how: dict[str, int], format: str) -> None:
    """GPTQ: the same numbers, copied where a block has one scale as the group does, and in float32 otherwise."""
    config = GPTQ | {"bits": how.get("bits", 4), "group_size": how.get("group", 32)}
    folder = write(tmp_path / "m", files(packer(**how))[0], **QUANTIZED_SIZES, quantization_config=config)
    done = convert(folder, tmp_path / "m.gguf", tokenizer=False)
    assert {type for name, (type, *_) in tensors_of(done.out).items() if "ffn" in name and "norm" not in name} == {format}
    assert done.kept == {"copied": 7, "exact": 14, "rounded": 0} if format == "F32" else {"copied": 21, "exact": 0, "rounded": 0}  # float32 is other bits
    before, after = (load_decoder(path, device="cpu", dtype="float32", activations="exact")[0] for path in (folder, done.out))
    tokens = torch.arange(20)
    assert (logits(before, tokens) - logits(after, tokens)).abs().max() < TOLERANCE * logits(before, tokens).abs().max()
    assert convert(folder, tmp_path / "half", dtype="bf16").rounded == {f"INT{how.get('bits', 4)} -> BF16": 14, "F32 -> BF16": 7}
    convert(folder, tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain/config.json").read_text())
    plain = load_decoder(tmp_path / "plain", device="cpu", dtype="float32")[0]
    assert (logits(before, tokens) - logits(plain, tokens)).abs().max() < TOLERANCE * logits(before, tokens).abs().max()


def test_a_family_llama_cpp_does_not_know(tmp_path: Path) -> None:
    case = next(case for case in ALL_CASES if case.model_type == "opt")
    with pytest.raises(UnsupportedModel, match=r"family 'opt' has no architecture in GGUF files that llama\.cpp would read .* Save it as safetensors"):
        convert(saved(tmp_path / "m", build(case), torch.float32), tmp_path / "m.gguf", tokenizer=False)
    assert not list(tmp_path.glob("*.gguf"))


# GGUF -> GGUF

def test_a_copy_is_bit_for_bit_but_for_three_keys(tmp_path: Path) -> None:
    converted(tmp_path / "m.gguf", build(PLAIN), Kind.Q4_0)
    done = convert(tmp_path / "m.gguf", tmp_path / "out.gguf")
    assert tensors_of(tmp_path / "out.gguf") == tensors_of(tmp_path / "m.gguf")
    before, after = fields_of(tmp_path / "m.gguf"), fields_of(tmp_path / "out.gguf")
    assert after.pop("pellucid.lineage")[0] == [f"{sha256_of(tmp_path / 'm.gguf')}  m.gguf/m.gguf"]
    assert after.pop("pellucid.version")[0].startswith("pellucid ")
    assert json.loads(after.pop("pellucid.ancestry")[0])["parents"][0]["files"] == {"m.gguf": sha256_of(tmp_path / "m.gguf")}
    assert after == before
    assert done.kept == {"copied": len(tensors_of(tmp_path / "m.gguf")), "exact": 0, "rounded": 0}
    assert [(file.path, file.sha256) for file in done.files] == [(tmp_path / "out.gguf", sha256_of(tmp_path / "out.gguf"))]
    assert load_decoder(tmp_path / "out.gguf")[1].n_parameters == load_decoder(tmp_path / "m.gguf")[1].n_parameters, "our own keys are read"


def test_split_and_joined_again_it_is_the_same(tmp_path: Path) -> None:
    converted(tmp_path / "m.gguf", build(PLAIN), Kind.Q4_0)
    done = convert(tmp_path / "m.gguf", tmp_path / "p.gguf", max_bytes=30_000)
    assert done.out.name == f"p-00001-of-{len(done.files):05d}.gguf"
    assert len(done.files) > 1
    convert(done.files[-1].path, tmp_path / "whole.gguf")
    assert tensors_of(tmp_path / "whole.gguf") == tensors_of(tmp_path / "m.gguf")
    after = fields_of(tmp_path / "whole.gguf")
    lineage = after.pop("pellucid.lineage")[0]
    parts = json.loads(after.pop("pellucid.ancestry")[0])["parents"][0]
    assert parts["files"] == {file.path.name: file.sha256 for file in done.files}
    assert len(lineage) == 1 + len(done.files), "the original, then every part"
    assert {**after, "pellucid.version": None} == {**fields_of(tmp_path / "m.gguf"), "pellucid.version": None}


def test_an_architecture_nobody_runs_is_copied_too(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "strange")
    writer.add_tensor("a.weight", np.ones((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    convert(tmp_path / "m.gguf", tmp_path / "out.gguf", dtype="bf16")
    assert tensors_of(tmp_path / "out.gguf")["a.weight"][0] == "BF16"
    for kind in ({"quantize": "Q8_0"}, {"out": tmp_path / "folder"}):
        with pytest.raises(UnsupportedModel, match=r"m\.gguf is of architecture 'strange'"):
            convert(tmp_path / "m.gguf", **{"out": tmp_path / "new.gguf", **kind})  # type: ignore[arg-type]


def test_it_is_quantized_as_the_mix_says(tmp_path: Path) -> None:
    built = build(PLAIN)
    plain = converted(tmp_path / "m.gguf", built, Kind.F32)
    done = convert(tmp_path / "m.gguf", tmp_path / "out.gguf", quantize="q8_0", overrides=[("ffn_down", "F16")])
    found = tensors_of(tmp_path / "out.gguf")
    assert {type for name, (type, *_) in found.items() if "norm" in name} == {"F32"}
    assert {type for name, (type, *_) in found.items() if "ffn_down" in name} == {"F16"}
    assert {type for name, (type, *_) in found.items() if "norm" not in name and "ffn_down" not in name} == {"Q8_0"}
    assert fields_of(tmp_path / "out.gguf")["general.file_type"][0] == 7  # LLAMA_FTYPE_MOSTLY_Q8_0
    assert done.rounded == {"F32 -> Q8_0": 14, "F32 -> F16": 2}
    convert(tmp_path / "out.gguf", tmp_path / "folder")
    for name, tensor in load_file(tmp_path / "folder/model.safetensors").items():
        assert (tensor - plain[name]).abs().max() <= plain[name].abs().max() / 127, "half a step of the largest scale, and some"
    again = convert(tmp_path / "out.gguf", tmp_path / "q4.gguf", quantize="Q4_0", overwrite=True)
    assert "13 matrices were Q8_0 before: what that lost stays lost. The original loses less" in again.notes
    [fell] = [note for note in again.notes if "divides" in note]
    assert fell == "1 matrix is Q8_0: no block of Q6_K divides the rows"


# what cannot be

def test_what_is_read_is_never_written_over(tmp_path: Path) -> None:
    converted(tmp_path / "m.gguf", build(PLAIN), Kind.F32)
    write(tmp_path / "folder/model")
    for source, out in (("m.gguf", "m.gguf"), ("m.gguf", "m-00002-of-00003.gguf"), ("folder/model", "folder/model"), ("folder/model", "folder"),
                        ("m.gguf", ".")):
        with pytest.raises(BadRequest, match=r"is what is read, or holds it, and is not written over\. Give another name"):
            convert(tmp_path / source, tmp_path / out, overwrite=True)


def test_a_folder_that_is_no_model_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "m")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("Dear")
    with pytest.raises(BadRequest, match=r"mine is there and is no model \(it has no config\.json\); it is left alone, --force or not"):
        convert(tmp_path / "m", tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine/letter.txt").exists()


ASKED: list[tuple[dict[str, Any], str]] = [
    ({"to": "onnx"}, r"--to 'onnx' is no format that is written \(written: gguf, safetensors\)"),
    ({"to": "gguf"}, r"out is to hold gguf, and a GGUF file is called NAME\.gguf\. Give another name"),
    ({"out": "out.gguf", "to": "safetensors"}, r"out\.gguf is to hold safetensors, and safetensors lie in a folder\. Give another name"),
    ({"dtype": "int8"}, r"--dtype 'int8' is none that is written \(written: f32, f16, bf16; --quantize packs\)"),
    ({"out": "out.gguf", "dtype": "f16", "quantize": "Q8_0"}, r"--dtype f16 and --quantize Q8_0 both say what matrices become\. Give one"),
    ({"quantize": "Q8_0"}, r"--quantize Q8_0 is a format of GGUF, and .*out is a folder of safetensors\. Write NAME\.gguf"),
    ({"out": "out.gguf", "quantize": "Q9"}, r"'Q9' is no mix of formats that is written here"),
    ({"out": "nowhere/out.gguf"}, r"there is no folder .*nowhere to write out\.gguf to\. Make it first"),
]


@pytest.mark.parametrize(("asked", "expected"), ASKED, ids=[" ".join(map(str, asked.values())) for asked, _ in ASKED])
def test_what_cannot_be_asked(tmp_path: Path, asked: dict[str, Any], expected: str) -> None:
    converted(tmp_path / "m.gguf", build(PLAIN), Kind.F32)
    with pytest.raises(BadRequest, match=expected):
        convert(tmp_path / "m.gguf", tmp_path / asked.get("out", "out"), **{key: value for key, value in asked.items() if key != "out"})
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadConfig, match=r"empty has no config\.json: it is empty"):
        convert(tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["out", "out.gguf"])
def test_no_room_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    converted(tmp_path / "m.gguf", build(PLAIN), Kind.F32)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with pytest.raises(DiskFull, match=r"are to be written, and 0\.00 GB \(1,000 bytes\) are free in .* Nothing was written"):
        convert(tmp_path / "m.gguf", tmp_path / out)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


PEAK = """
import resource, sys
from pathlib import Path
from pellucid.model.convert import convert
small, big, *how = sys.argv[1:]
def peak(): return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM')) * 1024
convert(small, Path(small).parent / ('small-out' + how[0]), quantize=how[1] if len(how) > 1 else None, dtype=None if len(how) > 1 else 'f16')
before = peak()
convert(big, Path(big).parent / ('out' + how[0]), quantize=how[1] if len(how) > 1 else None, dtype=None if len(how) > 1 else 'f16')
print(peak() - before)
"""


@pytest.mark.linux
@pytest.mark.parametrize("how", [("",), (".gguf",), (".gguf", "Q4_0")], ids=" ".join)
def test_memory_stays_near_one_tensor(tmp_path: Path, how: tuple[str, ...]) -> None:
    for name, n in (("small", 1), ("big", 8)):
        writer = gguf.GGUFWriter(tmp_path / f"{name}.gguf", "llama")
        for key, value in {"context_length": 64, "embedding_length": 384, "block_count": n, "feed_forward_length": 1536, "head_count": 8, "head_count_kv": 8,
                           "layer_norm_rms_eps": 1e-5, "vocab_size": 64}.items():
            getattr(writer, f"add_{key}")(value)
        D, F, V = 384, 1536, 64
        shapes: dict[str, tuple[int, ...]] = {"token_embd": (V, D), "output": (V, D), "output_norm": (D,)}
        for i in range(n):
            shapes |= {f"blk.{i}.{part}": shape for part, shape in {
                "attn_norm": (D,), "ffn_norm": (D,), "attn_q": (D, D), "attn_k": (D, D), "attn_v": (D, D), "attn_output": (D, D),
                "ffn_gate": (F, D), "ffn_up": (F, D), "ffn_down": (D, F)}.items()}
        for tensor, shape in shapes.items():
            writer.add_tensor(f"{tensor}.weight", np.full(shape, 0.5, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path / "small.gguf"), str(tmp_path / "big.gguf"), *how], capture_output=True, text=True,
                          check=True)
    largest, whole = 4 * 1536 * 384, (tmp_path / "big.gguf").stat().st_size
    assert whole > 30 * largest
    assert int(done.stdout) < 6 * largest, f"{int(done.stdout) / largest:.1f} tensors of {largest:,} bytes"


def test_transformers_runs_what_came_from_gguf(tmp_path: Path) -> None:
    """The factors that Llama 3's scaling became are its own longrope there too."""
    built = build(CASES["llama-llama3"])
    converted(tmp_path / "m.gguf", built, Kind.F32)
    convert(tmp_path / "m.gguf", tmp_path / "out")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        found = theirs(built.tokens_T[None]).logits[0]
    assert (found - built.logits_TV).abs().max() < 2e-5 * built.logits_TV.abs().max()


def test_metadata_of_safetensors_says_pt(tmp_path: Path) -> None:
    converted(tmp_path / "m.gguf", build(PLAIN), Kind.F32)
    convert(tmp_path / "m.gguf", tmp_path / "out")
    with safe_open(tmp_path / "out/model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"  # transformers asks for it
        assert file.metadata().keys() == {"format", "pellucid.ancestry"}


def test_a_number_that_no_block_can_say_is_named_by_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few rows are quantized at once."""
    monkeypatch.setattr("pellucid.ops.cast.BLOCK", 300)
    built = build(PLAIN)
    tensors = {name: tensor.clone() for name, tensor in built.files.items()}
    tensors["model.layers.1.mlp.up_proj.weight"][9, 4] = float("nan")
    write(tmp_path / "in", tensors)
    (tmp_path / "in/config.json").write_text(json.dumps(built.raw))
    with pytest.raises(BadCheckpoint, match=r"blk.1.ffn_up.weight holds nan in row 9, column 4, which Q8_0 cannot say"):
        convert(tmp_path / "in", tmp_path / "out.gguf", tokenizer=False, quantize="Q8_0")
    assert not (tmp_path / "out.gguf").exists()

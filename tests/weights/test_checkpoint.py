"""Opening: which files a folder means, what its config says, and what is wrong with it."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pellucid.errors import (
    BadCheckpoint,
    BadConfig,
    BadHeader,
    MissingShard,
    MissingTensors,
    ModelNotFound,
    PellucidError,
    TruncatedFile,
    UnknownTensors,
)
from pellucid.weights.checkpoint import open_checkpoint
from tests.weights.build import CONFIG, llama, write, write_config, write_shards


def message(path: Path, error: type[PellucidError]) -> str:
    with pytest.raises(error) as raised:
        open_checkpoint(path)
    assert type(raised.value) is error
    return str(raised.value)


def equals(path: Path, expected: dict[str, torch.Tensor]) -> None:
    mine = dict(open_checkpoint(path).tensors())
    assert mine.keys() == expected.keys()
    assert all(mine[name].equal(tensor) for name, tensor in expected.items())


def test_a_folder_with_one_file(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path / "m"))
    assert (checkpoint.name, checkpoint.format, checkpoint.notes) == ("m", "safetensors", ())
    assert checkpoint.config == CONFIG
    assert [(f.name, f.n_bytes) for f in checkpoint.files] == [("model.safetensors", (tmp_path / "m/model.safetensors").stat().st_size)]
    assert checkpoint.n_bytes == checkpoint.files[0].n_bytes
    equals(tmp_path / "m", llama())


def test_names_dtypes_and_shapes_without_torch(tmp_path: Path) -> None:
    write(tmp_path / "m", llama(torch.bfloat16))
    code = (f"import sys; from pellucid.weights.checkpoint import open_checkpoint; c = open_checkpoint({str(tmp_path / 'm')!r})\n"
            "s = c.stored['model.layers.1.self_attn.k_proj.weight']; print(s.dtype, s.shape, s.n_bytes, len(c.stored), 'torch' in sys.modules)")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == f"BF16 (20, 24) 960 {len(llama())} False\n"


def test_a_single_file_takes_the_config_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "m")
    (tmp_path / "m/model.safetensors").rename(tmp_path / "m/tuned.safetensors")
    assert open_checkpoint(tmp_path / "m/tuned.safetensors").name == "tuned.safetensors"
    equals(tmp_path / "m/tuned.safetensors", llama())


@pytest.mark.parametrize("format", ["safetensors", "pickle"])
def test_shards_with_an_index(tmp_path: Path, format: str) -> None:
    folder = write_shards(tmp_path / "m", format=format)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.format == format
    assert len(checkpoint.files) == 3
    assert checkpoint.stored["model.norm.weight"].file == checkpoint.index["model.norm.weight"]  # type: ignore[index]
    equals(folder, llama())


def test_shards_without_an_index_count_themselves(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "m", index=False)
    assert open_checkpoint(folder).notes == ("shards without an index: every tensor they hold is read",)
    equals(folder, llama())
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "first: model-00002-of-00003.safetensors" in message(folder, MissingShard)


def test_one_file_of_another_name_is_found_and_said(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "merged.safetensors")
    assert open_checkpoint(tmp_path).notes == ("the weights are in merged.safetensors",)
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert message(tmp_path, BadCheckpoint).endswith(
        "has 2 safetensors files and none is called model.safetensors: merged.safetensors, other.safetensors. Give the file that is meant.")


def test_a_legacy_file(tmp_path: Path) -> None:
    write_config(tmp_path)
    torch.save(llama(torch.float16), tmp_path / "pytorch_model.bin")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.format == "pickle"
    assert checkpoint.stored["model.norm.weight"].dtype == "F16"
    equals(tmp_path, llama(torch.float16))


def test_safetensors_win_over_pickles_and_that_is_said(tmp_path: Path) -> None:
    write(tmp_path)
    torch.save({"x": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "consolidated.00.pth").touch()
    (tmp_path / "consolidated.safetensors").touch()
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.format == "safetensors"
    assert checkpoint.notes == ("consolidated.00.pth, consolidated.safetensors: the original format beside the one that is read, ignored",
                                "both safetensors and pytorch_model*.bin are there: safetensors is read")
    equals(tmp_path, llama())


def test_one_file_wins_over_an_index_and_that_is_said(tmp_path: Path) -> None:
    write_shards(tmp_path)
    write(tmp_path)
    assert open_checkpoint(tmp_path).notes == ("both model.safetensors and model.safetensors.index.json are there: the single file is read",)


def test_a_snapshot_of_the_hub_has_its_repository_for_a_name(tmp_path: Path) -> None:
    folder = write(tmp_path / "models--acme--foo-7b" / "snapshots" / ("0" * 40))
    assert open_checkpoint(folder).name == "acme/foo-7b"


# ---- what is wrong


def test_no_such_path_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "qwen3-4b")
    text = message(tmp_path / "qwen3-5b", ModelNotFound)
    assert text == (f"no such file or folder: {tmp_path}/qwen3-5b. Nearest in {tmp_path}: qwen3-4b. "
                    f"A model of the hub is fetched with: pellucid pull OWNER/NAME")
    with pytest.raises(ModelNotFound) as raised:
        open_checkpoint(tmp_path / "qwen3-5b")
    assert raised.value.nearest == ("qwen3-4b",)
    assert f"{tmp_path} is there and holds nothing of a similar name." in message(tmp_path / "zzzzzz", ModelNotFound)
    assert f"There is no folder {tmp_path}/no either." in message(tmp_path / "no/where", ModelNotFound)


def test_an_empty_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    assert message(tmp_path, BadConfig) == (
        f"{tmp_path} has no config.json: it is empty. A checkpoint is a folder with config.json and weights (model.safetensors, "
        f"model.safetensors.index.json, pytorch_model.bin, pytorch_model.bin.index.json).")


def test_a_folder_in_the_original_format_says_so(tmp_path: Path) -> None:
    (tmp_path / "params.json").touch()
    (tmp_path / "consolidated.00.pth").touch()
    text = message(tmp_path, BadConfig)
    assert "it holds consolidated.00.pth, params.json." in text
    assert text.endswith("params.json is the original format of Meta and Mistral; the Hugging Face one is what is read.")
    write_config(tmp_path)
    assert message(tmp_path, BadCheckpoint).endswith("consolidated.00.pth is the original format, which is not read: fetch the Hugging Face one.")


def test_an_adapter_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").touch()
    assert "is an adapter (adapter_config.json), not a model. Load the model it was made for" in message(tmp_path, BadConfig)


def test_a_config_that_is_not_json_names_the_line(tmp_path: Path) -> None:
    write(tmp_path / "foo")
    (tmp_path / "foo/config.json").write_text('{\n "model_type": "llama",\n "vocab_size": }')
    assert message(tmp_path / "foo", BadConfig) == "config.json of 'foo' is not JSON: line 3 column 16: Expecting value. Is the file whole?"


def test_a_generation_config_that_is_not_json(tmp_path: Path) -> None:
    write(tmp_path / "foo")
    (tmp_path / "foo/generation_config.json").write_text("")
    assert message(tmp_path / "foo", BadConfig).startswith("generation_config.json of 'foo' is not JSON: line 1 column 1")


def test_a_config_without_weights(tmp_path: Path) -> None:
    write_config(tmp_path)
    assert message(tmp_path, BadCheckpoint) == (
        f"{tmp_path} has a config.json and no weights; looked for model.safetensors, model.safetensors.index.json, pytorch_model.bin, "
        f"pytorch_model.bin.index.json. Was the download complete?")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "m")
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert message(folder, MissingShard) == (
        f"1 of the 3 files that hold the weights of 'm' are not there, first: model-00002-of-00003.safetensors. "
        f"Was the download complete? Fetch what is missing into {folder}.")


def test_a_link_to_nothing_is_the_one_file_that_is_missing(tmp_path: Path) -> None:
    folder = write(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "gone")
    assert message(folder, MissingShard) == (f"the file that holds the weights of 'm' is not there: model.safetensors. "
                                             f"Was the download complete? Fetch what is missing into {folder}.")


def test_a_gguf_file_needs_no_config_beside_it(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert message(tmp_path / "m.gguf", TruncatedFile).startswith("m.gguf has 4 bytes, and a GGUF file starts with 24")


@pytest.mark.parametrize("format", ["safetensors", "pickle"])
def test_a_shard_and_an_index_that_disagree(tmp_path: Path, format: str) -> None:
    folder = write_shards(tmp_path / "m", format=format)
    path = next(folder.glob("*.index.json"))
    index = json.loads(path.read_text())
    shard = index["weight_map"].pop("model.norm.weight")
    path.write_text(json.dumps(index))
    with pytest.raises(UnknownTensors) as raised:
        list(open_checkpoint(folder).tensors())
    assert str(raised.value) == (f"{shard} of 'm' holds 1 tensors that the index does not name there, first: model.norm.weight. "
                                 f"Index and shards are not of one download; fetch both again.")
    index["weight_map"] |= {"model.norm.weight": shard, "model.extra.weight": shard}
    path.write_text(json.dumps(index))
    with pytest.raises(MissingTensors) as lacking:
        list(open_checkpoint(folder).tensors())
    assert str(lacking.value) == (f"the index of 'm' places 1 tensors in {shard} which are not there, first: model.extra.weight. "
                                  f"Index and shards are not of one download; fetch both again.")


def test_a_tensor_in_two_shards_without_index(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "m", index=False)
    first = load_file(folder / "model-00001-of-00003.safetensors")
    save_file(load_file(folder / "model-00002-of-00003.safetensors") | {"lm_head.weight": first["lm_head.weight"]},
              folder / "model-00002-of-00003.safetensors")
    with pytest.raises(BadCheckpoint, match=r"^lm_head.weight is in both model-00001.* and model-00002.*, and no index says which is meant$"):
        open_checkpoint(folder).stored  # noqa: B018


def test_an_index_may_not_reach_outside(tmp_path: Path) -> None:
    write_config(tmp_path / "m")
    (tmp_path / "m/model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    assert message(tmp_path / "m", BadCheckpoint).endswith(
        "names a file outside of its folder: '../secret.safetensors'. That is refused; shards lie beside their index.")


@pytest.mark.parametrize("content", ['{"weight_map": {}}', '{"weight_map": {"a": 3}}', "{}"])
def test_an_index_without_a_map(tmp_path: Path, content: str) -> None:
    write_config(tmp_path / "m")
    (tmp_path / "m/model.safetensors.index.json").write_text(content)
    assert message(tmp_path / "m", BadCheckpoint) == "model.safetensors.index.json of 'm' has no weight_map from tensor names to files. Fetch it again."


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "m")
    shard = folder / "model-00003-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(TruncatedFile, match=r"^model-00003-of-00003.safetensors has .* bytes, and its header describes"):
        open_checkpoint(folder).stored  # noqa: B018


@pytest.mark.parametrize(("file", "error", "expected"), [
    ("m.gguf", BadHeader, "m.gguf starts with b'', and a GGUF file with b'GGUF'. Is it one?"),
    ("m.txt", BadCheckpoint, "is not a weight file (.safetensors, .gguf or .bin). Give the folder of the checkpoint: "),
    ("model-00001-of-00004.safetensors", BadCheckpoint, "model-00001-of-00004.safetensors is one shard of 4. Give the folder that holds them all: ")])
def test_a_file_that_is_no_checkpoint(tmp_path: Path, file: str, error: type[PellucidError], expected: str) -> None:
    write_config(tmp_path)
    (tmp_path / file).touch()
    assert expected in message(tmp_path / file, error)


# ---- ids


@pytest.mark.parametrize(("generation", "config", "expected"), [
    ({"eos_token_id": [7, 9]}, {"eos_token_id": 7}, (7, 9)), ({"eos_token_id": 7}, {"eos_token_id": 9}, (7,)), (None, {"eos_token_id": [1, 106]}, (1, 106)),
    ({"temperature": 1}, {"eos_token_id": 3}, (3,)), ({"eos_token_id": None}, {"text_config": {"eos_token_id": 5}}, (5,)), (None, {}, ())])
def test_the_ids_that_end_a_sequence(tmp_path: Path, generation: Any, config: dict[str, Any], expected: tuple[int, ...]) -> None:
    write(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert open_checkpoint(tmp_path).eos_ids == expected


def test_ids_that_are_not_ids(tmp_path: Path) -> None:
    write(tmp_path / "m", eos_token_id="</s>")
    with pytest.raises(BadConfig, match=r"^config.json of 'm': eos_token_id is '</s>', and a token id or a list of them was expected$"):
        open_checkpoint(tmp_path / "m").eos_ids  # noqa: B018

"""Saving: what others read, whole or not at all."""
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from pellucid.errors import BadRequest, DiskFull
from pellucid.families import family
from pellucid.families._describe import describe
from pellucid.model.load import load_decoder
from pellucid.weights import save as saving
from pellucid.weights.checkpoint import open_checkpoint
from pellucid.weights.save import save_checkpoint
from tests.weights.build import CONFIG, llama, write


@pytest.fixture
def model(tmp_path: Path) -> tuple[Any, Any, dict[str, Tensor]]:
    """(spec, table, our tensors) of a small llama."""
    decoder, _ = load_decoder(write(tmp_path / "source"))
    return decoder.spec, family("llama").WEIGHTS, decoder.state_dict()


def test_loaded_and_saved_again_is_bit_exact(tmp_path: Path, model: Any) -> None:
    files = save_checkpoint(tmp_path / "out", *model, CONFIG)
    assert [file.name for file in files] == ["config.json", "model.safetensors"]
    mine = load_file(tmp_path / "out/model.safetensors")
    assert mine.keys() == llama().keys()
    assert all(mine[name].equal(tensor) for name, tensor in llama().items())
    assert json.loads((tmp_path / "out/config.json").read_text()) == CONFIG


def test_transformers_reads_the_shards(tmp_path: Path, model: Any) -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    files = save_checkpoint(tmp_path / "out", *model, CONFIG | {"architectures": ["LlamaForCausalLM"]}, max_shard_bytes=20_000,
                            generation={"eos_token_id": [1, 2]})
    shards = [file for file in files if file.suffix == ".safetensors"]
    assert len(shards) > 2
    assert all(file.stat().st_size < 20_000 + 2_000 for file in shards), "a shard holds no more than asked for, and its header"
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in llama().values())
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.generation_config.eos_token_id == [1, 2]
    for name, tensor in llama().items():
        assert theirs.state_dict()[name].equal(tensor)
    decoder, _ = load_decoder(tmp_path / "out")
    assert all(tensor.equal(model[2][name]) for name, tensor in decoder.state_dict().items())


def test_a_layer_comes_after_those_before_it(tmp_path: Path) -> None:
    config = CONFIG | {"num_hidden_layers": 12}
    decoder, _ = load_decoder(write(tmp_path / "source", **config))
    save_checkpoint(tmp_path / "out", decoder.spec, family("llama").WEIGHTS, decoder.state_dict(), config, max_shard_bytes=16_000)
    weight_map = open_checkpoint(tmp_path / "out").index
    assert weight_map is not None
    files = [weight_map[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(12)]
    assert files == sorted(files)


@pytest.mark.parametrize(("key", "dtype"), [("torch_dtype", torch.bfloat16), ("dtype", torch.float16)])
def test_the_config_states_the_dtype_that_was_written_in_its_dialect(tmp_path: Path, model: Any, key: str, dtype: torch.dtype) -> None:
    spec, table, ours = model
    config = {k: v for k, v in CONFIG.items() if k != "dtype"} | {key: "float32"}
    save_checkpoint(tmp_path / "out", spec, table, {name: t.to(dtype) for name, t in ours.items()}, config)
    assert json.loads((tmp_path / "out/config.json").read_text()) == config | {key: str(dtype).removeprefix("torch.")}


def test_a_tied_embedding_is_written_once(tmp_path: Path) -> None:
    tensors = llama()
    del tensors["lm_head.weight"]
    decoder, _ = load_decoder(write(tmp_path / "source", tensors, tie_word_embeddings=True))
    save_checkpoint(tmp_path / "out", decoder.spec, family("llama").WEIGHTS, decoder.state_dict(), CONFIG | {"tie_word_embeddings": True})
    assert load_file(tmp_path / "out/model.safetensors").keys() == tensors.keys()


def test_files_are_copied_along(tmp_path: Path, model: Any) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    save_checkpoint(tmp_path / "out", *model, CONFIG, beside=[tmp_path / "tokenizer.json"])
    assert (tmp_path / "out/tokenizer.json").read_text() == "{}"


def test_other_people_may_enter_the_folder(tmp_path: Path, model: Any) -> None:
    mask = os.umask(0o022)
    try:
        save_checkpoint(tmp_path / "out", *model, CONFIG)
    finally:
        os.umask(mask)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


def test_nothing_is_overwritten_unasked(tmp_path: Path, model: Any) -> None:
    (tmp_path / "out").mkdir()
    save_checkpoint(tmp_path / "out", *model, CONFIG)  # an empty folder is as good as none
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(BadRequest) as raised:
        save_checkpoint(tmp_path / "out", *model, CONFIG)
    assert str(raised.value) == f"{tmp_path}/out is there and not empty; nothing was written. Choose another folder, or overwrite it on purpose."
    assert raised.value.field == "folder"
    assert (tmp_path / "out/notes.txt").exists()
    save_checkpoint(tmp_path / "out", *model, CONFIG, overwrite=True)
    assert not (tmp_path / "out/notes.txt").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source"], "no draft stays behind"


def test_a_config_of_another_family_is_not_written(tmp_path: Path, model: Any) -> None:
    with pytest.raises(BadRequest) as raised:
        save_checkpoint(tmp_path / "out", *model, CONFIG | {"model_type": "gemma3"})
    assert str(raised.value) == ("config says model_type 'gemma3', and the tensors are of family 'llama': nobody could load what would be written. "
                                 "Give the config of the model that is run (of a multimodal wrapper its text_config).")
    assert not (tmp_path / "out").exists()


def test_a_crash_leaves_what_was_there(tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path / "out", *model, CONFIG)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "_write_json", full_disk)
    for folder in ("out", "new"):
        with pytest.raises(DiskFull, match=r"It did not fit while it was written \(No space left on device\), and was taken away again"):
            save_checkpoint(tmp_path / folder, *model, CONFIG, overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source"]


def test_weights_that_still_view_the_old_file_survive_overwriting_it(tmp_path: Path) -> None:
    """Saving over the folder a model was loaded from: its tensors are views of the file that goes."""
    decoder, _ = load_decoder(write(tmp_path / "m"))
    save_checkpoint(tmp_path / "m", decoder.spec, family("llama").WEIGHTS, decoder.state_dict(), CONFIG, overwrite=True)
    assert all(load_file(tmp_path / "m/model.safetensors")[name].equal(tensor) for name, tensor in llama().items())
    assert decoder.embed.weight.equal(llama()["model.embed_tokens.weight"])


def test_every_layout_a_table_knows_is_written_as_it_was_read(tmp_path: Path) -> None:
    """GPT-2: transposed, stacked, and without the prefix that saving adds."""
    config: dict[str, Any] = {"model_type": "gpt2", "n_embd": 24, "n_head": 4, "n_layer": 2, "n_positions": 16, "vocab_size": 31,
                              "layer_norm_epsilon": 1e-5, "dtype": "float32"}
    noise = torch.Generator().manual_seed(0)
    shapes = {"wte.weight": (31, 24), "wpe.weight": (16, 24), "ln_f.weight": (24,), "ln_f.bias": (24,)}
    for i in range(2):
        for name, (n_in, n_out) in {"attn.c_attn": (24, 72), "attn.c_proj": (24, 24), "mlp.c_fc": (24, 96), "mlp.c_proj": (96, 24)}.items():
            shapes |= {f"h.{i}.{name}.weight": (n_in, n_out), f"h.{i}.{name}.bias": (n_out,)}
        shapes |= {f"h.{i}.{norm}.{p}": (24,) for norm in ("ln_1", "ln_2") for p in ("weight", "bias")}
    tensors = {name: torch.randn(shape, generator=noise) for name, shape in shapes.items()}
    (tmp_path / "source").mkdir()
    (tmp_path / "source/config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "source/model.safetensors")
    decoder, _ = load_decoder(tmp_path / "source")
    assert not decoder.blocks[0].attn.q.weight.is_contiguous()  # type: ignore[union-attr, operator]
    save_checkpoint(tmp_path / "out", decoder.spec, describe(config).weights, decoder.state_dict(), config)
    mine = load_file(tmp_path / "out/model.safetensors")
    assert mine.keys() == {f"transformer.{name}" for name in tensors}
    assert all(mine[f"transformer.{name}"].equal(tensor) for name, tensor in tensors.items())

"""The hub on loopback and a cache of its own, for tests of this folder and of the command line."""
from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from tests.hub.server import Hub, Repo

NAME = "acme/tiny-llama"
WEIGHTS = random.Random(0).randbytes(3_000_001)  # several chunks, and no multiple of one


def repository() -> Repo:
    """What a real repository looks like: the model, its duplicates in other formats, and folders nobody needs."""
    return Repo({
        "config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}", "tokenizer_config.json": b"{}", "README.md": b"# tiny",
        "LICENSE": b"Apache", "chat_template.jinja": b"{{ messages }}", ".gitattributes": b"*.safetensors filter=lfs",
        "model.safetensors": WEIGHTS, "pytorch_model.bin": b"pickle" * 100, "flax_model.msgpack": b"flax", "tf_model.h5": b"tf",
        "consolidated.safetensors": b"again" * 100, "onnx/model.onnx": b"onnx", "a name with #.txt": b"?", "empty.txt": b"", "original/params.json": b"{}"})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with `acme/tiny-llama`; huggingface_hub in this process asks it, without a token, and keeps files under tmp_path."""
    server = Hub()
    server.repos[NAME] = repository()
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    close_session()
    server.stall.clear()
    server.close()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "home" / "hub"

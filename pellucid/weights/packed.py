"""Weights that the files of a repository hold packed, several tensors for one: found by their settings and headers (no torch here), put together when read.

Settings stand in config.json, or in a file of their own where a repository is older than that habit.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pellucid.errors import BadConfig
from pellucid.records import read_object
from pellucid.weights import awq, bitsandbytes, compressed_tensors, fp8, gptq, mxfp4
from pellucid.weights.quantization import Peek, Quantization, Settings, Stored

Read = Callable[[Settings, Stored, Peek], Quantization | None]
METHODS: Mapping[str, Read] = {"gptq": gptq.read, "awq": awq.read, "compressed-tensors": compressed_tensors.read, "fp8": fp8.read, "fbgemm_fp8": fp8.read,
                               "bitsandbytes": bitsandbytes.read, "mxfp4": mxfp4.read}
KEYS = ("quantization_config", "compression_config")  # of config.json; the second is what compressed-tensors called it at first
BESIDE = {"quantize_config.json": "gptq", "quant_config.json": "awq"}  # AutoGPTQ's and AutoAWQ's own files, which need not name a method
_SAME = ("bits", "group_size", "desc_act", "sym", "quant_method")  # what the two places must agree on


def settings_of(config: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], str] | None:
    """What says how weights are packed, and what to call it; None where nothing does. Raises BadConfig where two files disagree."""
    text = config.get("text_config")  # where some wrappers say it
    said = next((of[key] for of in (config, text if isinstance(text, dict) else {}) for key in KEYS if isinstance(of.get(key), dict)), None)
    for file, method in BESIDE.items():
        if not (folder / file).is_file():
            continue
        own = read_object(folder / file, BadConfig, file)
        if said is None:
            return {"quant_method": method, **own}, file
        if torn := [key for key in _SAME if None not in (said.get(key), own.get(key)) and said[key] != own[key]]:
            raise BadConfig(f"{file} and quantization_config of config.json disagree on {', '.join(torn)} ({own[torn[0]]!r:.40} and {said[torn[0]]!r:.40}). "
                            f"Remove the wrong one.")
    return None if said is None else (said, "quantization_config of config.json")


def find_packed(config: Mapping[str, Any], folder: Path, stored: Stored, peek: Peek) -> Quantization | None:
    """How the matrices of a checkpoint are packed; None where its settings name no method that is read, or no tensor is packed by it.

    Raises BadConfig for settings that nobody reads, UnsupportedModel for those that are not implemented, MissingTensors or MisshapenTensor where tensors
    do not go together.
    """
    found = settings_of(config, folder)
    if found is None or (method := str(found[0].get("quant_method")).lower()) not in METHODS:
        return None
    settings = Settings(*found)
    quantization = METHODS[method](settings, stored, peek)
    if quantization is not None:
        settings.finish()
    return quantization

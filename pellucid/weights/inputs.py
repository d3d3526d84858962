"""Which files of a checkpoint act on what it writes: those that a record hashes and `show` lists. No torch here."""
from __future__ import annotations

from pathlib import Path

from pellucid.weights.checkpoint import CONFIG, GENERATION, Checkpoint
from pellucid.weights.packed import BESIDE as QUANTIZED

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json", "*.tiktoken")  # one of them makes a tokenizer
_BESIDE = (GENERATION, *TOKENIZER_FILES, "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.*",
           "additional_chat_templates/*.jinja", *QUANTIZED)


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder holds a file that a tokenizer is made of."""
    return any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES)


def input_files(checkpoint: Checkpoint) -> dict[str, Path]:
    """Name -> path of config.json, the weights, and everything beside them that acts on weights, tokens, sampling or templates; of GGUF, its files."""
    folder = checkpoint.folder
    if checkpoint.format == "gguf":  # everything is in it, and what lies beside it is not its own
        return {file.name: folder / file.name for file in checkpoint.files}
    beside = sorted({path.relative_to(folder).as_posix() for pattern in _BESIDE for path in folder.glob(pattern) if path.is_file()})
    return {name: folder / name for name in (CONFIG, *(file.name for file in checkpoint.files), *beside)}

"""The tokenizer that a checkpoint brings: in files beside the weights, or in the metadata of its GGUF file. No torch here."""
from __future__ import annotations

from pellucid.errors import BadTokenizer
from pellucid.tokenizer import Tokenizer, load_tokenizer, tokenizer_of_gguf
from pellucid.tokenizer.gguf_vocab import has_tokenizer as says_tokenizer
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.inputs import TOKENIZER_FILES, has_tokenizer


def checkpoint_tokenizer(checkpoint: Checkpoint) -> Tokenizer | None:
    """Its tokenizer; None where it has none. Raises what `load_tokenizer` and `tokenizer_of_gguf` raise."""
    if checkpoint.gguf is not None:
        metadata = checkpoint.gguf.metadata
        return tokenizer_of_gguf(metadata, str(checkpoint.gguf.files[0])) if says_tokenizer(metadata) else None
    return load_tokenizer(checkpoint.folder) if has_tokenizer(checkpoint.folder) else None


def no_tokenizer(checkpoint: Checkpoint) -> BadTokenizer:
    """What to say of a checkpoint without one."""
    where = f"no tokenizer files in {checkpoint.folder}: looked for {', '.join(TOKENIZER_FILES)}" if checkpoint.gguf is None else \
        "no tokenizer: tokenizer.ggml.model of its metadata names none"
    return BadTokenizer(f"{checkpoint.name!r} has {where}. Without one it takes token ids only: model.logits(ids)")

"""The tokenizer that a checkpoint brings: in files beside the weights, or in the metadata of its GGUF file. No torch here."""
from __future__ import annotations

from pellucid.errors import BadTokenizer
from pellucid.tokenizer import Tokenizer, load_tokenizer, tokenizer_of_gguf
from pellucid.tokenizer.gguf_vocab import has_tokenizer as says_tokenizer
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.inputs import TOKENIZER_FILES, has_tokenizer


def checkpoint_tokenizer(checkpoint: Checkpoint, *, pieces_first: bool = False) -> Tokenizer | None:
    """Its tokenizer; None where it has none. Raises what `load_tokenizer` and `tokenizer_of_gguf` raise.

    pieces_first: SentencePiece's own file where there is a tokenizer.json too, which has the order of its merges and not its scores.
    """
    if checkpoint.gguf is not None:
        metadata = checkpoint.gguf.metadata
        return tokenizer_of_gguf(metadata, str(checkpoint.gguf.files[0])) if says_tokenizer(metadata) else None
    if pieces_first and (pieces := checkpoint.folder / "tokenizer.model").is_file():
        return load_tokenizer(pieces)
    return load_tokenizer(checkpoint.folder) if has_tokenizer(checkpoint.folder) else None


def no_tokenizer(checkpoint: Checkpoint) -> BadTokenizer:
    """What to say of a checkpoint without one."""
    where = f"no tokenizer files in {checkpoint.folder}: looked for {', '.join(TOKENIZER_FILES)}" if checkpoint.gguf is None else \
        "no tokenizer: tokenizer.ggml.model of its metadata names none"
    return BadTokenizer(f"{checkpoint.name!r} has {where}. Without one it takes token ids only: model.logits(ids)")

"""Text <-> token ids, as a model's own files describe it, and chat templates.

    tokenizer = load_tokenizer("path/to/model")
    ids = tokenizer.encode("Once upon a time")
    tokenizer.decode(ids)
"""
from pellucid.tokenizer.decode import TextStream
from pellucid.tokenizer.gguf import tokenizer_of_gguf
from pellucid.tokenizer.load import load_tokenizer
from pellucid.tokenizer.tokenizer import Tokenizer

__all__ = ["TextStream", "Tokenizer", "load_tokenizer", "tokenizer_of_gguf"]

"""Books -> training documents -> an 8k byte-level BPE -> token shards. First of three steps to the shipped model.

    python scripts/shipped/prepare.py BOOKS.tar.xz out/shipped

Writes `tokenizer.json`, `train.bin` and `heldout.bin` (little-endian uint16 ids, one book after another),
`heldout_books.txt` and `data.json` (counts and hashes). The same archive always gives the same files.

A document is one chapter: the archive's Markdown marks chapters with `##`, and ending each chapter with
the end token lets the model see that token some ten thousand times instead of once a book.
"""
import argparse
import hashlib
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

N_VOCAB = 8192  # a multiple of 256, so that every packed weight format fits
BEGIN, END = "<|begin|>", "<|end|>"
HELD_OUT_ONE_IN = 48  # of 696 books this keeps 14 whole books away from training


def is_held_out(name: str) -> bool:
    """Whether a book is kept for validation; by a hash of its path, so that adding books moves no other."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % HELD_OUT_ONE_IN == 0


def books(archive: Path) -> Iterator[tuple[str, str]]:
    """(author/title, text) of every book, sorted by name."""
    with tarfile.open(archive) as tar:
        members = sorted((m for m in tar if m.isfile() and m.name.endswith(".md")), key=lambda m: m.name)
        for member in members:
            file = tar.extractfile(member)
            assert file is not None
            yield member.name.removeprefix("books/").removesuffix(".md"), file.read().decode("utf8")


def chapters(book: str) -> list[str]:
    """The text of each chapter with its heading; the title page before the rule is left out."""
    body = book.split("\n-------\n", 1)[-1]
    parts = re.split(r"(?m)^(?=## )", body)
    return [text for part in parts if len(text := re.sub(r"\n{3,}", "\n\n", part).strip()) > 200]


def train_tokenizer(texts: Iterator[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [AddedToken(name, special=True, normalized=False) for name in (BEGIN, END)]
    trainer = trainers.BpeTrainer(vocab_size=N_VOCAB, special_tokens=specials, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    split: dict[str, list[tuple[str, list[str]]]] = {"train": [], "heldout": []}
    for name, text in books(args.archive):
        split["heldout" if is_held_out(name) else "train"].append((name, chapters(text)))
    tokenizer = train_tokenizer(chapter for _, parts in split["train"] for chapter in parts)
    tokenizer.save(str(args.out / "tokenizer.json"))

    begin, end = tokenizer.token_to_id(BEGIN), tokenizer.token_to_id(END)
    facts: dict[str, object] = {"archive_sha256": hashlib.sha256(args.archive.read_bytes()).hexdigest(), "n_vocab": tokenizer.get_vocab_size()}
    for part, its_books in split.items():
        texts = [chapter for _, parts in its_books for chapter in parts]
        encoded = [[begin, *e.ids, end] for e in tokenizer.encode_batch_fast(texts)]
        ids = np.concatenate([np.array(e, dtype="<u2") for e in encoded])
        ids.tofile(args.out / f"{part}.bin")
        facts[part] = dict(books=len(its_books), chapters=len(texts), bytes=sum(len(t.encode()) for t in texts),
                           tokens=len(ids), sha256=hashlib.sha256(ids.tobytes()).hexdigest())
    (args.out / "heldout_books.txt").write_text("".join(f"{name}\n" for name, _ in split["heldout"]))
    (args.out / "data.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()

"""A text to judge models on, out of books that the shipped model never saw: pages from the middle of each, whole paragraphs.

    python scripts/shipped/held_out_text.py ../shared/data/books.tar.xz --out pellucid/shipped/held_out.txt

The same archive always gives the same text.
"""
from __future__ import annotations

import argparse
import hashlib
import tarfile
from pathlib import Path

from prepare import is_held_out

BOOKS = ("Aldous Huxley/Crome Yellow", "Anton Chekhov/The Duel", "H.G. Wells/The Island of Doctor Moreau",
         "Joseph Conrad/Nostromo", "L. Frank Baum/The Wonderful Wizard of Oz", "Thomas Hardy/Tess of the d'Urbervilles")
BYTES = 16_000  # of each: some four thousand of the shipped model's tokens


def pages(text: str) -> str:
    """Whole paragraphs from a third of the way on, as many as fit."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in text[len(text) // 3 :].split("\n\n")[1:]]
    kept: list[str] = []
    for paragraph in paragraphs:
        if not paragraph or paragraph.startswith("#"):
            continue
        if sum(len(each.encode()) + 2 for each in [*kept, paragraph]) > BYTES:
            break
        kept.append(paragraph)
    return "\n\n".join(kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("books", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    found: dict[str, str] = {}
    with tarfile.open(args.books) as archive:
        for member in archive:
            name = member.name.removeprefix("books/").removesuffix(".md")
            if name in BOOKS and (file := archive.extractfile(member)) is not None:
                assert is_held_out(name), name
                found[name] = pages(file.read().decode().replace("\r\n", "\n"))
    assert sorted(found) == sorted(BOOKS), f"not in the archive: {set(BOOKS) - found.keys()}"
    text = "\n\n".join(found[name] for name in BOOKS) + "\n"
    args.out.write_text(text, encoding="utf-8")
    print(f"{hashlib.sha256(text.encode()).hexdigest()}  {args.out}  {len(text.encode()):,} bytes")


if __name__ == "__main__":
    main()

"""What `pellucid convert` writes, run by llama.cpp: the same ids of the same texts, the same greedy answers, the same logits.

    python benchmarks/gguf_roundtrip.py --peer PYTHON [--model NAME ...] [--families] > page

PYTHON has llama-cpp-python. Each model is written to GGUF as it is stored and in each of MIXES, and continued greedily by both programs from that one
file; the answer of the safetensors stands beside them, and the file is written back and compared tensor by tensor. --families does it for a tiny random
model of every architecture that is written (needs the repository's tests/), whose logits are compared.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import pellucid
from pellucid.model.convert import convert
from pellucid.records import sha256_of
from pellucid.tokenizer.gguf_write import PROBES
from pellucid.weights.hub import resolve

SIDE = Path(__file__).with_name("llama_cpp_text.py")
PROMPTS = ("Once upon a time", "The old man said", "It was a dark and stormy night, and", "In the year 1850 there lived")
MIXES = (None, "Q8_0", "Q4_K_M", "Q4_0")
N = 40


def ask(python: str, path: Path, **job: Any) -> dict[str, Any]:
    done = subprocess.run([python, str(SIDE), str(path)], input=json.dumps(job), capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"error": next((line.rpartition("error loading model: ")[2] for line in lines if "error loading model" in line), lines[-1])}
    return json.loads(done.stdout)


def agreed(a: list[int], b: list[int]) -> int:
    """How many leading ids are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def model(python: str, name: str, folder: Path) -> Iterator[str]:
    """A row for every mix."""
    source = resolve(name)
    plain = pellucid.load(source, dtype="float32", activations="exact")
    wanted = [list(plain.generate(prompt, max_tokens=N, temperature=0, ignore_eos=True).token_ids) for prompt in PROMPTS]
    for mix in MIXES:
        path = folder / f"{Path(name).name}-{mix or 'stored'}.gguf"
        convert(source, path, quantize=mix)
        ours = pellucid.load(path, dtype="float32", activations="exact")
        mine = [list(ours.generate(prompt, max_tokens=N, temperature=0, ignore_eos=True).token_ids) for prompt in PROMPTS]
        theirs = ask(python, path, n_ctx=256, n=N, prompts=PROMPTS, texts=PROBES)
        texts = sum(ours.tokenizer.encode(text) == ids for text, ids in zip(PROBES, theirs["texts"], strict=True))
        same = [agreed(a, b) for a, b in zip(mine, theirs["answers"], strict=True)]
        # llama_detokenize takes a first space for SentencePiece's own, wherever the ids stand
        shown = sum(ours.tokenizer.decode(ids).lstrip() == text.lstrip() for ids, text in zip(theirs["answers"], theirs["answer_texts"], strict=True))
        kept = [agreed(a, b) for a, b in zip(mine, wanted, strict=True)]
        back = ""
        if mix is None:
            convert(path, folder / f"{Path(name).name}-back")
            files = sorted(folder.joinpath(f"{Path(name).name}-back").glob("*.safetensors"))
            was = sorted((source if source.is_dir() else source.parent).glob("*.safetensors"))
            back = "the same bytes" if [sha256_of(file) for file in files] == [sha256_of(file) for file in was] else "other bytes"
        yield f"| {name} | {mix or 'as stored'} | {path.stat().st_size / 1e6:.2f} | {texts}/{len(PROBES)} | {same} | {shown}/{len(PROMPTS)} | {kept} | {back} |"


def families(python: str, folder: Path) -> Iterator[str]:
    """A row for every case of the family tests that can be written."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from safetensors.torch import save_file

    from tests.families.build import build
    from tests.families.test_gguf_write import CANNOT, HAVE
    for case in HAVE:
        if str(case) in CANNOT:
            continue
        built, source, path = build(case), folder / str(case), folder / f"{case}.gguf"
        source.mkdir()
        (source / "config.json").write_text(json.dumps(built.raw))
        save_file({name: tensor.contiguous() for name, tensor in built.files.items()}, source / "model.safetensors")
        try:
            notes = "; ".join(convert(source, path).notes)
        except pellucid.errors.PellucidError as error:
            yield f"| {case} | refused | {error} |"
            continue
        ids = built.tokens_T.tolist()
        theirs = ask(python, path, n_ctx=len(ids), ids=ids)
        if "error" in theirs:
            yield f"| {case} | not loaded | {theirs['error']} |"
            continue
        found, expected = torch.tensor(theirs["logits"]), built.logits_TV
        worst = float((found - expected).abs().max() / expected.abs().max())
        yield f"| {case} | {worst:.1e} | {notes} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", required=True)
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--families", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if args.model:
            print("| model | matrices | MB | texts with the same ids | equal greedy ids, of 40 a prompt | equal texts | equal to safetensors | written back |")
            print("| --- | --- | ---: | ---: | --- | ---: | --- | --- |")
        for name in args.model:
            for row in model(args.peer, name, Path(folder)):
                print(row, flush=True)
        if args.families:
            print("\n| case | worst difference, of the largest logit | said when it was written, or by llama.cpp |\n| --- | ---: | --- |")
            for row in families(args.peer, Path(folder)):
                print(row, flush=True)


if __name__ == "__main__":
    main()

"""How much each column of each matrix counts: the squares of what it is multiplied with, summed up while the decoder reads calibration text.

To first order an error of a weight moves an output by itself times the column's input, so that its square counts for the input's. Each window of text is
read alone, as llama.cpp's imatrix does (tools/imatrix/imatrix.cpp at 050fc7f32de16858ac667d775b43a51ed8976e6f); unlike there, the matrix that makes
logits is measured as well. Shape letters as in decoder.py.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pellucid.errors import BadCheckpoint, BadRequest
from pellucid.families._gguf_write import architecture_of
from pellucid.model.decoder import Decoder
from pellucid.model.parts import Project
from pellucid.spec import DecoderSpec
from pellucid.weights.imatrix import CHUNK, Imatrix, Squares
from pellucid.weights.names import NameTable

LEAST = 2  # windows; of 512 tokens each, the mean square of a normal column is then known to 4 %


def windows(ids: Sequence[int], chunk: int = CHUNK, *, bos: int | None = None, most: int | None = None) -> list[list[int]]:
    """The text in windows of `chunk` tokens, each with `bos` in the place of its first; what is left at the end is not used.

    Raises BadRequest for less than two windows, with both counts.
    """
    n = len(ids) // chunk
    if n < LEAST:
        raise BadRequest(f"the calibration text has {len(ids):,} tokens, and {LEAST * chunk:,} are needed at least: {LEAST} windows of {chunk:,}. "
                         f"Give more text (100,000 tokens are usual), or a smaller --chunk", field="text")
    cut = [list(ids[i * chunk : (i + 1) * chunk]) for i in range(min(n, most or n))]
    return [[bos, *window[1:]] if bos is not None else window for window in cut]


@torch.no_grad()
def measure(decoder: Decoder, texts: Sequence[Sequence[int]], *, datasets: Sequence[str] = (), report: Callable[[int], None] = lambda n: None) -> Imatrix:
    """The importance of every matrix that GGUF has a place for, by its name there.

    report: is told of every so many tokens read.
    Raises UnsupportedModel for a family that GGUF has no architecture for, BadCheckpoint where an input is no number.
    """
    spec, device = decoder.spec, decoder.final_norm.weight.device if hasattr(decoder.final_norm, "weight") else torch.device("cpu")
    table = NameTable(architecture_of(spec).table)  # before the text is read
    with _summing(decoder) as (sums, counts):
        for text in texts:
            decoder.unembed(decoder(torch.tensor(list(text), device=device)))
            report(len(text))
    if broken := next((name for name, sum_D in sums.items() if not bool(sum_D.isfinite().all())), None):
        raise BadCheckpoint(f"what {broken} is multiplied with holds NaN or infinity on this text, so nothing can be said of its columns. Do the weights, "
                            f"or the dtype, overflow? Try --dtype float32.")
    return Imatrix(_named(sums, counts, spec, table), tuple(datasets), len(texts), max(map(len, texts)))


@contextmanager
def _summing(decoder: Decoder) -> Iterator[tuple[dict[str, Tensor], dict[str, int]]]:
    """Watches every matrix: sums of squares, (D,) float64, and tokens, by the names of the weights. Experts that nobody chose have zeros."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    handles = []

    def watch(name: str, project: Project) -> None:
        sums[name], counts[name] = torch.zeros(project.weight.shape[1], dtype=torch.float64), 0

        def add(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x_TD = args[0].detach().float()
            sums[name] += x_TD.square().sum(0).double().cpu()
            counts[name] += len(x_TD)
        handles.append(project.register_forward_pre_hook(add))
    for name, module in decoder.named_modules():
        if isinstance(module, Project):
            watch("embed.weight" if decoder.spec.tied and module is decoder.unembed else f"{name}.weight", module)
    try:
        yield sums, counts
    finally:
        for handle in handles:
            handle.remove()


def _named(sums: dict[str, Tensor], counts: dict[str, int], spec: DecoderSpec, table: NameTable) -> dict[str, Squares]:
    """By GGUF names: of what stands stacked there each reads the same input, and of experts in one tensor each has a row."""
    out = {}
    for theirs, place in sorted(table.saved(sums, {}).items(), key=lambda item: item[0]):
        if place.rule.by_head == "turned":  # its columns are ours' rows
            continue
        each = place.names[:: len(place.rule.names)] if place.rule.all_experts else place.names[:1]
        if any(counts[name] for name in each):
            out[theirs] = Squares(torch.stack([sums[name] for name in each]).float(), torch.tensor([float(counts[name]) for name in each]))
    return out

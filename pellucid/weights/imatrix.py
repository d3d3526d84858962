"""Importance matrices, as llama.cpp writes and reads them: for each matrix, how large the squares are that its columns are multiplied with.

    .gguf   general.type "imatrix", imatrix.datasets, imatrix.chunk_count, imatrix.chunk_size; of a matrix NAME two float32 tensors: NAME.in_sum2, the sum
            of squares of each column over the tokens, and NAME.counts, how many tokens; of experts in one tensor a row and a count for each
    .dat    n_entries:i32; of each length:i32 name n_calls:i32 n_values:i32 values:f32..., the mean squares times n_calls; then n_calls:i32 and the
            dataset as length:i32 text, both of which older files lack
IMatrixCollector of
https://github.com/ggml-org/llama.cpp/blob/050fc7f32de16858ac667d775b43a51ed8976e6f/tools/imatrix/imatrix.cpp; what quantizing reads of them is
load_imatrix of tools/quantize/quantize.cpp there. `.in_sum`, which newer files have too, is not used.
"""
from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from pellucid.errors import BadCheckpoint, BadHeader, BadRequest, ModelNotFound, TruncatedFile
from pellucid.weights.drafts import Draft, Written, write_all
from pellucid.weights.gguf import MAGIC, Items, read_gguf
from pellucid.weights.gguf_file import GgufFile
from pellucid.weights.gguf_write import Value, planned, write_gguf

SUMS, COUNTS = ".in_sum2", ".counts"
CHUNK = 512  # tokens that are seen together


@dataclass(frozen=True, slots=True, eq=False)
class Squares:
    """Of one matrix: the sums of squares of its columns, (n, D), and of how many tokens, (n,); n is 1, or one for each expert."""

    sums: Tensor
    counts: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Imatrix:
    """GGUF name of a matrix -> its squares, and what they were measured on."""

    entries: Mapping[str, Squares]
    datasets: Sequence[str] = ()
    n_chunks: int = 0
    chunk: int = CHUNK  # tokens
    source: str = field(default="the imatrix")

    @property
    def n_unseen(self) -> int:
        """Experts that no token chose: a layer's matrices say the same, so the last of them is counted."""
        return sum({name.split(".")[1]: int((entry.counts == 0).sum()) for name, entry in self.entries.items() if name.startswith("blk.")}.values())

    def importance(self, name: str, shape: tuple[int, ...]) -> Tensor | None:
        """The mean squares for a matrix of this shape, (D,) or of experts (X, D); None for one that was not measured.

        Experts that no token chose have the mean of the others'. Raises BadCheckpoint for an entry of another shape, or that holds what is no number.
        """
        if (entry := self.entries.get(name)) is None:
            return None
        sums, counts, D = entry.sums, entry.counts, shape[-1]
        if len(shape) == 3 and sums.shape == (1, shape[0] * D):  # a .dat does not say where one expert ends
            sums, counts = sums.view(-1, D), counts.expand(shape[0])
        n = len(sums)
        if sums.shape[1] != D or n not in (1, *shape[:-2]):
            raise BadCheckpoint(f"{self.source}: {name} has {n:,} x {sums.shape[1]:,} numbers, and the matrix is {' x '.join(f'{size:,}' for size in shape)}. "
                                f"Was it made from this model?")
        if not all(bool((t.isfinite() & (t >= 0)).all()) for t in (sums, counts)):
            raise BadCheckpoint(f"{self.source}: {name} holds what is no sum of squares. Make it again: pellucid imatrix MODEL --text FILE")
        seen = counts > 0
        if not bool(seen.any()):
            return None
        means = sums / counts.clamp(min=1e-9)[:, None]
        means = torch.where(seen[:, None], means, means[seen].mean(0))
        return means[0] if n == 1 else means


def read_imatrix(path: Path) -> Imatrix:
    """The imatrix in a file of either format, whatever it is called.

    Raises ModelNotFound, what `read_gguf` raises, BadHeader or TruncatedFile for what is not one.
    """
    if not path.is_file():
        raise ModelNotFound(f"no such file: {path}. An imatrix is made with: pellucid imatrix MODEL --text FILE -o {path.name}")
    with path.open("rb") as file:
        is_gguf = file.read(4) == MAGIC
    return _read_gguf(path) if is_gguf else _read_legacy(path)


def write_imatrix(path: Path, imatrix: Imatrix, *, overwrite: bool = False) -> Written:
    """The file, GGUF or by its name .dat the older format. Raises what `write_all` raises, BadRequest for a name that says neither."""
    if path.suffix not in (".gguf", ".dat"):
        raise BadRequest(f"{path.name} says no format: an imatrix is written as .gguf, or as .dat for older readers", field="out")
    if path.suffix == ".dat":
        raw = _legacy(imatrix)
        return write_all([path], lambda i, draft: _fill(draft, raw), needed=len(raw), overwrite=overwrite)[0]
    metadata: dict[str, Value] = {"general.type": "imatrix", "imatrix.datasets": list(imatrix.datasets), "imatrix.chunk_count": imatrix.n_chunks,
                "imatrix.chunk_size": imatrix.chunk}
    tensors = []
    for name, squares in sorted(imatrix.entries.items()):
        n, D = squares.sums.shape  # of one matrix both have one dimension, as ggml writes them
        for end, numbers, shape in ((SUMS, squares.sums, (n, D)[n == 1:]), (COUNTS, squares.counts, (n, 1)[n == 1:])):
            raw = numbers.float().contiguous().numpy().tobytes()
            tensors.append(planned(f"{name}{end}", "F32", shape, lambda raw=raw: [raw]))  # type: ignore[misc]
    return write_gguf(path, metadata, tensors, overwrite=overwrite)[0]


def _read_gguf(path: Path) -> Imatrix:
    header = read_gguf(path)
    if (kind := header.metadata.get("general.type")) != "imatrix":
        raise BadHeader(f"{path.name} is of general.type {kind!r}, and an imatrix was expected")
    file, entries = GgufFile(path, header), {}
    for name in (name.removesuffix(SUMS) for name in header.tensors if name.endswith(SUMS)):
        if f"{name}{COUNTS}" not in header.tensors:
            raise BadHeader(f"{path.name} has {name}{SUMS} and no {name}{COUNTS}. Is the file whole?")
        sums, counts = file.tensor(f"{name}{SUMS}"), file.tensor(f"{name}{COUNTS}")
        if not isinstance(sums, Tensor) or not isinstance(counts, Tensor) or sums.dtype != torch.float32 or counts.dtype != torch.float32:
            raise BadHeader(f"{path.name}: {name}{SUMS} and {name}{COUNTS} are not both F32, as an imatrix has them")
        sums = sums.reshape(-1, sums.shape[-1])
        if counts.numel() != sums.shape[0]:
            raise BadHeader(f"{path.name}: {name} has {sums.shape[0]} rows of sums and {counts.numel()} counts, and one for each was expected")
        entries[name] = Squares(sums.clone(), counts.flatten().clone())
    if not entries:
        raise BadHeader(f"{path.name} says that it is an imatrix, and holds no sums: no tensor's name ends with {SUMS}")
    said = header.metadata.get("imatrix.datasets")
    n_chunks, chunk = (value if isinstance(value := header.metadata.get(key), int) else absent
                       for key, absent in (("imatrix.chunk_count", 0), ("imatrix.chunk_size", CHUNK)))
    return Imatrix(entries, tuple(said.values()) if isinstance(said, Items) else (), n_chunks, chunk, path.name)


def _read_legacy(path: Path) -> Imatrix:
    raw, at = path.read_bytes(), 0

    def take(n: int, what: str) -> bytes:
        nonlocal at
        if not 0 <= n <= len(raw) - at:
            raise TruncatedFile(f"{path.name} has {len(raw):,} bytes, and {n:,} more were expected at byte {at:,}, for {what}. Is it an imatrix, and whole?")
        at += n
        return raw[at - n : at]

    def whole(what: str) -> int:
        return int.from_bytes(take(4, what), "little", signed=True)
    entries = {}
    n_calls = 0
    for _ in range(n_entries := whole("the number of entries")):
        name = take(whole("the length of a name"), "a name").decode(errors="replace")
        n_calls, n = whole(f"the calls of {name:.80}"), whole(f"the size of {name:.80}")
        if n_calls < 1 or n < 1:
            raise BadHeader(f"{path.name}: {name:.80} has {n} numbers of {n_calls} calls, and some of each were expected. Is it an imatrix?")
        values = torch.frombuffer(bytearray(take(4 * n, f"the numbers of {name:.80}")), dtype=torch.float32)
        entries[name] = Squares(values[None], torch.tensor([float(n_calls)]))
    if n_entries < 1:
        raise BadHeader(f"{path.name} has {n_entries} entries, and some were expected. Is it an imatrix?")
    n_chunks, dataset = n_calls, b""
    if at < len(raw):
        n_chunks = whole("the number of calls")
        dataset = take(whole("the length of the dataset's name"), "the dataset's name")
    return Imatrix(entries, (dataset.decode(errors="replace"),) if dataset else (), n_chunks, source=path.name)


def _legacy(imatrix: Imatrix) -> bytes:
    """Experts' means one after another; 1 for those that no token chose, as llama.cpp writes them."""
    out = [struct.pack("<i", len(imatrix.entries))]
    for name, squares in sorted(imatrix.entries.items()):
        n_calls = max(1, -(-int(squares.counts.max()) // imatrix.chunk))
        means = torch.where((squares.counts > 0)[:, None], squares.sums / squares.counts.clamp(min=1)[:, None], 1.0) * n_calls
        raw = name.encode()
        out += [struct.pack("<i", len(raw)), raw, struct.pack("<ii", n_calls, means.numel()), means.float().contiguous().numpy().tobytes()]
    dataset = (imatrix.datasets[-1] if imatrix.datasets else "").encode()
    return b"".join([*out, struct.pack("<ii", imatrix.n_chunks, len(dataset)), dataset])


def _fill(draft: Draft, raw: bytes) -> None:
    draft.write(raw)

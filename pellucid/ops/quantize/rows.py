"""Rows of numbers -> rows of blocks, a part at a time: what writes GGUF calls this for every tensor it packs."""
from __future__ import annotations

import torch
from torch import Tensor

from pellucid.errors import BadCheckpoint, BadRequest
from pellucid.ops.quantize.pack import PACK
from pellucid.weights.gguf import BY_NAME
from pellucid.weights.packed_rows import PackedRows

PART = 1 << 15  # numbers at once for each thread, as few as torch gives one; what a search holds of twice so many lies in the second cache of a core
_LARGEST = 65504.0  # of float16, and so of a scale
# The largest number, in times of that, which every scale of a block can be stored for, though it may come out half as large again. 2 where it is not said.
_HELD = {"Q8_0": 64, "Q4_1": 0.5, "Q5_1": 0.5, "F16": 1, "MXFP4": torch.inf, "F32": torch.inf, "BF16": torch.inf, "NF4": torch.inf}
_SEEN = 1e-4  # of the mean importance: what columns count for that calibration never saw


def quantize_rows(x_FD: Tensor, format: str, importance_D: Tensor | None = None, *, name: str = "the tensor", first: int = 0) -> PackedRows:
    """The matrix in blocks of `format`, each row by itself; of experts in one tensor, (X, F, D), with an importance (X, D) or (D,).

    importance_D: what an error of each column counts for, as an imatrix says: the mean of the squares of what the column is multiplied with. Without
    it, all columns count alike.
    first: which row of `name` is the first of these, for the words of an error.
    Raises BadRequest for a format that is not written, rows that blocks do not divide, or numbers that no scale reaches, BadCheckpoint for NaN and infinity.
    """
    if format not in PACK:
        raise BadRequest(f"{name}: weights are not written as {format} (written: {', '.join(PACK)})", field="format")
    of, D = BY_NAME[format], x_FD.shape[-1]
    if D % of.n_numbers:
        raise BadRequest(f"{name} has rows of {D:,} numbers, and {format} packs {of.n_numbers} together. Leave it in F16, or in a format of smaller blocks.",
                         field="format")
    if importance_D is not None and (importance_D.shape not in ((D,), (*x_FD.shape[:-2], D)) or not bool((importance_D >= 0).all())
                                     or not bool(importance_D.isfinite().all())):
        raise BadCheckpoint(f"{name}: its importance has shape {tuple(importance_D.shape)}, and {D:,} finite numbers were expected, none negative. "
                            f"Was the imatrix made from this model?")
    out = torch.empty(*x_FD.shape[:-1], D // of.n_numbers * of.n_bytes, dtype=torch.uint8)
    if x_FD.ndim == 3:
        for i, (x, bytes) in enumerate(zip(x_FD, out, strict=True)):
            importance = importance_D[i] if importance_D is not None and importance_D.ndim == 2 else importance_D
            _pack(x, format, importance, f"{name}, expert {i}", first, bytes)
    else:
        _pack(x_FD, format, importance_D, name, first, out)
    return PackedRows(out, format)


@torch.inference_mode()
def _pack(x_FD: Tensor, format: str, importance_D: Tensor | None, name: str, first: int, out: Tensor) -> None:
    D, of, pack = x_FD.shape[-1], BY_NAME[format], PACK[format]
    w_D = torch.ones(D) if importance_D is None else importance_D.float()
    w_D = (w_D / w_D.mean().clamp(min=1e-30)).clamp(min=_SEEN)
    n = max(1, PART * max(2, torch.get_num_threads()) // D)
    for start in range(0, len(x_FD), n):
        x = x_FD[start : start + n].float().contiguous()
        check(x, format, name, first + start)
        w = w_D.expand_as(x).reshape(-1, of.n_numbers)
        out[start : start + n] = pack(x.view(-1, of.n_numbers), w).view(len(x), -1)


def check(x_FD: Tensor, format: str, name: str, start: int = 0) -> None:
    """Raises BadCheckpoint for rows, the first of which is row `start`, that hold what is no number, BadRequest for what no scale reaches."""
    if not bool(x_FD.isfinite().all()):
        row, column = (~x_FD.isfinite()).nonzero()[0].tolist()
        raise BadCheckpoint(f"{name} holds {x_FD[row, column].item()} in row {start + row:,}, column {column:,}, which {format} cannot say. "
                            f"Were the weights saved whole? A model with such a weight computes nothing.")
    if (largest := x_FD.abs().max().item()) > (reach := _LARGEST * _HELD.get(format, 2)):
        raise BadRequest(f"{name} holds a number of {largest:.3g}, and the scales of {format} are float16 and reach {reach:.4g}. "
                         f"Keep it as it is: --tensor-type {name}=F32", field="format")

"""What a tuning gives: an adapter in peft's layout, or a whole checkpoint, each held against the model in training before it is called done."""
from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import pellucid
from pellucid.api import Model
from pellucid.data.batch import Batch
from pellucid.data.example import Example, Item, examples
from pellucid.errors import LostTuning
from pellucid.model.convert import Change, Watch, convert
from pellucid.model.decoder import Decoder
from pellucid.model.low_rank import Choice, LowRank
from pellucid.model.parts import Rows
from pellucid.train.trainable import Trained
from pellucid.weights.packed_rows import PackedWeight

ROWS = 32  # sequences that a result is held against
MOST = 512  # tokens of each
_UNWATCHED = Watch()
NOTHING, NOISE = 1e-9, 1e-6  # nats a token: an adapter that changes less has changed nothing; what float32 computes otherwise from one build to the next
LOST = 0.5  # of the change: what a result may differ from the model in training, against what that differs from its base


@dataclass(frozen=True, slots=True, kw_only=True)
class Survived:
    """How near the written result is to the model in training. kl: nats a token, of the result from it; base_kl: of the base from it; top1: share of
    tokens whose likeliest successor is the same."""

    kl: float
    base_kl: float
    top1: float
    tokens: int

    @property
    def share(self) -> float:
        """Of what the tuning changed, how much is in the result."""
        return 1.0 if self.base_kl <= 0 else max(0.0, 1 - self.kl / self.base_kl)


def change_of(trained: Trained, decoder: Decoder, *, packed: bool = False) -> dict[str, Callable[[Tensor], Tensor]]:
    """What becomes of each matrix's numbers: the trained ones, or what the adapter adds.

    packed: the files' matrices were packed as they were loaded, so that it is the packed numbers that the adapter learned to add to: they are what is
    written, of matrices without an adapter too.
    """
    if trained.adapter is None:
        return {name: lambda weight, p=p: p.detach().to(weight.dtype) for name, p in trained.parameters.items()}  # type: ignore[misc]
    parts = {f"{name}.weight": part for name, part in trained.parts(decoder).items()}
    change: dict[str, Callable[[Tensor], Tensor]] = {name: part.merged for name, part in parts.items()}
    if packed:
        held = {name: weight for name, weight in decoder.weights().items() if isinstance(weight, PackedWeight)}
        change |= {name: partial(_packed_with, decoder, weight, parts.get(name)) for name, weight in held.items()}
    return change


def _packed_with(decoder: Decoder, weight: PackedWeight, part: LowRank | None, dense: Tensor) -> Tensor:
    """The numbers of a packed matrix, with its adapter's, in place of those it was packed from."""
    plain = decoder.ops.unpack(weight, torch.float32)
    return (plain if part is None else part.merged(plain)).to(dense)


def weights_with(trained: Trained, decoder: Decoder) -> dict[str, Tensor]:
    """Every tensor of the decoder, by our names, with what was trained in it; packed ones unpacked."""
    parts = {f"{name}.weight": part for name, part in trained.parts(decoder).items()}
    out = {}
    for name, weight in decoder.weights().items():
        plain = decoder.ops.unpack(weight, weight.dtype) if isinstance(weight, PackedWeight) else weight.detach()
        out[name] = parts[name].merged(plain) if name in parts else plain
    return out


def write_merged(source: str, out: Path, change: Change, *, dtype: str | None = None, quantize: str | None = None, accept_unread: Sequence[str] = (),
                 permission: str | None = None, overwrite: bool = False, check: Callable[[Path], Survived], watch: Watch = _UNWATCHED) -> Survived:
    """Writes a whole checkpoint, safetensors or GGUF by the name of `out`; in place only once `check`, which is given where it lies till then, has passed."""
    out = out.expanduser()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        draft = Path(folder) / out.name
        how = dict(accept_unread=tuple(accept_unread), permission=permission, watch=watch)
        if out.suffix == ".gguf" and Path(source).suffix == ".gguf":
            between = Path(folder) / "between"
            convert(source, between, change=change, dtype=dtype, **how)  # type: ignore[arg-type]
            convert(between, draft, quantize=quantize, **how)  # type: ignore[arg-type]
        else:
            convert(source, draft, change=change, dtype=None if quantize else dtype, quantize=quantize, **how)  # type: ignore[arg-type]
        survived = check(draft)
        for each in [draft] if draft.is_dir() else sorted(path for path in Path(folder).iterdir() if path.is_file()):
            place = out.parent / each.name
            if overwrite and place.is_dir():
                shutil.rmtree(place)
            os.replace(each, place)
    return survived


def held_against(model: Model, rows: Sequence[Item], adapter: str | None, base: Callable[[], Model] | None = None) -> Callable[[Path], Survived]:
    """A check for `write_merged`: what is written is loaded and asked for the same tokens.

    base: the model before, where it is not this one without its adapter. Raises LostTuning where less than half of what the tuning changed has come through.
    """
    sample = [Example(e.ids[:MOST], e.learned[:MOST], e.origin) for item in rows for e in examples(item)][:ROWS]

    def check(place: Path) -> Survived:
        tuned = log_probs(model.decoder, sample, adapter)
        before = log_probs(model.decoder if base is None else base().decoder, sample, None)
        result = pellucid.load(place, dtype=model.report.dtype, activations="exact")
        after = log_probs(result.decoder, sample, None)
        survived = Survived(kl=_kl(tuned, after), base_kl=_kl(tuned, before), top1=_top1(tuned, after), tokens=sum(len(t) for t in tuned))
        if survived.base_kl > NOTHING and survived.kl > NOISE and survived.share < LOST:
            raise LostTuning(f"what was written has lost the tuning: it is {survived.kl:.3g} nats a token from the model in training, whose base is "
                             f"{survived.base_kl:.3g} from it, on {survived.tokens:,} tokens; nothing was kept. Its numbers are too coarse for so small a "
                             f"change: write it in float32 or bfloat16 without quantizing, or keep the adapter", share=survived.share)
        return survived
    return check


@torch.no_grad()
def log_probs(decoder: Decoder, rows: Sequence[Example], adapter: str | None) -> list[Tensor]:
    """Log-probabilities (T, V) of every token's successor, of each row, float32."""
    decoder.eval()
    out = []
    for row in rows:
        batch = Batch.of([row], decoder.embed.weight.device)
        how = Rows.of(*batch.lengths, adapter=adapter)
        choice = Choice.of(how.adapters, how.lengths, batch.tokens_T.device) if adapter is not None else None
        out.append(decoder.unembed(decoder(batch.tokens_T, rows=how), choice).float().log_softmax(-1).cpu())
    return out


def _kl(p: Sequence[Tensor], q: Sequence[Tensor]) -> float:
    """Mean over all tokens of KL(p || q), nats."""
    n = sum(len(each) for each in p)
    return sum(float((a.exp() * (a - b)).sum()) for a, b in zip(p, q, strict=True)) / n


def _top1(p: Sequence[Tensor], q: Sequence[Tensor]) -> float:
    n = sum(len(each) for each in p)
    return sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in zip(p, q, strict=True)) / n


"""What the model said before it was trained: the reference that DPO, IPO and KTO measure its change from."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pellucid.data.batch import Batch, micro
from pellucid.data.example import Example, examples
from pellucid.data.stock import DIGEST, digest
from pellucid.errors import BadCheckpoint, BadRequest
from pellucid.model.decoder import Decoder
from pellucid.model.parts import Rows
from pellucid.train.loss import by_row, token_log_probs


def answer_log_probs(decoder: Decoder, batch: Batch, adapter: str | None = None) -> Tensor:
    """log p of what is learned of each row, (B,), float32, without a gradient."""
    rows = Rows.of(*batch.lengths, adapter=adapter)
    with torch.no_grad():
        hidden_TD = decoder(batch.tokens_T, rows=rows)
        return by_row(token_log_probs(decoder, hidden_TD, batch.target_T, rows), batch.target_T, batch.lengths)


def each_log_prob(decoder: Decoder, rows: Sequence[Example], adapter: str | None, max_tokens: int) -> Tensor:
    """`answer_log_probs` of any number of rows, so many tokens at a time."""
    device = decoder.embed.weight.device
    return torch.cat([answer_log_probs(decoder, Batch.of(part, device), adapter) for part in micro(rows, max_tokens)])


class Reference:
    """Log-probabilities of answers by a frozen model: a decoder beside the one in training, or that one itself where adapters are trained, since rows that ask
    for none pass through the model as it was.

    decoder: None where the model itself is trained and no second one is held: all that will be asked for is then computed `ahead` of the first step, and kept.
    """

    def __init__(self, decoder: Decoder | None) -> None:
        self.decoder = decoder
        self.kept: dict[bytes, float] = {}

    def log_probs(self, batch: Batch) -> Tensor:
        """(B,), float32. Raises BadRequest for a row that nobody computed ahead, where there is no decoder to ask."""
        rows = [row for item in batch.items for row in examples(item)]
        found = [self.kept.get(digest(row)) for row in rows]
        if None not in found:
            return torch.tensor(found, dtype=torch.float32, device=batch.tokens_T.device)
        if self.decoder is None:
            raise BadRequest(f"{rows[found.index(None)].origin}: the reference's log-probability was not computed before the first step, and the model that "
                             f"would give it is being changed. Set settings.reference to beside", field="settings.reference")
        return answer_log_probs(self.decoder, batch)

    def each(self, rows: Sequence[Example], max_tokens: int) -> Tensor:
        """`log_probs` of any number of rows, so many tokens at a time."""
        return torch.cat([self.log_probs(Batch.of(part, self._device)) for part in micro(rows, max_tokens)])

    def ahead(self, decoder: Decoder, rows: Iterable[Example], max_tokens: int, told: Callable[[int], None] = lambda n: None) -> None:
        """Computes what `rows` will be asked for, by a decoder that nothing has changed yet, and keeps it: eight bytes and a digest a row.

        told: how many rows were just done.
        """
        waiting: dict[bytes, Example] = {}
        for row in rows:
            key = digest(row)
            if key not in self.kept and key not in waiting:
                waiting[key] = row
            if sum(len(each.ids) for each in waiting.values()) >= max_tokens:
                told(self._keep(decoder, waiting, max_tokens))
        told(self._keep(decoder, waiting, max_tokens))

    def _keep(self, decoder: Decoder, waiting: dict[bytes, Example], max_tokens: int) -> int:
        n = len(waiting)
        if n:
            self.kept |= zip(waiting, each_log_prob(decoder, list(waiting.values()), None, max_tokens).tolist(), strict=True)
            waiting.clear()
        return n

    @property
    def _device(self) -> torch.device | str:
        return "cpu" if self.decoder is None else self.decoder.embed.weight.device

    def save(self, path: Path, model: str) -> None:
        """Writes what is kept. model: hash of what computed it. Whole or not at all."""
        keys = torch.frombuffer(bytearray(b"".join(self.kept)), dtype=torch.uint8).view(-1, DIGEST) if self.kept else torch.zeros(0, DIGEST, dtype=torch.uint8)
        draft = path.with_name(f".{path.name}.part")
        save_file({"digests": keys, "log_probs": torch.tensor(list(self.kept.values()), dtype=torch.float32)}, draft, {"model": model})
        draft.replace(path)

    def load(self, path: Path, model: str) -> None:
        """Takes back what `save` wrote. Raises BadCheckpoint for a file of another model, or one that is none."""
        try:
            with safe_open(path, "pt") as file:
                of, keys, values = (file.metadata() or {}).get("model"), file.get_tensor("digests"), file.get_tensor("log_probs")
        except (OSError, SafetensorError) as e:
            raise BadCheckpoint(f"{path} holds no reference log-probabilities: {e}. Delete it, and they are computed again") from None
        if of != model:
            raise BadCheckpoint(f"{path} holds log-probabilities of the model {of}, and {model} is tuned. Delete it, and they are computed again")
        self.kept |= zip((bytes(key) for key in keys.tolist()), values.tolist(), strict=True)

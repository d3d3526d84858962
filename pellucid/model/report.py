"""What loading decided, as data and in one breath. No torch here."""
from __future__ import annotations

from dataclasses import dataclass

PLAIN = {"f32", "bf16", "f16", "f64"}  # what may be loaded as another; anything else stays packed
_SHOWN_TOKENS = 4096  # the context whose cache the report sizes, where the model reaches that far


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """The decisions of one load.

    n_heads, n_kv_heads: (smallest, largest) over the layers. n_bytes: of the weight files. dtype, device: of the loaded weights; `stored` is what
    the files hold, dtype -> bytes. activations: "exact" or "int8", what the matrices are multiplied by. left_out: reason -> how many tensors.
    accepted: unread config keys the user vouched for. adapters: a line for each that is loaded.
    """

    name: str
    family: str
    n_layers: int
    d_model: int
    n_heads: tuple[int, int]
    n_kv_heads: tuple[int, int]
    n_parameters: int
    n_ctx: int
    license: str | None
    format: str
    dtype: str
    stored: dict[str, int]
    device: str
    n_bytes: int
    seconds: float
    ops: str
    activations: str
    cache_bytes_per_token: int
    left_out: dict[str, int]
    accepted: tuple[str, ...]
    notes: tuple[str, ...]
    adapters: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The report as people read it: four lines, and one more for each thing out of the ordinary."""
        facts = [f"family {self.family}", f"{self.n_layers} layers", f"d_model {self.d_model}", f"{_span(self.n_heads)} heads / {_span(self.n_kv_heads)} kv",
                 f"{count(self.n_parameters)} parameters", *([self.license] if self.license else [])]
        tokens = min(self.n_ctx, _SHOWN_TOKENS)
        stored = " + ".join(self.stored)
        converted = "" if stored == self.dtype else f", {'computed in' if self.format == 'gguf' or self.stored.keys() - PLAIN else 'loaded as'} {self.dtype}"
        rows = [(self.name, " · ".join(facts)),
                ("weights", f"{self.format} {stored}{converted}, {size(self.n_bytes)}, read in {_seconds(self.seconds)}"),
                ("ops", f"{self.device}: {self.ops}"),
                ("cache", f"{binary(self.cache_bytes_per_token)} per token -> {tokens:,} tokens = {binary(tokens * self.cache_bytes_per_token)}")]
        rows += [("left out", f"{n:,} tensor{'s' * (n > 1)}, {why}") for why, n in self.left_out.items()]
        rows += [("accepted", f"unread keys of config.json, on your word: {', '.join(self.accepted)}")] * bool(self.accepted)
        rows += [("adapter", adapter) for adapter in self.adapters]
        rows += [("note", note) for note in self.notes]
        width = max(len(label) for label, _ in rows) + 2
        return [f"{label:{width}}{text}" for label, text in rows]


def count(n: int) -> str:
    """A count in three digits: 260 K, 596 M, 7.24 B."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if n >= 0.9995 * size:
            return f"{_three(n / size)} {unit}"
    return str(n)


def size(n_bytes: float) -> str:
    """Bytes on a disk or a wire, in powers of ten: 15.2 MB, 4.2 GB."""
    for unit, scale in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= 0.9995 * scale:
            value = n_bytes / scale
            return f"{value:.0f} {unit}" if value >= 99.95 else f"{value:.1f} {unit}"
    return f"{n_bytes:.0f} bytes"


def binary(n_bytes: int) -> str:
    """Bytes in memory, in powers of two: 112 KiB, 448 MiB, 1.5 GiB."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n_bytes >= scale:
            value = n_bytes / scale
            return f"{value:.0f} {unit}" if value == int(value) or value >= 99.95 else f"{value:.1f} {unit}"
    return f"{n_bytes} bytes"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 0.095 else f"{1000 * seconds:.0f} ms"


def _three(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _span(ends: tuple[int, int]) -> str:
    return str(ends[0]) if ends[0] == ends[1] else f"{ends[0]}-{ends[1]}"

"""What one pass computes once for several layers."""
from __future__ import annotations

from torch import Tensor

from pellucid.model.cache import Held
from pellucid.model.low_rank import Choice
from pellucid.spec import LogTemperature, Rope, Temperature


class Tables(dict[Rope | Temperature | LogTemperature, tuple[Tensor, ...]]):
    """What the pass's positions say, once for each fact that asks: cos and sin of a rope, the factor of a temperature.

    lent: keys and values that later layers read too, by the index of the layer that made them: what the memory holds of them, not a second copy.
    choice: which token takes which adapter.
    """

    def __init__(self, choice: Choice | None = None) -> None:
        super().__init__()
        self.lent: dict[int, Held] = {}
        self.choice = choice

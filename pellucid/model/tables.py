"""What one pass computes once for several layers."""
from __future__ import annotations

import torch
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
        self._on: dict[torch.device, Tables] = {}

    def on(self, device: torch.device) -> Tables:
        """The same on that device, sent there once a pass. What is lent is lent to layers of the same device only."""
        if device not in self._on:
            there = Tables(None if self.choice is None else self.choice.on(device))
            there.update({fact: tuple(tensor.to(device) for tensor in tensors) for fact, tensors in self.items()})
            there.lent, there._on = self.lent, self._on
            self._on[device] = there
        return self._on[device]

"""What every layer reads of a token beside the stream. Shape letters as in decoder.py, and L layers · P channels of one layer's input."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from pellucid.model.low_rank import Choice
from pellucid.model.parts import Embed, Normalize, Project
from pellucid.ops.interface import Ops
from pellucid.spec import DecoderSpec, LayerInputs


class InputTable(nn.Module):
    """The inputs of all layers, (T, L, P): one share looked up by token, one projected from the embedding, both of length one on average."""

    def __init__(self, ops: Ops, spec: DecoderSpec, inputs: LayerInputs) -> None:
        super().__init__()
        L, P = len(spec.layers), inputs.d_input
        self.shape, self.d_model = (L, P), spec.d_model
        self.table = Embed(ops, inputs.n_vocab, L * P)
        self.project = Project(ops, spec.d_model, L * P, bias=False)
        self.norm = Normalize(ops, spec.norm, P)

    def forward(self, tokens_T: Tensor, x_TD: Tensor, choice: Choice | None = None) -> Tensor:
        said_TLP = self.table(tokens_T).unflatten(-1, self.shape)
        # The factor is rounded to the stream's dtype first, as that of the embedding is.
        said_TLP = said_TLP * torch.tensor(self.shape[1] ** 0.5, dtype=said_TLP.dtype, device=said_TLP.device)
        seen_TLP = self.norm((self.project(x_TD, choice) * self.d_model**-0.5).unflatten(-1, self.shape))
        return (said_TLP + seen_TLP) * 2**-0.5  # of the sum of two of length one


class TakeInput(nn.Module):
    """A layer's third sublayer: what its input adds to the stream, let through by a gate that reads the stream."""

    def __init__(self, ops: Ops, spec: DecoderSpec, inputs: LayerInputs) -> None:
        super().__init__()
        self.ops, self.act = ops, inputs.act
        self.gate = Project(ops, spec.d_model, inputs.d_input, bias=False)
        self.out = Project(ops, inputs.d_input, spec.d_model, bias=False)
        self.out_norm = Normalize(ops, spec.norm, spec.d_model)

    def forward(self, x_TD: Tensor, input_TP: Tensor, choice: Choice | None = None) -> Tensor:
        return self.out_norm(self.out(self.ops.gated(self.gate(x_TD, choice), input_TP, self.act), choice))

"""A model's matrices in NF4, as transformers reads them with bitsandbytes: four tensors in the place of one."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from pellucid.errors import BadRequest
from pellucid.model.convert import Job
from pellucid.ops.quantize import nf4
from pellucid.ops.quantize.rows import check
from pellucid.spec import Experts
from pellucid.weights.drafts import Buffer, Planned
from pellucid.weights.names import Place
from pellucid.weights.safetensors import SPELLED, raw


class Nf4:
    """What becomes of each tensor, and what config.json says of it.

    Packed are the matrices of the blocks that transformers holds as linear layers; embedding and unembedding stay plain, as bitsandbytes leaves them.
    Raises BadRequest for a model of experts, which transformers holds in tensors that bitsandbytes does not pack.
    """

    def __init__(self, job: Job, dtypes: Mapping[str, torch.dtype]) -> None:
        assert job.described is not None
        spec = job.described.spec
        if any(isinstance(mlp, Experts) for layer in spec.layers for mlp in (layer.mlp, layer.beside)):
            raise BadRequest(f"family {spec.family!r} here has experts, which transformers holds stacked and bitsandbytes does not pack. Write a GGUF file: "
                             f"--quantize Q4_K_M", field="quantize")
        self.job = job
        compute = str(dtypes["embed.weight"]).removeprefix("torch.")
        self.config = {
            "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": False,
            "bnb_4bit_compute_dtype": compute, "bnb_4bit_quant_storage": "uint8", "llm_int8_skip_modules": ["lm_head"]}
        self._scales: dict[str, Tensor] = {}  # of what was begun: a file has all scales before all codes, and a matrix is fitted once

    def pack(self, name: str, place: Place, like: Tensor, tensor: Callable[[], Tensor]) -> Sequence[Planned]:
        """What one tensor of the files becomes; nothing where it stays what it is. Raises BadRequest for a matrix that cannot be packed."""
        if like.ndim != 2 or not all(each.startswith("blocks.") and each.endswith(".weight") for each in place.names):
            return []
        if place.rule.transpose:
            raise BadRequest(f"{name} is stored with its columns first, and bitsandbytes packs the rows of linear layers. Write a GGUF file: --quantize Q4_K_M",
                             field="quantize")
        n = like.numel()
        if like.shape[1] % 2:
            raise BadRequest(f"{name} has rows of {like.shape[1]:,} numbers, and two share a byte. Write a GGUF file: --quantize Q8_0", field="quantize")
        state = nf4.state(tuple(like.shape), like.dtype)
        self.job.cast.rounded(name, SPELLED[like.dtype], "NF4")

        def scales() -> Iterator[Buffer]:
            x = tensor()
            check(x, "NF4", name)
            self._scales[name] = nf4.scales(x)
            yield raw(self._scales[name])

        def codes() -> Iterator[Buffer]:
            yield raw(nf4.codes(tensor(), self._scales.pop(name)))

        def planned(end: str, type: str, shape: tuple[int, ...], n_bytes: int, read: Callable[[], Iterator[Buffer]]) -> Planned:
            return Planned(name=f"{name}{end}", type=type, shape=shape, n_bytes=n_bytes, read=read)
        n_blocks = -(-n // nf4.BLOCK)
        return [planned(".absmax", "F32", (n_blocks,), 4 * n_blocks, scales),
                planned(".quant_map", "F32", (16,), 64, lambda: iter([raw(torch.tensor(nf4.BOOK))])),
                planned("", "U8", (n // 2, 1), n // 2, codes),
                planned(".quant_state.bitsandbytes__nf4", "U8", tuple(state.shape), len(state), lambda: iter([raw(state)]))]

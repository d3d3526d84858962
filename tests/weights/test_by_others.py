"""Small matrices packed by the programs that made these formats, and the numbers those programs make of them, are what is read here.

recorded/packed_by_others.safetensors was written by bitsandbytes 0.50.2 and compressed-tensors 0.20.0, both on a CPU, and by the packing and unpacking text of
AutoGPTQ at 9f7d3707 (qlinear_cuda_old.py) and AutoAWQ at 88e4c76b (gemm.py, gemv.py, packing_utils.py): `CASE/x.PART` are its tensors, `CASE/expected` the
numbers, in float32 or in the dtype of the scales. Its metadata has each case's settings. Of bitsandbytes' NF4 with 96 columns they are those of its generic
text (backends/default/ops.py): its kernel for CPUs takes the blocks of 64 to begin anew with each row (docs/LOG.md).
"""
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pellucid.ops.unpack import unpack
from pellucid.weights.header import read_header
from pellucid.weights.packed import find_packed

FILE = Path(__file__).parent / "recorded" / "packed_by_others.safetensors"
TENSORS = load_file(FILE)
HEADER = read_header(FILE)
CASES = json.loads(HEADER.metadata["cases"])


def test_every_method_but_the_two_of_transformers_is_there() -> None:
    assert {case["config"]["quant_method"] for case in CASES.values()} == {"gptq", "awq", "bitsandbytes", "compressed-tensors"}
    assert len(CASES) == 18


@pytest.mark.parametrize("name", CASES)
def test_what_others_packed_means_the_numbers_they_make_of_it(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    stored = {theirs.partition("/")[2]: entry for theirs, entry in HEADER.tensors.items() if theirs.startswith(f"{name}/x.")}
    found = find_packed({"quantization_config": case["config"]}, tmp_path, stored, lambda part: TENSORS[f"{name}/{part}"].numpy().tobytes())
    assert found is not None
    [packed] = found.matrices.values()
    assert packed.shape == tuple(case["shape"])
    numbers, expected = unpack(packed.build({role: TENSORS[f"{name}/{part}"] for role, part in packed.parts.items()})), TENSORS[f"{name}/expected"]
    if name == "llm_int8":  # where they round twice: the code times the row's largest number, and that times 1 / 127
        torch.testing.assert_close(numbers, expected, rtol=2**-22, atol=0)
    else:
        assert torch.equal(numbers.to(expected.dtype), expected)

"""What the columns of matrices are multiplied with, against transformers and what must add up."""
from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pellucid.errors import BadCheckpoint, BadRequest, UnsupportedModel
from pellucid.model.convert import convert
from pellucid.model.decoder import Decoder
from pellucid.model.importance import measure, windows
from pellucid.ops.quantize.rows import quantize_rows
from pellucid.weights.gguf import read_gguf
from pellucid.weights.gguf_file import GgufFile
from pellucid.weights.imatrix import Imatrix, write_imatrix
from tests.families.build import Built, build, ours
from tests.families.cases import CASES

BY_NAME = {str(case): case for case in CASES}


def case(family: str) -> Built:
    return build(next(case for name, case in BY_NAME.items() if name.startswith(f"{family}-")))


def loaded(built: Built) -> Decoder:
    return ours(built.spec, built.tensors)


def texts(built: Built) -> list[list[int]]:
    ids = built.tokens_T.tolist()
    return [ids[: len(ids) // 2], ids[len(ids) // 2 : len(ids) // 2 * 2]]


def measured(built: Built) -> Imatrix:
    return measure(loaded(built), texts(built))


def theirs(built: Built) -> dict[str, Tensor]:
    """Module of transformers -> sums of squares of its inputs over the same texts."""
    sums: dict[str, Any] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            sums[name] = sums.get(name, 0) + args[0].flatten(0, -2).double().square().sum(0)
        return hook
    handles = [module.register_forward_pre_hook(watch(name)) for name, module in built.theirs.named_modules() if isinstance(module, nn.Linear)]
    with torch.no_grad():
        for text in texts(built):
            built.theirs(torch.tensor([text]))
    for handle in handles:
        handle.remove()
    return sums


NAMES = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
         "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_sums_are_those_of_transformers(family: str) -> None:
    built = case(family)
    found, expected, n = measured(built), theirs(built), sum(map(len, texts(built)))
    for i in range(len(built.spec.layers)):
        for name, module in NAMES.items():
            entry = found.entries[f"blk.{i}.{name}.weight"]
            assert entry.counts.tolist() == [n]
            assert torch.allclose(entry.sums[0].double(), expected[f"model.layers.{i}.{module}"], rtol=1e-4)
    head = found.entries["token_embd.weight" if built.spec.tied else "output.weight"]
    assert torch.allclose(head.sums[0].double(), expected["lm_head"], rtol=1e-4)
    assert len(found.entries) == len(NAMES) * len(built.spec.layers) + 1


def test_stacked_matrices_have_one_entry() -> None:
    """Phi-3's queries, keys and values stand in one tensor of GGUF, and gate and up in another."""
    built = case("phi3")
    found, expected = measured(built), theirs(built)
    assert torch.allclose(found.entries["blk.1.attn_qkv.weight"].sums[0].double(), expected["model.layers.1.self_attn.qkv_proj"], rtol=1e-4)
    assert torch.allclose(found.entries["blk.1.ffn_up.weight"].sums[0].double(), expected["model.layers.1.mlp.gate_up_proj"], rtol=1e-4)


def test_each_expert_has_a_row_of_what_its_own_tokens_bring() -> None:
    built = case("qwen3_moe")
    decoder, n = loaded(built), sum(map(len, texts(built)))
    found = measure(decoder, texts(built))
    experts = next(layer.mlp for layer in built.spec.layers)
    gate, router = found.entries["blk.0.ffn_gate_exps.weight"], found.entries["blk.0.ffn_gate_inp.weight"]
    assert gate.sums.shape == (experts.n_experts, built.spec.d_model)
    assert gate.counts.sum() == n * experts.n_active
    chosen = decoder.blocks[0].mlp
    seen: list[Tensor] = []
    handle = chosen.router.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        for text in texts(built):
            decoder(torch.tensor(text))
    handle.remove()
    x_TD = torch.cat(seen)
    assert torch.allclose(router.sums[0], x_TD.square().sum(0), rtol=1e-4)
    with torch.no_grad():
        _, expert_TA = decoder.ops.route(chosen.router(x_TD), chosen.router.correction, chosen.spec)
    for e in range(experts.n_experts):
        mine = (expert_TA == e).any(-1)
        assert gate.counts[e] == mine.sum()
        assert torch.allclose(gate.sums[e], x_TD[mine].square().sum(0), rtol=1e-4, atol=1e-6)
    assert found.entries["blk.0.ffn_down_exps.weight"].sums.shape[0] == experts.n_experts


def test_nothing_stays_on_the_decoder() -> None:
    built = case("llama")
    decoder = loaded(built)
    measure(decoder, texts(built))
    assert not any(module._forward_pre_hooks for module in decoder.modules())


def test_texts_are_read_alone_and_reported() -> None:
    built, told = case("llama"), []
    together = measure(loaded(built), texts(built), datasets=["a.txt"], report=told.append)
    apart = [measure(loaded(built), [text]) for text in texts(built)]
    assert told == [len(text) for text in texts(built)]
    assert (together.n_chunks, together.chunk, together.datasets) == (2, len(texts(built)[0]), ("a.txt",))
    for name, entry in together.entries.items():
        assert torch.allclose(entry.sums, sum(each.entries[name].sums for each in apart), rtol=1e-6)


def test_weights_that_overflow_are_named() -> None:
    built = case("llama")
    decoder = ours(built.spec, {name: tensor.clone() for name, tensor in built.tensors.items()})  # other tests share what was built
    with torch.no_grad():
        decoder.blocks[1].attn_norm.weight[3] = float("nan")
    with pytest.raises(BadCheckpoint, match=r"what blocks.1.attn.\w.weight is multiplied with holds NaN or infinity on this text"):
        measure(decoder, texts(built))


def test_a_family_without_gguf_is_refused_before_anything_is_read() -> None:
    built = case("llama")
    decoder = loaded(built)
    decoder.spec = dataclasses.replace(decoder.spec, family="openai_gpt")
    with pytest.raises(UnsupportedModel, match="'openai_gpt' has no architecture in GGUF files"):
        measure(decoder, [[10**9]])


def test_windows_begin_with_the_beginning_and_leave_the_rest() -> None:
    assert windows(range(10), 3) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert windows(range(10), 3, bos=99, most=2) == [[99, 1, 2], [99, 4, 5]]


def test_a_text_too_short_says_both_counts() -> None:
    with pytest.raises(BadRequest, match=r"the calibration text has 1,023 tokens, and 1,024 are needed at least: 2 windows of 512. Give more text"):
        windows(range(1023))
    assert len(windows(range(1024))) == 2


def test_experts_are_quantized_by_their_own_importance(tmp_path: Path) -> None:
    """From the text to the file: each expert's blocks are those that its own tokens ask for, in a mix that packs experts otherwise than the rest."""
    plain = next(case for name, case in BY_NAME.items() if name.startswith("qwen3_moe-"))
    built = build(dataclasses.replace(plain, config={**plain.config, "hidden_size": 64, "moe_intermediate_size": 32, "head_dim": 32}))
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(built.raw))
    save_file(built.files, folder / "model.safetensors")
    imatrix = measure(loaded(built), texts(built))
    write_imatrix(tmp_path / "i.gguf", imatrix)
    convert(folder, tmp_path / "out.gguf", quantize="MXFP4_MOE", imatrix=tmp_path / "i.gguf", tokenizer=False)
    file = GgufFile(tmp_path / "out.gguf", read_gguf(tmp_path / "out.gguf"))
    name, n_experts = "blk.1.ffn_down_exps.weight", built.spec.layers[1].mlp.n_experts
    found = file.tensor(name)
    assert (found.format, found.shape) == ("MXFP4", (n_experts, 64, 32))
    assert file.tensor("blk.1.attn_q.weight").format == "Q8_0"
    importance = imatrix.importance(name, found.shape)
    assert importance.shape == (n_experts, 32)
    for e in range(n_experts):
        weight = built.tensors[f"blocks.1.mlp.experts.{e}.down.weight"]
        assert torch.equal(found.bytes[e], quantize_rows(weight, "MXFP4", importance[e]).bytes)
    alike = sum(torch.equal(found.bytes[e], quantize_rows(built.tensors[f"blocks.1.mlp.experts.{e}.down.weight"], "MXFP4").bytes) for e in range(n_experts))
    assert alike < n_experts

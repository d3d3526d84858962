"""Adapters on the decoder: what transformers makes of the model with the adapter in its matrices, whatever row it is, in whatever company."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pellucid.errors import BadRequest, MisshapenTensor, UnknownAdapter, UnknownTensors
from pellucid.model.adapters import attach, detach, projects
from pellucid.model.cache import Cache
from pellucid.model.low_rank import Choice, LowRank
from pellucid.model.parts import Rows, hold
from pellucid.ops.choose import choose
from pellucid.weights.adapter import open_adapter
from pellucid.weights.names import NameTable, Place
from pellucid.weights.packed_rows import PackedRows
from tests.families.build import TOLERANCE, Built, error, logits, ours
from tests.model.adapting import adapted_logits, merged_logits, random_pairs, write_peft
from tests.model.test_decoder import case

# Plain; fused q, k, v and gate, up; stored the other way round; q, k, v of each head together; latents, whose matrices are read on two ways; experts, one
# by one and by name in the files; inputs of each layer's own and keys of other layers.
FAMILIES = ["llama-llama3_rope", "phi3-mini_4k", "gpt2-released", "bloom-released", "deepseek_v3-released", "qwen3_moe-renormalized", "gemma4_text-e2b"]


def matrices(built: Built) -> tuple[list[str], list[str]]:
    """The checkpoint's names of every matrix that an adapter may change, and those stored (in, out)."""
    table, ours_ = NameTable(built.module.WEIGHTS), projects(ours(built.spec, built.tensors))
    places = {name: place for name in built.files if isinstance(place := table.place(name), Place) and place.names[0] in ours_}
    names = [name for name, place in places.items() if not (built.spec.tied and place.names == ("unembed.weight",))]
    return names, [name for name in names if places[name].rule.transpose]


@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapter_on_every_matrix_is_the_model_with_it_merged(name: str, tmp_path: Path) -> None:
    built = case(name)
    names, across = matrices(built)
    pairs = random_pairs(built.files, names, stored_across=across)
    expected_TV = merged_logits(built, pairs, stored_across=across)
    assert error(expected_TV, built.logits_TV) > 0.2
    decoder = ours(built.spec, built.tensors)
    attached = attach(decoder, open_adapter(write_peft(tmp_path / "a", pairs)), "x")
    assert attached.n_matrices == sum(len(NameTable(built.module.WEIGHTS).place(n).names) for n in names)
    T, tokens_T = len(built.tokens_T), built.tokens_T
    assert error(adapted_logits(decoder, tokens_T, [T], ["x"]), expected_TV) < TOLERANCE
    together_TV = adapted_logits(decoder, tokens_T.repeat(3), [T] * 3, [None, "x", None])
    for part_TV, whose_TV in zip(together_TV.split(T), (built.logits_TV, expected_TV, built.logits_TV), strict=True):
        assert error(part_TV, whose_TV) < TOLERANCE
    assert error(logits(decoder, tokens_T), built.logits_TV) < TOLERANCE
    cache, parts = Cache(decoder.spec), []
    cache.plan(0, T)
    with torch.inference_mode():  # latents are absorbed here, and expanded above
        for part_T in tokens_T.split([5] + [1] * (T - 5)):
            hidden_TD = decoder(part_T, None, Rows((len(part_T),), (0,), ("x",)), cache)
            parts.append(decoder.unembed(hidden_TD, Choice.of(["x"], [len(part_T)])))
    assert error(torch.cat(parts), expected_TV) < TOLERANCE


@pytest.mark.parametrize("name", ["llama-biases", "qwen3_moe-renormalized", "deepseek_v3-released"])
def test_each_row_takes_its_own_adapter_bitwise_as_alone(name: str, tmp_path: Path) -> None:
    built = case(name)
    names, _ = matrices(built)
    decoder = ours(built.spec, built.tensors, deterministic=True)
    for seed, adapter in enumerate(("x", "y")):
        pairs = random_pairs(built.files, names, seed=seed, rank=2 + 3 * seed)
        attach(decoder, open_adapter(write_peft(tmp_path / adapter, pairs, {"r": 2 + 3 * seed})), adapter)
    rows, sizes = [None, "y", "x", "y"], [7, 11, 5, 13]
    tokens = [built.tokens_T[:n] for n in sizes]
    together = adapted_logits(decoder, torch.cat(tokens), sizes, rows).split(sizes)
    alone = [adapted_logits(decoder, t, [n], [adapter]) for t, n, adapter in zip(tokens, sizes, rows, strict=True)]
    assert all(map(torch.equal, together, alone))
    assert not torch.equal(together[1][:5], together[2])
    assert not torch.equal(together[1][:7], together[0])


def test_packed_matrices_take_the_same_adapter(tmp_path: Path) -> None:
    built = case("llama-biases")
    names, _ = matrices(built)
    pairs = random_pairs(built.files, names)
    decoder = ours(built.spec, built.tensors)
    for matrix in projects(decoder).values():
        bytes_ = matrix.weight.detach().contiguous().view(torch.uint8)
        hold(matrix, "weight", PackedRows(bytes_, "F32", matrix.weight.dtype))
    attach(decoder, open_adapter(write_peft(tmp_path, pairs)), "x")
    found_TV = adapted_logits(decoder, built.tokens_T, [len(built.tokens_T)], ["x"])
    assert error(found_TV, merged_logits(built, pairs)) < TOLERANCE


def test_a_copy_of_the_base_that_cannot_be_compared_is_said(tmp_path: Path) -> None:
    built, name = case("llama-biases"), "model.layers.1.mlp.up_proj.weight"
    folder = write_peft(tmp_path, random_pairs(built.files, [name]))
    copy = {f"base_model.model.{name.removesuffix('weight')}base_layer.weight": built.files[name]}
    save_file(load_file(folder / "adapter_model.safetensors") | copy, folder / "adapter_model.safetensors")
    decoder = ours(built.spec, built.tensors)
    assert attach(decoder, open_adapter(folder), "plain").notes == ()
    matrix = projects(decoder)["blocks.1.mlp.up.weight"]
    hold(matrix, "weight", PackedRows(matrix.weight.detach().contiguous().view(torch.uint8), "F32", matrix.weight.dtype))
    [note] = attach(decoder, open_adapter(folder), "packed").notes
    assert note.endswith(f"has a copy of its base's {name}, and whether this model's is the same was not compared: it is packed, or laid out otherwise")


def test_gradients_reach_a_and_b_and_nothing_else(tmp_path: Path) -> None:
    """As tuning will have it: the adapter's halves are parameters at the place where they are used."""
    built = case("llama-biases")
    name = "model.layers.1.mlp.up_proj.weight"
    pairs = random_pairs(built.files, [name])
    decoder = ours(built.spec, built.tensors).requires_grad_(False)
    attach(decoder, open_adapter(write_peft(tmp_path, pairs)), "x")
    trained = {n: p.requires_grad_() for n, p in decoder.named_parameters() if ".adapters." in n}
    assert sorted(p.shape for p in trained.values()) == sorted(half.shape for half in pairs[name])
    before = {n: w.clone() for n, w in decoder.weights().items()}
    assert not set(before) & set(trained)
    rows = Rows((9,), (0,), ("x",))
    loss = decoder.unembed(decoder(built.tokens_T[:9], None, rows)).logsumexp(-1).sum()
    loss.backward()
    up = decoder.blocks[1].mlp.up.adapters.get("x")
    step = 1e-3 * up.b.grad / up.b.grad.norm()
    with torch.no_grad():
        up.b += step
        after = decoder.unembed(decoder(built.tokens_T[:9], None, rows)).logsumexp(-1).sum()
    assert float(after - loss.detach()) == pytest.approx(float((up.b.grad * step).sum()), rel=0.05)
    assert up.a.grad.abs().max() > 0


def test_merging_sums_wide_and_rounds_once() -> None:
    noise = torch.Generator().manual_seed(0)
    weight, a, b = (torch.randn(*shape, generator=noise) for shape in ((7, 5), (2, 5), (7, 2)))
    exact = weight.bfloat16().double() + 0.5 * b.double() @ a.double()
    part = LowRank(choose("reference"), a, b, 0.5)
    assert torch.equal(part.merged(weight.bfloat16()), exact.float().bfloat16())
    assert torch.allclose(part.merged(weight).double(), weight.double() + 0.5 * b.double() @ a.double(), atol=1e-6)


def test_a_part_without_a_place_is_named_and_nothing_attaches(tmp_path: Path) -> None:
    built = case("llama-biases")
    names, _ = matrices(built)
    pairs = random_pairs(built.files, names[:3])
    strange = pairs | {"model.layers.9.self_attn.q_proj.weight": pairs[names[0]], "model.embed_tokens.weight": pairs[names[0]]}
    decoder = ours(built.spec, built.tensors)
    with pytest.raises(UnknownTensors, match=r"2 of 5 tensors that adapter 'a' changes have no place in this model, so that nothing of it was attached: "
                                             r"model.embed_tokens.weight, model.layers.9.self_attn.q_proj.weight \(model.embed_tokens.weight: embed.weight "
                                             r"is no matrix that adapters attach to here\). Was it made for another model\?"):
        attach(decoder, open_adapter(write_peft(tmp_path / "a", strange)), "x")
    wrong = {name: (a[:, :-1], b) for name, (a, b) in pairs.items()}
    with pytest.raises(MisshapenTensor, match=r"3 of 3 tensors that adapter 'b' changes have other sizes here.*is changed by A \(3, \d+\) and B"):
        attach(decoder, open_adapter(write_peft(tmp_path / "b", wrong)), "x")
    assert not decoder.adapters
    assert all(matrix.adapters is None for matrix in projects(decoder).values())


def test_names_are_known_once_and_let_go(tmp_path: Path) -> None:
    built = case("llama-biases")
    file = open_adapter(write_peft(tmp_path / "a", random_pairs(built.files, matrices(built)[0])))
    decoder = ours(built.spec, built.tensors)
    plain = logits(decoder, built.tokens_T)
    attach(decoder, file, "type")  # a name that torch's own ModuleDict would refuse
    with pytest.raises(UnknownAdapter, match=r"adapter 'tipe' is not loaded\. Did you mean type\? There is type; load one with"):
        adapted_logits(decoder, built.tokens_T, [len(built.tokens_T)], ["tipe"])
    with pytest.raises(BadRequest, match=r"adapter 'type' is loaded already, of a\. Give this one another name"):
        attach(decoder, file, "type")
    with pytest.raises(BadRequest, match=r"adapter name 'a/b' cannot be: letters, digits, _ and -"):
        attach(decoder, file, "a/b")
    detach(decoder, "type")
    with pytest.raises(UnknownAdapter, match=r"adapter 'type' is not loaded\. None is loaded; load one with"):
        detach(decoder, "type")
    assert torch.equal(logits(decoder, built.tokens_T), plain)
    assert not [name for name, _ in decoder.named_parameters() if "adapters" in name]


def test_another_base_is_noted_and_the_same_is_not(tmp_path: Path) -> None:
    built = case("llama-biases")
    decoder = ours(built.spec, built.tensors)
    file = open_adapter(write_peft(tmp_path, random_pairs(built.files, matrices(built)[0]), {"base_model_name_or_path": "acme/Small-1"}))
    assert attach(decoder, file, "same", base="small-1").notes == ()
    [note] = attach(decoder, file, "other", base="acme/large").notes
    assert note.startswith("adapter 'other' says that it was made for acme/Small-1, and this is acme/large: its matrices fit")
    assert decoder.adapters["same"].sha256 == decoder.adapters["other"].sha256


def test_what_peft_wrote_gives_what_peft_computed() -> None:
    """recorded_peft/: an adapter of LoraConfig(r=4, lora_alpha=10, use_rslora=True, layers_to_transform=[1, 3]) on q_proj, v_proj and down_proj, with
    patterns of rank and alpha and random halves, as peft 0.21.2 saved it, and the logits that it computed on transformers 5.23.
    """
    built, folder = case("llama-biases"), Path(__file__).parent / "recorded_peft"
    decoder = ours(built.spec, built.tensors)
    attached = attach(decoder, open_adapter(folder), "x")
    assert (attached.n_matrices, attached.ranks) == (6, (4, 7))
    assert attached.scales == pytest.approx((3 / 2, 5 / 2, 10 / 7**0.5, 10 / 2))
    found_TV = adapted_logits(decoder, built.tokens_T, [len(built.tokens_T)], ["x"])
    assert error(found_TV, load_file(folder / "logits.safetensors")["logits"]) < TOLERANCE
    assert error(found_TV, built.logits_TV) > 0.2

"""Trained adapters beside peft: what we write it loads with equal logits, what it writes we load, and one step's gradients are its own."""
from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pellucid.catalog.lineage import Node
from pellucid.errors import BadRequest, UnknownTensors, UnsupportedModel
from pellucid.model.adapters import attach, projects
from pellucid.model.cache import Cache
from pellucid.model.convert_adapter import save_adapter
from pellucid.model.decoder import Decoder
from pellucid.model.low_rank import Choice, LowRank
from pellucid.model.parts import Rows, hold
from pellucid.ops.choose import choose
from pellucid.train.recipe import TunePart
from pellucid.train.trainable import NAME, Trained, trained
from pellucid.train.tuning import _check_saved
from pellucid.weights.adapter import open_adapter
from pellucid.weights.card import Card
from tests.families.build import TOLERANCE, Built, error, ours
from tests.model.adapting import adapted_logits, random_pairs, write_peft
from tests.model.test_decoder import case

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft

# Plain with biases; fused q, k, v and gate, up; stored the other way round, with biases.
FUSED = "phi3-mini_4k"
# One tensor an expert in the files, and all of them in one in transformers' module; w1, w3, w2; with dense layers; with shared experts and latents.
EXPERTS = ["mixtral-window", "qwen3_moe-some_dense", "deepseek_v3-released"]
MORE_EXPERTS = ["qwen2_moe-released", "olmoe-plain", "deepseek_v2-lite", "dots1-groups", "glm4_moe-4_5", "hunyuan_v1_moe-lists", "minimax_m2-released"]
# All experts of a layer in one tensor: (in, out), interleaved; the same, and peft takes one for the other; by other names in the files; (out, in).
STACKED = ["gpt_oss-released", "llama4_text-scout", "granitemoe-released", "gemma4_text-26b"]
DENSE = ["llama-biases", FUSED, "gpt2-released"]
CARD = Card(license=None, license_name=None, license_link=None, base_models=())


def tuned(built: Built, **tune: Any) -> tuple[Decoder, Trained]:
    """The case with an adapter as it might be after training: no number is what it began with."""
    decoder = ours(built.spec, built.tensors)
    what = trained(decoder, TunePart(rank=3, alpha=7.0, **tune), seed=3)
    noise = torch.Generator().manual_seed(4)
    for name, p in what.parameters.items():
        with torch.no_grad():
            p.mul_(torch.rand(p.shape, generator=noise) + 0.6) if name.endswith("_m") else p.copy_(torch.randn(p.shape, generator=noise) * 0.15)
    return decoder, what


def saved(built: Built, decoder: Decoder, what: Trained, out: Path) -> Path:
    save_adapter(out, what.halves(decoder), built.spec, base="acme/small", card=CARD, lineage=[], node=Node(name="acme/small", said=()))
    return out


def loaded_by_peft(built: Built, folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(copy.deepcopy(built.theirs), str(folder)).eval()


def by_peft(built: Built, folder: Path) -> torch.Tensor:
    model = loaded_by_peft(built, folder)
    with torch.inference_mode():
        return model(built.tokens_T[None], use_cache=False).logits[0].clone()


def same_everywhere(built: Built, decoder: Decoder, what: Trained, folder: Path) -> None:
    """What was trained, written as peft has it: loaded by peft and here it computes the same, which is not what the base computes."""
    T = len(built.tokens_T)
    ours_TV = adapted_logits(decoder, built.tokens_T, [T], [NAME])
    assert error(ours_TV, built.logits_TV) > 0.05
    saved(built, decoder, what, folder)
    assert error(by_peft(built, folder), ours_TV) < TOLERANCE
    fresh = ours(built.spec, built.tensors)
    attach(fresh, open_adapter(folder), "x")
    assert error(adapted_logits(fresh, built.tokens_T, [T], ["x"]), ours_TV) < TOLERANCE


@pytest.mark.parametrize(("name", "dora"), [*((name, dora) for name in DENSE for dora in (False, True)),
                                            *((name, False) for name in (*EXPERTS, *MORE_EXPERTS, *STACKED))])
def test_peft_computes_what_was_trained_from_what_is_written(name: str, dora: bool, tmp_path: Path) -> None:
    built = case(name)
    same_everywhere(built, *tuned(built, dora=dora), tmp_path / "a")


@pytest.mark.parametrize("targets", [("mlp.experts.*",), ("mlp.experts.*.down",), ("mlp.experts.1.gate", "attn.o"), ("mlp.experts.1.*", "mlp.experts.*.up")],
                         ids=["all", "one of two", "one expert", "ranks that differ"])
@pytest.mark.parametrize("name", [*EXPERTS, *STACKED[:2]])
def test_peft_computes_what_some_experts_learned(name: str, targets: tuple[str, ...], tmp_path: Path) -> None:
    built = case(name)
    decoder, what = tuned(built, targets=targets)
    ours_TV = adapted_logits(decoder, built.tokens_T, [len(built.tokens_T)], [NAME])
    assert error(ours_TV, built.logits_TV) > 0.02
    assert error(by_peft(built, saved(built, decoder, what, tmp_path / "a")), ours_TV) < TOLERANCE


@pytest.mark.parametrize("name", [*EXPERTS, *MORE_EXPERTS, *STACKED[:3], "granitemoeshared-shared"])
def test_peft_computes_what_routers_and_dense_layers_beside_experts_learned(name: str, tmp_path: Path) -> None:
    """Named as modules, it refuses the routers and leaves a gate_proj that is no expert's as it was."""
    built = case(name)
    same_everywhere(built, *tuned(built, targets=("mlp.*",)), tmp_path / "a")


@pytest.mark.parametrize("name", ["mixtral-window", "qwen3_moe-renormalized"])
def test_a_pair_for_each_expert_is_here_what_peft_makes_of_it(name: str, tmp_path: Path) -> None:
    """As peft wrote them under transformers 4, and what it saves of them after it read them."""
    built = case(name)
    pairs = random_pairs(built.files, [name for name in built.files if ".experts." in name or "q_proj" in name])
    words = sorted({name.split(".")[-2] for name in pairs})
    theirs = loaded_by_peft(built, write_peft(tmp_path / "old", pairs, {"target_modules": words}))
    theirs.save_pretrained(str(tmp_path / "new"))
    assert not any(".experts.1." in name for name in load_file(tmp_path / "new/adapter_model.safetensors"))
    with torch.inference_mode():
        theirs_TV = theirs(built.tokens_T[None], use_cache=False).logits[0]
    assert error(theirs_TV, built.logits_TV) > 0.05
    for form in ("old", "new"):
        decoder = ours(built.spec, built.tensors)
        attach(decoder, open_adapter(tmp_path / form), "x")
        assert error(adapted_logits(decoder, built.tokens_T, [len(built.tokens_T)], ["x"]), theirs_TV) < TOLERANCE


@pytest.mark.parametrize(("name", "targets", "message"), [
    ("qwen3_moe-some_dense", ("mlp.gate", "attn.o"), "gate_proj without also targeting up_proj"), ("deepseek_v3-released", ("mlp.shared.*",), "use_dora=True"),
    ("mixtral-window", ("mlp.router",), "use_dora=True"), ("granitemoe-released", ("mlp.router", "attn.o"), "Router.* is not supported"),
    ("gpt_oss-released", ("mlp.router", "attn.o"), "Router.* is not supported")])
def test_peft_refuses_dora_beside_experts_aloud(name: str, targets: tuple[str, ...], message: str, tmp_path: Path) -> None:
    built = case(name)
    decoder, what = tuned(built, dora=True, targets=targets)
    with pytest.raises(ValueError, match=message):
        by_peft(built, saved(built, decoder, what, tmp_path / "a"))


def test_dora_of_experts_is_a_pair_for_each_and_peft_refuses_it_aloud(tmp_path: Path) -> None:
    built = case(EXPERTS[0])
    decoder, what = tuned(built, dora=True)
    T = len(built.tokens_T)
    folder = saved(built, decoder, what, tmp_path / "a")
    assert "base_model.model.model.layers.0.block_sparse_moe.experts.7.w1.lora_magnitude_vector" in load_file(folder / "adapter_model.safetensors")
    fresh = ours(built.spec, built.tensors)
    attach(fresh, open_adapter(folder), "x")
    assert error(adapted_logits(fresh, built.tokens_T, [T], ["x"]), adapted_logits(decoder, built.tokens_T, [T], [NAME])) < TOLERANCE
    with pytest.raises(ValueError, match="ParamWrapper does not work with use_dora=True"):
        by_peft(built, folder)


@pytest.mark.parametrize("parameters", [["experts.gate_up_proj", "experts.down_proj"], ["down_proj"]], ids=["both", "one"])
@pytest.mark.parametrize("name", [*EXPERTS, *MORE_EXPERTS, *STACKED])
def test_experts_that_peft_changed_compute_the_same_here(name: str, parameters: list[str], tmp_path: Path) -> None:
    built = case(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(copy.deepcopy(built.theirs), peft.LoraConfig(
            r=3, lora_alpha=7, target_modules=["o_proj"], target_parameters=parameters, rank_pattern={".*gate_up_proj": 2}, use_rslora=True)).eval()
    noise = torch.Generator().manual_seed(4)
    for name, p in theirs.named_parameters():
        if "lora_" in name:
            p.data.normal_(0, 0.15, generator=noise)
    theirs.save_pretrained(str(tmp_path / "a"))
    with torch.inference_mode():
        theirs_TV = theirs(built.tokens_T[None], use_cache=False).logits[0]
    assert error(theirs_TV, built.logits_TV) > 0.02
    decoder = ours(built.spec, built.tensors)
    attach(decoder, open_adapter(tmp_path / "a"), "x")
    assert error(adapted_logits(decoder, built.tokens_T, [len(built.tokens_T)], ["x"]), theirs_TV) < TOLERANCE


@pytest.mark.parametrize("dora", [False, True])
def test_an_unembedding_that_peft_saves_with_its_base_is_found_equal_or_refused(dora: bool, tmp_path: Path) -> None:
    built = case("llama-llama3_rope")
    assert not built.spec.tied
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(copy.deepcopy(built.theirs), peft.LoraConfig(r=3, use_dora=dora, target_modules=["q_proj", "lm_head"])).eval()
        for name, p in theirs.named_parameters():
            if "lora_B" in name:
                p.data.normal_(0, 0.15, generator=torch.Generator().manual_seed(4))
        theirs.save_pretrained(str(tmp_path / "a"))
    with torch.inference_mode():
        theirs_TV = theirs(built.tokens_T[None], use_cache=False).logits[0]
    assert "base_model.model.lm_head.base_layer.weight" in load_file(tmp_path / "a/adapter_model.safetensors")
    decoder = ours(built.spec, built.tensors)
    assert attach(decoder, open_adapter(tmp_path / "a"), "x").notes == ()
    assert error(adapted_logits(decoder, built.tokens_T, [len(built.tokens_T)], ["x"]), theirs_TV) < TOLERANCE
    other = ours(built.spec, built.tensors | {"unembed.weight": built.tensors["unembed.weight"] + 1e-3})
    with pytest.raises(UnknownTensors, match=r"copy of its base's lm_head\.weight \(101, 48\), and this model's \(101, 48\) is another: nothing"):
        attach(other, open_adapter(tmp_path / "a"), "x")
    assert not other.adapters


def test_what_no_adapter_can_hold_is_said_before_it_is_trained(tmp_path: Path) -> None:
    for name, tune, message in ((STACKED[0], {"dora": True}, r"gate_up_proj holds all experts, and files of adapters have no magnitudes of DoRA"),
                                ("dbrx-released", {}, r"w1 holds the rows of all experts in one matrix")):
        built = case(name)
        decoder = ours(built.spec, built.tensors)
        what = trained(decoder, TunePart(rank=3, **tune), seed=3)
        with pytest.raises(BadRequest, match=f"what would be trained could not be written as an adapter: .*{message}.*out.format=merged"):
            _check_saved(what, decoder)


@pytest.mark.parametrize("name", [EXPERTS[0], "qwen3_moe-renormalized", *STACKED])
def test_llama_cpps_file_of_experts_is_the_same_adapter(name: str, tmp_path: Path) -> None:
    from tests.model.test_convert_adapter import convert, save_base
    built = case(name)
    decoder, what = tuned(built, targets=("blocks.*.experts.*", "attn.q"))
    ours_TV = adapted_logits(decoder, built.tokens_T, [len(built.tokens_T)], [NAME])
    folder, base = saved(built, decoder, what, tmp_path / "a"), str(save_base(tmp_path / "m", built))
    convert(folder, tmp_path / "a.gguf", base=base)
    convert(tmp_path / "a.gguf", tmp_path / "back", base=base)
    fresh = ours(built.spec, built.tensors)
    for of in ("a.gguf", "back"):
        attach(fresh, open_adapter(tmp_path / of), of.partition(".")[0])
        assert error(adapted_logits(fresh, built.tokens_T, [len(built.tokens_T)], [of.partition(".")[0]]), ours_TV) < TOLERANCE
    assert error(by_peft(built, tmp_path / "back"), ours_TV) < TOLERANCE


@pytest.mark.parametrize("name", [*DENSE, "qwen3_moe-renormalized", "deepseek_v3-released"])
def test_dora_in_the_matrix_is_dora_beside_it(name: str, tmp_path: Path) -> None:
    """Whole, a row among others that take none or another, and token by token from a cache, where latents are absorbed without it."""
    built = case(name)
    decoder, what = tuned(built, dora=True)
    T = len(built.tokens_T)
    ours_TV = adapted_logits(decoder, built.tokens_T, [T], [NAME])
    inside = ours(built.spec, built.tensors)
    for at, part in what.parts(decoder).items():
        matrix = projects(inside)[f"{at}.weight"]
        hold(matrix, "weight", part.merged(matrix.weight.detach()))
    alone_TV = adapted_logits(inside, built.tokens_T, [T], [None])
    assert error(alone_TV, built.logits_TV) > 0.05
    assert error(ours_TV, alone_TV) < TOLERANCE
    attach(decoder, open_adapter(saved(built, decoder, what, tmp_path / "a")), "x")
    together_TV = adapted_logits(decoder, built.tokens_T.repeat(3), [T] * 3, [None, "x", NAME])
    for part_TV, whose_TV in zip(together_TV.split(T), (built.logits_TV, alone_TV, alone_TV), strict=True):
        assert error(part_TV, whose_TV) < TOLERANCE
    cache, parts = Cache(decoder.spec), []
    cache.plan(0, T)
    with torch.inference_mode():
        for part_T in built.tokens_T.split([5] + [1] * (T - 5)):
            parts.append(decoder.unembed(decoder(part_T, None, Rows((len(part_T),), (0,), ("x",)), cache), Choice.of(["x"], [len(part_T)])))
    assert error(torch.cat(parts), alone_TV) < TOLERANCE


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_gradients_of_a_step_are_pefts(dora: bool, rslora: bool) -> None:
    """Of A, B and DoRA's magnitudes, in the backend that trains; peft begins with the magnitudes that we begin with."""
    built = case("llama-biases")
    decoder = ours(built.spec, built.tensors, ops="training")
    what = trained(decoder, TunePart(rank=3, alpha=7.0, dora=dora, rslora=rslora, targets=("attn.q", "mlp.down")), seed=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(copy.deepcopy(built.theirs), peft.LoraConfig(r=3, lora_alpha=7, use_dora=dora, use_rslora=rslora,
                                                                                  target_modules=["q_proj", "down_proj"])).eval()
    noise = torch.Generator().manual_seed(4)
    at = {"blocks": "base_model.model.model.layers", "attn.q": "self_attn.q_proj", "mlp.down": "mlp.down_proj", ".lora_a": ".lora_A.default.weight",
          ".lora_b": ".lora_B.default.weight", ".lora_m": ".lora_magnitude_vector.default.weight"}
    pairs = {}
    for name, p in what.parameters.items():
        other = name
        for short, long in at.items():
            other = other.replace(short, long)
        pairs[name] = q = theirs.get_parameter(other)
        with torch.no_grad():
            if name.endswith("_m"):
                assert torch.allclose(p, q, rtol=1e-6)
                p.mul_(torch.rand(p.shape, generator=noise) + 0.6)
            elif name.endswith("_b"):
                p.copy_(torch.randn(p.shape, generator=noise) * 0.15)
            q.copy_(p)
    T = len(built.tokens_T)
    hidden_TD = decoder(built.tokens_T, None, Rows((T,), (0,), (NAME,)))
    found = decoder.unembed(hidden_TD, Choice.of([NAME], [T])).float()
    expected = theirs(built.tokens_T[None], use_cache=False).logits[0]
    for logits_TV in (found, expected):
        torch.nn.functional.cross_entropy(logits_TV[:-1], built.tokens_T[1:]).backward()
    for name, q in pairs.items():
        assert error(what.parameters[name].grad, q.grad) < 1e-4, name


def test_a_gain_near_one_survives_sixteen_bits() -> None:
    """A magnitude of 1.001 of the row's length is nothing in bfloat16, and the product with what is left of it is something."""
    noise = torch.Generator().manual_seed(1)
    weight_FD, x_TD = torch.randn(7, 5, generator=noise), torch.randn(3, 5, generator=noise).bfloat16()
    part = LowRank(choose("reference"), torch.zeros(2, 5), torch.zeros(7, 2), 1.0, weight_FD.norm(dim=1) * 1.03)
    y_TF = (x_TD.float() @ weight_FD.T).bfloat16()
    expected_TF = y_TF.float() * 1.03
    assert ((part.onto(x_TD, y_TF, weight_FD, None).float() - expected_TF).abs() <= expected_TF.abs() * 2**-8).all()


def test_llama_cpps_adapters_have_no_magnitudes(tmp_path: Path) -> None:
    from tests.model.test_convert_adapter import convert, save_base
    built = case("llama-biases")
    decoder, what = tuned(built, dora=True)
    base = save_base(tmp_path / "m", built)
    with pytest.raises(UnsupportedModel, match=r"adapter 'a' is of DoRA, and llama.cpp's adapters have no magnitudes\. Write the model with it"):
        convert(saved(built, decoder, what, tmp_path / "a"), tmp_path / "a.gguf", base=str(base))

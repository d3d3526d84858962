"""What config.json has for training alone: dropouts where transformers has them, a mixture's balance as it computes it, adapters' dropout as peft's."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pellucid.data.example import Example
from pellucid.errors import UnsupportedModel
from pellucid.model.experts import MixtureOfExperts
from pellucid.model.parts import Rows
from pellucid.ops.fused import Fused
from pellucid.spec import Experts, FeedForward, Layer
from pellucid.train.balance import Balance, coefficient_of
from pellucid.train.loop import Run, Stepped, step
from pellucid.train.noise import Dropouts, dropouts_of, dropping
from pellucid.train.optim import Optimizer
from pellucid.train.sft import NextToken
from pellucid.train.trainable import trained
from tests.train.test_loop import recipe, run, weights
from tests.train.test_recompute import MIXER
from tests.train.test_trl import EXACT, N_VOCAB, ours, their_gradients
from tests.train.tiny import tiny_decoder

IDS = torch.tensor([3, 4, 5, 9, 12, 7, 7, 20, 2])
SMALL = dict(vocab_size=N_VOCAB, initializer_range=0.3, bos_token_id=0, eos_token_id=0)
NOISY: dict[str, Any] = {
    "gpt2": (transformers.GPT2LMHeadModel, transformers.GPT2Config(**SMALL, n_embd=16, n_layer=2, n_head=2, n_positions=32, embd_pdrop=0.1, attn_pdrop=0.2,
                                                                   resid_pdrop=0.3)),
    "opt": (transformers.OPTForCausalLM, transformers.OPTConfig(**SMALL, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=20, dropout=0.3,
                                                                max_position_embeddings=32, word_embed_proj_dim=16, attention_dropout=0.2, pad_token_id=1)),
    "phi": (transformers.PhiForCausalLM, transformers.PhiConfig(**SMALL, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20,
                                                                max_position_embeddings=32, embd_pdrop=0.1, resid_pdrop=0.3, attention_dropout=0.2)),
    "gpt_neox": (transformers.GPTNeoXForCausalLM, transformers.GPTNeoXConfig(**SMALL, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                                                             intermediate_size=20, max_position_embeddings=32, hidden_dropout=0.1,
                                                                             attention_dropout=0.2)),
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig(**SMALL, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, head_dim=6,
                                                                      num_key_value_heads=2, intermediate_size=20, attention_dropout=0.2)),
}


@pytest.mark.parametrize("name", NOISY)
def test_dropouts_stand_where_transformers_has_them(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each dropout multiplies by what it would keep on average, in place of drawing: one in another place, or of another share, gives other logits."""
    kind, config = NOISY[name]
    torch.manual_seed(0)
    model = kind(config)
    decoder = ours(model, tmp_path).train()
    drop = dropouts_of(model.config.to_dict(), name)
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, p=0.5, training=True, inplace=False: x * (1 - p) if training else x)
    model.set_attn_implementation("eager")
    plain = decoder.unembed(decoder(IDS, rows=Rows.of(len(IDS))))
    with dropping(decoder, drop):
        found = decoder.unembed(decoder(IDS, rows=Rows.of(len(IDS))))
        with torch.no_grad():
            torch.testing.assert_close(decoder.unembed(decoder(IDS, rows=Rows.of(len(IDS)))), plain, rtol=1e-5, atol=1e-5)
    expected = model.train()(IDS[None]).logits[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (found - plain).abs().max() > 1e-2
    torch.testing.assert_close(decoder.unembed(decoder(IDS, rows=Rows.of(len(IDS)))), plain, rtol=1e-5, atol=1e-5)  # nothing stays


def test_what_a_config_says_and_what_is_not_implemented() -> None:
    assert dropouts_of({"model_type": "gpt2", "attn_pdrop": 0.1, "resid_pdrop": 0.0, "summary_first_dropout": 0.1}, "m") == Dropouts(
        attention=0.1, keys=("attn_pdrop=0.1",))
    assert not dropouts_of({"model_type": "llama", "attention_dropout": 0.0}, "m")
    assert dropouts_of({"model_type": "mpt", "attn_config": {"attn_pdrop": 0.2}}, "m").attention == 0.2
    with pytest.raises(UnsupportedModel, match=r"config.json of m has layerdrop=0.1, which acts in training.*model.dropouts=off"):
        dropouts_of({"layerdrop": 0.1}, "m")


@pytest.fixture
def mixtral() -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(
        **SMALL, hidden_size=16, intermediate_size=12, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=6, num_local_experts=5,
        num_experts_per_tok=2, max_position_embeddings=32, output_router_logits=True, router_aux_loss_coef=0.7))


def balanced(decoder: Any, examples: list[Example], micro_tokens: int) -> tuple[float, dict[str, torch.Tensor | None]]:
    of = recipe(batch=len(examples), micro_tokens=micro_tokens, optim={"lr": 1e-30, "clip": None, "warmup": 0})
    what = trained(decoder, of.tune, 0)
    kept: dict[str, torch.Tensor | None] = {}
    optimizer = Optimizer(what.parameters, of.optim)
    optimizer.step = lambda share: kept.update({name: p.grad for name, p in what.parameters.items()})  # type: ignore[method-assign]
    one = Run(decoder=decoder, trained=what, method=NextToken(), optimizer=optimizer, recipe=of, steps=1, items=lambda n: examples,
                   balance=Balance(decoder, 0.7))
    event = step(one)
    assert event.told["balance"] > 0.5
    return event.loss, kept


def test_the_balance_of_experts_is_that_of_transformers(mixtral: transformers.PreTrainedModel, tmp_path: Path) -> None:
    assert coefficient_of(mixtral.config.to_dict()) == ("router_aux_loss_coef", 0.7)
    row = Example(tuple(IDS.tolist()), (False, *[True] * (len(IDS) - 1)), "rows:1")
    loss, gradients = balanced(ours(mixtral, tmp_path / "a"), [row], 100)
    theirs = mixtral.train()(IDS[None], labels=IDS[None]).loss
    theirs.backward()
    assert loss == pytest.approx(theirs.item(), rel=1e-5)
    expected = their_gradients(mixtral, tmp_path / "b")
    for name, gradient in gradients.items():
        torch.testing.assert_close(torch.zeros_like(expected[name]) if gradient is None else gradient, expected[name], **EXACT, msg=name)  # nobody's expert


def test_the_balance_of_a_step_in_parts_is_that_of_the_whole(mixtral: transformers.PreTrainedModel, tmp_path: Path) -> None:
    examples = [Example(tuple(ids), (False, *[True] * (len(ids) - 1)), f"rows:{i}") for i, ids in enumerate([[3, 4, 5, 6], [9, 12, 7], [20, 2, 2, 11, 8]])]
    decoder = ours(mixtral, tmp_path / "a")
    whole, gradients = balanced(decoder, examples, 100)
    parts, same = balanced(decoder, examples, 5)
    assert parts == pytest.approx(whole, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(same[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_balance_makes_experts_equally_busy() -> None:
    shape = {"layers": (Layer(mixer=MIXER, mlp=Experts(n_experts=5, n_active=1, renormalize=False, scoring="sigmoid", each=FeedForward(d_ff=12))),)}
    decoder = tiny_decoder(Fused(), trained=True, **shape)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=3e-3)
    tokens = torch.arange(N_VOCAB).repeat(4)
    balance, spread = Balance(decoder, 1.0), []
    for _ in range(60):
        balance.begin([Example(tuple(tokens.tolist()), (False,) * len(tokens), "r")], 1.0, None, 1000)
        with balance.watching() as seen:
            decoder(tokens, rows=Rows.of(len(tokens)))
        loss, plain = balance.loss(seen)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mixture = next(module for module in decoder.modules() if isinstance(module, MixtureOfExperts))
        spread.append((plain.item(), mixture.router.weight.grad.abs().sum().item()))
    assert spread[-1][0] < spread[0][0]
    assert spread[-1][0] == pytest.approx(1.0, abs=0.1)  # what the loss is when all are chosen equally often


def test_an_adapters_dropout_is_pefts() -> None:
    """Half of what A reads, times two; the matrix itself reads all. Not where nothing is learned."""
    of = recipe(tune={"kind": "lora", "rank": 3, "dropout": 0.5})
    decoder = tiny_decoder(Fused()).train()
    what = trained(decoder, of.tune, 0)
    with torch.no_grad():
        for name, p in what.parameters.items():
            if name.endswith("lora_b"):
                p.normal_()
    part = what.parts(decoder)["blocks.0.attn.q"]
    x = torch.randn(7, 16)
    with dropping(decoder, Dropouts(), list(what.parts(decoder).values()), 0.5):
        torch.manual_seed(4)
        found = part.add(x, torch.ones(7, part.b.shape[0]))
        torch.manual_seed(4)
        kept = torch.nn.functional.dropout(x, 0.5)
        torch.testing.assert_close(found, 1 + kept @ part.a.T @ part.b.T * part.scale)
        with torch.no_grad():
            torch.testing.assert_close(part.add(x, torch.ones(7, part.b.shape[0])), 1 + x @ part.a.T @ part.b.T * part.scale)
    torch.testing.assert_close(part.add(x, torch.zeros(7, part.b.shape[0])), x @ part.a.T @ part.b.T * part.scale)


def test_noise_reaches_training_and_not_evaluation() -> None:
    data = [Example((3, 4, 5, 6, 7), (False, True, True, True, True), "r:1")]
    facts: dict[str, Any] = {"tune": {"kind": "lora", "rank": 2}, "batch": 1}
    torch.manual_seed(0)
    plain, told = run(recipe(**facts), 3, data, held_out=data)
    noisy, heard = run(recipe(**facts), 3, data, held_out=data, drop=Dropouts(residual=0.3, attention=0.2, embedding=0.1))
    losses, drawn = ([e.loss for e in events if isinstance(e, Stepped)] for events in (told, heard))
    assert losses[0] != drawn[0]
    assert told[0] == heard[0]  # the evaluation before the first step
    assert not all(torch.equal(weights(noisy)[name], tensor) for name, tensor in weights(plain).items())

"""Losses and gradients are those of trl's own trainers, on the same rows, weights and settings, in float32."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from pellucid.data.example import Comparison, Example, Item, Verdict
from pellucid.model.decoder import Decoder
from pellucid.model.load import load_decoder
from pellucid.train.distill import Distill, divergence
from pellucid.train.kto import Kto, Verdicts
from pellucid.train.loop import Run, step, train
from pellucid.train.method import Method
from pellucid.train.optim import Optimizer
from pellucid.train.preference import Dpo, Ipo, Orpo, Preference, SimPo
from pellucid.train.recipe import read_recipe
from pellucid.train.reference import Reference
from pellucid.train.reward import BradleyTerry, Reward, RewardModel
from pellucid.train.sft import NextToken
from pellucid.train.trainable import trained

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # trl asks transformers by a name that it will drop
N_VOCAB, EOS, PAD = 23, 0, 1
PROMPTS, GOOD, BAD = [[3, 4, 5], [6, 7], [8, 9, 10, 11]], [[12, 13], [14, 15, 16], [17]], [[18], [19, 20], [21, 22, 3, 4]]
EXACT = dict(rtol=1e-5, atol=1e-6)


def example(prompt: list[int], answer: list[int], origin: str = "rows:1") -> Example:
    return Example((*prompt, *answer, EOS), (False,) * len(prompt) + (True,) * (len(answer) + 1), origin)


PAIRS = [Comparison(example(p, w), example(p, bad), f"rows:{i}") for i, (p, w, bad) in enumerate(zip(PROMPTS, GOOD, BAD, strict=True), 1)]
VERDICTS = [Verdict(example(p, w if good else bad), good, f"rows:{i}") for i, (p, w, bad, good) in
            enumerate(zip(PROMPTS, GOOD, BAD, [True, False, True], strict=True), 1)]


def text(ids: list[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


@pytest.fixture(scope="module")
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    words = {"</s>": EOS, "<pad>": PAD} | {f"w{i}": i for i in range(2, N_VOCAB)}
    made = Tokenizer(models.WordLevel(words, unk_token="w2"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token="<pad>")


def llama(seed: int, kind: type[transformers.PreTrainedModel] = transformers.LlamaForCausalLM, **facts: Any) -> transformers.PreTrainedModel:
    torch.manual_seed(seed)
    return kind(transformers.LlamaConfig(
        vocab_size=N_VOCAB, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=6,
        max_position_embeddings=64, initializer_range=0.3, eos_token_id=EOS, pad_token_id=PAD, bos_token_id=None, tie_word_embeddings=False, **facts))


@pytest.fixture
def theirs() -> tuple[transformers.PreTrainedModel, transformers.PreTrainedModel]:
    """The policy and the reference."""
    return llama(0), llama(1)


def ours(model: transformers.PreTrainedModel, folder: Path) -> Decoder:
    model.save_pretrained(folder)
    return load_decoder(folder, device="cpu", dtype="float32", ops="fused")[0]


def their_gradients(model: transformers.PreTrainedModel, folder: Path) -> Mapping[str, Tensor]:
    """By our names: what a checkpoint with the gradients in place of the weights is loaded as."""
    as_weights = type(model)(model.config)
    with torch.no_grad():
        for p, of in zip(as_weights.parameters(), model.parameters(), strict=True):
            p.copy_(of.grad)
    return {name: p.detach() for name, p in ours(as_weights, folder).named_parameters()}


def arguments(kind: type, folder: Path, **facts: Any) -> Any:
    return kind(output_dir=str(folder), per_device_train_batch_size=3, report_to="none", use_cpu=True, bf16=False, activation_checkpointing=False,
                disable_tqdm=True, **facts)


def their_loss(trainer: Any, model: transformers.PreTrainedModel) -> float:
    """Of the first batch, and its gradients in the model. Nothing is drawn: all rows are in that batch, and a loss is the same in any order of them."""
    trainer.model.train()
    loss = trainer.compute_loss(model, next(iter(trainer.get_train_dataloader())))
    loss.backward()
    return loss.item()


def our_loss(decoder: Decoder, method: Method, items: list[Item]) -> tuple[float, Run]:
    """Of a step that changes nothing, a row at a time; its gradients stay, since the optimizer is none."""
    recipe = read_recipe({"model": {"path": "m"}, "data": {"sources": [{"path": "d"}]}, "out": {"folder": "o"}, "tune": {"kind": "full"},
                          "optim": {"clip": None}, "micro_tokens": 1})
    what = trained(decoder, recipe.tune, 0)
    run = Run(decoder=decoder, trained=what, method=method, optimizer=_Still(what.parameters, recipe.optim), recipe=recipe, steps=1, items=lambda n: items)
    return step(run).loss, run


class _Still(Optimizer):
    def step(self, share: float) -> None:
        pass


def check(found: tuple[float, Run], loss: float, model: transformers.PreTrainedModel, folder: Path) -> None:
    mine, run = found
    assert mine == pytest.approx(loss, rel=1e-5)
    expected = their_gradients(model, folder)
    assert expected.keys() == run.trained.parameters.keys()
    for name, p in run.trained.parameters.items():
        assert expected[name].abs().max() > 0
        torch.testing.assert_close(p.grad, expected[name], **EXACT, msg=lambda said, name=name: f"{name}: {said}")


def comparisons() -> Dataset:
    return Dataset.from_dict({"prompt": [text(p) for p in PROMPTS], "chosen": [" " + text(a) for a in GOOD], "rejected": [" " + text(a) for a in BAD]})


@pytest.mark.parametrize(("objective", "facts"), [
    (Dpo(beta=0.3), dict(beta=0.3, loss_type=["sigmoid"])),
    (Dpo(beta=0.3, sft=0.7), dict(beta=0.3, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.7])),
    (Ipo(beta=0.3), dict(beta=0.3, loss_type=["ipo"])),
], ids=["dpo", "dpo and sft", "ipo"])
def test_losses_that_refer_are_those_of_trl(theirs: Any, tokenizer: Any, tmp_path: Path, objective: Dpo | Ipo, facts: dict[str, Any]) -> None:
    from trl import DPOConfig, DPOTrainer
    policy, reference = theirs
    decoder, frozen = ours(policy, tmp_path / "a"), ours(reference, tmp_path / "b")
    trainer = DPOTrainer(model=policy, ref_model=reference, args=arguments(DPOConfig, tmp_path, **facts), train_dataset=comparisons(),
                         processing_class=tokenizer)
    loss = their_loss(trainer, policy)
    check(our_loss(decoder, Preference("it", objective, Reference(frozen)), list(PAIRS)), loss, policy, tmp_path / "c")


@pytest.mark.parametrize("drifted", [False, True], ids=["z is zero", "z is above zero"])
def test_kto_is_that_of_trl(tokenizer: Any, tmp_path: Path, drifted: bool) -> None:
    from trl import KTOConfig, KTOTrainer
    policy, reference = (llama(0), llama(1)) if drifted else (llama(1), llama(0))
    decoder, frozen = ours(policy, tmp_path / "a"), ours(reference, tmp_path / "b")
    rows = Dataset.from_dict({"prompt": [text(p) for p in PROMPTS], "completion": [" " + text(list(v.example.ids[len(p):-1]))
                              for p, v in zip(PROMPTS, VERDICTS, strict=True)], "label": [v.good for v in VERDICTS]})
    trainer = KTOTrainer(model=policy, ref_model=reference, args=arguments(KTOConfig, tmp_path, beta=0.3, desirable_weight=1.3, undesirable_weight=0.8),
                         train_dataset=rows, processing_class=tokenizer)
    loss = their_loss(trainer, policy)
    found = our_loss(decoder, Verdicts(Kto(beta=0.3, good=1.3, bad=0.8), Reference(frozen), decoder.spec.n_ctx), list(VERDICTS))
    check(found, loss, policy, tmp_path / "c")
    assert trainer._metrics["train"]["kl"][0] == pytest.approx(found[1].method._z, rel=1e-5)
    assert (found[1].method._z > 0) == drifted


@pytest.mark.parametrize("objective", [SimPo(beta=0.7, gamma=0.4), SimPo(beta=0.7, gamma=0.4, sft=0.6)], ids=["simpo", "simpo and sft"])
def test_simpo_is_that_of_trl(theirs: Any, tokenizer: Any, tmp_path: Path, objective: SimPo) -> None:
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    policy, _ = theirs
    decoder = ours(policy, tmp_path / "a")
    args = arguments(CPOConfig, tmp_path, beta=0.7, simpo_gamma=0.4, loss_type="simpo", cpo_alpha=objective.sft, max_length=60, remove_unused_columns=False)
    loss = their_loss(CPOTrainer(model=policy, args=args, train_dataset=comparisons(), processing_class=tokenizer), policy)
    check(our_loss(decoder, Preference("simpo", objective), list(PAIRS)), loss, policy, tmp_path / "c")


def test_orpo_is_that_of_trl_where_it_learns_prompts(theirs: Any, tokenizer: Any, tmp_path: Path) -> None:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer
    policy, _ = theirs
    decoder = ours(policy, tmp_path / "a")
    args = arguments(ORPOConfig, tmp_path, beta=0.3, max_length=60, remove_unused_columns=False)
    trainer = ORPOTrainer(model=policy, args=args, train_dataset=comparisons(), processing_class=tokenizer)
    loss = their_loss(trainer, policy)
    check(our_loss(decoder, Preference("orpo", Orpo(beta=0.3, learn_prompt=True)), list(PAIRS)), loss, policy, tmp_path / "c")




@pytest.mark.parametrize("center", [0.0, 0.2])
def test_a_reward_models_loss_is_that_of_trl(tokenizer: Any, tmp_path: Path, center: float) -> None:
    from trl import RewardConfig, RewardTrainer
    model = llama(0, transformers.LlamaForSequenceClassification, num_labels=1)
    model.save_pretrained(tmp_path / "a")
    ours = RewardModel.load(tmp_path / "a", device="cpu", dtype="float32")
    rows = Dataset.from_dict({side: [text([*p, *a]) for p, a in zip(PROMPTS, answers, strict=True)] for side, answers in (("chosen", GOOD), ("rejected", BAD))})
    trainer = RewardTrainer(model=model, args=arguments(RewardConfig, tmp_path, center_rewards_coefficient=center or None), train_dataset=rows,
                            processing_class=tokenizer)
    loss = their_loss(trainer, model)
    ours.head.requires_grad_(True)
    found, run = our_loss(ours.decoder, BradleyTerry(Reward(center=center), ours.head), list(PAIRS))
    assert found == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(ours.head.weight.grad, model.score.weight.grad, **EXACT)
    theirs = dict(model.model.named_parameters())
    torch.testing.assert_close(run.trained.parameters["embed.weight"].grad, theirs["embed_tokens.weight"].grad, **EXACT)
    torch.testing.assert_close(run.trained.parameters["blocks.0.mlp.down.weight"].grad, theirs["layers.0.mlp.down_proj.weight"].grad, **EXACT)


@pytest.mark.parametrize("how", [Distill(teacher="t", divergence="forward"), Distill(teacher="t", divergence="reverse", temperature=1.7),
                                 Distill(teacher="t", divergence="js", beta=0.3)], ids=lambda how: how.divergence)
def test_divergences_are_those_of_trl(how: Distill) -> None:
    from trl.experimental.gkd import GKDTrainer
    student, teacher = torch.randn(2, 6, N_VOCAB, generator=torch.Generator().manual_seed(0)) * 3
    beta = {"forward": 0.0, "reverse": 1.0, "js": how.beta}[how.divergence]
    expected = GKDTrainer.generalized_jsd_loss(student[None], teacher[None], beta=beta, temperature=how.temperature, reduction="none")[0].sum(-1)
    torch.testing.assert_close(divergence(student, teacher, how), expected, rtol=1e-5, atol=1e-6)


def test_fine_tuning_is_that_of_trl_at_each_of_50_steps(tokenizer: Any, tmp_path: Path) -> None:
    """Same rows in the same order, AdamW, cosine, clipping; learned are the answers. No warm-up: theirs spends its first step at a rate of zero."""
    from trl import SFTConfig, SFTTrainer
    n, batch = 50, 2
    prompts, answers = ([[2 + (7 * i + k * (3 + i % 4)) % 21 for k in range(2 + i % (4 + side))] for i in range(n * batch)] for side in (0, 1))
    theirs = llama(0)
    decoder = ours(theirs, tmp_path / "a")
    rows = Dataset.from_dict({"prompt": list(map(text, prompts)), "completion": [" " + text(a) for a in answers]})
    args = arguments(SFTConfig, tmp_path, learning_rate=5e-3, weight_decay=0.01, lr_scheduler_type="cosine", warmup_steps=0, max_grad_norm=1.0,
                     num_train_epochs=1, logging_steps=1, save_strategy="no", train_sampling_strategy="sequential", logging_strategy="steps",
                     completion_only_loss=True)
    args.per_device_train_batch_size = batch
    trainer = SFTTrainer(model=theirs, args=args, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    expected = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    recipe = read_recipe({"model": {"path": "m"}, "data": {"sources": [{"path": "d"}]}, "out": {"folder": "o"}, "tune": {"kind": "full"}, "micro_tokens": 9,
                          "optim": {"lr": 5e-3, "weight_decay": 0.01, "schedule": "cosine", "warmup": 0, "clip": 1.0}})
    what, events = trained(decoder, recipe.tune, 0), []
    items = [example(p, a) for p, a in zip(prompts, answers, strict=True)]
    train(Run(decoder=decoder, trained=what, method=NextToken(), optimizer=Optimizer(what.parameters, recipe.optim), recipe=recipe, steps=n,
              items=lambda i: items[batch * i : batch * (i + 1)], observe=events.append))
    found = [event.loss for event in events]
    assert len(found) == len(expected) == n
    assert found == pytest.approx(expected, abs=1e-3)
    assert found[-1] < 0.7 * found[0]

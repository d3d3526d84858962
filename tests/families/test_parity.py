"""Every family, through the real files on disk, against transformers, or against numpy where transformers lacks it."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from pellucid import families
from pellucid.errors import BadConfig, BadRequest, UnsupportedModel
from pellucid.model.cache import Cache
from pellucid.model.decoder import Rows, kept_in
from pellucid.ops.choose import BACKENDS
from pellucid.spec import Experts
from pellucid.weights.assemble import disassemble
from pellucid.weights.names import NameTable
from tests.families.build import TOLERANCE, Built, build, error, in_chunks, judged, logits, ours, read_spec
from tests.families.cases import CASES


@pytest.fixture(params=CASES, ids=str)
def built(request) -> Built:
    return build(request.param)


@pytest.fixture(params=[case for case in CASES if case.reference is None], ids=str)
def shared(request) -> Built:
    """A case that transformers has too."""
    return build(request.param)


@pytest.fixture(params=[case for case in CASES if case.reference is not None], ids=str)
def ours_alone(request) -> Built:
    """A case that transformers 5.23 lacks: a module of tests/references judges it."""
    return build(request.param)


def test_every_family_has_a_case():
    elsewhere = {"gemma3", "gemma4", "gemma4_unified", "mistral3", "mimo", "kimi_k2", "llama4"}  # wrappers and a twin of qwen2: tests/weights/test_wrappers.py
    elsewhere |= {"refined_web", "refined_web_model"}  # falcon's first names: test_configs_a.py
    assert {case.family for case in CASES} == set(families.NAMES) - elsewhere


@pytest.mark.parametrize("ops", BACKENDS)
def test_logits_equal_those_of_the_judge(built, ops):
    mine_TV = logits(ours(built.spec, built.tensors, ops=ops), built.tokens_T)
    assert error(mine_TV, built.logits_TV) < TOLERANCE
    best_T2 = built.logits_TV.topk(2).values
    clear_T = best_T2[:, 0] - best_T2[:, 1] > TOLERANCE * built.logits_TV.abs().max()
    assert clear_T.sum() > 0.9 * len(clear_T)
    assert torch.equal(mine_TV.argmax(-1)[clear_T], built.logits_TV.argmax(-1)[clear_T])


ENCODERS = {"gemma3_text-both_ways", "gemma4_text-both_ways"}  # their tokens see what follows: there is nothing to continue, and a row is computed whole
CONTINUED = [case for case in CASES if str(case) not in ENCODERS]


@pytest.mark.parametrize("built", [case for case in CASES if str(case) in ENCODERS], ids=str, indirect=True)
def test_a_model_that_sees_both_ways_takes_no_cache_and_its_rows_are_whole(built):
    decoder = ours(built.spec, built.tensors, ops="fused")
    with pytest.raises(BadRequest, match="a row is computed whole, without a cache"):
        logits(decoder, built.tokens_T, cache=Cache(built.spec))
    lengths = (5, built.case.length, 1)
    rows_tokens = [built.tokens_T.roll(b)[:n] for b, n in enumerate(lengths)]
    together_TV = logits(decoder, torch.cat(rows_tokens), Rows.of(*lengths))
    for tokens_T, part_TV in zip(rows_tokens, together_TV.split(lengths), strict=True):
        assert (part_TV - logits(decoder, tokens_T)).abs().max() < TOLERANCE * built.logits_TV.abs().max()


@pytest.mark.parametrize("built", CONTINUED, ids=str, indirect=True)
@pytest.mark.parametrize("ops", BACKENDS)
def test_cached_decoding_equals_the_full_pass(built, ops):
    decoder = ours(built.spec, built.tensors, ops=ops)
    assert error(in_chunks(decoder, built.tokens_T, 17, 2, 5), logits(decoder, built.tokens_T)) < TOLERANCE


@pytest.mark.parametrize("built", CONTINUED, ids=str, indirect=True)
@pytest.mark.parametrize("ops", BACKENDS)
def test_rows_of_a_flat_batch_are_what_each_is_alone(built, ops):
    decoder = ours(built.spec, built.tensors, ops=ops)
    lengths = (5, built.case.length, 1, 17)
    rows_tokens = [built.tokens_T.roll(b)[:n] for b, n in enumerate(lengths)]
    together_TV = logits(decoder, torch.cat(rows_tokens), Rows.of(*lengths))
    cache, slots = Cache(built.spec, 6), (4, 0, 3, 1)
    for slot, n in zip(slots, lengths, strict=True):
        cache.plan(slot, n)
    first = [(n + 1) // 2 for n in lengths]  # two passes into cache rows out of order, the second resuming each
    parts = []
    for bounds in ([(0, k) for k in first], [(k, n) for k, n in zip(first, lengths, strict=True)]):
        live = [b for b, (start, stop) in enumerate(bounds) if stop > start]
        tokens_T = torch.cat([rows_tokens[b][slice(*bounds[b])] for b in live])
        rows = Rows.of(*(bounds[b][1] - bounds[b][0] for b in live), slots=[slots[b] for b in live])
        parts.append(dict(zip(live, logits(decoder, tokens_T, rows, cache).split(rows.lengths), strict=True)))
    scale = built.logits_TV.abs().max()
    for b, (tokens_T, part_TV) in enumerate(zip(rows_tokens, together_TV.split(lengths), strict=True)):
        alone_TV = logits(decoder, tokens_T)
        resumed_TV = torch.cat([part[b] for part in parts if b in part])
        assert (part_TV - alone_TV).abs().max() < TOLERANCE * scale
        assert (resumed_TV - alone_TV).abs().max() < TOLERANCE * scale


def test_a_row_is_bitwise_itself_in_company_when_deterministic(built):
    decoder = ours(built.spec, built.tensors, ops="fused", deterministic=True)
    lengths = (3, built.case.length, 1, 18)
    rows_tokens = [built.tokens_T.roll(b)[:n] for b, n in enumerate(lengths)]
    together_TV = logits(decoder, torch.cat(rows_tokens), Rows.of(*lengths))
    for tokens_T, part_TV in zip(rows_tokens, together_TV.split(lengths), strict=True):
        assert torch.equal(part_TV, logits(decoder, tokens_T))


def test_saving_gives_back_the_file_that_was_loaded(built):
    saved = disassemble(NameTable(built.module.WEIGHTS), built.tensors, built.spec)
    copies = {"lm_head.weight", "embed_out.weight"} if built.spec.tied else set()
    assert set(saved) == set(built.files) - copies
    for name, tensor in saved.items():
        assert tensor.dtype == built.files[name].dtype
        assert torch.equal(tensor, built.files[name]), name


@pytest.mark.parametrize("built", [case for case in CASES if case.old is not None], ids=str, indirect=True)
def test_both_dialects_of_config_json_make_the_same_spec(built, tmp_path):
    old = built.case.old(built.raw)
    assert "rope_parameters" not in old
    assert read_spec(old) == built.spec
    # The translation itself is checked by transformers: it reads the old file into the very config we started from.
    (tmp_path / "config.json").write_text(json.dumps(old))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert _without_type(theirs.rope_parameters) == _without_type(built.theirs.config.rope_parameters)


def _without_type(rope: dict) -> dict:
    """rope_parameters less the oldest spelling of rope_type, which transformers keeps beside the new one."""
    return {key: _without_type(value) if isinstance(value, dict) else value for key, value in rope.items() if key != "type"}


def test_a_key_that_is_absent_or_null_means_what_it_means_to_transformers(shared, tmp_path):
    """For every key of the file: our spec without it equals the spec of what transformers makes of the same file, or we refuse it."""
    compared = 0
    for key in sorted(set(shared.raw) - {"model_type", "architectures", "transformers_version"}):
        for changed in ({k: v for k, v in shared.raw.items() if k != key}, {**shared.raw, key: None}):
            try:
                mine = read_spec(changed)
            except BadConfig as refusal:
                assert key in str(refusal) or "lacks" in str(refusal), refusal  # noqa: PT017
                continue
            (tmp_path / "config.json").write_text(json.dumps(changed))
            try:
                theirs = transformers.AutoConfig.from_pretrained(tmp_path)
            except Exception:  # transformers refuses the file: nothing to agree with
                continue
            theirs.save_pretrained(tmp_path / "again")
            assert mine == read_spec(json.loads((tmp_path / "again" / "config.json").read_text())), (key, changed.get(key, "absent"))
            compared += 1
    assert compared > 5


def test_a_key_that_is_absent_means_what_the_published_class_makes_of_it(ours_alone):
    """For every key of the file: our spec without it equals the spec with the default of the authors' configuration class, or we refuse it."""
    raw, compared = ours_alone.raw, 0
    for key in sorted(set(raw) - {"model_type"}):
        changed = {k: v for k, v in raw.items() if k != key}
        try:
            mine = read_spec(changed)
        except (BadConfig, UnsupportedModel) as refusal:
            assert key in str(refusal) or "lacks" in str(refusal), refusal  # noqa: PT017
            continue
        assert mine == read_spec(ours_alone.case.reference.DEFAULTS | changed), key
        compared += 1
    assert compared > 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_as_close_to_float32_as_transformers_is(shared, dtype):
    """At most 1.5 times transformers' own error against the float32 logits, plus one rounding of the logits themselves.

    The error is the root mean square over all tokens; of mixtures the median token's among many, because where rounding
    turns a router's choice around the token jumps, on either side, and says nothing of precision.
    """
    tokens_BT = several(shared)
    half = type(shared.theirs)(shared.theirs.config).to(dtype).eval()
    if shared.case.adjust is not None:
        shared.case.adjust(half)
    half.load_state_dict(shared.theirs.state_dict())
    with torch.inference_mode():
        exact_NV, their_NV = (model(tokens_BT, use_cache=False).logits.flatten(0, 1).float() for model in (shared.theirs, half))
    for ops in BACKENDS:
        mine_NV = in_half(shared, tokens_BT, ops, dtype)
        assert distance(shared, mine_NV, exact_NV) < 1.5 * distance(shared, their_NV, exact_NV) + torch.finfo(dtype).eps / 2, ops


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_costs_little_more_than_rounding_the_weights(ours_alone, dtype):
    """At most 3 times the error that the reference makes, in float64, with the weights rounded: each product's output is rounded too, and its sums."""
    tokens_BT, case = several(ours_alone), ours_alone.case
    rounded = {name: tensor.to(kept_in(name, dtype)) for name, tensor in ours_alone.files.items()}
    exact_NV, rounded_NV = (torch.cat([judged(case, ours_alone.raw, files, tokens_T) for tokens_T in tokens_BT])
                            for files in (ours_alone.files, rounded))
    for ops in BACKENDS:
        mine_NV = in_half(ours_alone, tokens_BT, ops, dtype)
        assert distance(ours_alone, mine_NV, exact_NV) < 3 * distance(ours_alone, rounded_NV, exact_NV), ops


def sparse(built: Built) -> bool:
    return any(isinstance(mlp, Experts) for layer in built.spec.layers for mlp in (layer.mlp, layer.beside))


def several(built: Built) -> torch.Tensor:
    """(B, T): of mixtures eight rows, enough for a median."""
    return torch.stack([(built.tokens_T + 7 * b) % built.spec.n_vocab for b in range(8 if sparse(built) else 1)])


def in_half(built: Built, tokens_BT: torch.Tensor, ops: str, dtype: torch.dtype) -> torch.Tensor:
    """(N, V): our logits in this dtype, row after row."""
    mine_NV = logits(ours(built.spec, built.tensors, ops=ops, dtype=dtype), tokens_BT.flatten(), Rows.of(*[built.case.length] * len(tokens_BT)))
    assert mine_NV.dtype == dtype
    return mine_NV


def distance(built: Built, x_NV: torch.Tensor, exact_NV: torch.Tensor) -> torch.Tensor:
    square_N = (x_NV.float() - exact_NV).square().mean(-1)
    return (square_N.median() if sparse(built) else square_N.mean()).sqrt() / exact_NV.square().mean().sqrt()


def test_config_facts_nobody_computes_with_are_read_right(built):
    """n_ctx moves no logit, so the mutants cannot see it."""
    reference = built.case.reference
    n_ctx = getattr(built.theirs.config, built.case.n_ctx) if reference is None else built.raw[reference.N_CTX]
    rope = built.raw.get("rope_parameters") or built.raw.get("rope_scaling") or {}
    if "dynamic" in (rope.get("rope_type"), rope.get("type")) and not rope.get("alpha"):
        n_ctx = int(n_ctx * rope["factor"])  # what the config states is the length before scaling
    assert built.spec.n_ctx == n_ctx
    assert built.spec.family == built.case.family == Path(built.module.__file__).stem

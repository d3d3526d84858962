"""Layers on two devices: how many go where, by sizes alone, and that a split decoder computes what a whole one does, each part on its own device.

Two names of the CPU, "cpu" and "cpu:0", stand for two devices: torch takes them for one, and `Apart` sees that nothing of one meets anything of the other.
"""
from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

import pellucid
from pellucid.api.replay import replay
from pellucid.engine.engine import Engine
from pellucid.engine.pages import PagedCache
from pellucid.engine.request import Request, Sampling
from pellucid.errors import BadRequest, OutOfMemoryBudget
from pellucid.model.adapters import attach, projects
from pellucid.model.cache import Cache
from pellucid.model.decoder import Decoder
from pellucid.model.load import load_decoder
from pellucid.model.memory import SHARE
from pellucid.model.placement import SPARE, Sizes, check_rest, chosen, fitting, layer_of, splits
from pellucid.ops.choose import choose
from pellucid.spec import Attention, DecoderSpec, FeedForward, Layer, Norm, Rope
from pellucid.weights.adapter import open_adapter
from tests.families.build import TOLERANCE, build, error, logits, ours
from tests.families.cases import CASES
from tests.families.conftest import one_thread  # noqa: F401, a fixture: tiny models
from tests.model.adapting import adapted_logits, random_pairs, write_peft
from tests.weights.build import write

CPU, OTHER = torch.device("cpu"), torch.device("cpu:0")
GIB = 1 << 30
MIXER = Attention(n_heads=6, n_kv_heads=3, d_head=14, scale=0.3, rope=Rope(theta=1e4, d_rotary=14))


def spec_of(*mixers: Attention, **facts: Any) -> DecoderSpec:
    layers = tuple(Layer(mixer=mixer, mlp=FeedForward(d_ff=72)) for mixer in mixers)
    return DecoderSpec(**{"family": "llama", "n_vocab": 101, "n_ctx": 70_000, "d_model": 48, "layers": layers, "norm": Norm(eps=1e-5)} | facts)


# ---- by sizes alone


def test_sizes_are_counted_layer_by_layer() -> None:
    spec = spec_of(MIXER, dataclasses.replace(MIXER, window=100))
    weights = {"embed.weight": 7, "blocks.0.attn.q.weight": 11, "blocks.1.attn.q.weight": 13, "blocks.1.mlp.up.weight": 17, "final_norm.weight": 1}
    sizes = Sizes.of(spec, weights, 2)
    assert (sizes.ends, sizes.layers) == (8, (11, 30))
    assert sizes.cache == (4096 * 2 * 3 * 14 * 2, 100 * 2 * 3 * 14 * 2)  # keys and values, of a window only what it shows
    assert Sizes.of(dataclasses.replace(spec, n_ctx=50), {}, 2).cache == (50 * 2 * 3 * 14 * 2,) * 2


SIZES = Sizes(ends=GIB, layers=(GIB,) * 8, cache=(GIB // 4,) * 8)


def test_what_fits_leaves_room_for_the_cache_that_an_engine_takes() -> None:
    for n in range(1, 9):
        needed = SIZES.needed(n)
        assert fitting(SIZES, needed, splits(spec_of(*[MIXER] * 8))) == n
        assert fitting(SIZES, needed - 1, splits(spec_of(*[MIXER] * 8))) == n - 1 if n > 1 else True
        assert SHARE * (needed - GIB - n * GIB) >= n * GIB // 4 - 1  # of what the weights leave
    assert fitting(SIZES, GIB, tuple(range(9))) == 0  # not even the ends and what a step takes
    assert fitting(SIZES, None, tuple(range(9))) == 8  # nobody says
    assert dataclasses.replace(SIZES, cache=(0,) * 8).needed(3) == 4 * GIB + SPARE


def test_layers_that_share_keys_are_not_parted() -> None:
    spec = spec_of(MIXER, MIXER, MIXER, dataclasses.replace(MIXER, shares=1), dataclasses.replace(MIXER, shares=2), MIXER)
    assert splits(spec) == (0, 1, 5, 6)  # those between would part 1 from 3, or 2 from 4
    assert fitting(Sizes(ends=0, layers=(1,) * 6, cache=(0,) * 6), SPARE + 4, splits(spec)) == 1


@pytest.mark.parametrize(("asked", "says"), [
    (-1, "gpu_layers=-1 is not a number of layers, from 0, or 'auto'"), (True, "gpu_layers=True is not a number"), ("all", "gpu_layers='all' is not a number"),
    (9, "gpu_layers=9, and this model has 6 layers. Ask for at most 6, or 'auto'"),
    (3, "gpu_layers=3 would part layers that read the same keys and values. Ask for 1 or 5, or 'auto'"),
])
def test_a_number_that_cannot_be_is_refused(asked: Any, says: str) -> None:
    spec = spec_of(MIXER, MIXER, MIXER, dataclasses.replace(MIXER, shares=1), dataclasses.replace(MIXER, shares=2), MIXER)
    with pytest.raises(BadRequest) as raised:
        chosen("tiny", spec, Sizes(ends=0, layers=(1,) * 6, cache=(0,) * 6), asked, None, "cuda:0")
    assert str(raised.value).startswith(says)


def test_a_number_that_does_not_fit_is_refused_with_one_that_does() -> None:
    spec = spec_of(*[MIXER] * 8)
    assert chosen("tiny", spec, SIZES, "auto", SIZES.needed(5), "cuda:0") == chosen("tiny", spec, SIZES, 5, SIZES.needed(5), "cuda:0") == 5
    with pytest.raises(OutOfMemoryBudget, match=r"'tiny' needs 13\.3 GB for 7 layers, both ends, a cache and a step's own tensors, "
                                                r"9\.8 GB are free on cuda:0\. Try --gpu-layers 4, which fit, or close what holds memory") as raised:
        chosen("tiny", spec, SIZES, 7, SIZES.needed(5) - 1, "cuda:0")
    assert (raised.value.needed_bytes, raised.value.available_bytes) == (SIZES.needed(7), SIZES.needed(5) - 1)


def test_the_rest_must_fit_the_cpu() -> None:
    check_rest("tiny", SIZES, 6, 2 * GIB + GIB // 2, repacked=True)
    check_rest("tiny", SIZES, 6, GIB // 2, repacked=False)  # weights are read where the files are mapped
    check_rest("tiny", SIZES, 0, None, repacked=True)
    with pytest.raises(OutOfMemoryBudget, match=r"'tiny' needs 2\.7 GB of the CPU's memory for 2 layers, and 2\.7 GB are free\. Put more of them on the GPU"):
        check_rest("tiny", SIZES, 6, 2 * GIB + GIB // 2 - 1, repacked=True)


# ---- computed


# A window; learned positions; slopes; a temperature; inputs of each layer's own, and layers that read others' keys; latents and experts
NAMES = ["gemma2-caps", "gpt2-released", "bloom-released", "qwen-logn", "gemma4_text-e2b", "deepseek_v3-released"]


def case_of(name: str) -> Any:
    return build(next(case for case in CASES if str(case) == name))


def split_at(spec: DecoderSpec) -> int:
    """How many layers are elsewhere: about half."""
    return min(splits(spec)[1:-1], key=lambda n: abs(2 * n - len(spec.layers)))


@pytest.mark.parametrize("name", NAMES)
def test_a_split_decoder_is_the_whole_one(name: str) -> None:
    built = case_of(name)
    whole, parted = ours(built.spec, built.tensors), ours(built.spec, built.tensors)
    n = split_at(built.spec)
    parted.devices = (CPU,) * (len(built.spec.layers) - n) + (OTHER,) * n
    assert torch.equal(logits(parted, built.tokens_T), logits(whole, built.tokens_T))
    caches = [Cache(built.spec) for _ in range(2)]
    for part_T in (built.tokens_T[:-2], built.tokens_T[-2:-1], built.tokens_T[-1:]):
        assert torch.equal(*[logits(decoder, part_T, cache=cache) for decoder, cache in zip((whole, parted), caches, strict=True)])


class Apart(TorchFunctionMode):
    """Every tensor is on "cpu" or on "cpu:0", and says so; what computes with both fails, as with a GPU. Only `to` and its like go from one to the other."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        if func == torch.Tensor.device.__get__:
            return place(args[0])
        where = {place(tensor) for tensor in given if tensor.ndim}  # a single number may come from anywhere
        if len(where) > 1:
            raise AssertionError(f"{getattr(func, '__name__', func)} of tensors on {sorted(map(str, where))}")
        asked = (kwargs or {}).get("device") or next((a for a in args if isinstance(a, torch.device)), None)
        to = CPU if func in (torch.Tensor.cpu, torch.Tensor.numpy) else torch.device(asked) if asked is not None else next(iter(where), CPU)
        out = func(*args, **(kwargs or {}))
        if any(out is tensor and place(tensor) != to for tensor in given):
            out = out.view_as(out)  # sent elsewhere, it is another tensor
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                leaf.stands_on = to
        return out


def place(tensor: Tensor) -> torch.device:
    return getattr(tensor, "stands_on", CPU)


def apart(name: str) -> tuple[Decoder, Tensor, tuple[torch.device, ...]]:
    """A decoder whose last layers and ends are on the other device; it does not know it yet. Tokens there, and where each layer is."""
    built = case_of(name)
    decoder, n = ours(built.spec, built.tensors).requires_grad_(False), split_at(built.spec)
    devices = (CPU,) * (len(built.spec.layers) - n) + (OTHER,) * n
    for name, parameter in decoder.named_parameters():
        parameter.stands_on = OTHER if (i := layer_of(name)) is None else devices[i]
    tokens_T = built.tokens_T.clone()
    tokens_T.stands_on = OTHER
    return decoder, tokens_T, devices


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_one_device_meets_anything_of_the_other(name: str) -> None:
    decoder, tokens_T, devices = apart(name)
    whole = logits(decoder, tokens_T.clone())
    with Apart():
        with pytest.raises(AssertionError, match=r"of tensors on \['cpu', 'cpu:0'\]"):
            logits(decoder, tokens_T)
        decoder.devices = devices
        cache = Cache(decoder.spec)
        found = [logits(decoder, part_T, cache=cache) for part_T in tokens_T.split([len(tokens_T) - 2, 1, 1])]
        assert {part_TV.device for part_TV in found} == {OTHER}
        held = {i: buffers[0][0].device for i, buffers in enumerate(cache._buffers) if buffers[0]}
    assert held == {i: devices[i] for i in held}
    assert set(held.values()) == {CPU, OTHER}
    assert error(torch.cat(found), whole) < TOLERANCE


@pytest.mark.parametrize("name", ["gemma2-caps", "gemma4_text-e2b"])
def test_an_engine_keeps_its_pages_where_layers_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pellucid.engine.pages.untouched", lambda *shape, **how: torch.zeros(shape, **how))  # numpy's memory has no device
    decoder, tokens_T, devices = apart(name)
    prompts = [tokens_T[:9].tolist(), tokens_T[:4].tolist(), tokens_T[:20].tolist()]
    requests = [Request(prompt_ids=ids, sampling=Sampling(temperature=0), max_tokens=6) for ids in prompts]
    expected = [result.token_ids for [result] in Engine(decoder, cache_bytes=10**7).run(requests)]
    decoder.devices = devices
    with Apart():
        engine = Engine(decoder, cache_bytes=10**7)
        assert {pool.device for layer in engine.cache.pools for pool in layer} == {CPU, OTHER}
        assert all(pool.device == device for layer, device in zip(engine.cache.pools, devices, strict=True) for pool in layer)
        assert [result.token_ids for [result] in engine.run(requests)] == expected


def test_pages_lie_where_their_layer_is() -> None:
    """Each device has groups, and so pages and tables, of its own; a limit of one holds for all."""
    meta = torch.device("meta")
    spec = spec_of(MIXER, dataclasses.replace(MIXER, window=40), MIXER, n_ctx=320)
    how: dict[str, Any] = dict(max_rows=2, step_tokens=64, dtype=torch.float32, device=meta)
    cache = PagedCache(spec, n_bytes=10**9, devices=(CPU, CPU, meta), **how)
    assert [group.layers for group in cache.groups] == [[0], [1], [2]]
    assert [{pool.device for pool in pools} for pools in cache.pools] == [{CPU}, {CPU}, {meta}]
    page = 32 * 2 * 3 * 14 * 4  # bytes of one layer's
    for limits, n_pages in (({CPU: 10**9, meta: 3 * page}, [3, 3, 3]), ({CPU: 9 * page, meta: 10**9}, [4, 4, 4])):
        assert [group.n_pages for group in PagedCache(spec, n_bytes=10**9, devices=(CPU, CPU, meta), limits=limits, **how).groups] == n_pages
    with pytest.raises(OutOfMemoryBudget, match=r"the cache may take 100 bytes on meta, and one page of 32 tokens takes 10\.8 kB\. Give it more"):
        PagedCache(spec, n_bytes=10**9, devices=(CPU, CPU, meta), limits={CPU: 10**9, meta: 100}, **how)


def test_adapters_go_where_their_matrix_is(tmp_path: Path) -> None:
    """Rows with an adapter and without, over both devices."""
    built = case_of("llama-biases")
    pairs = random_pairs(built.files, [name for name in built.files if name.endswith(("q_proj.weight", "down_proj.weight"))])
    file = open_adapter(write_peft(tmp_path / "a", pairs))
    whole, (decoder, tokens_T, devices) = ours(built.spec, built.tensors), apart("llama-biases")
    attach(whole, file, "x")
    T, decoder.devices = len(tokens_T), devices
    expected = adapted_logits(whole, built.tokens_T.repeat(2), [T, T], ["x", None])
    attach(decoder, file, "x")
    for matrix in projects(decoder).values():
        for parameter in () if matrix.adapters is None else matrix.adapters.parameters():
            parameter.stands_on = place(matrix.weight)
    with Apart():
        assert error(adapted_logits(decoder, torch.cat([tokens_T, tokens_T]), [T, T], ["x", None]), expected.to(OTHER)) < TOLERANCE
    whole.blocks[-1].to("meta")
    attach(whole, file, "y")
    parts = {matrix.weight.device.type: matrix.adapters.get("y").a.device.type for matrix in projects(whole).values() if matrix.adapters is not None}
    assert parts == {"cpu": "cpu", "meta": "meta"}


# ---- loaded


def test_a_model_is_loaded_in_two_parts_and_says_so(tmp_path: Path) -> None:
    prompt = list(range(5, 60))
    whole = pellucid.load("shipped", device="cpu", ops="fused")
    n_layers = len(whole.spec.layers)
    parted = pellucid.load("shipped", device="cpu:0", ops="fused", gpu_layers=2)
    assert parted.decoder.devices == (CPU,) * (n_layers - 2) + (OTHER,) * 2
    assert parted.engine.cache._devices == list(parted.decoder.devices)
    assert len(parted.engine.cache.groups) == 2 * len(whole.engine.cache.groups)
    first, second = (model.generate(prompt, max_tokens=40, temperature=0) for model in (whole, parted))
    assert first.token_ids == second.token_ids
    assert parted.report.device == "cpu:0"
    kept = f"layers 0 to {n_layers - 3}" if n_layers > 3 else "layer 0"
    assert parted.report.ops == f"{whole.report.ops} · {kept} on cpu: {whole.report.ops}"
    parted.save_prompt(prompt, tmp_path / "prompt")
    again = pellucid.load("shipped", device="cpu:0", ops="fused", gpu_layers=2)
    assert again.load_prompt(tmp_path / "prompt").ids == tuple(prompt[:32])
    assert again.generate(prompt, max_tokens=40, temperature=0, reuse=True).token_ids == first.token_ids
    assert replay(parted.record(second)).same


@pytest.mark.native
def test_each_part_computes_with_what_is_best_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plan runs over two devices, and the CPU's own kernels run where its layers are."""
    real = choose
    monkeypatch.setattr("pellucid.model.load.choose", lambda name, activations, device: real("fused" if device == OTHER else name, activations, device))
    model = pellucid.load("shipped", device="cpu:0", gpu_layers=1)
    assert [block.attn.q.ops.name for block in model.decoder.blocks][-2:] == ["native", "fused"]
    assert model.decoder.unembed.ops.name == "fused"
    model.generate([5, 6, 7], max_tokens=3, temperature=0)
    assert model.engine.passes.declined == "layers on two devices"


def test_auto_takes_what_fits_and_says_how_much(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write(tmp_path)
    n_layers = len(load_decoder(tmp_path, device="cpu")[0].spec.layers)
    for free, n in ((10**12, n_layers), (SPARE + 10**4, 0)):
        monkeypatch.setattr("pellucid.model.load.available_bytes", lambda device, free=free: free if device == OTHER else 10**12)
        decoder, report = load_decoder(tmp_path, device="cpu:0", gpu_layers="auto")
        said = f"--gpu-layers auto: {n} of {n_layers} layers and both ends are on cpu:0, where 1.0 TB was free" if n else \
            "--gpu-layers auto: no layer fits cpu:0 beside both ends; all are on the CPU"
        assert said in report.notes
        assert decoder.devices is None
        assert report.device == ("cpu:0" if n else "cpu")
    _, report = load_decoder(tmp_path, device="cpu", gpu_layers="auto")
    assert "--gpu-layers auto: no GPU is here, and all layers are on the CPU" in report.notes
    decoder, report = load_decoder(tmp_path, device="cpu:0", gpu_layers=0)
    assert (decoder.devices, report.device) == (None, "cpu")


def test_without_a_gpu_a_number_of_layers_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(BadRequest, match="gpu_layers=1: the device is 'cpu', and there is no other to put them on"):
        load_decoder(tmp_path, device="cpu", gpu_layers=1)


@pytest.mark.gpu
def test_a_gpu_and_the_cpu_compute_together_what_either_does() -> None:
    whole, parted = pellucid.load("shipped", device="cpu", dtype="float32", activations="exact"), pellucid.load("shipped", dtype="float32", gpu_layers=2)
    assert {parameter.device.type for parameter in parted.decoder.parameters()} == {"cpu", "cuda"}
    ids = list(range(5, 40))
    theirs, own = parted.logits(ids).cpu(), whole.logits(ids)
    assert (theirs - own).abs().max() < 2e-3 * own.abs().max()
    assert parted.generate(ids, max_tokens=20, temperature=0).token_ids == whole.generate(ids, max_tokens=20, temperature=0).token_ids

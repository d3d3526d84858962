"""What benchmarks/engine.py measures inside a process of its own. Each function returns plain numbers."""
from __future__ import annotations

import ctypes
import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


class Mallinfo(ctypes.Structure):
    """glibc's struct mallinfo2, https://man7.org/linux/man-pages/man3/mallinfo.3.html"""

    _fields_ = [(name, ctypes.c_size_t) for name in
                ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]


def in_use_mb() -> float:
    """What malloc has given out and not got back; what lies free in its own lists is resident memory too, and is not in it."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = Mallinfo
    told = libc.mallinfo2()
    return (told.uordblks + told.hblkhd) / 2**20


def request(ids: list[int], n: int, *, reuse: bool = False, temperature: float = 0.0, ahead: bool = True):
    from pellucid.engine.request import Request, Sampling
    return Request(prompt_ids=ids, sampling=Sampling(temperature=temperature, seed=ids[0]), max_tokens=n, reuse=reuse, ahead=ahead)


def random_ids(row: int, length: int, n_vocab: int) -> list[int]:
    import random
    rng = random.Random(row)
    return [rng.randrange(5, n_vocab) for _ in range(length)]


def pellucid(path: str, prompts: list[list[int]], answer: int, repeats: int, threads: int, dtype: str, started: float | None = None) -> dict:
    """started: when the process began, by the clock on the wall; the first token is then timed from there."""
    import pellucid
    model = pellucid.load(path, dtype=dtype, threads=threads)
    engine = model.engine

    def run(n: int) -> dict:
        start = time.perf_counter()
        generations = [engine.submit(request(ids, n)) for ids in prompts]
        while any(g.n_ready == 0 and not g.finished for g in generations):
            engine.step()
        # Some go on while others' prompts are computed: what decoding takes is asked from here on, when all do.
        together, early = time.perf_counter() - start, sum(g.n_ready - 1 for g in generations)
        while not all(g.finished for g in generations):
            engine.step()
        results = [g.result() for g in generations]
        return dict(ids=[list(r.token_ids) for r in results], first=statistics.mean(r.prefill_seconds for r in results), together=together, early=early,
                    seconds=time.perf_counter() - start)
    first = {}
    if started is not None:
        run(1)
        first = dict(first_token_seconds=time.time() - started)
    run(2)
    return dict(first, runs=[run(answer) for _ in range(repeats)], peak_memory_mb=peak_mb(), ops=model.report.ops)


def written(path: str, n: int, threads: int) -> dict:
    """Ids that the model itself draws."""
    import pellucid
    model = pellucid.load(path, threads=threads)
    begin = model.tokenizer.encode("It was", special=True)
    [[result]] = model.engine.run([request(begin, n - len(begin), temperature=0.8)])
    return dict(ids=[[*begin, *result.token_ids]])


def read(path: str, file: str, n: int, passages: int, threads: int) -> dict:
    """Ids of passages of a text, from places as far apart as can be; each begins as the model wants it."""
    import pellucid
    tokenizer = pellucid.load(path, threads=threads).tokenizer
    begin, ids = tokenizer.encode("", special=True), tokenizer.encode(Path(file).read_text())
    size = n - len(begin)
    return dict(ids=[[*begin, *ids[start : start + size]] for start in range(0, len(ids) - size + 1, (len(ids) - size) // max(1, passages - 1))][:passages])


def likeliest(path: str, ids: list[int], activations: str, threads: int) -> dict:
    """The likeliest next token after every one, and by how much it is ahead of the next."""
    import pellucid
    best = pellucid.load(path, activations=activations, threads=threads).logits(ids).topk(2)
    return dict(likeliest=best.indices[:, 0].tolist(), gaps=(best.values[:, 0] - best.values[:, 1]).tolist())


def transformers(path: str, prompts: list[list[int]], answer: int, repeats: int, threads: int, dtype: str) -> dict:
    """generate over one batch: prompts are equally long, so that it pads nothing, and no row ends early."""
    import torch
    import transformers
    from transformers.generation.streamers import BaseStreamer
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).eval()
    model.generation_config.eos_token_id = None
    prompts_BT = torch.tensor(prompts)

    class Clock(BaseStreamer):
        """Notes when the first generated tokens are out; the first call brings the prompts."""

        def __init__(self) -> None:
            self.calls, self.first = 0, 0.0

        def put(self, value) -> None:
            self.calls += 1
            if self.calls == 2:
                self.first = time.perf_counter()

        def end(self) -> None:
            pass

    def run(n: int) -> dict:
        clock, start = Clock(), time.perf_counter()
        with torch.inference_mode():
            out = model.generate(prompts_BT, attention_mask=torch.ones_like(prompts_BT), do_sample=False, max_new_tokens=n, streamer=clock, pad_token_id=0)
        return dict(ids=out[:, prompts_BT.shape[1]:].tolist(), first=clock.first - start, seconds=time.perf_counter() - start)
    run(2)
    return dict(runs=[run(answer) for _ in range(repeats)], peak_memory_mb=peak_mb())


def prefix(path: str, threads: int, n: int, shared: int, own: int, answer: int) -> dict:
    """Requests that begin alike, with and without reuse, and what follows the prefix alone; each time with nothing in the cache."""
    import pellucid
    model = pellucid.load(path, threads=threads)
    engine, n_vocab = model.engine, model.spec.n_vocab
    common, tails = random_ids(-1, shared, n_vocab), [random_ids(row, own, n_vocab) for row in range(n)]

    def run(prompts: list[list[int]], reuse: bool) -> tuple[float, int]:
        engine.cache.forget()
        start = time.perf_counter()
        results = engine.run([request(ids, answer, reuse=reuse) for ids in prompts])
        return time.perf_counter() - start, sum(several[0].n_reused for several in results)
    run(tails[:2], False)
    whole = [common + tail for tail in tails]
    without, _ = run(whole, False)
    with_reuse, n_reused = run(whole, True)
    alone, _ = run(tails, False)
    return dict(reuse_seconds=with_reuse, no_reuse_seconds=without, own_seconds=alone, saved_share=(without - with_reuse) / (without - alone),
                reused_share=n_reused / (n * shared))


class Clocked:
    """Seconds spent inside calls."""

    def __init__(self) -> None:
        self.seconds, self._started = 0.0, 0.0

    def begin(self, *_: Any) -> None:
        self._started = time.perf_counter()

    def end(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self._started

    def around(self, function: Callable) -> Callable:
        def timed(*args: Any, **named: Any) -> Any:
            self.begin()
            out = function(*args, **named)
            self.end()
            return out
        return timed


def overhead(path: str, threads: int, batches: list[int], prompt: int, steps: int, temperature: float) -> dict:
    """Decoding steps of a token each of so many sequences: milliseconds of each part. Outside: everything that is not the pass, the unembedding or the sampler.

    Inside the pass, `pages` is what finding the pages of its rows takes, which is bookkeeping too.
    """
    import pellucid
    model = pellucid.load(path, threads=threads)
    engine = model.engine
    parts = {name: Clocked() for name in ("pass", "unembed", "sampler", "pages")}
    engine.passes.hidden = parts["pass"].around(engine.passes.hidden)  # hooks on modules would have the decoder compute what a plan does else
    engine.passes.unembed = parts["unembed"].around(engine.passes.unembed)
    engine.passes.likeliest = parts["unembed"].around(engine.passes.likeliest)  # at temperature 0
    engine.choosing.sampler = parts["sampler"].around(engine.choosing.sampler)
    engine.cache.places = parts["pages"].around(engine.cache.places)  # the plan's; the decoder asks by layer
    out = {}
    for n in batches:
        started = [engine.submit(request(random_ids(row, prompt, model.spec.n_vocab), steps + 8, temperature=temperature, ahead=False)) for row in range(n)]
        while not all(g._sequence.output_ids for g in started):
            engine.step()
        for part in parts.values():
            part.seconds = 0.0
        start = time.perf_counter()
        for _ in range(steps):
            engine.step()
        whole = time.perf_counter() - start
        for generation in started:
            generation.cancel()
        outside = whole - sum(parts[name].seconds for name in ("pass", "unembed", "sampler"))
        out[str(n)] = dict(step_ms=1e3 * whole / steps, **{f"{name}_ms": 1e3 * part.seconds / steps for name, part in parts.items()},
                           outside_ms=1e3 * outside / steps, outside_share=outside / whole, outside_and_pages_share=(outside + parts["pages"].seconds) / whole)
    return out


def flat(path: str, threads: int, n: int, prompt: int, answer: int, ahead: int, cache_bytes: int) -> dict:
    """So many short requests through one engine, some `ahead` of what is done; a quarter of them begin alike, and every 50th is cancelled."""
    import pellucid
    from pellucid.engine.engine import Engine
    model = pellucid.load(path, threads=threads)
    engine, n_vocab = Engine(model.decoder, cache_bytes=cache_bytes), model.spec.n_vocab
    n_pages = sum(g.n_pages for g in engine.cache.groups)
    engine.run([request(random_ids(-row, prompt, n_vocab), answer) for row in range(n_pages)])  # every page has been written to
    way: dict[str, list[float]] = dict(memory_mb=[], in_use_mb=[], python_blocks=[])

    def note() -> None:
        for row, value in zip(way.values(), (resident_mb(), in_use_mb(), sys.getallocatedblocks()), strict=True):
            row.append(value)
    waiting, submitted = [], 0
    start, before = time.perf_counter(), engine.report()
    while submitted < n or waiting:
        while submitted < n and len(waiting) < ahead:
            if submitted % (n // 10) == 0:
                note()
            row = submitted if submitted % 4 else 0
            waiting.append(engine.submit(request(random_ids(row, prompt, n_vocab), answer, reuse=True, temperature=0.8)))
            submitted += 1
            if submitted % 50 == 0:
                waiting.pop(0).cancel()
        engine.step()
        waiting = [generation for generation in waiting if not generation.finished]
    seconds, after = time.perf_counter() - start, engine.report()
    gc.collect()
    note()
    ctypes.CDLL(None).malloc_trim(0)
    groups = engine.cache.groups
    return dict(way, trimmed_mb=resident_mb(), requests_per_second=n / seconds,
                output_tokens_per_second=(after.n_output_tokens - before.n_output_tokens) / seconds, pages=n_pages,
                pages_used=sum(sum(g.users) for g in groups), pages_missing=sum(g.n_pages - g.n_available for g in groups), n_failed=after.n_failed)


def mode(path: str, threads: int, mode: str, prompt: int, tokens: int, batch: int, repeats: int) -> dict:
    """Tokens per second of a prompt, and of decoding alone and in a batch."""
    import pellucid
    model = pellucid.load(path, threads=threads, deterministic=mode == "deterministic", cache_dtype="int8" if mode == "int8" else "same")
    engine, n_vocab = model.engine, model.spec.n_vocab

    def decode(n: int) -> float:
        started = [engine.submit(request(random_ids(row, prompt // 4, n_vocab), tokens)) for row in range(n)]
        while not all(g._sequence.output_ids for g in started):
            engine.step()
        start, before = time.perf_counter(), sum(g.n_ready for g in started)
        while not any(g.finished for g in started):
            engine.step()
        seconds, came = time.perf_counter() - start, sum(g.n_ready for g in started) - before
        for generation in started:
            generation.cancel()
        return came / seconds

    def prefill() -> float:
        start = time.perf_counter()
        engine.run([request(random_ids(0, prompt, n_vocab), 1)])
        return prompt / (time.perf_counter() - start)
    prefill()
    return {f"prompt_{prompt}": statistics.median(prefill() for _ in range(repeats)), "decode_1": statistics.median(decode(1) for _ in range(repeats)),
            f"decode_{batch}": statistics.median(decode(batch) for _ in range(repeats))}


def loss(path: str, n_texts: int, length: int) -> dict:
    """What int8 pages change, over text that the model writes at temperature 1: every distribution of the same ids, with pages of either kind."""
    import torch

    import pellucid
    from pellucid.engine.pages import PagedCache
    from pellucid.model.parts import Rows
    model, wide = pellucid.load(path), pellucid.load(path, dtype="float32")
    n_vocab, begin = model.spec.n_vocab, [0]

    texts = [begin + list(several[0].token_ids) for several in model.engine.run([_free(begin, length - 1, seed) for seed in range(n_texts)])]

    @torch.inference_mode()
    def distribution(decoder, ids: list[int], store: str) -> torch.Tensor:
        """Log-probabilities (T, V), float32: the prompt's first half in one pass, the rest in chunks, so that what was stored is read again."""
        cache = PagedCache(decoder.spec, n_bytes=2**30, max_rows=1, step_tokens=64, dtype=decoder.embed.weight.dtype, store=store)
        slot, parts = cache.open(ids, len(ids)), []
        cache.reserve(slot, len(ids))
        for at in range(0, len(ids), 64):
            piece = torch.tensor(ids[at : at + 64])
            parts.append(decoder.unembed(decoder(piece, torch.arange(at, at + len(piece)), Rows((len(piece),), (slot,)), cache)).float().log_softmax(-1))
        return torch.cat(parts)

    kl, kl_dtype, off, nll, nll8, flips, flips_dtype = [], [], [], [], [], 0, 0
    for ids in texts:
        exact, packed, precise = distribution(model.decoder, ids, "same"), distribution(model.decoder, ids, "int8"), distribution(wide.decoder, ids, "same")
        following = torch.tensor(ids[1:])[:, None]
        kl.append((exact.exp() * (exact - packed)).sum(-1))
        kl_dtype.append((precise.exp() * (precise - exact)).sum(-1))
        ours, theirs = (x[:-1].gather(1, following) for x in (exact, packed))
        off.append((ours - theirs).abs().flatten())
        nll.append(-ours.flatten())
        nll8.append(-theirs.flatten())
        flips += int((exact.argmax(-1) != packed.argmax(-1)).sum())
        flips_dtype += int((exact.argmax(-1) != precise.argmax(-1)).sum())
    kl_T, off_T = torch.cat(kl), torch.cat(off)
    return dict(n_tokens=len(kl_T), n_vocab=n_vocab, kl_mean=kl_T.mean().item(), kl_99=kl_T.quantile(0.99).item(), kl_most=kl_T.max().item(),
                kl_dtype=torch.cat(kl_dtype).mean().item(), logprob_mean=off_T.mean().item(), logprob_most=off_T.max().item(),
                nll=torch.cat(nll).mean().item(), nll_int8=torch.cat(nll8).mean().item(), flips=flips, flips_dtype=flips_dtype)


def _free(ids: list[int], n: int, seed: int):
    from pellucid.engine.request import Request, Sampling
    return Request(prompt_ids=ids, sampling=Sampling(temperature=1, seed=seed), max_tokens=n, reuse=False)


WORK: dict[str, Callable[..., dict]] = {"pellucid": pellucid, "transformers": transformers, "prefix": prefix, "overhead": overhead, "flat": flat, "mode": mode,
                                        "loss": loss, "written": written, "read": read, "likeliest": likeliest}

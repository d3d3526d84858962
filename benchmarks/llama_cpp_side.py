"""llama.cpp's part of benchmarks/engine.py, run by an interpreter that has llama-cpp-python (0.3.36 was used) and nothing of Pellucid.

    python llama_cpp_side.py FILE.gguf < job.json > result.json           # the job is written by benchmarks/engine.py
    python llama_cpp_side.py FILE.gguf --quantize q8_0 OUT.gguf

The loop is that of llama.cpp's own examples/batched: all prompts in one call of llama_decode, then one token of each sequence a call, the likeliest.
"""
from __future__ import annotations

import ctypes
import json
import resource
import sys
import time

import llama_cpp as cpp
import numpy as np

KINDS = {"q8_0": cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": cpp.LLAMA_FTYPE_MOSTLY_Q4_0, "q4_k_m": cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M}
QUIET = cpp.llama_log_callback(lambda level, text, data: None)  # kept here: the library calls it as long as it runs


def quantize(source: str, kind: str, target: str) -> None:
    params = cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = KINDS[kind], 2
    if cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp could not quantize {source}")


def context(path: str, n_sequences: int, n_tokens: int, threads: int, repack: bool):  # -> (context, vocabulary)
    model_params = cpp.llama_model_default_params()
    model_params.use_extra_bufts = repack
    model = cpp.llama_model_load_from_file(path.encode(), model_params)
    if not model:
        raise SystemExit(f"llama.cpp could not load {path}")
    params = cpp.llama_context_default_params()
    params.n_ctx, params.n_seq_max = n_sequences * -(-n_tokens // 256) * 256, n_sequences  # each sequence has an equal share, in steps of 256
    params.n_batch, params.n_ubatch = n_sequences * n_tokens, 512
    params.n_threads = params.n_threads_batch = threads
    found = cpp.llama_init_from_model(model, params)
    if not found:
        raise SystemExit("llama.cpp could not make a context")
    return found, cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(model))


def decode(ctx, batch, tokens: list[tuple[int, int, int, bool]]) -> None:
    """One pass over (id, position, sequence, whether its logits are wanted)."""
    batch.n_tokens = len(tokens)
    for i, (token, position, sequence, wanted) in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
        batch.seq_id[i][0] = sequence
    if status := cpp.llama_decode(ctx, batch):
        raise SystemExit(f"llama_decode failed with {status}")


def likeliest(ctx, place: int, n_vocab: int) -> int:
    return int(np.ctypeslib.as_array(cpp.llama_get_logits_ith(ctx, place), shape=(n_vocab,)).argmax())


def run(ctx, batch, prompts: list[list[int]], n: int, n_vocab: int) -> dict:
    cpp.llama_memory_clear(cpp.llama_get_memory(ctx), True)
    start = time.perf_counter()
    flat = [(token, i, s, i == len(prompt) - 1) for s, prompt in enumerate(prompts) for i, token in enumerate(prompt)]
    decode(ctx, batch, flat)
    out = [[likeliest(ctx, place, n_vocab)] for place, token in enumerate(flat) if token[3]]
    first = time.perf_counter() - start
    for i in range(n - 1):
        decode(ctx, batch, [(ids[-1], len(prompt) + i, s, True) for s, (prompt, ids) in enumerate(zip(prompts, out, strict=True))])
        for s, ids in enumerate(out):
            ids.append(likeliest(ctx, s, n_vocab))
    return dict(ids=out, first=first, seconds=time.perf_counter() - start)


def main() -> None:
    cpp.llama_backend_init()
    cpp.llama_log_set(QUIET, None)
    path = sys.argv[1]
    if sys.argv[2:3] == ["--quantize"]:
        return quantize(path, *sys.argv[3:5])
    job = json.load(sys.stdin)
    n_tokens = len(job["prompts"][0]) + job["answer"]
    ctx, n_vocab = context(path, len(job["prompts"]), n_tokens, job["threads"], job["repack"])
    batch = cpp.llama_batch_init(len(job["prompts"]) * n_tokens, 0, 1)
    if "likeliest" in job:
        ids = job["likeliest"]
        decode(ctx, batch, [(token, i, 0, True) for i, token in enumerate(ids)])
        print(json.dumps(dict(likeliest=[likeliest(ctx, i, n_vocab) for i in range(len(ids))])))
        return None
    first = {}
    if "started" in job:
        run(ctx, batch, job["prompts"], 1, n_vocab)
        first = dict(first_token_seconds=time.time() - job["started"])
    run(ctx, batch, job["prompts"], 2, n_vocab)
    runs = [run(ctx, batch, job["prompts"], job["answer"], n_vocab) for _ in range(job["repeats"])]
    features = cpp.llama_print_system_info().decode()
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(dict(first, runs=runs, peak_memory_mb=peak_mb, version=cpp.__version__, features=features)))
    return None


if __name__ == "__main__":
    main()

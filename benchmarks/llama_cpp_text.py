"""llama.cpp's part of benchmarks/gguf_roundtrip.py, run by an interpreter that has llama-cpp-python (0.3.36 was used) and nothing of Pellucid.

    python llama_cpp_text.py FILE.gguf < job.json > result.json

A job has any of: texts, which come back as ids, by the tokenizer in the file; prompts, which are continued greedily by `n` tokens; ids, whose logits come
back. Repacking is off: on machines with AMX its code crashes for some formats.
"""
from __future__ import annotations

import ctypes
import json
import sys

import llama_cpp as cpp
import numpy as np

QUIET = cpp.llama_log_callback(lambda level, text, data: sys.stderr.write(text.decode("utf-8", "replace")) if level >= 4 else None)


class Model:
    def __init__(self, path: str, n_ctx: int) -> None:
        how = cpp.llama_model_default_params()
        how.use_extra_bufts, how.n_gpu_layers = False, 0
        self.model = cpp.llama_model_load_from_file(path.encode(), how)
        if not self.model:
            raise SystemExit(f"llama.cpp could not load {path}")
        params = cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_threads, params.n_threads_batch = n_ctx, n_ctx, 1, 1
        params.flash_attn_type = cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED  # which would round to float16
        params.type_k = params.type_v = cpp.GGML_TYPE_F32  # float16 by itself, which is the difference that one would see
        self.context = cpp.llama_init_from_model(self.model, params)
        self.vocab = cpp.llama_model_get_vocab(self.model)
        self.n_vocab = cpp.llama_vocab_n_tokens(self.vocab)

    def encode(self, text: str, special: bool) -> list[int]:
        raw = text.encode()
        room = (cpp.llama_token * (len(raw) + 8))()
        n = cpp.llama_tokenize(self.vocab, raw, len(raw), room, len(room), special, False)
        if n < 0:
            raise SystemExit(f"llama.cpp made {-n} ids of {text!r}, more than it has bytes")
        return list(room[:n])

    def decode(self, ids: list[int]) -> str:
        room, array = ctypes.create_string_buffer(64 * len(ids) + 64), (cpp.llama_token * len(ids))(*ids)
        n = cpp.llama_detokenize(self.vocab, array, len(ids), room, len(room), False, False)
        return room.raw[:n].decode("utf-8", "replace")

    def logits(self, ids: list[int]) -> np.ndarray:
        """(T, V) of one pass over these ids."""
        cpp.llama_memory_clear(cpp.llama_get_memory(self.context), True)
        batch = cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, True
            batch.seq_id[i][0] = 0
        if status := cpp.llama_decode(self.context, batch):
            raise SystemExit(f"llama_decode failed with {status}")
        rows = [np.ctypeslib.as_array(cpp.llama_get_logits_ith(self.context, i), shape=(self.n_vocab,)).copy() for i in range(len(ids))]
        cpp.llama_batch_free(batch)
        return np.stack(rows)

    def greedy(self, prompt: str, n: int) -> list[int]:
        ids = self.encode(prompt, True)
        out: list[int] = []
        while len(out) < n:
            out.append(int(self.logits([*ids, *out])[-1].argmax()))
        return out


def main() -> None:
    cpp.llama_backend_init()
    cpp.llama_log_set(QUIET, None)
    job = json.load(sys.stdin)
    model = Model(sys.argv[1], job["n_ctx"])
    result = {"version": cpp.__version__, "texts": [model.encode(text, False) for text in job.get("texts", ())]}
    answers = [model.greedy(prompt, job["n"]) for prompt in job.get("prompts", ())]
    result |= {"prompts": [model.encode(prompt, True) for prompt in job.get("prompts", ())], "answers": answers,
               "answer_texts": list(map(model.decode, answers))}
    if job.get("ids"):
        result["logits"] = model.logits(job["ids"]).tolist()
    print(json.dumps(result))


if __name__ == "__main__":
    main()

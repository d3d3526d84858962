"""Another engine's part of benchmarks/others.py, run by an interpreter that has it and nothing of Pellucid.

    python others_side.py ctranslate2|openvino|onnxruntime|transformers FOLDER < job.json > result.json

Each computes the prompts and goes on greedily, as its documentation has it. How long the prompts take is asked by a run of one token; the fastest way
that the engine has for several sequences is taken.
"""
from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

Ids = list[list[int]]


def ctranslate2(folder: str, threads: int) -> tuple[str, Callable[[Ids, int], object]]:
    import ctranslate2 as library
    words = json.loads((Path(folder) / "vocabulary.json").read_text())
    generator = library.Generator(folder, device="cpu", inter_threads=1, intra_threads=threads, compute_type="int8")

    def run(prompts: Ids, n: int) -> object:
        begun = [[words[i] for i in ids] for ids in prompts]
        return generator.generate_batch(begun, max_length=n, min_length=n, sampling_topk=1, include_prompt_in_result=False)
    return library.__version__, run


def openvino(folder: str, threads: int) -> tuple[str, Callable[[Ids, int], object]]:
    import numpy as np
    import openvino as library
    import openvino_genai as genai
    pages = genai.SchedulerConfig()
    pages.enable_prefix_caching = False  # else the second run of a prompt computes nothing
    pipeline = genai.LLMPipeline(folder, "CPU", scheduler_config=pages, INFERENCE_NUM_THREADS=threads, INFERENCE_PRECISION_HINT="bf16")

    def run(prompts: Ids, n: int) -> object:
        ids = np.array(prompts, dtype=np.int64)
        asked = genai.TokenizedInputs(library.Tensor(ids), library.Tensor(np.ones_like(ids)))
        return pipeline.generate(asked, genai.GenerationConfig(max_new_tokens=n, min_new_tokens=n, ignore_eos=True, do_sample=False))
    return library.__version__.partition("-")[0], run


def onnxruntime(folder: str, threads: int) -> tuple[str, Callable[[Ids, int], object]]:
    import numpy as np
    import onnxruntime_genai as library
    config = library.Config(folder)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = library.Model(config)

    def run(prompts: Ids, n: int) -> object:
        options = library.GeneratorParams(model)
        length = len(prompts[0]) + n
        options.set_search_options(batch_size=len(prompts), max_length=length, min_length=length, do_sample=False)
        generator = library.Generator(model, options)
        generator.append_tokens(np.array(prompts, dtype=np.int32))
        for _ in range(n):
            generator.generate_next_token()
        return generator
    return library.__version__, run


def transformers(folder: str, threads: int) -> tuple[str, Callable[[Ids, int], object]]:
    import torch
    import transformers as library
    torch.set_num_threads(threads)
    model = library.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()

    def run(prompts: Ids, n: int) -> object:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, min_new_tokens=n, do_sample=False)
    return library.__version__, run


ENGINES = {"ctranslate2": ctranslate2, "openvino": openvino, "onnxruntime": onnxruntime, "transformers": transformers}


def main() -> None:
    job = json.load(sys.stdin)
    version, run = ENGINES[sys.argv[1]](sys.argv[2], job["threads"])

    def seconds(n: int) -> float:
        start = time.perf_counter()
        run(job["prompts"], n)
        return time.perf_counter() - start
    seconds(2)
    runs = [dict(first=seconds(1), seconds=seconds(job["answer"])) for _ in range(job["repeats"])]
    print(json.dumps(dict(runs=runs, version=version, peak_memory_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)))


if __name__ == "__main__":
    main()

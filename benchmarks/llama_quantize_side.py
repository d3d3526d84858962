"""llama.cpp's part of benchmarks/quantize.py, run by an interpreter that has llama-cpp-python (0.3.36 was used) and nothing of Pellucid.

    python llama_quantize_side.py < job.json > result.json

A job: {"source": FILE.gguf, "jobs": [{"out": FILE.gguf, "file_type": 15, "imatrix": FILE.npz or null}]}. The npz has the mean square of each column by the
matrix's name, as load_imatrix of llama.cpp's tools/quantize makes of an imatrix's sums and counts.
"""
from __future__ import annotations

import ctypes
import json
import sys
import time

import llama_cpp as cpp
import numpy as np

QUIET = cpp.llama_log_callback(lambda level, text, data: None)  # kept here: the library calls it as long as it runs


def pointer(means: dict[str, np.ndarray]):
    """What the library takes, ended by an entry without a name."""
    entries = (cpp.llama_model_imatrix_data * (len(means) + 1))()
    for entry, (name, values) in zip(entries, means.items(), strict=False):
        entry.name, entry.data, entry.size = name.encode(), values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), values.size
    return entries


def main() -> None:
    cpp.llama_backend_init()
    cpp.llama_log_set(QUIET, None)
    work, seconds = json.load(sys.stdin), []
    for job in work["jobs"]:
        params = cpp.llama_model_quantize_default_params()
        params.ftype, params.nthread = job["file_type"], 1
        if job["imatrix"]:
            means = {name: np.ascontiguousarray(values, np.float32) for name, values in np.load(job["imatrix"]).items()}
            entries = pointer(means)  # held here until the call is over
            params.imatrix = ctypes.cast(entries, ctypes.POINTER(cpp.llama_model_imatrix_data))
        start = time.perf_counter()
        if status := cpp.llama_model_quantize(work["source"].encode(), job["out"].encode(), ctypes.byref(params)):
            raise SystemExit(f"llama_model_quantize failed with {status} for {job}")
        seconds.append(time.perf_counter() - start)
    print(json.dumps(dict(seconds=seconds, version=cpp.__version__)))


if __name__ == "__main__":
    main()

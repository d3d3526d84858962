"""What `pellucid models --local` and `--families` print: the models on this disk, the families that can be run."""
from __future__ import annotations

import time
from dataclasses import asdict

from pellucid.cli._frame import emit, next_step, note
from pellucid.model.report import size


def print_local(as_json: bool) -> None:
    """The models that were pulled, here or by another program, last used first, and the model in the package."""
    from pellucid.weights import hub, hub_cache
    pulled, shipped = hub.local_models(), hub_cache.shipped_model()
    models = [*pulled, shipped] if shipped else pulled
    if as_json:
        emit({"folder": hub_cache.cache_folder(), "models": [{**asdict(model), "last_used": _date(model.last_used)} for model in models]})
        return
    width = max((len(each.repo) for each in models), default=0)
    for model in models:
        commit = "interrupted" if model.interrupted else model.commit[:12] if model.commit else "in the package"
        print(f"{model.repo:{width}}  {size(model.n_bytes):>9}  {_date(model.last_used)[:10]}  {' '.join([commit, *model.revisions])}")
    note(f"{len(pulled)} downloaded, {size(sum(model.n_bytes for model in pulled))}, in {hub_cache.cache_folder()}")
    usable = [model.repo for model in models if not model.interrupted]
    if usable:
        next_step("pellucid", "show", usable[0])
    else:
        next_step("pellucid", "pull", models[0].repo if models else "OWNER/NAME")


def print_families(as_json: bool) -> None:
    """Every family, what it covers and how it was proven."""
    from pellucid.catalog import families as catalog
    rows = catalog.table()
    if as_json:
        emit({"sources": catalog.sources(), "families": [asdict(row) for row in rows]})
        return
    width = max(len(row.name) for row in rows)
    for row in rows:
        proven = f"{row.proof.error:.0e} from {row.proof.against}" if row.proof else "by the family it wraps"
        print(f"{row.name:{width}}  {row.checkpoints}\n{'':{width}}  proven: {proven} · vLLM {row.vllm} · llama.cpp {row.llama_cpp} · "
              f"transformers {row.transformers}")
    note(f"{len(rows)} families; the other engines' lists as of {catalog.sources()['read_on']}; docs/families.md has every case")
    next_step("pellucid", "pull", "OWNER/NAME")


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))

"""`pellucid run`: one completion of a prompt."""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pellucid.cli import _options as o
from pellucid.cli._frame import Json, emit, next_step, note
from pellucid.cli._shown import show, summary
from pellucid.errors import BadRequest, ConstraintFailed
from pellucid.records import place_for


def command(
    model: o.Model = o.SHIPPED,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="What to continue; else all of stdin, less one newline at its end.")] = None,
    max_tokens: o.MaxTokens = 256,
    temperature: o.Temperature = 1.0,
    top_k: o.TopK = 0,
    top_p: o.TopP = 1.0,
    min_p: o.MinP = 0.0,
    repetition_penalty: o.Repetition = 1.0,
    presence_penalty: o.Presence = 0.0,
    frequency_penalty: o.Frequency = 0.0,
    logit_bias: o.LogitBias = None,
    stop: o.Stop = None,
    min_tokens: o.MinTokens = 0,
    ignore_eos: o.IgnoreEos = False,
    bad_word: o.BadWords = None,
    prefix: o.Prefix = None,
    schema: o.Schema = None,
    n: o.N = 1,
    best_of: o.BestOf = None,
    logprobs: o.Logprobs = None,
    seed: o.Seed = None,
    cache: o.Cache = None,
    cache_dtype: o.CacheDtype = "auto",
    draft: o.Draft = None,
    adapter: o.Adapter = None,
    any_base: o.AnyBase = False,
    threads: o.Threads = None,
    device: o.Device = "auto",
    gpu_layers: o.GpuLayers = None,
    dtype: o.Dtype = "auto",
    ops: o.OpsName = "auto",
    activations: o.Activations = "auto",
    deterministic: o.Deterministic = False,
    accept_unread: o.AcceptUnread = None,
    chat_template: o.Template = None,
    record: Annotated[Path | None, typer.Option("--record", help="Write a run record here, for `pellucid replay`.")] = None,
    quiet: o.Quiet = False,
    json: Json = False,
) -> int:
    """Continue a prompt. The text goes to stdout as it comes, everything else to stderr.

    The prompt is taken as it stands, with the model's beginning-of-sequence token where it wants one; `pellucid chat` speaks the
    model's chat format.

    \b
    pellucid run -p "It was a dark night, and"
    pellucid run ./model -p "def main():" --temperature 0 --max-tokens 64 --stop $'\\n\\n'
    cat letter.txt | pellucid run ./model --json
    pellucid run ./model -p "Once" --seed 7 --record once.json
    pellucid run ./model -p "A person, as JSON: " --schema person.json
    """
    options = o.sampling(max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty,
                         presence_penalty=presence_penalty, frequency_penalty=frequency_penalty, logit_bias=logit_bias, stop=stop, min_tokens=min_tokens,
                         ignore_eos=ignore_eos, bad_words=bad_word, prefix=prefix, n=n, best_of=best_of, logprobs=logprobs, seed=seed,
                         schema=o.read_schema(schema), adapter=o.adapter_name(adapter))
    cache_bytes = o.n_bytes(cache)
    if record is not None:
        place_for(record)  # before a minute was spent on what goes into it
    text = o.read_stdin("the prompt") if prompt is None and not sys.stdin.isatty() else prompt
    if text is None:
        raise BadRequest("no prompt. Give one with -p PROMPT, or pipe it in", field="prompt")
    loaded = o.load_model(model, accept_unread=accept_unread, quiet=quiet, device=device, dtype=dtype, ops=ops, activations=activations,
                          deterministic=deterministic, threads=threads, chat_template=chat_template, cache_bytes=cache_bytes,
                          cache_dtype=cache_dtype, draft=draft, adapter=adapter, any_base=any_base, gpu_layers=o.gpu_layers(gpu_layers))
    if n > 1 or best_of is not None:
        completion = loaded.generate(text, **options)
        if not json:
            show("\n\n".join(f"[{i}] {choice.text}" for i, choice in enumerate(completion.choices or (completion,), 1)))
    else:
        stream = loaded.stream(text, **options)
        for piece in stream:
            if not json:
                show(piece)
        completion = stream.result
    if not json:
        show("\n")
    if record is not None:
        loaded.record(completion).save(record)
    if json:  # only now: where the record cannot be written, the one object is the error
        emit({"model": model, **completion.as_dict(), "load_seconds": round(loaded.report.seconds, 6), "record": record})
    if not quiet:
        note(("" if json else "\n") + summary(completion))
        if draft is not None:
            told = loaded.engine.report()
            note(f"drafts: {told.n_accepted:,} of {told.n_drafted:,} right")
        next_step("pellucid", *(["replay", str(record)] if record is not None else o.onward(loaded, model)))
    failed = [one.verdict for one in completion.choices or (completion,) if one.verdict is not None and one.verdict.status != "valid"]
    if failed and not json:
        raise ConstraintFailed(f"the output is {failed[0].status}: {failed[0].reason}")
    return 1 if failed else 0


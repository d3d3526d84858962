"""`pellucid show`: what a checkpoint is, from its headers alone."""
from __future__ import annotations

import dataclasses
import os
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from pellucid import cost
from pellucid.cli import _options as o
from pellucid.cli._frame import Json, emit, next_step, note
from pellucid.cli._shown import harmless, show
from pellucid.errors import BadTokenizer, PellucidError
from pellucid.families._describe import Description, describe_checkpoint
from pellucid.model.report import binary, count, size
from pellucid.records import sha256_of
from pellucid.spec import Attention, DecoderSpec, Experts, FeedForward, LatentAttention, Layer, Matrix
from pellucid.weights.checkpoint import Checkpoint, open_checkpoint
from pellucid.weights.hub import resolve
from pellucid.weights.inputs import TOKENIZER_FILES, has_tokenizer, input_files
from pellucid.weights.names import LeftOut, family_name

DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
SLOW_BYTES = 2_000_000_000  # hashing this much takes long enough to say so first


def command(
    model: o.Model = o.SHIPPED,
    template: Annotated[bool, typer.Option("--template", help="Print an example conversation as the chat template renders it, special tokens marked.")] = False,
    chat_template: o.Template = None,
    lineage: Annotated[bool, typer.Option("--lineage", help="Draw what it was made from, with licenses, and what that makes its own.")] = False,
    accept_unread: o.AcceptUnread = None,
    json: Json = False,
) -> None:
    """Say what a checkpoint is: family, sizes, license, lineage, chat template, hashes. Reads headers and hashes files; loads no weights.

    \b
    pellucid show
    pellucid show Qwen/Qwen3-0.6B --template
    pellucid show ./model --lineage
    pellucid show ./model --json
    """
    path = resolve(model)
    if template or chat_template:
        return _show_template(path, model, chat_template, json)
    if lineage:
        return _show_lineage(path, model, json)
    checkpoint = open_checkpoint(path)
    described = describe_checkpoint(checkpoint, accept_unread or ())
    facts = _facts(model, checkpoint, described)
    if json:
        emit(facts)
    else:
        _print(facts, described.spec)
    if facts["tokenizer"] is None:  # by token ids only
        return None
    named = [model] if model != o.SHIPPED else []
    next_step("pellucid", *(["chat", *named] if facts["tokenizer"].get("chat_template") else ["run", *named, "-p", "Once upon a time"]))
    return None


def _facts(model: str, checkpoint: Checkpoint, described: Description) -> dict[str, Any]:
    """Everything there is to say, as plain data."""
    spec, card, files = described.spec, checkpoint.card, input_files(checkpoint)
    stored: Counter[str] = Counter()
    left_out: Counter[str] = Counter(checkpoint.left_out.values())
    unknown = []
    for name, tensor in checkpoint.unpacked.items():
        place = described.names.place(name)
        if isinstance(place, LeftOut):
            left_out[place.why] += 1
            continue
        stored[DTYPES.get(tensor.dtype, tensor.dtype)] += tensor.n_bytes
        if place is None:
            unknown.append(name)
    sizes = {name: path.stat().st_size for name, path in files.items()}
    if sum(sizes.values()) > SLOW_BYTES:
        note(f"hashing {size(sum(sizes.values()))}")
    dtype = stored.most_common(1)[0][0] if stored else "float32"
    in_blocks = checkpoint.format == "gguf" and not stored.keys() <= set(DTYPES.values())  # which run in float32, and keep float16
    bytes_per_number = 2 if in_blocks else 4 if dtype == "float32" else 8 if dtype == "float64" else 2
    quantization = checkpoint.quantization
    packed = None if quantization is None else {"method": quantization.method, "shown": quantization.shown, "n_matrices": len(quantization.matrices),
                                                **quantization.facts}
    return {
        "model": model, "path": os.path.abspath(checkpoint.folder), "family": spec.family, "model_type": described.model_type,
        "n_parameters": cost.parameters(spec), "n_active_parameters": cost.active_parameters(spec), "dtype": dtype,
        "stored_bytes": dict(stored), "quantization": packed, "format": checkpoint.format, "n_bytes": checkpoint.n_bytes,
        "cache_bytes_per_token": cost.cache_bytes_per_token(spec, bytes_per_number),
        "license": card.license_shown, "license_source": card.source, "base_models": list(card.base_models), "eos_ids": list(checkpoint.eos_ids),
        "tokenizer": _tokenizer(checkpoint), "left_out": dict(left_out),
        "unknown_tensors": unknown, "accepted_unread": list(described.accepted),
        "notes": [*described.notes, *checkpoint.notes, *card.notes], "files": sizes, "sha256": {name: sha256_of(path) for name, path in files.items()},
        "spec": dataclasses.asdict(spec)}


def _tokenizer(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """What the tokenizer files make, or a GGUF file's metadata; None where there are none, the error's words where they make nothing."""
    from pellucid.families._tokenizer import checkpoint_tokenizer
    try:
        tokenizer = checkpoint_tokenizer(checkpoint)
    except PellucidError as error:
        return {"error": str(error)}
    if tokenizer is None:
        return None
    named = {name: None if i is None else {"id": i, "token": tokenizer.token_of(i)} for name, i in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id))}
    return {"n_vocab": tokenizer.n_vocab, **named, "adds_bos": tokenizer.adds_bos, "n_special": len(tokenizer.special_ids),
            "chat_template": tokenizer.chat_template is not None}


def _show_lineage(path: Path, model: str, json: bool) -> None:
    from pellucid.catalog import ancestry, verdict
    from pellucid.catalog.lineage import drawn, plain
    node = ancestry.of_path(path, None if path == Path(model).expanduser() or model == o.SHIPPED else model)
    result, conflicts = verdict.result_license(node), verdict.conflicts(node)
    if json:
        emit({"model": model, "lineage": plain(node), "license_of_result": result, "conflicts": list(conflicts)})
    else:
        told = [*drawn(node), "", f"license of all of it: {result or 'unknown'}", *(f"conflict  {each}" for each in conflicts)]
        show("\n".join(told) + "\n")
    next_step("pellucid", "license", str(path) if model == o.SHIPPED else model, "--use", "commercial api", "--users", "1e6")


def _show_template(path: Path, model: str, chat_template: str | None, json: bool) -> None:
    folder = path if path.is_dir() else path.parent
    in_file = path.suffix == ".gguf" and path.is_file()
    if not in_file and not has_tokenizer(folder):
        raise BadTokenizer(f"{model!r} has no tokenizer files in {folder}, so no chat template either: looked for {', '.join(TOKENIZER_FILES)}")
    from pellucid import load_tokenizer
    from pellucid.tokenizer.template import example
    rendered = example(load_tokenizer(path if in_file else folder), chat_template)
    if json:
        emit({"model": model, "example": rendered})
    else:
        show(f"{rendered}\n")
    next_step("pellucid", "chat", *([model] if model != o.SHIPPED else []), *(["--chat-template", chat_template] if chat_template else []))


def _print(facts: dict[str, Any], spec: DecoderSpec) -> None:
    """Two tidy columns, then the files."""
    from rich.console import Console
    from rich.table import Table
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in _rows(facts, spec):
        table.add_row(label, harmless(text))
    files = Table(box=None, pad_edge=False, header_style="bold")
    files.add_column("file", overflow="fold")
    files.add_column("size", justify="right", no_wrap=True)
    files.add_column("sha256", no_wrap=True)
    for name, n_bytes in facts["files"].items():
        files.add_row(harmless(name), size(n_bytes), facts["sha256"][name])
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 160  # a hash, a size and a file's name side by side, whatever reads the pipe
    with console.capture() as printed:
        console.print(table)
        console.print()
        console.print(files)
    print("\n".join(line.rstrip() for line in printed.get().splitlines()))  # rich fills lines up with spaces


def _rows(facts: dict[str, Any], spec: DecoderSpec) -> list[tuple[str, str]]:
    made_from = f" · made from {', '.join(facts['base_models'])}" if facts["base_models"] else ""
    source = f" ({facts['license_source']})" if facts["license_source"] else ""
    idle = spec.layer_inputs is not None or any(isinstance(mlp, Experts) for layer in spec.layers for mlp in (layer.mlp, layer.beside))
    active = f", {count(facts['n_active_parameters'])} of them for a token" if idle else ""
    wrapper = f" (the text model of {facts['model_type']})" if family_name(facts["model_type"]) != facts["family"] else ""
    rows = [
        ("model", facts["path"] if os.path.abspath(facts["model"]) == facts["path"] else f"{facts['model']}   {facts['path']}"),
        ("family", f"{facts['family']}{wrapper}"),
        ("license", f"{facts['license'] or 'not said'}{source}{made_from}"),
        ("parameters", f"{count(facts['n_parameters'])} ({facts['n_parameters']:,}){active}"),
        ("weights", f"{facts['format']} {' + '.join(facts['stored_bytes'])}, {size(facts['n_bytes'])}"),
        *([("packed", f"{quantization['shown']} · {quantization['n_matrices']:,} matrices")] if (quantization := facts["quantization"]) else []),
        ("context", f"{spec.n_ctx:,} tokens, {binary(facts['cache_bytes_per_token'])} of cache each"),
        ("width", f"d_model {spec.d_model}, vocabulary {spec.n_vocab:,}{', embedding and unembedding are one' if spec.tied else ''}"),
    ]
    kinds = Counter(_layer(layer) for layer in spec.layers)  # a Counter keeps the order in which kinds first come
    rows += [("layers" if i == 0 else "", f"{n} × {kind}") for i, (kind, n) in enumerate(kinds.items())]
    rows.append(("tokenizer", _tokenizer_text(facts["tokenizer"])))
    rows += [("left out", f"{_tensors(n)}, {why}") for why, n in facts["left_out"].items()]
    if unknown := facts["unknown_tensors"]:
        rows.append(("no place", f"{_tensors(len(unknown))} this family has no place for, so it will not load; first: {', '.join(unknown[:3])}"))
    rows += [("accepted", f"unread keys of config.json, on your word: {', '.join(facts['accepted_unread'])}")] * bool(facts["accepted_unread"])
    return rows + [("note", text) for text in facts["notes"]]


def _tensors(n: int) -> str:
    return f"{n:,} tensor{'s' * (n > 1)}"


def _layer(layer: Layer) -> str:
    """One kind of layer in a line."""
    mixer, mlp = layer.mixer, layer.mlp
    if mixer is None:
        facts = ["no attention"]
    elif isinstance(mixer, Matrix):
        facts = ["one matrix in place of attention"]
    elif isinstance(mixer, LatentAttention):
        facts = [f"attention of {mixer.n_heads} heads, {mixer.d_plain + mixer.rope.d_rotary} channels each, out of a latent of {mixer.d_latent}"]
    else:
        facts = [f"attention of {mixer.n_heads} heads / {mixer.n_kv_heads} kv, {mixer.d_head} channels each"]
    if isinstance(mixer, Attention | LatentAttention) and mixer.rope is not None:
        scaled = f", {type(mixer.rope.scaling).__name__.lower()}-scaled" if mixer.rope.scaling else ""
        facts.append(f"rope theta {mixer.rope.theta:,.0f}{scaled}")
    if isinstance(mixer, Attention):
        facts += ["ALiBi"] * (mixer.alibi is not None)
        facts += [f"{name} {tokens:,}" for name, tokens in (("window", mixer.window), ("chunk", mixer.chunk)) if tokens is not None]
        facts += ["attention sinks"] * mixer.sinks
        facts += [f"keys and values of layer {mixer.shares}"] * (mixer.shares is not None)
    facts.append("no feed-forward" if mlp is None else _mlp(mlp))
    facts += [f"beside it {_mlp(layer.beside)}"] if layer.beside is not None else []
    return " · ".join(facts)


def _mlp(mlp: FeedForward | Experts | Matrix) -> str:
    if isinstance(mlp, Matrix):
        return "one matrix in place of a feed-forward"
    if isinstance(mlp, FeedForward):
        return _feed_forward(mlp)
    shared = f" and one for all, {_feed_forward(mlp.shared)}" if mlp.shared else ""
    return f"{mlp.n_active} of {mlp.n_experts} experts, each {_feed_forward(mlp.each)}{shared}"


def _feed_forward(mlp: FeedForward) -> str:
    return f"feed-forward {mlp.d_ff:,} {mlp.act}{' gated' if mlp.gated else ''}"


def _tokenizer_text(tokenizer: dict[str, Any] | None) -> str:
    if tokenizer is None:
        return "none: this model takes token ids only"
    if "error" in tokenizer:
        return f"not usable: {tokenizer['error']}"
    ends = [f"{name.upper()} {tokenizer[name]['token']!r} ({tokenizer[name]['id']})" for name in ("bos", "eos") if tokenizer[name]]
    chat = "with a chat template (--template shows it)" if tokenizer["chat_template"] else "no chat template"
    return f"{tokenizer['n_vocab']:,} tokens, {', '.join([*ends, chat])}"

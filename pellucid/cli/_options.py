"""Options that several commands share, and what they become in the Python API."""
from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pellucid.cli._frame import note
from pellucid.errors import BadRequest

SHIPPED = "shipped"
# Decoding an 8-million-parameter model on two cores that something else also wanted: 200 tokens/s with one thread, 6 with two, which spent their
# time waiting for one another. A thread should have this much to do for a token before it is worth its company.
PARAMETERS_PER_THREAD = 20_000_000

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a file, or owner/name[@revision] that was pulled; else the model in the package.")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", help="How many tokens may come.")]
Temperature = Annotated[float | None, typer.Option("--temperature", help="Divides the logits; 0 always takes the likeliest.")]
TopK = Annotated[int | None, typer.Option("--top-k", help="Keep the k likeliest tokens; 0 keeps all.")]
TopP = Annotated[float | None, typer.Option("--top-p", help="Keep the fewest likeliest tokens that sum to p.")]
MinP = Annotated[float | None, typer.Option("--min-p", help="Drop tokens less likely than this share of the likeliest.")]
Repetition = Annotated[float | None, typer.Option("--repetition-penalty", help="Above 1 discourages what prompt and output hold.")]
Presence = Annotated[float, typer.Option("--presence-penalty", help="Taken once from every token the output holds.")]
Frequency = Annotated[float, typer.Option("--frequency-penalty", help="Taken from every token for each time the output holds it.")]
LogitBias = Annotated[list[str] | None, typer.Option("--logit-bias", metavar="ID=VALUE", help="Add to one token's logit; may be repeated.")]
Stop = Annotated[list[str] | None, typer.Option("--stop", metavar="TEXT", help="End before this text; may be repeated.")]
MinTokens = Annotated[int, typer.Option("--min-tokens", help="No end-of-sequence token before so many.")]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Go on past the model's end-of-sequence tokens.")]
BadWords = Annotated[list[str] | None, typer.Option("--bad-word", metavar="TEXT", help="Never write this, as it is cut into tokens; may be repeated.")]
Prefix = Annotated[str | None, typer.Option("--prefix", metavar="TEXT", help="What the output begins with.")]
Schema = Annotated[Path | None, typer.Option("--schema", metavar="FILE", help="A JSON Schema that the output has to meet; exit 1 where it does not.")]
N = Annotated[int, typer.Option("--n", help="How many completions.")]
BestOf = Annotated[int | None, typer.Option("--best-of", help="Write so many and keep the n likeliest.")]
Logprobs = Annotated[int | None, typer.Option("--logprobs", metavar="K", help="With --json: log-probabilities of the tokens, and of the K likeliest.")]
Cache = Annotated[str | None, typer.Option("--cache", metavar="SIZE", help="Memory for keys and values, such as 512MB or 4GB; else 40 % of what is free.")]
CacheDtype = Annotated[str, typer.Option("--cache-dtype", metavar="auto|same|float16|int8", help="How keys and values are kept; int8 at a loss.")]
Draft = Annotated[str | None, typer.Option("--draft", metavar="lookup|MODEL", help="Guess ahead, from the text itself or by a smaller model of the "
                                                                                    "same vocabulary; the output stays the same.")]
Adapter = Annotated[str | None, typer.Option("--adapter", metavar="PATH", help="A LoRA adapter for this model: a folder as peft saves it, or a .gguf file.")]
AnyBase = Annotated[bool, typer.Option("--any-base", help="Also an adapter that was trained on another model by its hash, such as the same before it was "
                                                          "quantized.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Repeat a run exactly; drawn and reported where none is given.")]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads.")]
Device = Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda|mps", help="Where to compute.")]
GpuLayers = Annotated[str | None, typer.Option("--gpu-layers", metavar="N|auto", help="The last N layers on the GPU, the others on the CPU; auto: as many as "
                                                                                     "fit. Else all, or an error.")]
Dtype = Annotated[str, typer.Option("--dtype", metavar="auto|float32|bfloat16|float16|float64", help="Of weights and arithmetic; auto is what the files hold.")]
OpsName = Annotated[str, typer.Option("--ops", metavar="auto|native|triton|fused|reference", help="Which kernels compute.")]
Activations = Annotated[str, typer.Option("--activations", metavar="auto|exact|int8",
                                                  help="What quantized weights are multiplied by; int8 is rounded, and fast.")]
Deterministic = Annotated[bool, typer.Option("--deterministic", help="Bit-equal results whatever is computed beside them; slower.")]
AcceptUnread = Annotated[list[str] | None, typer.Option("--accept-unread", metavar="KEY", help="A key of config.json you know to be inert; recorded.")]
Template = Annotated[str | None, typer.Option("--chat-template", metavar="FILE|NAME", help="In place of the model's own; recorded.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Nothing on stderr but errors.")]


def sampling(*, max_tokens: int | None, logit_bias: Sequence[str] | None, stop: Sequence[str] | None, logprobs: int | None = None,
             bad_words: Sequence[str] | None = None, **options: Any) -> dict[str, Any]:
    """What was asked, for the API. Raises BadRequest for what cannot be, while no model has been loaded for it."""
    biases = dict(map(_bias, logit_bias or ()))
    from pellucid.api.completion import checked  # torch comes with it: a second that --help need not take
    asked = {name: value for name, value in options.items() if value is not None}
    if logprobs is not None:
        asked |= {"logprobs": True, "top_logprobs": logprobs}
    if bad_words:
        asked["bad_words"] = list(bad_words)
    return checked({**asked, "max_tokens": max_tokens, "logit_bias": biases, "stop": list(stop or ())})


def read_schema(file: Path | None) -> str | None:
    """The text of a schema's file. Raises BadRequest where it cannot be read."""
    if file is None:
        return None
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"--schema {str(file)!r} cannot be read: {error}. Give a file with a JSON Schema in UTF-8", field="schema") from None


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def n_bytes(text: str | None, option: str = "--cache") -> int | None:
    """A size such as 4GB, 1.5 GiB or 300000000 in bytes. Raises BadRequest for what is none."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?b?)\s*", text, re.IGNORECASE)
    unit = found[2].upper() if found else ""
    unit += "B" if unit and unit != "B" and not unit.endswith("B") else ""
    if found is None or unit not in _UNITS or not float(found[1]):
        raise BadRequest(f"{option} {text!r} is not a size, such as 512MB or 4GB", field=option.removeprefix("--").replace("-", "_"))
    return int(float(found[1]) * _UNITS[unit])


def gpu_layers(text: str | None) -> int | Literal["auto"] | None:
    """A number of layers, or auto. Raises BadRequest for anything else."""
    if text is None:
        return None
    if text == "auto":
        return "auto"
    if not text.isascii() or not text.isdigit():
        raise BadRequest(f"--gpu-layers {text!r} is not a number of layers, from 0, or 'auto'", field="gpu_layers")
    return int(text)


def _bias(text: str) -> tuple[int, float]:
    token, _, value = text.partition("=")
    try:
        return int(token), float(value)
    except ValueError:
        raise BadRequest(f"--logit-bias {text!r} is not ID=VALUE, such as 198=-100", field="logit_bias") from None


def adapter_name(path: str | None) -> str | None:
    """What requests call the one adapter of a command: the last part of its path, as far as a name can be."""
    return None if path is None else re.sub(r"[^A-Za-z0-9_-]+", "-", Path(path).resolve().name.removesuffix(".gguf")).strip("-")[:80] or "adapter"


def load_model(name: str, *, accept_unread: Sequence[str] | None, quiet: bool, threads: int | None, adapter: str | None = None, any_base: bool = False,
               **how: Any) -> Any:
    """The model, its report said on stderr. Where no thread count is given, no more are used than there is work for."""
    from pellucid.api import load
    called = adapter_name(adapter)
    model = load(name, accept_unread=accept_unread or (), threads=threads, **how)
    if called is not None:
        model.load_adapter(called, adapter, any_base=any_base)
    lines = model.report.lines()
    if threads is None and model.report.device == "cpu" and (few := _threads(model)):
        width = len(lines[1]) - len(lines[1].removeprefix("weights").lstrip())  # where the report's second column begins
        lines.append(f"{'threads':{width}}{few}: a model of this size gains nothing from more (--threads N)")
    if not quiet:
        note("\n".join([*lines, ""]))
    return model


def _threads(model: Any) -> int | None:
    """Sets torch's threads to what a small model can use; how many those are, None where that is all of them."""
    import torch

    from pellucid import cost
    few = -(-cost.active_parameters(model.spec) // PARAMETERS_PER_THREAD)
    if few >= torch.get_num_threads():
        return None
    torch.set_num_threads(few)
    return few


def onward(model: Any, name: str) -> list[str]:
    """The command to try after a completion: a chat where the model can, else a look at what it is."""
    named = [] if name == SHIPPED else [name]
    return ["chat" if model.tokenizer.chat_templates or model.chat_template else "show", *named]


def read_stdin(what: str) -> str:
    """All of stdin, as UTF-8, less one newline at its end. Raises BadRequest for bytes that are not UTF-8, naming the first."""
    return utf8(sys.stdin.buffer.read(), what)


def utf8(raw: bytes, what: str) -> str:
    """Bytes of stdin as text, less one newline at the end, be it LF or CRLF."""
    try:
        text = raw.decode("utf-8")
        return text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")
    except UnicodeDecodeError as error:
        raise BadRequest(f"{what} on stdin is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start}. "
                         f"Convert it first: iconv -f latin1 -t utf-8", field="prompt") from None

"""`pellucid quantize`: a model in fewer bits."""
from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pellucid.cli import _options as o
from pellucid.cli import convert
from pellucid.cli._frame import Json
from pellucid.errors import BadRequest
from pellucid.weights.mixes import MIXES

_NAMES = ", ".join(mix for mix in MIXES if mix not in ("F32", "F16", "BF16"))
To = Annotated[str | None, typer.Option("--to", metavar="MIX", help=f"One of {_NAMES}; NF4 to a folder.")]


def command(
    source: convert.Source,
    out: convert.Out,
    to: To = None,
    auto: Annotated[bool, typer.Option("--auto", help="Choose the format of every tensor by how much the model suffers from it; with --fit.")] = False,
    fit: Annotated[str | None, typer.Option("--fit", metavar="SIZE", help="What the file may take, such as 4GB or 4.5bpw (bits per weight).")] = None,
    text: Annotated[Path | None, typer.Option("--text", metavar="FILE", help="With --auto: text in UTF-8, like what the model will read and write.")] = None,
    tokens: Annotated[int, typer.Option("--tokens", help="With --auto: tokens on which the effect of each tensor is measured.")] = 4096,
    formats: Annotated[str | None, typer.Option("--formats", metavar="Q4_K,Q6_K,...", help="With --auto: choose among these only.")] = None,
    imatrix: convert.Imatrix = None,
    tensor_type: convert.TensorType = None,
    split_max_size: convert.Split = None,
    without_tokenizer: convert.WithoutTokenizer = False,
    threads: o.Threads = None,
    accept_unread: o.AcceptUnread = None,
    permission: convert.Permission = None,
    force: convert.Force = False,
    quiet: o.Quiet = False,
    json: Json = False,
) -> None:
    """Pack a model's matrices in fewer bits, as a GGUF file that llama.cpp runs too; NF4 as a folder that transformers reads with bitsandbytes.

    Scales are searched for the least error; with an imatrix, for the least error where it counts. Q4_K_M is the usual choice, Q8_0 hardly differs
    from the original, and below Q4 an imatrix is worth its minutes.

    \b
    pellucid quantize shipped shipped.Q4_K_M.gguf --to Q4_K_M
    pellucid quantize Qwen/Qwen3-0.6B qwen3.Q4_K_M.gguf --to Q4_K_M --imatrix qwen3.imatrix.gguf
    pellucid quantize ./model model.gguf --to Q4_0 --tensor-type 'ffn_down=Q6_K'
    pellucid quantize ./model model.gguf --auto --fit 4GB --text notes.txt
    """
    if auto:
        _check_auto(to, fit, tensor_type, tokens)
        from pellucid.cli import _auto
        _auto.quantize(source, out, fit=fit or "", text=text, tokens=tokens, formats=formats, imatrix=imatrix, tokenizer=not without_tokenizer,
                       threads=threads, accept_unread=accept_unread, permission=permission, force=force, quiet=quiet, json=json, split=split_max_size)
        return
    if to is None or fit is not None or text is not None or formats is not None:
        raise BadRequest("--fit, --text and --formats go with --auto: --auto --fit 4GB, for one" if to is not None or fit or text or formats else
                         "no mix. Give one with --to Q4_K_M, or have one made for the model: --auto --fit 4GB", field="to")
    kind = "safetensors" if to.upper() == "NF4" else "gguf"
    convert.say(source, out, to=kind, dtype=None, quantize=to, tensor_types=tensor_type or (), imatrix=imatrix, split=split_max_size,
                tokenizer=not without_tokenizer, accept_unread=accept_unread or (), permission=permission, force=force, quiet=quiet, json=json)


def _check_auto(to: str | None, fit: str | None, tensor_type: Any, tokens: int) -> None:
    if fit is None:
        raise BadRequest("--auto needs a budget: --fit 4GB, --fit 300MB or --fit 4.5bpw (bits per weight)", field="fit")
    if to is not None or tensor_type:
        raise BadRequest(f"--auto chooses every tensor's format, and {'--to' if to else '--tensor-type'} does too. Give one of them", field="to")
    if tokens < 1:
        raise BadRequest(f"--tokens {tokens}: at least 1,024 tokens are measured", field="tokens")

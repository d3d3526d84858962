"""`pellucid quantize`: a model in fewer bits."""
from __future__ import annotations

from typing import Annotated

import typer

from pellucid.cli import _options as o
from pellucid.cli import convert
from pellucid.cli._frame import Json
from pellucid.weights.mixes import MIXES

_NAMES = ", ".join(mix for mix in MIXES if mix not in ("F32", "F16", "BF16"))
To = Annotated[str, typer.Option("--to", metavar="MIX", help=f"One of {_NAMES}; NF4 to a folder.")]


def command(
    source: convert.Source,
    out: convert.Out,
    to: To,
    imatrix: convert.Imatrix = None,
    tensor_type: convert.TensorType = None,
    split_max_size: convert.Split = None,
    without_tokenizer: convert.WithoutTokenizer = False,
    accept_unread: o.AcceptUnread = None,
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
    """
    kind = "safetensors" if to.upper() == "NF4" else "gguf"
    convert.say(source, out, to=kind, dtype=None, quantize=to, tensor_types=tensor_type or (), imatrix=imatrix, split=split_max_size,
                tokenizer=not without_tokenizer, accept_unread=accept_unread or (), force=force, quiet=quiet, json=json)

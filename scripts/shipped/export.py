"""The trained state -> the folder the package ships. Last of three steps.

    python scripts/shipped/export.py out/shipped pellucid/shipped

Writes model.safetensors (bfloat16), config.json, generation_config.json, the tokenizer's files, the chat template and the
model card. The numbers on the card are measured here, on every token of the held-out books, with the rounded weights.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import torch
from prepare import BEGIN, END
from safetensors.torch import save_file
from tokenizers import Tokenizer, processors
from train import CONFIG, LEARNING_RATE, TOKENS_PER_STEP, batch, losses

from pellucid.families import family
from pellucid.families._config import Config
from pellucid.model.decoder import Decoder
from pellucid.ops.choose import choose
from pellucid.weights.assemble import disassemble
from pellucid.weights.names import NameTable

WINDOW = 1024

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- if tools %}
{{- 'These are the tools at hand, one a line:\\n' }}
{%- for tool in tools %}{{ tool | tojson }}{{ '\\n' }}{% endfor %}
{{- '\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'system' %}{{ message.content + '\\n\\n' }}
{%- elif message.role == 'user' %}{{ 'Question: ' + message.content + '\\n\\n' }}
{%- elif message.role == 'tool' %}{{ 'Result: ' + message.content + '\\n\\n' }}
{%- elif message.role == 'assistant' %}{{ 'Answer:' }}{% generation %}
{%- if message.content %}{{ ' ' + message.content }}{% endif %}
{%- for call in message.tool_calls or [] %}{{ ' ' + ((call.function or call) | tojson) }}{% endfor %}
{{- eos_token }}{% endgeneration %}{{ '\\n\\n' }}
{%- else %}{{ raise_exception('this template knows the roles system, user, assistant and tool, not ' + message.role) }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Answer:' }}{% endif %}
"""

CARD = """\
---
license: apache-2.0
language: en
tags: [text-generation, llama, period-prose]
---
# The model in the package

A language model of {n_parameters:,} parameters that writes English prose in the manner of books printed before 1929. It ships inside
Pellucid so that every command works before anything is downloaded. It knows no facts, follows no instructions and holds no conversation.

| | |
| --- | --- |
| architecture | Llama: {layers} layers, width {width}, {heads} heads of {head}, feed-forward {ff}, tied embedding, context {context} tokens |
| weights | bfloat16 safetensors, {megabytes:.1f} MB, sha256 `{sha256}` |
| vocabulary | byte-level BPE of {n_vocab:,} tokens, trained on the training books |
| data | {train_books} public-domain books, {train_bytes:.0f} MB of text, {train_tokens:.1f} million tokens; archive sha256 `{archive}` |
| held out | {heldout_books} whole books, never trained on: {titles} |
| training | {steps:,} steps of {per_step:,} tokens: {seen:.1f} million tokens, {epochs:.2f} passes |
| machine | {minutes:.0f} minutes on one or two shared CPU cores, bfloat16 autocast over float32 weights |
| recipe | Muon for the matrices, AdamW for the rest, rate {rate:g} with warm-up and a linear fall; `scripts/shipped/` in the repository, seed 0 |
| held-out loss | {nats:.4f} nats per token, **{bits:.4f} bits per byte** over all {heldout_tokens:,} tokens of the held-out books, in windows of {window} |

`held_out.txt` beside the weights holds pages of six of the held-out books (94 kB), which `pellucid compare` reads where no other text is given.

## Limits
- It was trained on fiction and essays of the nineteenth and early twentieth century and repeats their views, some of them hateful by
  any standard of today. Nothing was filtered.
- It has seen no dialogue between a user and an assistant. The chat template is there to exercise the software; the answers are period prose.
- Names, dates and quotations that it writes are invented.

## Licence
The books are in the public domain. The weights are released under Apache-2.0, as the package is.
"""


def write_tokenizer(source: Path, out: Path) -> None:
    """tokenizer.json, which begins every text with the begin token, and the file that names the special tokens."""
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))])
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    (out / "tokenizer_config.json").write_text(json.dumps(dict(
        tokenizer_class="PreTrainedTokenizerFast", bos_token=BEGIN, eos_token=END, add_bos_token=True, add_eos_token=False,
        clean_up_tokenization_spaces=False, model_max_length=CONFIG["max_position_embeddings"]), indent=1) + "\n")


def heldout_nats(decoder: Decoder, ids: np.ndarray) -> float:
    """Nats per token over every held-out token but the first, each window judged on its own."""
    total, n = 0.0, 0
    starts = list(range(0, len(ids) - 1 - WINDOW, WINDOW))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for i in range(0, len(starts), 8):
            total += losses(decoder, *batch(ids, starts[i:i + 8], WINDOW)).item()
            n += len(starts[i:i + 8]) * WINDOW
    return total / n


def write_card(source: Path, out: Path, decoder: Decoder, state: dict, nats: float) -> None:
    data = json.loads((source / "data.json").read_text())
    weights = (out / "model.safetensors").read_bytes()
    bits = nats / math.log(2) * data["heldout"]["tokens"] / data["heldout"]["bytes"]
    seen = state["step"] * TOKENS_PER_STEP
    train, heldout, width = data["train"], data["heldout"], CONFIG["hidden_size"]
    facts = dict(
        n_parameters=sum(p.numel() for p in decoder.parameters()), layers=CONFIG["num_hidden_layers"], width=width,
        heads=CONFIG["num_attention_heads"], head=CONFIG["head_dim"], ff=CONFIG["intermediate_size"], context=CONFIG["max_position_embeddings"],
        megabytes=len(weights) / 1e6, sha256=hashlib.sha256(weights).hexdigest(), n_vocab=CONFIG["vocab_size"],
        train_books=train["books"], train_bytes=train["bytes"] / 1e6, train_tokens=train["tokens"] / 1e6, archive=data["archive_sha256"],
        heldout_books=heldout["books"], heldout_tokens=heldout["tokens"],
        titles="; ".join((source / "heldout_books.txt").read_text().replace("/", ", ").splitlines()),
        steps=state["step"], per_step=TOKENS_PER_STEP, seen=seen / 1e6, epochs=seen / train["tokens"], minutes=state["spent"] / 60,
        rate=LEARNING_RATE, nats=nats, bits=bits, window=WINDOW)
    (out / "README.md").write_text(CARD.format(**facts))
    print(f"{facts['n_parameters']:,} parameters, {nats:.4f} nats per token, {bits:.4f} bits per byte, {len(weights) / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    state = torch.load(args.source / "state.pt", weights_only=True)
    llama = family("llama")
    decoder = Decoder(llama.spec(Config(CONFIG)), choose())
    decoder.load_state_dict({name: tensor.bfloat16() for name, tensor in state["decoder"].items()})

    rounded = {name: p.detach().bfloat16() for name, p in decoder.named_parameters()}
    save_file(disassemble(NameTable(llama.WEIGHTS), rounded, decoder.spec), args.out / "model.safetensors", metadata={"format": "pt"})
    (args.out / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    (args.out / "generation_config.json").write_text(json.dumps(dict(bos_token_id=0, eos_token_id=1), indent=1) + "\n")
    write_tokenizer(args.source, args.out)
    (args.out / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    write_card(args.source, args.out, decoder, state, heldout_nats(decoder, np.memmap(args.source / "heldout.bin", dtype="<u2", mode="r")))


if __name__ == "__main__":
    main()

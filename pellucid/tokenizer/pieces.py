"""A conversation cut where the assistant's words begin and end, in ids: what a loss is taken of.

A piece is tokenized where it stands and apart from the one before, as it is when the model writes it: no token straddles a border.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pellucid.errors import BadTemplate
from pellucid.tokenizer.template import ChatTemplate, Message, _defused, _free_marks, _with_one_bos, choose
from pellucid.tokenizer.tokenizer import Tokenizer

Piece = tuple[list[int], bool]  # ids, and whether the assistant wrote them


def chat_pieces(tokenizer: Tokenizer, messages: Sequence[Message], *, template: ChatTemplate | str | None = None,
                tools: Sequence[Mapping[str, Any]] | None = None, template_args: Mapping[str, Any] | None = None, after: int = 0) -> list[Piece]:
    """The ids of a finished conversation, piece by piece: by the template's own `{% generation %}` blocks, else by what each answer adds to what came before.

    The ids up to an answer are those that `chat_ids` gives for the messages before it. Raises what that raises, and `Rewritten` where an answer cannot be
    told so, because the template writes earlier turns anew when others follow. after: answers among the first so many messages count as asked.
    """
    chosen = choose(tokenizer, template, tools=tools)
    inputs = chosen._inputs(messages, tools, None, {} if template_args is None else template_args)
    mark, begin, end = _free_marks([inputs, chosen.special_tokens, chosen.source], 3)
    defused = _defused(inputs, tokenizer, mark)
    if chosen.has_generation:
        text = chosen._render(defused, False, begin, end)
        skipped = chosen._render({**defused, "messages": defused["messages"][:after]}, False, begin, end).count(begin) if after else 0
    else:
        text, skipped = _marked(chosen, defused, begin, end, after), 0
    pieces: list[Piece] = []
    for n, part in enumerate(text.split(begin)):
        spoken, _, rest = part.partition(end) if n else ("", "", part)
        pieces += [(_ids(tokenizer, piece, mark, bool(pieces) or n > 0), own) for piece, own in ((spoken, n > skipped), (rest, False)) if piece]
    pieces = [(ids, own) for ids, own in pieces if ids]
    _with_one_bos(tokenizer, [i for ids, _ in pieces for i in ids], chosen)
    return pieces


class Rewritten(BadTemplate):
    """What an answer added is not found in the whole conversation: each answer has to be a conversation of its own, which ends with it."""


def _marked(chosen: ChatTemplate, inputs: dict[str, Any], begin: str, end: str, after: int) -> str:
    """The conversation with marks around what each of the assistant's messages adds to the prompt for it."""
    def render(n: int, *, asking: bool) -> str:
        return chosen._render({**inputs, "messages": messages[:n]}, asking, "", "")
    messages = inputs["messages"]
    whole, out, at = render(len(messages), asking=False), [], 0
    for i, message in enumerate(messages):
        if i < after or message["role"] != "assistant" or (i > after and messages[i - 1]["role"] == "assistant"):
            continue
        last = next((k for k in range(i, len(messages)) if messages[k]["role"] != "assistant"), len(messages))
        before, upto = render(i, asking=True), render(last, asking=False)
        if not upto.startswith(before) or not whole.startswith(upto):
            raise Rewritten(f"chat template {chosen.name!r} writes message {i + 1} otherwise when it is asked for or when others follow, so that what the "
                            f"assistant wrote cannot be told by what it adds. Put {{% generation %}} blocks into the template and give the file, or rows that "
                            f"end with the answer")
        out += [whole[at : len(before)], begin, whole[len(before) : len(upto)], end]
        at = len(upto)
    return "".join([*out, whole[at:]])


def _ids(tokenizer: Tokenizer, text: str, mark: str, continues: bool) -> list[int]:
    """Of rendered text that holds marks against special tokens spelled by messages. continues: something stands before it."""
    parts = [p if isinstance(p, int) else p.replace(mark, "") for p in tokenizer.split_special(text)]
    parts = [p for p in parts if p != ""]
    if not continues:
        plain = text.replace(mark, "")
        return tokenizer.encode_rendered(plain) if parts == tokenizer.split_special(plain) else tokenizer.encode_mixed(parts)
    return continuation(tokenizer, parts)


def continuation(tokenizer: Tokenizer, parts: Sequence[str | int]) -> list[int]:
    """The ids of texts and special tokens as they come after something else: no mark of a beginning stands before the first."""
    anchor = next((i for i in (tokenizer.bos_id, tokenizer.eos_id, *sorted(tokenizer.special_ids)) if i is not None), None)
    return tokenizer.encode_mixed(parts) if anchor is None else tokenizer.encode_mixed([anchor, *parts])[1:]

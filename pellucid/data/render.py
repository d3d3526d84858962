"""What rows say -> items of ids, by the model's own template and tokenizer. Only what the assistant wrote is learned, unless all is."""
from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from pellucid.data.example import Comparison, Example, Item, Verdict
from pellucid.data.shapes import Answered, Continued, Conversation, Document, Judged, Message, Preferred, Said
from pellucid.errors import BadData
from pellucid.tokenizer import Tokenizer
from pellucid.tokenizer.pieces import Piece, Rewritten, chat_pieces, continuation
from pellucid.tokenizer.template import ChatTemplate

Kept = Literal["learn", "ignore"]


@dataclass(slots=True, kw_only=True)
class Rendering:
    """How rows become items. stop_ids: those the model stops on, one of which has to end every answer.

    cut: what was longer than max_length, by origin and tokens; what is done about it is the recipe's.
    """

    tokenizer: Tokenizer
    stop_ids: Collection[int]
    max_length: int
    template: ChatTemplate | str | None = None
    train_on: Literal["assistant", "all"] = "assistant"
    too_long: Literal["error", "drop", "cut"] = "error"
    reasoning: Kept | None = None
    tool_calls: Kept | None = None
    too_long_rows: dict[str, int] = field(default_factory=dict)

    def items(self, said: Said) -> Iterator[Item]:
        """The items of what a row says. Raises BadData that names the row, for an answer that nothing is learned of and the like."""
        if isinstance(said, Document):
            yield from self._document(said)
        elif isinstance(said, Preferred):
            pair = [self._one(said.chosen), self._one(said.rejected)]
            if pair[0] is not None and pair[1] is not None:
                yield Comparison(pair[0], pair[1], said.origin)
        elif isinstance(said, Judged):
            if (one := self._one(said.answered)) is not None:
                yield Verdict(one, said.good, said.origin)
        elif isinstance(said, Conversation):
            yield from self._conversation(said)
        elif (one := self._one(said)) is not None:
            yield one

    def _document(self, said: Document) -> Iterator[Example]:
        """A text and its end, in parts of max_length, every token learned."""
        ids = self.tokenizer.encode(said.text, special=True)
        end = self.tokenizer.eos_id
        ids = ids if end is None or ids[-1:] == [end] else [*ids, end]
        for begin in range(0, max(1, len(ids) - 1), self.max_length):
            part = ids[begin : begin + self.max_length]
            if len(part) > 1:
                yield Example(tuple(part), (False, *(True,) * (len(part) - 1)), said.origin)

    def _conversation(self, said: Conversation) -> Iterator[Example]:
        """One example, or one an answer where the template writes earlier turns anew."""
        try:
            one = self._one(said)
        except Rewritten:
            answers = [i for i, message in enumerate(said.messages) if message["role"] == "assistant" and i >= said.n_prompt]
            if len(answers) == 1:
                raise
            for i in answers:
                if (one := self._one(replace(said, messages=said.messages[: i + 1], n_prompt=i))) is not None:
                    yield one
            return
        if one is not None:
            yield one

    def _one(self, said: Answered) -> Example | None:
        """None for one that is too long, where those are dropped."""
        if isinstance(said, Continued):
            begin = [self.tokenizer.bos_id] if self.tokenizer.bos_id is not None and self.tokenizer.adds_bos else []
            end = [] if self.tokenizer.eos_id is None else [self.tokenizer.eos_id]
            if not end:
                raise BadData(f"{said.origin}: the tokenizer names no token that ends a text, so the model would not learn where the answer ends. Use messages "
                              f"and a chat template", [said.origin])
            pieces: list[Piece] = [(begin + self.tokenizer.encode(said.prompt), False), (continuation(self.tokenizer, [said.completion]) + end, True)]
        else:
            self._check_open(said)
            pieces = self._learned(said, chat_pieces(self.tokenizer, said.messages, template=self.template, tools=said.tools or None,
                                                          after=said.n_prompt))
        ids = tuple(i for part, _ in pieces for i in part)
        learned = [own or self.train_on == "all" for part, own in pieces for _ in part]
        learned[0] = False
        if len(ids) > self.max_length:
            self.too_long_rows[said.origin] = len(ids)
            if self.too_long != "cut":
                return None
            ids, learned = ids[: self.max_length], learned[: self.max_length]
        if not any(learned):
            within = f" in its first {self.max_length:,} tokens" if said.origin in self.too_long_rows else ""
            raise BadData(f"{said.origin}: no token is learned of it{within}. The answer is empty or ignored, or the template's {{% generation %}} blocks "
                          f"stand around nothing. Look at it with --preview", [said.origin])
        end = len(learned) - learned[::-1].index(True)  # what follows the last target is seen by none
        return Example(ids[:end], tuple(learned[:end]), said.origin)

    def _learned(self, said: Conversation, pieces: list[Piece]) -> list[Piece]:
        """The pieces, each answer ended by a token the model stops on; what the template writes after that is not learned."""
        turns = [i for i, (_, own) in enumerate(pieces) if own]
        if not turns:
            raise BadData(f"{said.origin}: the template shows nothing of what the assistant wrote", [said.origin])
        roles = [message["role"] for message in said.messages]
        begins = [i for i in range(said.n_prompt, len(roles)) if roles[i] == "assistant" and (i == said.n_prompt or roles[i - 1] != "assistant")]
        counted = [not self._ignored(said, begin) for begin in begins]
        if len(turns) != len(begins):  # a template with blocks may mark parts of a turn
            counted = [all(counted)] * len(turns)
        out: list[Piece] = []
        for i, (ids, own) in enumerate(pieces):
            if not own:
                out.append((ids, False))
                continue
            stop = next((k for k in range(len(ids) - 1, -1, -1) if ids[k] in self.stop_ids), None)
            after = pieces[i + 1][0] if i + 1 < len(pieces) else []
            if stop is None or self.tokenizer.decode(ids[stop + 1 :], special=True).strip():
                follows = f"; {self.tokenizer.token_of(after[0])!r} follows outside of the {{% generation %}} block: move it inside" \
                    if after and after[0] in self.stop_ids else ""
                raise BadData(f"{said.origin}: the chat template does not end the assistant's turn with a token that the model stops on "
                              f"({', '.join(repr(self.tokenizer.token_of(t)) for t in sorted(self.stop_ids))}){follows}. The model would learn to go on for "
                              f"ever. Mend the template and give it: model.chat_template", [said.origin])
            out += [(ids[: stop + 1], counted[turns.index(i)]), *([(ids[stop + 1 :], False)] if ids[stop + 1 :] else [])]
        return out

    def _check_open(self, said: Conversation) -> None:
        """Raises BadData for turns of which the recipe does not say whether they are learned."""
        for message in said.messages[said.n_prompt :]:
            for kind, choice in self._open(message):
                if choice is None:
                    raise BadData(f"{said.origin}: an answer has {kind}, and the recipe does not say whether such turns are learned: data.{kind}: learn, or "
                                  f"ignore", [said.origin])

    def _ignored(self, said: Conversation, begin: int) -> bool:
        """Whether the turn that begins there has what the recipe ignores: such a turn is not learned."""
        turn = next((i for i in range(begin, len(said.messages)) if said.messages[i]["role"] != "assistant"), len(said.messages))
        return any(choice == "ignore" for message in said.messages[begin:turn] for _, choice in self._open(message))

    def _open(self, message: Message) -> list[tuple[str, Kept | None]]:
        """What of an answer's message the recipe has to speak of, and what it says."""
        if message["role"] != "assistant":
            return []
        thought = next((True for key in ("reasoning_content", "thinking", "reasoning") if message.get(key)), False)
        return [("reasoning", self.reasoning)] * thought + [("tool_calls", self.tool_calls)] * bool(message.get("tool_calls"))

"""A loaded model: text in, text out."""
from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from pellucid.api.asked import request, several
from pellucid.api.completion import Completion, Options, checked, chosen, each
from pellucid.api.stream import Stream, together
from pellucid.api.text import Thinking
from pellucid.engine.engine import Engine
from pellucid.engine.request import Request, check_vocabulary, token_ids
from pellucid.engine.row import Row
from pellucid.engine.saved import Saved, load_prefix, save_prefix
from pellucid.engine.score import Score
from pellucid.engine.sequence import alike
from pellucid.engine.speculate import Proposer
from pellucid.errors import BadRequest, EmptyPrompt, OtherBase, PromptTooLong
from pellucid.families._describe import describe_checkpoint
from pellucid.families._tokenizer import no_tokenizer
from pellucid.model.adapters import attach
from pellucid.model.decoder import Decoder
from pellucid.model.low_rank import Choice
from pellucid.model.parts import Rows
from pellucid.model.report import LoadReport
from pellucid.records import Input, Record, input_file, sha256_of_text
from pellucid.spec import DecoderSpec
from pellucid.tokenizer import Tokenizer
from pellucid.tokenizer.template import ChatTemplate, chat_ids, choose
from pellucid.weights.adapter import AdapterFile, open_adapter
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.hub import resolve
from pellucid.weights.inputs import input_files

THINKING_MARKS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))  # Qwen, DeepSeek and most others; Magistral
PROMPT_END = 32  # tokens of a prompt that are looked at for an opened thinking mark: the mark and white space, spelled out at worst
Message = Mapping[str, Any]


class Model:
    """What `load` returns. Several may be used side by side, and each by several threads: whatever is asked at once is computed together.

    engine: what generates; made when it is first used. spec: what the decoder is. report: what loading decided. settings: how it was loaded,
    enough to load it again.
    chat_template: in place of the model's own, where one was given.
    """

    def __init__(self, decoder: Decoder, report: LoadReport, checkpoint: Checkpoint, tokenizer: Tokenizer | None, *,
                 settings: Mapping[str, Any]) -> None:
        self.decoder, self.report, self.checkpoint, self.settings = decoder, report, checkpoint, settings
        self._tokenizer = tokenizer
        self.chat_template: ChatTemplate | None = None
        self.proposer: Proposer | None = None
        self._adapters: dict[str, AdapterFile] = {}
        self._engine: Engine | None = None
        self._making = threading.Lock()  # functools.cached_property has none since Python 3.12, and two engines would share the memory of one

    @property
    def engine(self) -> Engine:
        """Raises OutOfMemoryBudget where its cache does not fit."""
        with self._making:
            if self._engine is None:
                self._engine = Engine(self.decoder, cache_bytes=self.settings["cache_bytes"], cache_dtype=self.settings["cache_dtype"],
                                      proposer=self.proposer)
            return self._engine

    @property
    def spec(self) -> DecoderSpec:
        return self.decoder.spec

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises BadTokenizer where the model came without one."""
        if self._tokenizer is None:
            raise no_tokenizer(self.checkpoint)
        return self._tokenizer

    def load_adapter(self, name: str, path: str | os.PathLike[str], *, any_base: bool = False) -> None:
        """Attaches the adapter at a folder, a .gguf file or a downloaded repository, for requests that say adapter=name: all of it, or nothing.

        any_base: also one that says, by content, that it was trained on another model than this, such as the same before it was quantized. Raises OtherBase
        for such a one otherwise, BadRequest for a name that is taken, and what `open_adapter` and `attach` raise.
        """
        file = open_adapter(resolve(path))
        if file.base_sha256 is not None and not any_base and file.base_sha256 != self.sha256:
            raise OtherBase(f"adapter {file.name!r} was trained on {file.base or 'a model'} with sha256 {file.base_sha256[:16]}..., and "
                            f"{self.checkpoint.name} is {self.sha256[:16]}.... Load the model it was trained on; where this is the same in another format, "
                            f"say --any-base (any_base=True)")
        described = describe_checkpoint(self.checkpoint, self.settings["accept_unread"])
        tables = [described.names] if self.checkpoint.gguf is None else []
        with self.engine.lock if self._engine is not None else nullcontext():
            attach(self.decoder, file, name, tables=tables, base=self.checkpoint.name)
        self._adapters[name] = file
        self.settings = {**self.settings, "adapters": {**self.settings.get("adapters", {}), name: os.path.abspath(resolve(path))}}
        self.report = replace(self.report, adapters=tuple(one.shown for one in self.decoder.adapters.values()),
                              notes=(*self.report.notes, *self.decoder.adapters[name].notes))

    def generate(self, prompt: str | Sequence[int], **options: Unpack[Options]) -> Completion:
        """The continuation of a prompt: text, or token ids that are used as they are. See Options for what may be asked.

        Raises BadRequest (EmptyPrompt, PromptTooLong) for what cannot be, BadTokenizer without a tokenizer.
        """
        return self._several([prompt], options, self.stream)[0]

    def batch(self, prompts: Iterable[str | Sequence[int]], **options: Unpack[Options]) -> list[Completion]:
        """The continuation of each prompt, computed together; those that begin alike share what is computed of it."""
        return self._several(several(prompts, "prompts"), {"reuse": True, **options}, self.stream)

    def chat(self, messages: Sequence[Message], *, tools: Sequence[Any] | None = None, documents: Sequence[Any] | None = None,
             template_args: Mapping[str, Any] | None = None, **options: Unpack[Options]) -> Completion:
        """The answer to a conversation: [{"role": "user", "content": "..."}, ...]. template_args reach the chat template by name.

        Raises what `generate` raises, and BadTemplate where there is no chat template or it does not render.
        """
        stream = partial(self.stream_chat, tools=tools, documents=documents, template_args=template_args)
        return self._several([messages], options, stream)[0]

    def stream(self, prompt: str | Sequence[int] | Sequence[Message], **options: Unpack[Options]) -> Stream:
        """`generate`, piece by piece; messages in place of a prompt are a `chat`. Checked here, computed as it is taken."""
        if isinstance(prompt, Sequence) and prompt and isinstance(prompt[0], Mapping):
            return self.stream_chat(prompt, **options)  # type: ignore[arg-type]
        return self.prepare(prompt, **options)()  # type: ignore[arg-type]

    def stream_chat(self, messages: Sequence[Message], *, tools: Sequence[Any] | None = None, documents: Sequence[Any] | None = None,
                    template_args: Mapping[str, Any] | None = None, **options: Unpack[Options]) -> Stream:
        """`chat`, piece by piece."""
        return self.prepare_chat(messages, tools=tools, documents=documents, template_args=template_args, **options)()

    def prepare(self, prompt: str | Sequence[int], **options: Unpack[Options]) -> Callable[[], Stream]:
        """What begins a `stream`: all that takes time is done, so that a thread which runs the engine may call it between two steps."""
        ids = self.prompt_ids(prompt)
        # A space between the prompt's text and the output's is the output's, so the decoder of text sees where the prompt ended.
        return self._prepared(ids, options, continues=ids, asked={"prompt": prompt if isinstance(prompt, str) else ids})

    def prepare_chat(self, messages: Sequence[Message], *, tools: Sequence[Any] | None = None, documents: Sequence[Any] | None = None,
                     template_args: Mapping[str, Any] | None = None, marks: Sequence[str] = (), **options: Unpack[Options]) -> Callable[[], Stream]:
        """What begins a `stream_chat`, as above. marks: special tokens that are shown in the text, for a reader that looks for them."""
        return self.prepare_chats(messages, [options], tools=tools, documents=documents, template_args=template_args, marks=marks)[1][0]

    def prepare_chats(self, messages: Sequence[Message], wanted: Sequence[Options], *, tools: Sequence[Any] | None = None,
                      documents: Sequence[Any] | None = None, template_args: Mapping[str, Any] | None = None,
                      marks: Sequence[str] = ()) -> tuple[int, list[Callable[[], Stream]]]:
        """The same for several answers to one conversation, which is rendered once; and how many ids it has."""
        ids, thinking = self._chat_prompt(messages, tools, documents, template_args)
        asked = {"messages": [dict(m) for m in messages], "tools": tools, "documents": documents, "template_args": dict(template_args or {})}
        own = [None if thinking is None else Thinking(thinking.opening, thinking.closing, opened=thinking.opened) for _ in wanted]  # each reads for itself
        return len(ids), [self._prepared(ids, one, thinking=each, asked=asked, marks=marks) for one, each in zip(wanted, own, strict=True)]

    def check_chat(self, messages: Sequence[Message], *, tools: Sequence[Any] | None = None, documents: Sequence[Any] | None = None,
                   template_args: Mapping[str, Any] | None = None, **options: Unpack[Options]) -> None:
        """Raises what `chat` would before it computes, but for a prompt that is too long, and what making the engine does. Computes nothing."""
        ids, thinking = self._chat_prompt(messages, tools, documents, template_args)
        wanted, _ = self._request(ids, options, thinking)
        self.decoder.check_adapters([wanted.adapter])
        Row(wanted, self.spec.n_vocab)  # raises for ids outside the vocabulary
        _ = self.engine

    def logits(self, ids: Sequence[int] | Tensor, *, adapter: str | None = None) -> Tensor:
        """(T, V) float32: for each position, what the model expects next. Nothing is added to the ids; no tokenizer is needed.

        Raises EmptyPrompt, PromptTooLong or BadRequest for ids that cannot be, UnknownAdapter.
        """
        plain, n_ctx = token_ids(ids, "ids"), self.spec.n_ctx
        if not plain:
            raise EmptyPrompt("ids is empty: there is no position to give logits for", field="ids")
        if len(plain) > n_ctx:
            raise PromptTooLong(f"{len(plain):,} ids do not fit this model's context of {n_ctx:,}", n_prompt=len(plain), n_ctx=n_ctx)
        check_vocabulary(plain, self.spec.n_vocab, "ids")
        with torch.no_grad():  # not inference mode: the caller may do with the result what they like
            hidden_TD = self.decoder(torch.tensor(plain, device=self.decoder.embed.weight.device), None, Rows((len(plain),), (0,), (adapter,)))
            logits_TV: Tensor = self.decoder.unembed(hidden_TD, Choice.of([adapter], [len(plain)])).float()
        return logits_TV

    def score(self, pairs: Iterable[tuple[str | Sequence[int], str | Sequence[int]]], *, top_logprobs: int = 0,
              adapter: str | None = None) -> list[Score]:
        """How likely each continuation is after its context: (context, continuation) pairs of texts, or of ids that are used as they are.

        Two texts are encoded as one, so that the continuation's ids are those the model would write; a space between them belongs to the second,
        and so does a token that begins in the first: after "Th", "e" is scored as the one token "The". An empty context scores every id but the
        first. Raises what `generate` raises, and EmptyPrompt where nothing is left to score.
        """
        return self.engine.score([self._pair(pair) for pair in several(pairs, "pairs")], top_logprobs, adapter=adapter)

    def embed(self, texts: Iterable[str | Sequence[int]], *, pooling: str = "mean", normalize: bool = True, activation: str | None = None,
              adapter: str | None = None) -> Tensor:
        """A vector for each text, (N, D), float32: its hidden states' mean, or the last one's (pooling="last"), of length one.

        activation: a module whose output is taken in place of the final hidden states, such as blocks.3.mlp. Raises what `generate` raises.
        """
        asked = [self.prompt_ids(text) for text in several(texts, "texts")]
        # Where there is no text a single id is computed: how wide an activation is stands nowhere else.
        found = self.engine.embed(asked or [[0]], pooling=pooling, normalize=normalize, activation=activation, adapter=adapter)
        return torch.stack([one.vector for one in found])[: len(asked)]

    def _pair(self, pair: tuple[str | Sequence[int], str | Sequence[int]]) -> tuple[list[int], list[int]]:
        if isinstance(pair, str | bytes) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise BadRequest(f"a pair is (context, continuation), and {pair!r:.80} came", field="pairs")
        context, continuation = pair
        if not isinstance(context, str) or not isinstance(continuation, str):
            if isinstance(context, str) or isinstance(continuation, str):
                raise BadRequest("a context and its continuation must both be text, or both token ids", field="continuation")
            return token_ids(context, "context"), token_ids(continuation, "continuation")
        if not continuation:
            raise EmptyPrompt("the continuation is empty: there is nothing to score", field="continuation")
        before = context.rstrip(" ")
        whole = self.prompt_ids(context + continuation)
        begin = self.prompt_ids(before) if before else whole[: len(whole) - len(self.tokenizer.encode(context + continuation))]
        n = alike(begin, whole)
        if len(whole) <= max(n, 1):  # nothing comes before the first id
            raise EmptyPrompt(f"nothing is left to score of {continuation!r:.60} after {context!r:.60}: together they are the ids {whole!r:.80}, and the "
                              f"context alone {begin!r:.80}. Expected an id of the continuation's own that another comes before. Give a longer "
                              f"continuation or context, or the pair as ids", field="continuation")
        return whole[:n], whole[n:]

    def save_prompt(self, prompt: str | Sequence[int] | Sequence[Message], file: str | os.PathLike[str]) -> Saved:
        """Writes what is computed of a prompt, or of the beginning of a conversation, so that a long one is paid for once.

        Of messages the last, unanswered turn should be left out: what follows it is the next prompt's. Raises what `save_prefix` raises.
        """
        return save_prefix(self.engine, self._beginning(prompt), file, model_sha256=self.sha256)

    def load_prompt(self, file: str | os.PathLike[str]) -> Saved:
        """Takes over what `save_prompt` wrote: requests that begin alike and say reuse=True do not compute it. Raises what `load_prefix` raises."""
        return load_prefix(self.engine, file, model_sha256=self.sha256)

    @cached_property
    def sha256(self) -> str:
        """Of everything that decides what is computed: config.json and the weights, by name. Takes a second a gigabyte or so, once."""
        names = ["config.json", *(path.name for path in self.checkpoint.files)]
        files = input_files(self.checkpoint)
        return sha256_of_text("\n".join(f"{name} {input_file(files[name]).sha256}" for name in names))

    def _beginning(self, prompt: str | Sequence[int] | Sequence[Message]) -> list[int]:
        if isinstance(prompt, Sequence) and prompt and isinstance(prompt[0], Mapping):
            template = choose(self.tokenizer, self.chat_template, tools=None)
            whole = chat_ids(self.tokenizer, prompt, template=template, tools=None, documents=None, template_args=None)  # type: ignore[arg-type]
            other = chat_ids(self.tokenizer, [*prompt, {"role": "user", "content": "?"}], template=template, tools=None, documents=None,  # type: ignore[list-item]
                             template_args=None)
            return whole[: alike(whole, other)]  # without what asks for an answer now, which another turn would put elsewhere
        return self.prompt_ids(prompt)  # type: ignore[arg-type]

    def prompt_ids(self, prompt: str | Sequence[int]) -> list[int]:
        """The ids a prompt becomes: BOS where the tokenizer wants it, or where there is nothing else. Special tokens never come from text."""
        if not isinstance(prompt, str):
            return token_ids(prompt, "prompt")
        tokenizer = self.tokenizer
        if not prompt and tokenizer.bos_id is None:
            raise EmptyPrompt(f"the prompt is empty, and {self.checkpoint.name!r} has no beginning-of-sequence token to start from. Give it a word",
                              field="prompt")
        begin = [tokenizer.bos_id] if tokenizer.bos_id is not None and (tokenizer.adds_bos or not prompt) else []
        return begin + tokenizer.encode(prompt)

    def record(self, completion: Completion, kind: str = "run") -> Record:
        """The run record of a completion: hashes every file that acted on it, which takes a second a gigabyte or so."""
        report, checkpoint = self.report, self.checkpoint
        text = {"text": completion.text, "text_sha256": sha256_of_text(completion.text), "finish_reason": completion.finish_reason,
                "token_ids": list(completion.token_ids), "prompt_ids": list(completion.prompt_ids)}
        measured = {"seconds": completion.seconds, "prefill_seconds": completion.prefill_seconds, "load_seconds": report.seconds,
                    **({"tokens_per_second": rate} if (rate := completion.tokens_per_second) is not None else {})}
        in_force = {"device": report.device, "dtype": report.dtype, "ops": self.decoder.ops.name, "ops_detail": report.ops, "activations": report.activations,
                    "threads": torch.get_num_threads()}
        return Record(kind=kind, settings={"load": dict(self.settings), "request": dict(completion.settings), "in_force": in_force},
                      seed=completion.seed, inputs=self.inputs(), output=text, measured=measured, accepted_unread=list(report.accepted),
                      licenses={checkpoint.name: report.license, **{one.source: one.license for one in self.decoder.adapters.values()}},
                      notes=list(report.notes))

    def inputs(self) -> dict[str, Input]:
        """Every file that acts on the output, by its role, hashed as it is on the disk now."""
        files = input_files(self.checkpoint)
        supplied = self.settings["chat_template"]
        if supplied is not None and os.path.isfile(supplied):
            files["--chat-template"] = Path(supplied)
        files |= {f"adapter {name}/{path.name}": path for name, adapter in self._adapters.items() for path in adapter.files}
        return {role: input_file(path) for role, path in files.items()}

    def chat_prompt_ids(self, messages: Sequence[Message], *, tools: Sequence[Any] | None = None, documents: Sequence[Any] | None = None,
                        template_args: Mapping[str, Any] | None = None) -> list[int]:
        """The ids a conversation becomes, up to where the answer begins. Raises BadTemplate and BadRequest as `chat` does."""
        return self._chat_prompt(messages, tools, documents, template_args)[0]

    def stop_ids(self) -> frozenset[int]:
        """The ids that end an answer: all that generation_config.json, config.json, a GGUF file's metadata and the tokenizer name."""
        from_tokenizer = {self._tokenizer.eos_id, *self._tokenizer.end_ids} if self._tokenizer is not None else set()
        return frozenset(i for i in {*self.checkpoint.eos_ids, *from_tokenizer} if i is not None)

    def _several(self, prompts: Sequence[Any], options: Mapping[str, Any], stream: Callable[..., Stream]) -> list[Completion]:
        """Every prompt's completion; where several of each are asked for, the first or the best, with all that are kept among its choices."""
        options = checked(options)
        n, wanted = each(options)
        streams = [[stream(prompt, **one) for one in wanted] for prompt in prompts]
        together(self.engine, [one for several in streams for one in several])
        return [chosen([one.result for one in several], n, logprobs=options.get("logprobs", False)) for several in streams]

    def _prepared(self, ids: list[int], options: Mapping[str, Any], *, asked: Mapping[str, Any], continues: Sequence[int] = (),
                  thinking: Thinking | None = None, marks: Sequence[str] = ()) -> Callable[[], Stream]:
        wanted, in_force = self._request(ids, options, thinking)
        tokenizer, engine = self.tokenizer, self.engine
        return lambda: Stream(engine.submit(wanted), tokenizer, stops=in_force["stop"], thinking=thinking, continues=continues, marks=marks,
                              settings={**asked, **in_force})

    def _request(self, ids: list[int], options: Mapping[str, Any], thinking: Thinking | None) -> tuple[Request, dict[str, Any]]:
        """One completion's, and all that is in force in it."""
        options = checked(options)
        if options.get("n", 1) != 1 or options.get("best_of") not in (None, 1):
            raise BadRequest("a stream is one completion. Ask generate or chat for several", field="n")
        after = thinking.closing if thinking is not None and thinking.opened else None
        return request(ids, options, self.tokenizer, self.stop_ids(), deterministic=self.decoder.deterministic, n_vocab=self.spec.n_vocab, after=after)

    def _chat_prompt(self, messages: Sequence[Message], tools: Sequence[Any] | None, documents: Sequence[Any] | None,
                     template_args: Mapping[str, Any] | None) -> tuple[list[int], Thinking | None]:
        """The ids of a conversation, and what tells the thinking of its answer."""
        template = choose(self.tokenizer, self.chat_template, tools=tools)
        ids = chat_ids(self.tokenizer, messages, template=template, tools=tools, documents=documents, template_args=template_args)
        return ids, self._thinking(ids, template)

    def _thinking(self, prompt_ids: Sequence[int], template: ChatTemplate) -> Thinking | None:
        """The splitter this model's answers need: its vocabulary or its chat template has marks around thinking."""
        for opening, closing in THINKING_MARKS:
            if self.tokenizer.id_of(closing) is not None or closing in template.source:
                end = self.tokenizer.decode(list(prompt_ids[-PROMPT_END:]), special=True).rstrip()
                return Thinking(opening, closing, opened=end.endswith(opening))
        return None

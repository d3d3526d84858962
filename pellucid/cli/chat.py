"""`pellucid chat`: a conversation in the terminal."""
from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from pellucid.cli import _options as o
from pellucid.cli._conversation import COMMANDS, Conversation, Leave, recommended, template_arguments
from pellucid.cli._conversation import command as steer
from pellucid.cli._frame import Json, emit, next_step, note
from pellucid.cli._shown import DIM, PLAIN, show, summary
from pellucid.cli._terminal import piped_lines, terminal_lines
from pellucid.errors import PellucidError, PromptTooLong
from pellucid.model.report import size


def command(
    model: o.Model = o.SHIPPED,
    system: Annotated[str | None, typer.Option("--system", help="The system message.")] = None,
    think: Annotated[bool, typer.Option("--think/--no-think", help="Show or hide what the model thinks before it answers.")] = True,
    template_arg: Annotated[list[str] | None, typer.Option("--template-arg", metavar="KEY=VALUE", help="For the chat template; may be repeated.")] = None,
    max_tokens: o.MaxTokens = None,
    temperature: o.Temperature = None,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    repetition_penalty: o.Repetition = None,
    presence_penalty: o.Presence = 0.0,
    frequency_penalty: o.Frequency = 0.0,
    logit_bias: o.LogitBias = None,
    stop: o.Stop = None,
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
    quiet: o.Quiet = False,
    json: Json = False,
) -> None:
    """Talk with a model. Enter sends, Esc-Enter or a trailing backslash begins a new line, /help lists what else there is.

    Where stdin is a pipe each of its lines is one message. Answers go to stdout, everything else to stderr; with --json each answer is
    one object on a line. Sampling follows the model's generation_config.json, or a GGUF file's metadata, where it recommends any and no option says
    otherwise.

    \b
    pellucid chat
    pellucid chat Qwen/Qwen3-0.6B --system "Answer in one sentence." --no-think
    echo "Why is the sky blue?" | pellucid chat ./model --json
    """
    asked = o.sampling(max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty,
                       presence_penalty=presence_penalty, frequency_penalty=frequency_penalty, logit_bias=logit_bias, stop=stop, seed=seed,
                       adapter=o.adapter_name(adapter))
    asked.pop("seed", None)  # the conversation's: each answer has its own
    arguments, cache_bytes = template_arguments(template_arg or ()), o.n_bytes(cache)
    loaded = o.load_model(model, accept_unread=accept_unread, quiet=quiet, device=device, dtype=dtype, ops=ops, activations=activations,
                          deterministic=deterministic, threads=threads, chat_template=chat_template, cache_bytes=cache_bytes,
                          cache_dtype=cache_dtype, draft=draft, adapter=adapter, any_base=any_base, gpu_layers=o.gpu_layers(gpu_layers))
    advised = {name: value for name, value in recommended(loaded.checkpoint.generation).items() if name not in asked}
    if advised and not quiet:
        by = "generation_config.json" if loaded.checkpoint.gguf is None else "its metadata"
        note(f"sampling  {', '.join(f'{name} {value}' for name, value in advised.items())}, as {by} recommends")
    options = {**advised, **asked}
    conversation = Conversation(loaded, options, system=system, template_args=arguments, seed=seed, show_thinking=think)
    # Computes nothing: a model that cannot chat says so now, and not after the first question.
    loaded.check_chat([{"role": "user", "content": "?"}], template_args=conversation.template_args, **options)
    interactive = sys.stdin.isatty()
    _Chat(conversation, interactive=interactive, quiet=quiet, json=json).run(_lines(conversation, interactive, quiet))
    if not quiet:
        next_step("pellucid", "run", *([model] if model != o.SHIPPED else []), "-p", "Once upon a time")


def _lines(conversation: Conversation, interactive: bool, quiet: bool) -> Iterator[str]:
    if not interactive:
        if not quiet:
            note("stdin is not a terminal: each of its lines is one message")
        return piped_lines()
    note("Enter sends · Esc-Enter or a trailing \\ begins a new line · Ctrl-C stops an answer · Ctrl-D leaves · /help")
    n_ctx = conversation.model.spec.n_ctx
    return terminal_lines(list(COMMANDS), lambda: f" {conversation.n_tokens:,} of {n_ctx:,} tokens · /help")


class _Chat:
    """Reads lines, shows answers. In a terminal an error ends its turn, in a pipe the program."""

    def __init__(self, conversation: Conversation, *, interactive: bool, quiet: bool, json: bool) -> None:
        self.conversation, self.interactive, self.quiet, self.json = conversation, interactive, quiet, json

    def run(self, lines: Iterator[str]) -> None:
        for line in lines:
            try:
                self.turn(line)
            except Leave:
                return
            except PromptTooLong as error:
                what = "context" if error.n_ctx == self.conversation.model.spec.n_ctx else "cache (--cache)"
                self.tell(f"the conversation has {error.n_prompt:,} tokens, and the {what} holds {error.n_ctx:,}. /clear begins a new one, "
                          f"/save FILE keeps this one first", error)
            except BrokenPipeError:
                raise
            except (PellucidError, OSError) as error:
                self.tell(str(error), error)

    def tell(self, words: str, error: Exception) -> None:
        if not self.interactive:
            raise error
        note(f"error: {words}")

    def turn(self, line: str) -> None:
        """One line: a command, a question, or nothing."""
        question: str | None = line
        if line.startswith("/") and not line.startswith("//"):
            question = steer(self.conversation, line, note)
        elif line.startswith("//"):
            question = line[1:]
        if question is not None and question.strip():
            self.answer(question)

    def answer(self, question: str) -> None:
        stream = self.conversation.ask(question)
        try:
            self.watch(stream)
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            stream.stop()
        completion = stream.result
        self.conversation.answered(completion)
        if self.json:
            emit(completion.as_dict())
        else:
            show("\n")
        if stream.interrupted:
            note("(stopped)")
        if completion.finish_reason == "context":
            note(f"{_full(self.conversation.model)}: /clear begins a new conversation, /save FILE keeps this one first")
        if not self.quiet and not self.json:
            note(summary(completion), dim=True)

    def watch(self, stream: Any) -> None:
        """The answer as it comes; thinking dimmed, or one word in its place."""
        dim, plain = (DIM, PLAIN) if sys.stdout.isatty() else ("", "")
        before = None
        for kind, piece in stream.parts():
            if self.json:
                continue
            if kind == "thinking" and not self.conversation.show_thinking:
                if before != kind:
                    note("(thinking; /think on shows it)")
            elif kind == "thinking":
                sys.stdout.write(dim if before != kind else "")
                show(piece)
            else:
                sys.stdout.write(f"{plain}\n\n" if before == "thinking" and self.conversation.show_thinking else "")
                show(piece)
            before = kind
        if before == "thinking" and self.conversation.show_thinking and not self.json:
            sys.stdout.write(plain)


def _full(model: Any) -> str:
    """What it is that has no room left: the model's context, or a cache that is smaller."""
    n_ctx, n_cached = model.spec.n_ctx, model.engine.cache.capacity(model.engine.scheduler.step_tokens)
    if n_cached < n_ctx:
        return f"the cache of {size(model.engine.cache_bytes)} is full with {n_cached:,} tokens, of a context of {n_ctx:,}; --cache gives it more"
    return f"the context of {n_ctx:,} tokens is full"

"""The server measured over real sockets: many clients at once, what it costs beside the bare engine and beside llama.cpp's, and thousands of odd ones.

    python benchmarks/serve.py load shipped --clients 1 8 64 --llama-cpp-python PATH
    python benchmarks/serve.py soak shipped --requests 20000
    python benchmarks/serve.py ready shipped

Add --json for the machine form. Clients are this process: they share the machine's cores with what they measure, on every side alike. Sides alternate, each
in a fresh process. --llama-cpp-python is an interpreter with llama-cpp-python and its server: pip install 'llama-cpp-python[server]'. That server writes one
answer at a time, and whoever else asks waits until it is whole (app.py holds a lock around the model). It takes prompts as text alone: so both are asked.
"""
from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from engine import alternating, spread, work
from speed import RANDOM, find, versions, warm

START_SECONDS = 120


@dataclass
class Told:
    """What one request saw, in seconds from asking."""

    status: int = 0
    texts: dict[int, str] = field(default_factory=dict)  # of each choice; of what is no answer, all of it
    at: list[float] = field(default_factory=list)  # when each event came
    reason: str | None = None  # why it ended
    finished: bool = False


async def ask(port: int, body: dict | bytes, *, leave_after: int | None = None, slow: float = 0.0) -> Told:
    """One request over a socket of its own, a chat where the body has messages. leave_after: so many events; slow: seconds before each is read."""
    told, begun = Told(), time.perf_counter()
    path = "/v1/chat/completions" if (b'"messages"' if isinstance(body, bytes) else "messages") in body else "/v1/completions"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        writer.write(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
                     .encode() + data)
        await writer.drain()
        told.status = int((await reader.readline()).split()[1])
        chunked = False
        while header := (await reader.readline()).strip().lower():
            chunked = chunked or header == b"transfer-encoding: chunked"
        if not chunked:
            data = await reader.read()
            told.texts = {choice["index"]: _said(choice) for choice in json.loads(data)["choices"]} if told.status == 200 else {0: data.decode()}
            told.finished = told.status == 200
            return told
        async for line in _lines(reader):
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                told.finished = True
                break
            told.at.append(time.perf_counter() - begun)
            for choice in json.loads(line[6:])["choices"]:
                told.texts[choice["index"]] = told.texts.get(choice["index"], "") + _said(choice)
                told.reason = choice["finish_reason"] or told.reason
            if leave_after is not None and len(told.at) >= leave_after:
                break
            if slow:
                await asyncio.sleep(slow)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return told


def _said(choice: dict) -> str:
    """A choice's words, calls of tools among them; those of a chunk of it."""
    if "text" in choice:
        return choice["text"]
    message = choice.get("delta") or choice.get("message") or {}
    return (message.get("content") or "") + "".join(json.dumps(call["function"]) for call in message.get("tool_calls") or ())


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[str]:
    """Of a chunked body: what tells chunks apart is no line of it."""
    held = b""
    while size := (await reader.readline()).strip():
        n = int(size, 16)
        if not n:
            return
        held += await reader.readexactly(n)
        await reader.readline()
        *lines, held = held.split(b"\n")
        for line in lines:
            yield line.decode()


@contextlib.contextmanager
def server(args: argparse.Namespace, side: str, path: Path, *more: str) -> Iterator[tuple[int, int, float]]:
    """(port, process id, seconds until it answered) of a server in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if side == "pellucid":
        words = [sys.executable, "-m", "pellucid", "serve", f"it={path}", "--port", str(port), "--threads", str(args.threads), "-q", *more]
    else:
        words = [args.llama_cpp_python, "-m", "llama_cpp.server", "--model", str(gguf(args, path)), "--port", str(port), "--n_ctx", "2048",
                 "--n_threads", str(args.threads), "--n_threads_batch", str(args.threads), "--verbose", "False", "--interrupt_requests", "False"]
    begun = time.perf_counter()
    with tempfile.TemporaryFile() as log:  # not a pipe: one that nobody reads fills up, and the server then waits for ever
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=log)
        try:
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5).read()
                    break
                except OSError:
                    if process.poll() is not None or time.perf_counter() - begun > START_SECONDS:
                        log.seek(0)
                        raise SystemExit(f"{side} did not start:\n{log.read().decode()[-3000:]}") from None
                    time.sleep(0.02)
            yield port, process.pid, time.perf_counter() - begun
        finally:
            process.terminate()
            process.wait(60)


# Clients at once

def gguf(args: argparse.Namespace, path: Path) -> Path:
    """The same weights with their tokenizer as one file, made once: benchmarks/engine.py's have no vocabulary, since ids go in there."""
    name = "shipped" if args.model == "shipped" else path.name
    target = args.scratch / f"{name}-text-{args.gguf}.gguf"
    if not target.exists():
        subprocess.run([sys.executable, "-m", "pellucid", "convert", str(path), str(target), "--dtype", args.gguf], check=True, stdout=subprocess.DEVNULL)
    return target


def texts_of(path: Path, args: argparse.Namespace, n: int) -> tuple[list[str], list[list[int]]]:
    """Texts of so many tokens with what a prompt begins with, and their ids: words in no order, so that no two begin alike."""
    import pellucid
    tokenizer = pellucid.load_tokenizer(path)
    draw, words = random.Random(args.seed), sorted(set((Path(pellucid.__file__).parent / "shipped" / "held_out.txt").read_text().split()))
    texts: list[str] = []
    while len(texts) < n:
        text = tokenizer.decode(tokenizer.encode(" ".join(draw.choices(words, k=args.prompt)), special=True)[: args.prompt])
        if len(tokenizer.encode(text, special=True)) == args.prompt:  # cut inside a word, it may read otherwise
            texts.append(text)
    return texts, [tokenizer.encode(text, special=True) for text in texts]


def post(port: int, body: dict) -> bytes:
    return urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(),
                                                         {"Content-Type": "application/json"}), timeout=60).read()


async def closed_loop(port: int, asked: list[dict], clients: int) -> tuple[list[Told], float]:
    """Every client asks, waits for the whole answer, and asks again. What each saw, and the seconds all took."""
    waiting, told, begun = list(asked), [], time.perf_counter()

    async def client() -> None:
        while waiting:
            told.append(await ask(port, waiting.pop()))
    await asyncio.gather(*(client() for _ in range(clients)))
    seconds = time.perf_counter() - begun
    if wrong := [t for t in told if t.status != 200 or t.reason != "length"]:
        raise SystemExit(f"{len(wrong)} of {len(told)} answers are not as long as asked, first: status {wrong[0].status}, ended by {wrong[0].reason}, "
                         f"{wrong[0].texts!r:.300}. Other prompts: --seed")
    return told, seconds


def seen(told: list[Told], seconds: float, args: argparse.Namespace) -> dict[str, float]:
    firsts = sorted(t.at[0] for t in told)
    gaps = sorted(b - a for t in told for a, b in zip(t.at, t.at[1:], strict=False))

    def at(values: list[float], share: float) -> float:
        return values[min(len(values) - 1, int(share * len(values)))]
    row = dict(requests_per_second=len(told) / seconds, output_tokens_per_second=len(told) * args.answer / seconds)
    for name, values in (("first_token_ms", firsts), ("between_ms", gaps)):
        row |= {f"{name}_{label}": 1e3 * at(values, share) for label, share in (("median", 0.5), ("p95", 0.95), ("p99", 0.99))}
    return row


def cell(args: argparse.Namespace, path: Path, side: str, clients: int) -> dict[str, float]:
    """One side's rates and waits with so many clients."""
    texts, ids = texts_of(path, args, clients * (args.each + 1))
    if side == "engine":  # as many at once, several times over
        [*runs] = work("pellucid", path, prompts=ids[:clients], answer=args.answer, repeats=args.each, threads=args.threads, dtype="auto")["runs"]
        return dict(output_tokens_per_second=clients * args.answer / statistics.median(run["seconds"] for run in runs))
    asked = [dict(prompt=text, max_tokens=args.answer, temperature=0, stream=True) for text in texts]
    with server(args, side, path) as (port, _, _):
        counted = json.loads(post(port, dict(asked[0], stream=False)))["usage"]["prompt_tokens"]
        if counted != args.prompt:
            raise SystemExit(f"{side} counts {counted} tokens in a prompt of {args.prompt}: the sides would not be asked alike")
        asyncio.run(closed_loop(port, asked[:min(clients, 8)], clients))  # warm, with prompts of its own: their pages would be found again
        return seen(*asyncio.run(closed_loop(port, asked[clients:], clients)), args)


def load(args: argparse.Namespace, path: Path) -> dict:
    """Per number of clients: each side's rates and waits, and our server's rate over the bare engine's for as many requests at once."""
    sides = ["engine", "pellucid", *(["llama.cpp"] if args.llama_cpp_python else [])]

    def measure(side: str, clients: int) -> dict:
        warm(path)
        return cell(args, path, side, clients)
    return {str(clients): over_rounds(alternating(sides, args.rounds, lambda side, clients=clients: measure(side, clients))) for clients in args.clients}


def over_rounds(rounds: list[dict[str, dict[str, float]]]) -> dict:
    """Each side's spread, and our server's output tokens per second over the others', round by round."""
    rows = {side: {name: spread([r[side][name] for r in rounds]) for name in rounds[0][side]} for side in rounds[0]}
    ratios = {f"pellucid / {other}": spread([r["pellucid"]["output_tokens_per_second"] / r[other]["output_tokens_per_second"] for r in rounds])
              for other in rows if other != "pellucid"}
    return dict(sides=rows, ratios=ratios)


def show_load(out: dict) -> str:
    lines = ["| clients | side | requests/s | output tok/s | first token, ms (median, p95, p99) | between, ms (median, p95, p99) | ratio |",
             "| --- | --- | --- | --- | --- | --- | --- |"]
    for clients, told in out.items():
        for side, row in told["sides"].items():
            waits = [" / ".join(f"{row[f'{name}_{q}']['median']:,.1f}" for q in ("median", "p95", "p99")) if f"{name}_median" in row else ""
                     for name in ("first_token_ms", "between_ms")]
            ratio = told["ratios"].get(f"pellucid / {side}")
            requests = f"{row['requests_per_second']['median']:,.1f}" if "requests_per_second" in row else ""
            lines.append(f"| {clients} | {side} | {requests} | {row['output_tokens_per_second']['median']:,.0f} | {waits[0]} | {waits[1]} | "
                         + (f"**{ratio['median']:.2f}** ({ratio['least']:.2f} to {ratio['most']:.2f}) |" if ratio else "|"))
    return "\n".join([*lines, "", "The ratio is that of our server's output tokens per second to this side's."])


# Thousands of odd clients

WRONG = [b"{", b"[]", b"\xff", b"[" * 100_000, b'{"prompt": 3}', b'{"prompt": "a", "max_tokens": 0}', b'{"prompt": "a", "regex": "("}',
         b'{"prompt": "a", "shoe": 1}', b'{"messages": []}', b'{"messages": [{"role": "user", "content": "a"}], "tool_choice": "required"}',
         b'{"messages": [{"role": "user", "content": "a"}], "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"typ": 1}}}}',
         json.dumps(dict(prompt="long " * 5000)).encode()]


def kinds_of_answers() -> list[dict]:
    """What is asked: texts and chats, streamed and whole, one and two at once, drawn and likeliest, free, held to a schema and calls of a tool."""
    words = ["The sea", "Once upon a time", "It was a dark", "She said", "A dog", "In the morning", "No", "Why did he"]
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["ok", "n"]}
    tool = {"type": "function", "function": {"name": "note", "parameters": schema}}
    held = dict(response_format={"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}, max_tokens=40)
    texts = [dict(prompt=word, max_tokens=n, seed=seed, stream=True) for word in words for n in (1, 5, 24) for seed in range(4)]
    chats = [dict(messages=[{"role": "user", "content": word}], seed=seed, stream=stream, **more) for word in words for seed, stream in ((1, True), (2, False))
             for more in (dict(max_tokens=12, n=2), held, dict(tools=[tool], tool_choice="required", parallel_tool_calls=False, max_tokens=60))]
    likeliest = [dict(prompt=word, max_tokens=n, temperature=0, stream=True, **more) for word in words for n in (1, 24, 60)
                 for more in ({}, dict(stop=[" and the", " man"]))]
    return texts + chats + likeliest  # of which several ids may come in one step


def soak(args: argparse.Namespace, path: Path) -> dict:
    """Whole answers beside ones that are left, slow readers and bodies that are wrong; each whole one is held against what it is alone."""
    kinds = kinds_of_answers()
    told: dict[str, int] = dict(whole=0, left=0, slow=0, refused=0, busy=0, wrong_answers=0, wrong_statuses=0)
    memory: list[float] = []
    draw = random.Random(args.seed)

    async def run(port: int, pid: int) -> None:
        alone = [(await ask(port, body)).texts for body in kinds]
        assert all(text for texts in alone for text in texts.values()), alone
        left = iter(range(args.requests))

        async def client() -> None:
            for i in left:
                if i % max(1, args.requests // 20) == 0:
                    memory.append(_resident_mb(pid))
                what, k = draw.random(), draw.randrange(len(kinds))
                if what < 0.1:
                    got = await ask(port, draw.choice(WRONG))
                    told["refused"] += 1
                    told["wrong_statuses"] += got.status != 400
                elif what < 0.3:
                    await ask(port, dict(kinds[k], max_tokens=200, stream=True), leave_after=draw.randrange(1, 6))
                    told["left"] += 1
                else:
                    slow = 0.02 if what < 0.32 else 0.0
                    got = await ask(port, kinds[k], slow=slow)
                    if got.status == 429:
                        told["busy"] += 1
                        continue
                    told["slow" if slow else "whole"] += 1
                    told["wrong_answers"] += not got.finished or got.texts != alone[k]
        await asyncio.gather(*(client() for _ in range(args.clients[0])))
        await asyncio.sleep(1)
        memory.append(_resident_mb(pid))
    with server(args, "pellucid", path, "--deterministic") as (port, pid, _):
        begun = time.perf_counter()
        asyncio.run(run(port, pid))
        seconds = time.perf_counter() - begun
        numbers = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    at_end = {name: float(value) for line in numbers.splitlines() if not line.startswith("#") for name, value in [line.split("{")[0:1] + line.split()[-1:]]}
    half = memory[len(memory) // 2]
    return dict(told, seconds=seconds, memory_mb=memory, growth_after_half=memory[-1] / half - 1, growth_after_tenth=memory[-1] / memory[2] - 1,
                running=at_end["pellucid_running"], cache_used_share=at_end["pellucid_cache_used_share"], failed=at_end["pellucid_failed_total"])


def _resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6


def show_soak(out: dict) -> str:
    rows = {key: value for key, value in out.items() if key != "memory_mb"}
    return "\n".join(["| | |", "| --- | --- |", *(f"| {key.replace('_', ' ')} | {value:,.4g} |" for key, value in rows.items()),
                      f"| resident MB, each twentieth | {' '.join(f'{mb:.0f}' for mb in out['memory_mb'])} |"])


def ready(args: argparse.Namespace, path: Path) -> dict:
    """Seconds from the start of the process to the first answer."""
    def one(_: str) -> dict:
        warm(path)
        with server(args, "pellucid", path) as (_, _, seconds):
            return dict(seconds=seconds)
    return dict(seconds=spread([r["ready"]["seconds"] for r in alternating(["ready"], args.rounds, one)]))


def show_ready(out: dict) -> str:
    row = out["seconds"]
    return f"From start to the first answer: {row['median']:.2f} s ({row['least']:.2f} to {row['most']:.2f})"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["load", "soak", "ready"])
    parser.add_argument("model", help=f"'shipped', {', '.join(map(repr, RANDOM))} or a folder")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64], help="at once; soak takes the first")
    parser.add_argument("--each", type=int, default=4, help="requests of each client")
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--answer", type=int, default=64, help="tokens")
    parser.add_argument("--requests", type=int, default=20_000, help="of a soak")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gguf", default="bf16", help="the kind of file llama.cpp's server is given")
    parser.add_argument("--scratch", type=Path, default=Path("out/bench"))
    parser.add_argument("--llama-cpp-python", metavar="PYTHON")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    args = parsed()
    path = find(args.model, args.scratch)
    measure, show = {"load": (load, show_load), "soak": (soak, show_soak), "ready": (ready, show_ready)}[args.command]
    started = time.time()
    out = measure(args, path)
    if args.json:
        settings = {name: str(value) for name, value in vars(args).items()}
        print(json.dumps(dict(command=args.command, model=args.model, versions=versions(), settings=settings, told=out), indent=1))
        return
    shown = list(sys.argv[1:])
    if "--llama-cpp-python" in shown:
        shown[shown.index("--llama-cpp-python") + 1] = "PYTHON"
    print(f"`python benchmarks/serve.py {' '.join(shown)}`\n\n{versions()}\n\n{show(out)}\n\nTook {time.time() - started:.0f} s.")


if __name__ == "__main__":
    main()

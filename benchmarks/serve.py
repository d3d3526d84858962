"""The server measured over real sockets: many clients at once, what it costs beside the bare engine and beside llama.cpp's, and thousands of odd ones.

    python benchmarks/serve.py load shipped --clients 1 8 64 --llama-cpp-python PATH
    python benchmarks/serve.py soak shipped --requests 20000
    python benchmarks/serve.py ready shipped

Add --json for the machine form. Clients are this process: they share the machine's cores with what they measure, on every side alike. Sides alternate, each
in a fresh process. --llama-cpp-python is an interpreter with llama-cpp-python and its server: pip install 'llama-cpp-python[server]'.
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
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from engine import alternating, gguf, prompts_of, spread, work
from speed import RANDOM, find, versions, warm

START_SECONDS = 120


@dataclass
class Told:
    """What one request saw, in seconds from asking."""

    status: int = 0
    text: str = ""
    at: list[float] = field(default_factory=list)  # when each event came
    finished: bool = False


async def ask(port: int, body: dict | bytes, *, leave_after: int | None = None, slow: float = 0.0, path: str = "/v1/completions") -> Told:
    """One request over a socket of its own. leave_after: so many events; slow: seconds before each is read."""
    told, begun = Told(), time.perf_counter()
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
            told.text = (await reader.read()).decode()
            return told
        async for line in _lines(reader):
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                told.finished = True
                break
            told.at.append(time.perf_counter() - begun)
            choices = json.loads(line[6:])["choices"]
            told.text += choices[0]["text"] if choices else ""
            if leave_after is not None and len(told.at) >= leave_after:
                break
            if slow:
                await asyncio.sleep(slow)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return told


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
        words = [args.llama_cpp_python, "-m", "llama_cpp.server", "--model", str(gguf(args, path, args.gguf)), "--port", str(port), "--n_ctx", "4096",
                 "--n_threads", str(args.threads), "--n_threads_batch", str(args.threads), "--verbose", "False", "--interrupt_requests", "False"]
    begun = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5).read()
                break
            except OSError:
                if process.poll() is not None or time.perf_counter() - begun > START_SECONDS:
                    assert process.stderr is not None
                    raise SystemExit(f"{side} did not start:\n{process.stderr.read().decode()[-3000:]}") from None
                time.sleep(0.02)
        yield port, process.pid, time.perf_counter() - begun
    finally:
        process.terminate()
        process.wait(60)


# Clients at once

def bodies(path: Path, args: argparse.Namespace, n: int) -> list[dict]:
    """Prompts that share no beginning, as ids where the server takes them."""
    n_vocab = json.loads((path / "config.json").read_text())["vocab_size"]
    return [dict(prompt=ids, max_tokens=args.answer, temperature=0, stream=True) for ids in prompts_of(n, args.prompt, n_vocab)]


async def closed_loop(port: int, asked: list[dict], clients: int) -> tuple[list[Told], float]:
    """Every client asks, waits for the whole answer, and asks again. What each saw, and the seconds all took."""
    waiting, told, begun = list(asked), [], time.perf_counter()

    async def client() -> None:
        while waiting:
            told.append(await ask(port, waiting.pop()))
    await asyncio.gather(*(client() for _ in range(clients)))
    return told, time.perf_counter() - begun


def seen(told: list[Told], seconds: float, args: argparse.Namespace) -> dict[str, float]:
    firsts = sorted(t.at[0] for t in told)
    gaps = sorted(b - a for t in told for a, b in zip(t.at, t.at[1:], strict=False))

    def at(values: list[float], share: float) -> float:
        return values[min(len(values) - 1, int(share * len(values)))]
    row = dict(requests_per_second=len(told) / seconds, output_tokens_per_second=len(told) * args.answer / seconds)
    for name, values in (("first_token_ms", firsts), ("between_ms", gaps)):
        row |= {f"{name}_{label}": 1e3 * at(values, share) for label, share in (("median", 0.5), ("p95", 0.95), ("p99", 0.99))}
    return row


def load(args: argparse.Namespace, path: Path) -> dict:
    """Per number of clients: each side's rates and waits, and our server's rate over the bare engine's for as many requests at once."""
    out = {}
    for clients in args.clients:
        asked = bodies(path, args, clients * args.each)
        sides = ["engine", "pellucid", *(["llama.cpp"] if args.llama_cpp_python and clients <= 8 else [])]

        def measure(side: str, asked: list[dict] = asked, clients: int = clients) -> dict:
            warm(path)
            if side == "engine":  # as many at once, several times over
                prompts = [body["prompt"] for body in asked[:clients]]
                [*runs] = work("pellucid", path, prompts=prompts, answer=args.answer, repeats=args.each, threads=args.threads, dtype="auto")["runs"]
                return dict(output_tokens_per_second=clients * args.answer / statistics.median(run["seconds"] for run in runs))
            with server(args, side, path) as (port, _, _):
                asyncio.run(closed_loop(port, asked[:clients], clients))  # warm
                return seen(*asyncio.run(closed_loop(port, asked, clients)), args)
        rounds = alternating(sides, args.rounds, measure)
        rows = {side: {name: spread([r[side][name] for r in rounds]) for name in rounds[0][side]} for side in sides}
        ratios = {f"pellucid / {other}": spread([r["pellucid"]["output_tokens_per_second"] / r[other]["output_tokens_per_second"] for r in rounds])
                  for other in sides if other != "pellucid"}
        out[str(clients)] = dict(sides=rows, ratios=ratios)
    return out


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

def soak(args: argparse.Namespace, path: Path) -> dict:
    """Whole answers beside ones that are left, slow readers and bodies that are wrong; each whole one is held against what it is alone."""
    words = ["The sea", "Once upon a time", "It was a dark", "She said", "A dog", "In the morning", "No", "Why did he"]
    kinds = [dict(prompt=prompt, max_tokens=n, temperature=1.0, seed=seed, stream=True) for prompt in words for n in (1, 5, 24) for seed in range(4)]
    wrong = [b"{", b"[]", b'{"prompt": 3}', b'{"prompt": "a", "max_tokens": 0}', b'{"prompt": "a", "regex": "("}', b'{"prompt": "a", "shoe": 1}',
             json.dumps(dict(prompt="long " * 5000)).encode()]
    told: dict[str, int] = dict(whole=0, left=0, slow=0, refused=0, busy=0, wrong_answers=0, wrong_statuses=0)
    memory: list[float] = []
    draw = random.Random(args.seed)

    async def run(port: int, pid: int) -> None:
        alone = [(await ask(port, body)).text for body in kinds]
        left = iter(range(args.requests))

        async def client() -> None:
            for i in left:
                if i % max(1, args.requests // 20) == 0:
                    memory.append(_resident_mb(pid))
                what, k = draw.random(), draw.randrange(len(kinds))
                if what < 0.1:
                    got = await ask(port, draw.choice(wrong))
                    told["refused"] += 1
                    told["wrong_statuses"] += got.status != 400
                elif what < 0.3:
                    await ask(port, dict(kinds[k], max_tokens=200), leave_after=draw.randrange(1, 6))
                    told["left"] += 1
                else:
                    slow = 0.02 if what < 0.32 else 0.0
                    got = await ask(port, kinds[k], slow=slow)
                    if got.status == 429:
                        told["busy"] += 1
                        continue
                    told["slow" if slow else "whole"] += 1
                    told["wrong_answers"] += not got.finished or got.text != alone[k]
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

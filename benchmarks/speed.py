"""Load time, time to the first token, prompt and decode speed, and peak memory, beside transformers in the same run.

    python benchmarks/speed.py shipped                     # the model in the package
    python benchmarks/speed.py random-1.1b --rounds 3      # a random Llama of TinyLlama's shape, bfloat16, made in --scratch; random-30m is a small one
    python benchmarks/speed.py PATH --json

Every measurement is a fresh process; the two sides alternate, and a round's ratio compares neighbours in time, because the
machines this runs on are noisy. Files are read before each, so that all begin with them in the system's cache. Above 1 means
Pellucid is better in that row. Both sides must write the same greedy tokens.
"""
from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

SIDES = ("pellucid", "transformers")
ROWS = {  # name -> (unit, whether more is better)
    "load_seconds": ("s", False), "first_token_seconds": ("s from process start", False), "prefill_tokens_per_second": ("tok/s", True),
    "decode_tokens_per_second": ("tok/s", True), "peak_memory_mb": ("MB", False)}
TINYLLAMA = dict(  # https://huggingface.co/TinyLlama/TinyLlama-1.1B-Chat-v1.0/blob/main/config.json
    architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22,
    num_attention_heads=32, num_key_value_heads=4, max_position_embeddings=2048, rms_norm_eps=1e-5, rope_theta=10000.0, hidden_act="silu",
    tie_word_embeddings=False, torch_dtype="bfloat16", bos_token_id=1, eos_token_id=2)
RANDOM = {"random-1.1b": TINYLLAMA,
          "random-30m": TINYLLAMA | dict(vocab_size=8192, hidden_size=512, intermediate_size=1280, num_hidden_layers=8, num_attention_heads=8),
          "random-58m": TINYLLAMA | dict(hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=8)}


def make_random(folder: Path, raw: dict) -> Path:
    """A random bfloat16 checkpoint of this config.json on disk, made once."""
    if (folder / "model.safetensors").exists():
        return folder
    import torch
    from safetensors.torch import save_file

    from pellucid.families import family
    from pellucid.families._config import Config
    from pellucid.model.decoder import Decoder
    from pellucid.ops.choose import choose
    from pellucid.weights.assemble import disassemble
    from pellucid.weights.names import NameTable
    folder.mkdir(parents=True, exist_ok=True)
    module = family(raw["model_type"])
    with torch.device("meta"):
        decoder = Decoder(module.spec(Config(raw)), choose())
    torch.manual_seed(0)
    tensors = {name: (torch.randn(p.shape) * 0.02 if p.ndim > 1 else torch.ones(p.shape)).bfloat16() for name, p in decoder.named_parameters()}
    save_file(disassemble(NameTable(module.WEIGHTS), tensors, decoder.spec), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def ids_for(n: int, n_vocab: int) -> list[int]:
    return [(i * 7919 + 13) % (n_vocab - 10) + 5 for i in range(n)]


def pellucid_side(path: str):  # -> (n_vocab, generate(ids, n) -> (ids, seconds to first, seconds in all))
    import pellucid
    from pellucid.engine.request import Request, Sampling
    model = pellucid.load(path)

    def run(ids: list[int], n: int):
        [[result]] = model.engine.run([Request(prompt_ids=ids, sampling=Sampling(temperature=0), max_tokens=n, reuse=False)])
        return list(result.token_ids), result.prefill_seconds, result.seconds
    return model.spec.n_vocab, run


def transformers_side(path: str):
    import torch
    import transformers
    from transformers.generation.streamers import BaseStreamer
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval()

    class Clock(BaseStreamer):
        """Notes when the first generated token is out; the first call brings the prompt."""

        def __init__(self) -> None:
            self.calls, self.first = 0, 0.0

        def put(self, value) -> None:
            self.calls += 1
            if self.calls == 2:
                self.first = time.perf_counter()

        def end(self) -> None:
            pass

    def run(ids: list[int], n: int):
        clock, start = Clock(), time.perf_counter()
        with torch.inference_mode():
            out = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False, max_new_tokens=n,
                                 min_new_tokens=n, streamer=clock, pad_token_id=0)
        return out[0, len(ids):].tolist(), clock.first - start, time.perf_counter() - start
    return model.config.vocab_size, run


def worker(side: str, path: str, started: float, n_prompt: int, n_tokens: int, repeats: int) -> None:
    import resource
    before = time.time()
    n_vocab, run = {"pellucid": pellucid_side, "transformers": transformers_side}[side](path)
    loaded = time.time()
    run(ids_for(8, n_vocab), 1)
    first = time.time()
    prompt = ids_for(n_prompt, n_vocab)
    prefill = [n_prompt / run(prompt, 2)[1] for _ in range(repeats)]
    decode = []
    for _ in range(repeats):
        ids, to_first, seconds = run(ids_for(8, n_vocab), n_tokens)
        decode.append((n_tokens - 1) / (seconds - to_first))
    print(json.dumps(dict(load_seconds=loaded - before, first_token_seconds=first - started, prefill_tokens_per_second=statistics.median(prefill),
                          decode_tokens_per_second=statistics.median(decode), peak_memory_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                          ids=ids)))


def warm(path: Path) -> None:
    """Reads a model's files, so that they lie in the system's cache for whoever loads them next: disks are not what is compared."""
    for file in [path] if path.is_file() else path.glob("*.safetensors"):
        with file.open("rb", buffering=0) as data:
            while data.read(1 << 24):
                pass


def measure(side: str, path: Path, args: argparse.Namespace) -> dict:
    warm(path)
    command = [sys.executable, __file__, str(path), "--worker", side, "--started", str(time.time()), "--prompt", str(args.prompt), "--tokens", str(args.tokens),
               "--repeats", str(args.repeats)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def better(row: str, ours: float, theirs: float) -> float:
    """How many times better ours is."""
    return ours / theirs if ROWS[row][1] else theirs / ours


def report(rounds: list[dict[str, dict]]) -> dict:
    out = {}
    for row, (unit, _) in ROWS.items():
        ratios = [better(row, r["pellucid"][row], r["transformers"][row]) for r in rounds]
        out[row] = dict(unit=unit, **{side: statistics.median(r[side][row] for r in rounds) for side in SIDES},
                        ratio=statistics.median(ratios), ratio_min=min(ratios), ratio_max=max(ratios))
    return out


def common_prefix(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


def versions() -> str:
    import tokenizers
    import torch
    import transformers

    import pellucid
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), platform.processor())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent).stdout.strip()
    return (f"pellucid {pellucid.__version__} ({commit}) · transformers {transformers.__version__} · torch {torch.__version__} · "
            f"tokenizers {tokenizers.__version__} · Python {platform.python_version()} · {os.cpu_count()} cores, {cpu}")


def find(model: str, scratch: Path) -> Path:
    """The folder of a model; a random one is made where it is not there yet."""
    if model in RANDOM:
        return make_random(scratch / model, RANDOM[model])
    return Path(__file__).parent.parent / "pellucid" / "shipped" if model == "shipped" else Path(model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help=f"'shipped', {', '.join(map(repr, RANDOM))} or a folder")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of processes")
    parser.add_argument("--repeats", type=int, default=3, help="measurements inside a process, of which the median counts")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt whose speed is measured")
    parser.add_argument("--tokens", type=int, default=64, help="tokens decoded after a prompt of 8")
    parser.add_argument("--scratch", type=Path, default=Path("out/bench"), help="where a random model is kept")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args.worker, args.model, args.started, args.prompt, args.tokens, args.repeats)
    path = find(args.model, args.scratch)
    rounds = []
    for i in range(args.rounds):
        order = SIDES if i % 2 == 0 else SIDES[::-1]
        rounds.append({side: measure(side, path, args) for side in order})
        print(f"round {i + 1}/{args.rounds} done", file=sys.stderr)
    same = [common_prefix(r["pellucid"]["ids"], r["transformers"]["ids"]) for r in rounds]
    result = report(rounds)
    if args.json:
        print(json.dumps(dict(model=args.model, versions=versions(), rounds=args.rounds, same_greedy_tokens=min(same), of=args.tokens, rows=result), indent=1))
        return None
    print(f"`python benchmarks/speed.py {' '.join(sys.argv[1:])}`\n\n{versions()}\n")
    print("| | pellucid | transformers | ratio (worst to best round) |\n| --- | --- | --- | --- |")
    for row, r in result.items():
        spread = f"**{r['ratio']:.2f}** ({r['ratio_min']:.2f} to {r['ratio_max']:.2f})"
        print(f"| {row.replace('_', ' ')} | {r['pellucid']:,.2f} | {r['transformers']:,.2f} | {spread} |")
    print(f"\nGreedy tokens equal on both sides: {min(same)} of {args.tokens}. Prompt {args.prompt} tokens, decode {args.tokens}, {args.rounds} rounds.")
    return None


if __name__ == "__main__":
    main()

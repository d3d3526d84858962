"""What routed experts cost: time a token over the number of experts and of active ones, beside transformers in the same run.

    python benchmarks/moe.py layer                 # one layer of width 1024, experts of 512: 8 to 256 with 8 active, then 1 to 8 active of 64
    python benchmarks/moe.py decoder               # a model of four such layers with attention, made in --scratch
    python benchmarks/moe.py layer --loads decode --rounds 9 --json

Both sides compute with the very same numbers in bfloat16, in one process. Every input is new, so that a router chooses anew, and goes to another
layer of a bank that is as large however many experts a layer has, so that no cache favors the small; the sides take turns input by input. A round
is the median of its inputs, its ratio compares neighbors in time; above 1 means Pellucid is faster. "alone" are the visited experts without any
routing, each with an even share of the rows: what a routed layer cannot be faster than.
"""
from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from speed import make_random, versions
from torch import Tensor, nn

from pellucid.model.cache import Cache
from pellucid.model.decoder import Decoder
from pellucid.model.experts import MixtureOfExperts
from pellucid.model.parts import Rows
from pellucid.ops.choose import choose
from pellucid.spec import Experts, FeedForward

D, F = 1024, 512
LOADS: dict[str, Callable[[int, int], int]] = {  # name -> tokens of a pass, from the number of experts and of active ones
    "decode": lambda n_experts, n_active: 1, "decode 8 rows": lambda n_experts, n_active: 8,
    "prefill 32": lambda n_experts, n_active: 32 * n_experts // n_active, "prefill 128": lambda n_experts, n_active: 128 * n_experts // n_active}
SHAPES = {"layer": [*((x, 8) for x in (8, 16, 32, 64, 128, 256)), *((64, a) for a in (1, 2, 4, 8))],
          "decoder": [*((x, 8) for x in (8, 32, 128)), *((32, a) for a in (1, 2, 4, 8))]}
QWEN3_MOE = dict(  # the keys of https://huggingface.co/Qwen/Qwen3-30B-A3B/blob/main/config.json, with smaller numbers
    architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", vocab_size=8192, hidden_size=D, intermediate_size=4096, moe_intermediate_size=F,
    num_hidden_layers=4, num_attention_heads=16, num_key_value_heads=4, head_dim=64, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[],
    max_position_embeddings=4096, rms_norm_eps=1e-6, rope_theta=1e6, hidden_act="silu", tie_word_embeddings=False, attention_bias=False,
    torch_dtype="bfloat16")
CLOSE = 0.03  # of a token's result, at the median token: a few roundings of 2**-8 on either side; at others a rounding may choose another expert

Side = Callable[[Tensor], Any]


def random(*shape: int) -> Tensor:
    """bfloat16, of a size that keeps the sizes of what it multiplies."""
    return (torch.randn(shape) * shape[-1] ** -0.5).bfloat16()


class Bank:
    """Many experts, cut into layers of `n_experts`; both sides read the same memory."""

    def __init__(self, n_experts: int) -> None:
        self.router_XD = random(n_experts, D)
        self.gate_up_XFD = torch.stack([random(2 * F, D) for _ in range(n_experts)])
        self.down_XDF = torch.stack([random(D, F) for _ in range(n_experts)])

    def cut(self, n_experts: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        parts = (x.split(n_experts) for x in (self.router_XD, self.gate_up_XFD, self.down_XDF))
        return ((router, gate_up, down) for router, gate_up, down in zip(*parts, strict=True) if len(router) == n_experts)

    def ours(self, n_experts: int, n_active: int) -> list[MixtureOfExperts]:
        spec, layers = Experts(n_experts=n_experts, n_active=n_active, renormalize=True, each=FeedForward(d_ff=F)), []
        for router_XD, gate_up_XFD, down_XDF in self.cut(n_experts):
            with torch.device("meta"):
                layers.append(MixtureOfExperts(choose(), D, spec))
            layers[-1].router.weight = nn.Parameter(router_XD)
            for expert, gate_up, down in zip(layers[-1].experts, gate_up_XFD, down_XDF, strict=True):
                for project, weight in ((expert.gate, gate_up[:F]), (expert.up, gate_up[F:]), (expert.down, down)):
                    project.weight = nn.Parameter(weight)
        return layers

    def theirs(self, n_experts: int, n_active: int, implementation: str) -> list[Side]:
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeConfig, Qwen3MoeSparseMoeBlock
        config = Qwen3MoeConfig(hidden_size=D, moe_intermediate_size=F, num_experts=n_experts, num_experts_per_tok=n_active, norm_topk_prob=True)
        config._experts_implementation = implementation
        layers: list[Side] = []
        for router_XD, gate_up_XFD, down_XDF in self.cut(n_experts):
            with torch.device("meta"):
                layer = Qwen3MoeSparseMoeBlock(config)
            layer.gate.weight = nn.Parameter(router_XD)
            layer.experts.gate_up_proj, layer.experts.down_proj = nn.Parameter(gate_up_XFD), nn.Parameter(down_XDF)
            layers.append(lambda x_TD, layer=layer: layer(x_TD[None])[0])
        return layers


def alone(layer: MixtureOfExperts, n_active: int, visited: int) -> Side:
    """The layer's experts, as many as are visited, each with an even share of what all of them read."""
    experts = list(layer.experts)[:visited]
    return lambda x_TD: [expert(x_TD[: -(-len(x_TD) * n_active // visited)]) for expert in experts]


def visited(layer: MixtureOfExperts, n_tokens: int) -> int:
    """How many experts random tokens choose, on average."""
    logits = [layer.router(torch.randn(n_tokens, D).bfloat16()) for _ in range(20)]
    return round(statistics.mean(layer.ops.route(logits_TX, None, layer.spec)[1].unique().numel() for logits_TX in logits))


class Models:
    """The same checkpoint on both sides. "copied" is ours with the weights copied out of the mapped file, where they start wherever its header ends.

    transformers stacks a layer's experts as it loads them: its weights are copies too.
    """

    def __init__(self, folder: Path, *, ahead: int) -> None:
        import transformers

        import pellucid
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self.ours, self.copied, self.ahead = pellucid.load(folder).decoder, pellucid.load(folder).decoder, ahead
        for p in self.copied.parameters():
            p.data = p.data.clone()
        self.theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()

    def sides(self, load: str, n_rows: int) -> dict[str, list[Side]]:
        """Ids (B, T) to logits of each row's last token: of a prompt from nothing, or of one more token after `ahead` of them."""
        if load.startswith("prefill"):
            return {"pellucid": [self.prompt(self.ours)], "copied": [self.prompt(self.copied)],
                    "transformers": [lambda ids_BT: self.theirs(ids_BT, use_cache=False, logits_to_keep=1).logits[:, 0]]}
        from transformers import DynamicCache
        cache, ids_BT = DynamicCache(config=self.theirs.config), ids(n_rows, self.ahead)
        self.theirs(ids_BT, past_key_values=cache, use_cache=True)
        return {"pellucid": [self.step(self.ours, ids_BT)], "copied": [self.step(self.copied, ids_BT)],
                "transformers": [lambda ids_B1: self.theirs(ids_B1, past_key_values=cache, use_cache=True).logits[:, 0]]}

    @staticmethod
    def prompt(decoder: Decoder) -> Side:
        return lambda ids_1T: decoder.unembed(decoder(ids_1T[0])[-1:])

    @staticmethod
    def step(decoder: Decoder, ids_BT: Tensor) -> Side:
        cache, (B, T) = Cache(decoder.spec, len(ids_BT)), ids_BT.shape
        decoder(ids_BT.flatten(), None, Rows.of(*[T] * B), cache)
        return lambda ids_B1: decoder.unembed(decoder(ids_B1.flatten(), None, Rows.of(*[1] * B), cache))


def ids(n_rows: int, n_tokens: int) -> Tensor:
    return torch.randint(0, QWEN3_MOE["vocab_size"], (n_rows, n_tokens))


def distance(a: Tensor, b: Tensor) -> float:
    """How far two results are apart, relative to their size: at the median row."""
    return float(((a.float() - b.float()).norm(dim=-1) / b.float().norm(dim=-1)).median())


def take_turns(sides: dict[str, list[Side]], new_input: Callable[[], Tensor], args: argparse.Namespace, repeats: int) -> Iterator[dict[str, float]]:
    """For each round the median seconds of every side. Of a side's layers each input meets the next."""
    clock, n = time.process_time if args.processor_time else time.perf_counter, 0
    for layers in sides.values():
        layers[0](new_input())
    for _ in range(args.rounds):
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(repeats):
            x, order, n = new_input(), list(sides), n + 1
            for name in order[n % len(order) :] + order[: n % len(order)]:
                start = clock()
                sides[name][n % len(sides[name])](x)
                seconds[name].append(clock() - start)
        yield {name: statistics.median(values) for name, values in seconds.items()}


def row(load: str, n_experts: int, n_active: int, n_tokens: int, sides: dict[str, list[Side]], new_input: Callable[[], Tensor],
        args: argparse.Namespace, **facts: Any) -> dict[str, Any]:
    """One line of a table: our microseconds a token, and how many times as long every other side takes (worst round, median, best)."""
    measured = list(take_turns(sides, new_input, args, args.repeats if load.startswith("prefill") else 5 * args.repeats))
    ratios = {name: [r[name] / r["pellucid"] for r in measured] for name in sides if name != "pellucid"}
    print(f"{load}, {n_active} of {n_experts} done", file=sys.stderr)
    return dict(load=load, n_experts=n_experts, n_active=n_active, n_tokens=n_tokens, **facts,
                us_per_token=1e6 * statistics.median(r["pellucid"] for r in measured) / n_tokens,
                ratios={name: [min(r), statistics.median(r), max(r)] for name, r in ratios.items()})


def measure_layers(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    bank = Bank(args.most)
    for load, (n_experts, n_active) in ((load, shape) for load in args.loads for shape in args.shapes):
        n_tokens, ours = LOADS[load](n_experts, n_active), bank.ours(n_experts, n_active)
        n_visited = visited(ours[0], n_tokens)
        sides = {"pellucid": ours, "grouped_mm": bank.theirs(n_experts, n_active, "grouped_mm"), "eager": bank.theirs(n_experts, n_active, "eager"),
                 "alone": [alone(layer, n_active, n_visited) for layer in ours]}
        x_TD = torch.randn(n_tokens, D).bfloat16()
        if (apart := distance(ours[0](x_TD), sides["eager"][0](x_TD))) > CLOSE:
            raise SystemExit(f"{load}, {n_active} of {n_experts}: the sides are {apart:.3f} apart, where bfloat16 explains {CLOSE}")
        yield row(load, n_experts, n_active, n_tokens, sides, lambda n=n_tokens: torch.randn(n, D).bfloat16(), args, visited=n_visited)


def measure_decoders(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for n_experts, n_active in args.shapes:
        config = QWEN3_MOE | {"num_experts": n_experts, "num_experts_per_tok": n_active}
        models = Models(make_random(args.scratch / f"moe-{n_active}-of-{n_experts}", config), ahead=32)
        for load in args.loads:
            n_tokens = LOADS[load](n_experts, n_active)
            n_rows, length = (1, n_tokens) if load.startswith("prefill") else (n_tokens, 1)
            yield row(load, n_experts, n_active, n_tokens, models.sides(load, n_rows), lambda n=n_rows, t=length: ids(n, t), args)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; `to the first` compares the time a token with that of the table's first row."""
    others = list(rows[0]["ratios"])
    head = ["experts", "active", "tokens", *(["visited"] if "visited" in rows[0] else []), "µs a token", "to the first", *others]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for r in rows:
        ratios = [f"**{middle:.2f}** ({low:.2f} to {high:.2f})" for low, middle, high in (r["ratios"][name] for name in others)]
        cells = [r["n_experts"], r["n_active"], r["n_tokens"], *([r["visited"]] if "visited" in r else []), f"{r['us_per_token']:,.0f}",
                 f"{r['us_per_token'] / rows[0]['us_per_token']:.2f}", *ratios]
        lines.append(" | ".join(map(str, cells)))
    return "\n".join(f"| {line} |" for line in lines)


def tables(rows: list[dict[str, Any]]) -> Iterator[str]:
    """For each load: the number of experts grows, then the number of active ones."""
    for load in dict.fromkeys(r["load"] for r in rows):
        of_load = [r for r in rows if r["load"] == load]
        most = max(r["n_active"] for r in of_load)
        for what, part in (("more experts", [r for r in of_load if r["n_active"] == most]), ("more active", active_grows(of_load))):
            if len(part) > 1:
                yield f"### {load}: {what}\n{table(part)}\n"


def active_grows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the number of experts that was measured with more than one number of active ones."""
    actives: dict[int, set[int]] = {}
    for r in rows:
        actives.setdefault(r["n_experts"], set()).add(r["n_active"])
    return sorted((r for r in rows if len(actives[r["n_experts"]]) > 1), key=lambda r: r["n_active"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=SHAPES)
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS), help="decode: tokens of a pass; prefill: tokens for each expert")
    parser.add_argument("--most", type=int, default=256, help="experts of the largest layer; 256 take 0.8 GB, and 128 in a decoder 3.2 GB")
    parser.add_argument("--rounds", type=int, default=7, help="of which the worst, the median and the best are shown")
    parser.add_argument("--repeats", type=int, default=3, help="inputs of a round in prefill; five times as many in decoding")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--processor-time", action="store_true", help="instead of the time on the wall: with one thread it holds on a busy machine")
    parser.add_argument("--scratch", type=Path, default=Path("out/bench"), help="where random models are kept")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.shapes = [shape for shape in dict.fromkeys(SHAPES[args.what]) if shape[0] <= args.most]
    with torch.inference_mode():
        rows = list({"layer": measure_layers, "decoder": measure_decoders}[args.what](args))
    if args.json:
        how = {name: getattr(args, name) for name in ("what", "threads", "rounds", "repeats", "processor_time")}
        print(json.dumps(dict(versions=versions(), **how, rows=rows), indent=1))
        return
    print(f"`python benchmarks/moe.py {shlex.join(sys.argv[1:])}`\n\n{versions()} · {args.threads} threads\n")
    print("\n".join(tables(rows)))


if __name__ == "__main__":
    main()

"""`pellucid plan`: whether a model fits, how fast and how dear it is, from its widths alone."""
from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any

import typer

from pellucid import cost
from pellucid.catalog import cards, planning
from pellucid.catalog import hardware as machines
from pellucid.catalog.cards import Card
from pellucid.catalog.footprint import LADDER, MOMENTS, Footprint
from pellucid.catalog.hardware import Hardware
from pellucid.catalog.planning import FITS
from pellucid.catalog.subject import Subject, subject
from pellucid.cli import _options as o
from pellucid.cli._frame import Json, emit, next_step, note
from pellucid.cli.models import tokens
from pellucid.errors import BadRequest, did_you_mean, nearest
from pellucid.model.report import binary, count, size

METHODS = ("full", "lora", "qlora")
_SHOWN = ("rtx-4090", "l40s", "h100")  # beside this machine, where nobody names others


def command(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="A name of the catalog, a folder, a GGUF file, or owner/name on the hub.")] = None,
    context: Annotated[str | None, typer.Option("--context", metavar="TOKENS", help="Of a row, such as 32k; else 4096, or what it reaches.")] = None,
    batch: Annotated[int, typer.Option("--batch", help="Rows at once.")] = 1,
    quantize: Annotated[str | None, typer.Option("--quantize", metavar="FORMAT", help="bf16, q8_0, q4_k_m, ...; else the widest that fits.")] = None,
    on: Annotated[list[str] | None, typer.Option("--on", metavar="HARDWARE", help="h100, m4-max, ..., `here`, or `gpu`, the cards here; repeatable.")] = None,
    memory: Annotated[str | None, typer.Option("--memory", metavar="SIZE", help="What this machine has, in place of what is free.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure this machine's memory and arithmetic for a second, for speeds here.")] = False,
    prompt: Annotated[str, typer.Option("--prompt", metavar="TOKENS", help="Of the prompt whose first token is waited for.")] = "512",
    price: Annotated[float | None, typer.Option("--price", metavar="DOLLARS", help="A million tokens elsewhere: when is renting cheaper?")] = None,
    grid: Annotated[str, typer.Option("--grid", metavar="LAND|GRAMS", help="CO2 of a kilowatt-hour: world, us, de, fr, ..., or grams.")] = "world",
    train: Annotated[str | None, typer.Option("--train", metavar="METHOD", help="full, lora or qlora: time and money of a fine-tune.")] = None,
    tokens_: Annotated[str, typer.Option("--tokens", metavar="TOKENS", help="To train on, such as 10M.")] = "10M",
    seq: Annotated[str | None, typer.Option("--seq", metavar="TOKENS", help="Of one row in training; else 2048, or what it reaches.")] = None,
    rank: Annotated[int, typer.Option("--rank", help="Of LoRA's factors.")] = 16,
    optimizer: Annotated[str, typer.Option("--optimizer", metavar="NAME", help="adamw, adamw8bit or sgd.")] = "adamw",
    pretrain: Annotated[bool, typer.Option("--pretrain", help="A compute-optimal model for --flops or --budget; without MODEL.")] = False,
    flops: Annotated[float | None, typer.Option("--flops", help="Arithmetic to spend, such as 1e21.")] = None,
    budget: Annotated[float | None, typer.Option("--budget", metavar="DOLLARS", help="Money to spend on --on hardware.")] = None,
    fit: Annotated[str, typer.Option("--fit", metavar="NAME", help="besiroglu or hoffmann: whose constants.")] = "besiroglu",
    json: Json = False,
) -> None:
    """Say what a model needs and does, before anything is downloaded: weights by format, cache, what fits where, the largest context,
    speed by the roofline, seconds, money, energy and CO2 for a million tokens; what training it takes. Bounds, not promises.

    \b
    pellucid plan llama-3.1-8b --on rtx-4090 --context 32k
    pellucid plan ./model --measure
    pellucid plan qwen3-8b --train qlora --tokens 20M --on l40s
    pellucid plan --pretrain --budget 10000 --on h100
    """
    grams = machines.grid(grid)
    if pretrain:
        return _pretrain(model, flops, budget, on or ["h100"], fit, json)
    if model is None:
        raise BadRequest("no model was named: pellucid plan MODEL, or pellucid plan --pretrain", field="model")
    for option, value, known in (("--train", train, METHODS), ("--optimizer", optimizer, tuple(MOMENTS))):
        if value is not None and value not in known:
            raise BadRequest(f"{option} {value!r} is none of {', '.join(known)}.{did_you_mean(nearest(value, known))}", field=option[2:])
    if batch < 1 or rank < 1:
        raise BadRequest(f"--batch {batch} and --rank {rank} begin at 1", field="batch" if batch < 1 else "rank")
    if price is not None and not 0 < price < float("inf"):
        raise BadRequest(f"--price {price:g}: dollars a million tokens were expected, more than 0", field="price")
    here = _here(memory, measure)
    asked = subject(model)
    found = cards.cards()
    places = _places(on, here, found)
    footprint = Footprint(asked.spec)
    n, n_seq = _within(context, "--context", 4096, asked), _within(seq, "--seq", 2048, asked)
    formats = dict.fromkeys([*LADDER, *([quantize.lower()] if quantize else [])])
    facts: dict[str, Any] = {
        "model": asked.name, "read_from": asked.read_from, "parameters": cost.parameters(asked.spec), "active": cost.active_parameters(asked.spec),
        "context": n, "batch": batch, "stored_bytes": asked.stored, "weight_bytes": {format: footprint.weight_bytes(format) for format in formats},
        "cache_bytes_per_token": cost.cache_bytes_per_token(asked.spec, 2), "cache_bytes": batch * footprint.cache_bytes(n),
        "step_bytes": footprint.step_bytes(), "grams_per_kwh": grams,
        "machine": {"name": here.name, "cores": here.cores, "instructions": list(here.instructions), "memory": here.memory, "measured": here.measured,
                    "bandwidth": here.bandwidth, "gpus": [asdict(card) for card in found]}}
    if train is not None:
        facts["training"] = _training(footprint, places, train, tokens(tokens_, "--tokens", kilo=1000) or 0, n_seq, batch, rank, optimizer, grams)
    else:
        facts["training_bytes"] = {method: sum(footprint.training_bytes(method, n_tokens=n_seq, optimizer=optimizer, rank=rank).values())
                                   for method in METHODS}
        facts["places"] = [_place(footprint, each, quantize, n, batch, tokens(prompt, "--prompt") or 1, price, grams) for each in places]
    if json:
        emit(facts)
        return None
    _print(asked, facts, found, train)
    return None


def _here(memory: str | None, measure: bool) -> Hardware:
    room = o.n_bytes(memory, "--memory")
    here = machines.this_machine(measure=measure)
    return here if room is None else replace(here, memory=room)


def _places(on: list[str] | None, here: Hardware, found: Sequence[Card]) -> list[Hardware]:
    """What is asked for; else this machine, its cards, and what many have."""
    owned = cards.places(found)
    told: list[Hardware] = []
    for key in on or ["here", *(card.key for card in owned), *_SHOWN]:
        if key == "gpu" and not owned:
            raise BadRequest(f"--on gpu: this machine has {cards.describe(found)}. Name one of the catalog, such as --on l4", field="on")
        told += owned if key == "gpu" else [here] if key == "here" else [card for card in owned if card.key == key] or [machines.find(key)]
    return told


def _within(said: str | None, option: str, usual: int, asked: Subject) -> int:
    """Tokens of an option, or as many as are usual and fit. Raises BadRequest for more than the model reaches."""
    wanted = tokens(said, option)
    if wanted is not None and wanted > asked.spec.n_ctx:
        raise BadRequest(f"{option} {said}: {asked.name} reaches {asked.spec.n_ctx:,} tokens. Ask for no more", field=option[2:])
    return wanted or min(usual, asked.spec.n_ctx)


def _place(footprint: Footprint, place: Hardware, quantize: str | None, n: int, batch: int, prompt: int, price: float | None,
           grams: float) -> dict[str, Any]:
    """What this model does in one place."""
    best = footprint.best_format(place.memory, n, batch)
    format = quantize.lower() if quantize else best
    told: dict[str, Any] = {"key": place.key, "name": place.name, "memory": place.memory, "best_format": best, "format": format}
    if format is None:
        return told | {"fits": False, "needed_bytes": footprint.peak_bytes(LADDER[-1], n, batch)}
    speed = planning.speed(footprint, place, format=format, prompt=prompt, context=n, batch=batch)
    needed = footprint.peak_bytes(format, n, batch)
    told |= {"fits": needed <= place.memory, "needed_bytes": needed, "largest_context": footprint.largest_context(place.memory, format, batch),
             "speed": None if speed is None else asdict(speed)}
    if speed is not None and told["fits"]:
        told["price"] = asdict(planning.price(speed.decode, place, grams_per_kwh=grams, dollars_per_million=price))
    return told


def _training(footprint: Footprint, places: list[Hardware], method: str, n_tokens: int, n_seq: int, batch: int, rank: int, optimizer: str,
              grams: float) -> dict[str, Any]:
    parts, again = (footprint.training_bytes(method, n_tokens=batch * n_seq, optimizer=optimizer, rank=rank, recomputed=each) for each in (False, True))
    least = sum(again.values())
    told: list[dict[str, Any]] = []
    for place in places:
        seconds = planning.training_seconds(footprint, place, n_tokens=n_tokens, n_seq=n_seq, method=method)
        cards = max(1, -(-least // place.memory))
        kwh = None if seconds is None or place.watts is None else place.watts * seconds / 3.6e6
        told.append({"key": place.key, "name": place.name, "fits": least <= place.memory, "recomputed": sum(parts.values()) > place.memory, "of_them": cards,
                     "device_seconds": seconds, "dollars": None if seconds is None or place.rent is None else seconds / 3600 * place.rent, "kwh": kwh,
                     "co2_grams": None if kwh is None else kwh * grams})
    trained = cost.parameters(footprint.spec) if method == "full" else footprint.adapter_numbers(rank)
    return {"method": method, "tokens": n_tokens, "seq": n_seq, "batch": batch, "rank": None if method == "full" else rank, "optimizer": optimizer,
            "bytes": parts, "total_bytes": sum(parts.values()), "recomputed_bytes": least, "trained": trained, "places": told}


def _print(asked: Subject, facts: dict[str, Any], found: Sequence[Card], train: str | None) -> None:
    idle = facts["parameters"] - facts["active"] > facts["parameters"] // 2
    active = f", {count(facts['active'])} of them for a token" if idle else ""
    rows = [("model", f"{asked.name} · {count(facts['parameters'])} parameters{active}"), ("", f"from {asked.read_from}"),
            *([("files", f"{size(asked.stored)} of weights are here")] if asked.stored else [])]
    weights = [f"{format} {size(n)}" for format, n in facts["weight_bytes"].items()]
    rows += [("weights" if i == 0 else "", " · ".join(weights[i:i + 4])) for i in range(0, len(weights), 4)]
    rows.append(("cache", f"{binary(facts['cache_bytes_per_token'])} a token in 16 bits -> {facts['batch']} × {facts['context']:,} tokens = "
                          f"{size(facts['cache_bytes'])}"))
    if train is None:
        rows.append(("step", f"{size(facts['step_bytes'])} beside them while computing"))
        methods = " · ".join(f"{method} {size(n)}" for method, n in facts["training_bytes"].items())
        rows.append(("training", f"{methods} (rows of {min(2048, asked.spec.n_ctx):,})"))
    machine = facts["machine"]
    about = " · ".join([machine["name"].removeprefix("this machine: "), *([" ".join(machine["instructions"])] if machine["instructions"] else []),
                        cards.describe(found)])
    rows += [("" if i else "here", line) for i, line in enumerate(textwrap.wrap(about, 70))]
    for label, text in rows:
        print(f"{label:9} {text}")
    print()
    if train is not None:
        _print_training(facts["training"])
        note("seconds are arithmetic at the rate that is reached, one device at a time; loading, evaluation and waiting come on top")
        next_step("pellucid", "plan", asked.name)
        return
    print(f"{'where':14} {'memory':>8} {'best':>7} {'needs':>8} {'context':>8} {'tok/s':>7} {'first':>7} {'$/M tok':>8}")
    for place in facts["places"]:
        print(_line(place))
    for place in facts["places"]:
        if (priced := place.get("price")) and priced["kwh"] is not None:
            even = f" · cheaper from {priced['break_even'] / 1e6:,.0f} M tokens a month" if priced["break_even"] else ""
            print(f"{place['key']:14} a million tokens: {_time(priced['seconds'])}, {priced['kwh']:.2f} kWh, {priced['co2_grams']:,.0f} g CO2{even}")
    note(f"bounds by the roofline: {planning.REACHED_BANDWIDTH:.0%} of a data sheet's bandwidth and {planning.REACHED_RATE:.0%} of its arithmetic; "
         f"hardware as of {machines.as_of()}, {facts['grams_per_kwh']:g} g CO2 a kWh")
    if facts["places"][0]["key"] == "here" and facts["places"][0].get("speed") is None:
        next_step("pellucid", "plan", asked.name, "--measure")
    else:
        next_step("pellucid", "plan", asked.name, "--train", "qlora")


def _line(place: dict[str, Any]) -> str:
    """One place in eighty columns."""
    start = f"{place['key']:14} {size(place['memory']):>8} {place['best_format'] or 'none':>7} {size(place['needed_bytes']):>8}"
    if not place["fits"]:
        return f"{start}  does not fit" + (f" in {place['format']}" if place["format"] else f": {LADDER[-1]} is the narrowest that is tried")
    speed = place["speed"]
    rate, first = ("-", "-") if speed is None else (_rate(speed["decode"]), "-" if speed["first_seconds"] is None else _time(speed["first_seconds"]))
    dollars = place.get("price", {}).get("dollars")
    return f"{start} {place['largest_context']:>8,} {rate:>7} {first:>7} {'-' if dollars is None else f'{dollars:.2f}':>8}"


def _print_training(told: dict[str, Any]) -> None:
    rank = f", rank {told['rank']}" if told["rank"] else ""
    print(f"{told['method']:9} {count(told['trained'])} numbers trained{rank}, {told['optimizer']}, {told['tokens']:,} tokens\n{'':9} "
          f"{told['batch']} × {told['seq']:,} tokens at a time")
    parts = [f"{part} {size(n)}" for part, n in told["bytes"].items()]
    print(f"{'memory':9} {size(told['total_bytes'])}: {' · '.join(parts[:3])}\n{'':9} {' · '.join(parts[3:])}")
    print(f"{'':9} {size(told['recomputed_bytes'])} with blocks computed again in backward (*: where it fits so)")
    print()
    print(f"{'where':14} {'fits':>6} {'device time':>12} {'dollars':>9} {'kWh':>8} {'kg CO2':>8}")
    for place in told["places"]:
        cells = ["yes" + "*" * place["recomputed"] if place["fits"] else f"{place['of_them']} ×",
                 "-" if place["device_seconds"] is None else _time(place["device_seconds"]),
                 *("-" if place[key] is None else f"{place[key] / scale:,.2f}" for key, scale in (("dollars", 1), ("kwh", 1), ("co2_grams", 1000)))]
        print(f"{place['key']:14} {cells[0]:>6} {cells[1]:>12} {cells[2]:>9} {cells[3]:>8} {cells[4]:>8}")


def _pretrain(model: str | None, flops: float | None, budget: float | None, on: list[str], fit: str, as_json: bool) -> None:
    """Chinchilla's sizes for a budget."""
    if model is not None:
        raise BadRequest(f"--pretrain asks for a model that does not exist yet; leave {model!r} out", field="model")
    if (flops is None) == (budget is None):
        raise BadRequest("--pretrain needs one of --flops, such as 1e21, and --budget, in dollars", field="flops")
    if fit not in FITS:
        raise BadRequest(f"--fit {fit!r} is none of {', '.join(FITS)}.{did_you_mean(nearest(fit, FITS))}", field="fit")
    place = machines.find(on[0])
    if flops is None:
        if place.rent is None or not (peak := place.rates.get("bf16")):
            raise BadRequest(f"nobody read what {place.name} costs an hour, or its rate: give --flops, or --on h100", field="on")
        flops = (budget or 0) / place.rent * 3600 * peak * planning.REACHED_RATE
    plan = planning.pretraining(flops, fit)
    seconds = flops / (place.rates["bf16"] * planning.REACHED_RATE) if "bf16" in place.rates else None
    dollars = None if seconds is None or place.rent is None else seconds / 3600 * place.rent
    if as_json:
        return emit(asdict(plan) | {"on": place.key, "device_seconds": seconds, "dollars": dollars})
    spent = [f"{plan.flops:.3g} FLOPs", *([f"{_time(seconds)} of one {place.name}"] if seconds else []), *([f"{dollars:,.0f} dollars"] if dollars else [])]
    print(f"budget    {' · '.join(spent)}")
    print(f"optimal   {count(round(plan.parameters))} parameters on {plan.tokens / 1e9:,.1f} B tokens, {plan.tokens / plan.parameters:.0f} a parameter; "
          f"loss {plan.loss:.3f}")
    for n, d, c in plan.beyond:
        print(f"{'longer' if n == plan.beyond[0][0] else '':9} {count(round(n))} parameters on {d / 1e9:,.1f} B tokens, the same loss, "
              f"{c / plan.flops:.1f} × the arithmetic")
    source = "https://arxiv.org/abs/2404.10102" if fit == "besiroglu" else "https://arxiv.org/abs/2203.15556, approach 3"
    note(f"loss(N, D) = {' , '.join(f'{x:g}' for x in FITS[fit])} as E, A, B, a, b: {source}; C = 6 N D; of its data and tokenizer, which yours are not")
    next_step("pellucid", "models", "--sort", "size")
    return None


def _rate(tokens_per_second: float) -> str:
    return f"{tokens_per_second:,.0f}" if tokens_per_second >= 10 else f"{tokens_per_second:.1f}"


def _time(seconds: float) -> str:
    for unit, length in (("y", 365 * 86400), ("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 0.95 else f"{1000 * seconds:.0f} ms" if seconds >= 0.01 else f"{1000 * seconds:.1f} ms"

"""A comparison as one HTML page that needs nothing beside it: numbers, plots, the most changed tensors, the worst passages token by token."""
from __future__ import annotations

import math
from html import escape
from string import Template

import torch

from pellucid.audit import plots
from pellucid.audit.compare import Report
from pellucid.audit.intervals import Interval
from pellucid.audit.passages import Passage, Token
from pellucid.audit.shown import row_texts
from pellucid.model.report import size

SHOWN_TENSORS, POINTS, BINS = 40, 160, 48  # tensors with a bar, points along the text, bars of the histogram


def page(report: Report) -> str:
    """The whole document."""
    damage = report.damage
    cards = [("mean KL", damage.kl_mean, "nats per token"), ("99th percentile KL", damage.kl_p99, "nats"),
             ("top-1 flips", damage.flips.mapped(100), "% of the tokens"), ("perplexity", damage.perplexity_ratio, "times A's")]
    parts = [
        _section("KL along the text", _along(report), "Mean of a stretch of text, and the largest value in it, on a logarithmic scale."),
        _section("How KL is spread", _spread(report), "Tokens by their KL. A long tail to the right means that few tokens carry the damage."),
        _section("Where first choices flip", _flips(report), "Of a stretch of text, the share of places where B's likeliest token is not A's."),
        _section("The most changed tensors", _tensors(report), "Squared error of B's weights in squares of A's. How much of it reaches the output "
                 "differs from tensor to tensor."),
        _section("The worst passages", "".join(map(_passage, report.passages)), "The redder a token, the larger the KL in its place; underlined where "
                 "the first choice flips. Point at a token to see what each model said.")]
    a, b = map(escape, report.names)
    notes = "".join(f"<p class=note>{escape(note)}</p>" for note in report.notes)
    return _PAGE.substitute(
        title=f"{b} beside {a}", a=a, b=b, a_bytes=size(report.n_bytes[0]), b_bytes=size(report.n_bytes[1]), cards="".join(_card(*each) for each in cards),
        numbers=_numbers(report), sections="".join(parts), notes=notes, a_how=escape(report.arithmetic[0]), b_how=escape(report.arithmetic[1]),
        text=f"{damage.n_tokens:,} of {report.n_text:,} tokens, {size(damage.n_bytes)}, in windows of {report.window:,}", how=escape(report.draws.shown))


def _card(name: str, value: Interval, unit: str) -> str:
    return (f"<div class=card><div>{name}</div><strong>{plots.number(value.value)}</strong><div>{plots.number(value.low)} to {plots.number(value.high)}</div>"
            f"<div>{unit}</div></div>")


def _section(name: str, body: str, about: str) -> str:
    return f"<section><h2>{name}</h2><p>{about}</p>{body}</section>"


def _numbers(report: Report) -> str:
    rows = "".join(f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(text)}</td>' for text in texts)}</tr>" for name, *texts in row_texts(report))
    return f"<table><tr><th></th><th>A</th><th>B</th><th>B beside A</th></tr>{rows}</table>"


def _stretches(report: Report) -> list[torch.Tensor]:
    """The scored tokens in at most POINTS equal stretches, as indices."""
    n = report.damage.n_tokens
    return list(torch.arange(n).chunk(min(POINTS, max(1, n // 16))))


def _along(report: Report) -> str:
    stretches, kl = _stretches(report), report.seen.kl
    return plots.lines([("largest", [kl[s].max().item() for s in stretches]), ("mean", [kl[s].mean().item() for s in stretches])],
                       x="scored token", y="KL, nats", at=[s[len(s) // 2].item() for s in stretches])


def _spread(report: Report) -> str:
    kl = report.seen.kl
    least = max(kl[kl > 0].quantile(0.001).item(), 1e-12) if bool((kl > 0).any()) else 1e-12
    low, high = math.floor(math.log10(least)), math.ceil(math.log10(max(kl.max().item(), 10 * least)))
    counts = torch.histc(kl.clamp(min=10.0**low).log10(), BINS, low, high).tolist()
    edges = [10 ** (low + (high - low) * i / BINS) for i in range(BINS + 1)]
    titles = [f"{int(n):,} tokens: {plots.number(edges[i])} to {plots.number(edges[i + 1])}" for i, n in enumerate(counts)]
    return plots.bars(counts, x="KL, nats (the smallest are in the first bar)", y="tokens", span=(edges[0], edges[-1]), titles=titles, log_x=True)


def _flips(report: Report) -> str:
    stretches, flipped, at = _stretches(report), report.seen.flipped.double(), report.seen.places
    shares = [flipped[s].mean().item() for s in stretches]
    titles = [f"tokens {int(at[s[0]]):,} to {int(at[s[-1]]):,} of the text: {share:.1%}" for s, share in zip(stretches, shares, strict=True)]
    return plots.bars(shares, x="scored token", y="flips", span=(0, len(at)), titles=titles, percent=True)


def _tensors(report: Report) -> str:
    changed = report.tensors.changed
    most = [(each.name, each.error, f"{100 * each.error:.3g} % · {each.format_b}") for each in changed[:SHOWN_TENSORS] if each.error != 0]
    shown = plots.rows(most, x="relative squared error") if most else "<p>None changed: every number of every tensor is the same.</p>"
    rows = "".join(f"<tr><td>{escape(each.name)}</td><td>{' × '.join(f'{n:,}' for n in each.shape)}</td>"
                   f"<td>{each.format_a}, {size(each.bytes_a)}</td><td>{each.format_b}, {size(each.bytes_b)}</td>"
                   f"<td>{100 * each.error:.3g} %</td></tr>" for each in changed)
    left = "".join(f"<p class=note>{escape(name)}: {escape(why)}</p>" for name, why in report.tensors.left_out.items())
    return (f"{shown}<details><summary>All {len(changed):,} tensors</summary><table><tr><th>tensor</th><th>shape</th><th>A</th><th>B</th><th>error</th></tr>"
            f"{rows}</table>{left}</details>")


def _passage(passage: Passage) -> str:
    tokens = "".join(_token(token, i == passage.worst) for i, token in enumerate(passage.tokens))
    worst = passage.tokens[passage.worst]
    said = (f"token {passage.place:,} · KL {plots.number(worst.kl)} · A held it for {worst.share_a:.1%} and would have said {_quoted(worst.first_a)} "
            f"({worst.first_share_a:.1%}), B for {worst.share_b:.1%} and {_quoted(worst.first_b)} ({worst.first_share_b:.1%})")
    return f"<blockquote>{tokens}<footer>{said}</footer></blockquote>"


def _token(token: Token, worst: bool) -> str:
    heat = min(1.0, token.kl / (token.kl + 0.5))  # half as red as can be at half a nat
    kinds = " ".join(["token", *["worst"] * worst, *["flip"] * token.flipped])
    title = (f"KL {plots.number(token.kl)}\nA: {token.share_a:.1%}, first {_pictured(token.first_a)} {token.first_share_a:.1%}\n"
             f"B: {token.share_b:.1%}, first {_pictured(token.first_b)} {token.first_share_b:.1%}")
    return f'<span class="{kinds}" style="--heat:{heat:.2f}" title="{escape(title)}">{escape(token.text)}</span>'


def _quoted(text: str) -> str:
    return f"<code>{escape(_pictured(text))}</code>"


def _pictured(text: str) -> str:
    return text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")


_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>$title</title>
<style>
:root{color-scheme:light dark;--text:#1c2430;--soft:#66707f;--back:#fff;--card:#f4f6f9;--rule:#dde2ea;--main:#2f6fde;--pale:#b9cdf3;--hot:220,38,38}
@media (prefers-color-scheme:dark){:root{--text:#e6e9ef;--soft:#98a2b3;--back:#12161d;--card:#1b212b;--rule:#2c3442;--main:#6ea0f8;--pale:#33507f}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--text);background:var(--back);max-width:820px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .2rem}p{color:var(--soft);margin:.2rem 0 .6rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:.7rem;margin:1.2rem 0}
.card{background:var(--card);border-radius:10px;padding:.7rem .9rem;color:var(--soft);font-size:.85rem}
.card strong{display:block;font-size:1.5rem;color:var(--text)}
table{border-collapse:collapse;width:100%;font-size:.85rem}th,td{padding:.3rem .5rem;text-align:left;border-bottom:1px solid var(--rule)}
th{font-weight:600}svg{width:100%;height:auto}.axis{stroke:var(--soft)}.grid{stroke:var(--rule)}
text{fill:var(--soft);font-size:11px;font-family:inherit}.label{fill:var(--text)}.bar{fill:var(--main)}
polyline{fill:none;stroke-width:1.6}.mean{stroke:var(--main)}.largest{stroke:var(--pale);stroke-width:1}
blockquote{background:var(--card);border-radius:10px;margin:.7rem 0;padding:.7rem .9rem;white-space:pre-wrap;font-family:Georgia,serif}
blockquote footer{font:.8rem system-ui,sans-serif;color:var(--soft);white-space:normal;margin-top:.4rem}
.token{background:rgba(var(--hot),calc(var(--heat)*.75));border-radius:3px}.flip{text-decoration:underline}.worst{outline:2px solid rgb(var(--hot))}
@media (max-width:600px){.tick,.name{font-size:14px}.label{font-size:13px}}
summary{cursor:pointer;color:var(--main)}.note{font-size:.85rem}
</style></head><body>
<h1>$b beside $a</h1>
<p>A: $a, $a_bytes ($a_how)<br>B: $b, $b_bytes ($b_how)<br>$text · $how</p>$notes
<div class="cards">$cards</div>
$numbers
$sections
</body></html>
""")

"""The numbers of a comparison in words: the same rows for the terminal and for the page."""
from __future__ import annotations

from pellucid.audit.compare import Report
from pellucid.audit.intervals import Interval


def row_texts(report: Report) -> list[tuple[str, str, str, str]]:
    """(what, A's, B's, B beside A), each number with its interval."""
    d = report.damage
    return [
        ("perplexity", interval(d.perplexity_a), interval(d.perplexity_b), f"× {interval(d.perplexity_ratio, 5)}"),
        ("bits per byte", interval(d.bits_per_byte_a, 4), interval(d.bits_per_byte_b, 4), ""),
        ("KL(A||B), mean", "", "", f"{interval(d.kl_mean)} nats"),
        ("KL(A||B), median", "", "", f"{interval(d.kl_median)} nats"),
        ("KL(A||B), 99th percentile", "", "", f"{interval(d.kl_p99)} nats"),
        ("top-1 flips", "", "", f"{interval(d.flips.mapped(100))} %"),
        ("log-probability, mean change", "", "", f"{interval(d.logprob_difference)} nats"),
        ("log-probability, RMS change", "", "", f"{interval(d.logprob_spread)} nats"),
    ]


def interval(value: Interval, digits: int = 3) -> str:
    """`12.3 (12.1 to 12.5)`."""
    return f"{value.value:.{digits}g} ({value.low:.{digits}g} to {value.high:.{digits}g})"

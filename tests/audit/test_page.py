"""The page is whole by itself, and holds what the report says."""
from __future__ import annotations

import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

import pellucid
from pellucid.audit import plots
from pellucid.audit.compare import compare
from pellucid.audit.page import page
from tests.audit.conftest import TEXT

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Tags(HTMLParser):
    """Every tag is closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.said: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        assert not {name for name, _ in attrs} & {"src", "href", "onclick"}
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def test_the_page_is_whole_by_itself(tmp_path: Path, make: Callable[..., Path]) -> None:
    hostile = TEXT.replace("king", "<script>alert(1)</script> & $b")
    a, b = pellucid.load(make("a", scale=4)), pellucid.load(make("b", scale=4, seed=1))
    report = compare(a, b, hostile, names=("a <i>", "b $a"))
    text = page(report)
    tags = Tags(text)
    assert "script" not in tags.seen
    assert "i" not in tags.seen
    assert not re.search(r"https?://(?!www\.w3\.org)", text)
    assert tags.seen.count("svg") == 4
    for drawn in re.findall(r"<svg.*?</svg>", text, re.S):
        ElementTree.fromstring(drawn)
    said = "".join(tags.said)
    d = report.damage
    for part in ("b $a beside a <i>", f"{d.kl_mean.value:.3g} ({d.kl_mean.low:.3g} to {d.kl_mean.high:.3g})", report.draws.shown, "blocks.0.attn.q.weight"):
        assert part in said
    passages = re.findall(r"<blockquote>(.*?)<footer>", text, re.S)
    assert len(passages) == len(report.passages) > 3
    assert "".join(token.text for token in report.passages[0].tokens) == "".join(Tags(passages[0]).said)


def test_bars_are_as_high_as_their_values() -> None:
    drawn = ElementTree.fromstring(plots.bars([1.0, 4.0, 2.0], x="x", y="y", span=(0, 3), titles=["a", "b", "c"]))
    heights = [float(bar.attrib["height"]) for bar in drawn.iter("rect")]
    assert heights == pytest.approx([max(heights) / 4, max(heights), max(heights) / 2], abs=0.1)
    assert max(heights) == plots.HEIGHT - plots.TOP - plots.BOTTOM


def test_a_line_lies_between_its_axes_even_where_it_is_zero() -> None:
    drawn = ElementTree.fromstring(plots.lines([("mean", [0.0, 1e-5, 3.0])], x="x", y="y", at=[0, 10, 40]))
    [line] = drawn.iter("polyline")
    points = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    assert [x for x, _ in points] == pytest.approx([plots.LEFT, plots.LEFT + (plots.WIDTH - plots.LEFT - plots.RIGHT) / 4, plots.WIDTH - plots.RIGHT], abs=0.1)
    assert all(plots.TOP <= y <= plots.HEIGHT - plots.BOTTOM for _, y in points)
    assert points[0][1] > points[1][1] > points[2][1]
    ElementTree.fromstring(plots.lines([("mean", [0.0, 0.0])], x="x", y="y", at=[0, 1]))


def test_ticks_are_round() -> None:
    assert plots.nice(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert plots.nice(3, 47) == [10, 20, 30, 40]
    assert plots.decades(1e-6, 1.0) == pytest.approx([10.0**p for p in range(-6, 1)])
    assert len(plots.decades(1e-30, 1.0)) <= 8
    assert [plots.number(n) for n in (12345.6, 0.04512, 1e-6, 0)] == ["12,346", "0.0451", "1e-06", "0"]


def test_a_tensor_that_is_all_error_has_a_bar() -> None:
    drawn = plots.rows([("a", math.inf, "inf"), ("b", 0.5, "50 %")], x="error")
    assert len(list(ElementTree.fromstring(drawn).iter("rect"))) == 2

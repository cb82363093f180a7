"""The report: what it says, that texts stay texts, and that a real browser shows it well."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from service.bundle import Bundle
from service.text import Message
from tests.browser import CHROMIUM, browser
from training.data import Comparison, Group
from training.evaluate import evaluate
from training.report import findings, plots
from training.report.figures import figures
from training.report.page import render
from training.report.svg import ticks
from training.run import Run

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&lt; {{ 7 * 7 }} </svg></style>"
WIDTHS = (320, 390, 1280)


def _groups(number: int, prompt: str = "prompt", response: str = "answer") -> list[Group]:
    rng = np.random.default_rng(0)
    return [
        Group(
            prompt=(Message(role="user", content=f"{prompt} {i}"),) if i % 2 else f"{prompt} {i}",
            responses=(response + " a" * int(rng.integers(1, 40)), response + str(i)),
            comparisons=(
                Comparison(
                    *rng.permutation(2).tolist(), subset=f"<b>{'even' if i % 2 else 'odd'}</b>"
                ),
            ),
            chosen=(0,),
            lines=(i,),
        )
        for i in range(number)
    ]


def _report(groups: list[Group], **more) -> dict:
    rng = np.random.default_rng(1)
    rewards = [rng.normal(size=len(group.responses)) * 2 for group in groups]
    name = more.pop("name", "tiny")
    report = {"name": name, "evaluation": evaluate(groups, rewards), **more}
    report["figures"] = figures(groups, rewards)
    return json.loads(json.dumps(report, allow_nan=False))  # as it comes from report.json


class _Elements(HTMLParser):
    """Elements and their attributes, and the text outside style sheets."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_script_in_a_response_is_shown_and_never_run() -> None:
    groups = _groups(40, prompt=HOSTILE, response=HOSTILE)
    page = render(_report(groups, name=HOSTILE))
    found = _Elements(page)
    tags = {tag for tag, _ in found.tags}
    assert not tags & {"script", "img", "iframe", "object", "b"}
    assert not [a for _, attributes in found.tags for a in attributes if a.startswith("on")]
    assert page.count(HOSTILE) == 0 and HOSTILE in found.text  # in whole, as text


def test_the_page_fetches_nothing() -> None:
    found = _Elements(render(_report(_groups(40))))
    addresses = [
        attributes[name]
        for _, attributes in found.tags
        for name in ("src", "href", "action", "data", "srcset")
        if name in attributes
    ]
    assert addresses == ["data:,"]  # the icon a browser would otherwise ask for
    policy = [a["content"] for tag, a in found.tags if tag == "meta" and "http-equiv" in a]
    assert "default-src 'none'" in policy[0]


def test_every_drawing_has_a_name_for_those_who_cannot_see_it() -> None:
    found = _Elements(render(_report(_groups(40))))
    drawings = [attributes for tag, attributes in found.tags if tag == "svg"]
    assert len(drawings) == 5  # headline, subsets, margins, reliability, length
    assert all(a["role"] == "img" and a["aria-label"] for a in drawings)


def test_the_most_confident_mistakes_come_first_and_once_per_prompt() -> None:
    groups = [
        Group("p", ("a", "b", "c"), (Comparison(0, 1), Comparison(0, 2)), (0,), (1,)),
        Group("q", ("x", "y"), (Comparison(0, 1, 0.2),), (0,), (2,)),  # y is the preferred one
        Group("r", ("x", "y"), (Comparison(0, 1, 0.5),), (0,), (3,)),  # neither is
        Group("s", ("x", "y"), (Comparison(0, 1),), (0,), (4,)),  # right
    ]
    rewards = [np.array(v) for v in ([0.0, 1.0, 2.0], [3.0, 0.0], [9.0, 0.0], [1.0, 0.0])]
    wrong = figures(groups, rewards)["wrong"]
    assert [(w["prompt"], w["preferred"], w["other"]) for w in wrong] == [
        ("q", "y", "x"),
        ("p", "a", "c"),
    ]
    assert wrong[0]["margin"] == -3 and wrong[0]["confidence"] == pytest.approx(0.952574)


def test_the_histogram_counts_every_comparison_once_and_splits_at_zero() -> None:
    groups = _groups(500)
    found = _report(groups)["figures"]["margins"]
    assert sum(found["counts"]) == 500
    assert min(abs(edge) for edge in found["edges"]) < 1e-12
    bins = _report(groups)["figures"]["reliability"]
    assert sum(b["comparisons"] for b in bins) == 500 and len(bins) == 15


def test_a_weakness_is_named_where_there_is_one_and_only_there() -> None:
    rng = np.random.default_rng(2)

    def found(scale: float, length_pay: float) -> str:
        groups, rewards = [], []
        for i in range(4000):
            true = rng.normal(size=2)
            first = rng.random() < 1 / (1 + np.exp(true[1] - true[0]))
            sizes = rng.integers(20, 200, 2)
            texts = tuple(f"{i}{side}" + "x" * n for side, n in zip("ab", sizes, strict=True))
            groups.append(
                Group(f"p{i}", texts, (Comparison(*((0, 1) if first else (1, 0))),), (0,), (i,))
            )
            rewards.append(scale * true + length_pay * sizes)
        return " ".join(findings.weaknesses({"evaluation": evaluate(groups, rewards)}))

    assert found(1.0, 0.0) == ""
    assert "claim too much" in found(2.5, 0.0) and "leans" not in found(2.5, 0.0)
    assert "claim too little" in found(0.4, 0.0)
    assert "leans to the longer response" in found(1.0, 0.01)


def test_a_bound_of_nothing_is_drawn_where_it_is() -> None:
    """From 0 to 1 around 0.5, after a point whose interval is as wide as the drawing."""
    wide = {"value": 0.5, "low": 0.0, "high": 1.0}
    points = [{"n": n, "kl": 0.0, "gold": wide, "ceiling": 0.5} for n in (1, 2)]
    drawn = plots.best_of_n({"evaluation": {"best_of_n": {"points": points}}})
    (band,) = re.findall(r'class="band-main" points="([^"]+)"', drawn)
    heights = sorted(float(point.split(",")[1]) for point in band.split())
    (line,) = re.findall(r'class="stroke-main" points="([^"]+)"', drawn)
    middle = float(line.split(",")[-1])
    assert heights[0] < middle < heights[-1]
    assert middle - heights[0] == pytest.approx(heights[-1] - middle, abs=0.2)  # drawn to 0.1


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 7) == [0, 2, 4, 6]
    assert ticks(-0.13, 0.21) == [-0.1, 0, 0.1, 0.2]
    assert ticks(0.78, 0.81, 4) == [0.78, 0.79, 0.8, 0.81]


def test_a_run_and_its_bundle_carry_the_page(run: Run, bundle: Bundle) -> None:
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "Where it is weak" in page and "Training data" in page and "ln 2" in page
    assert bundle.file("report/report.html").read_text(encoding="utf-8") == page
    assert "report/report.html" in bundle.manifest.files


def test_the_command_writes_a_report_of_a_bundle(run: Run, bundle: Bundle, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "training", "evaluate", str(bundle.path), "--data", str(run.held_out),
        "--judge", str(run.path), "--out", str(tmp_path / "out"), "--json",
    ]  # fmt: skip
    printed = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    report = json.loads((tmp_path / "out" / "report.json").read_bytes())
    assert report["evaluation"] == printed and report["bundle"] == bundle.manifest.id
    points = printed["best_of_n"]["points"]
    # the judge is the same model: its favourite is the judge's favourite
    assert points[-1]["gold"]["value"] == pytest.approx(points[-1]["ceiling"], abs=1e-4)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert bundle.manifest.id in page and "through the code that serves" in page


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_browser_shows_it_narrow_and_wide_light_and_dark(run: Run, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile.html"
    long = "unbroken" * 60
    hostile.write_text(render(_report(_groups(60, HOSTILE + long, long), name=long)))
    with browser() as page:
        for file in (run.path / "report.html", hostile):
            for width in WIDTHS:
                colours = []
                for dark in (False, True):
                    page.open(file, width, dark)
                    page.evaluate(
                        "document.querySelectorAll('details').forEach(d => d.open = true)"
                    )
                    wide = page.evaluate("document.documentElement.scrollWidth")
                    assert wide <= page.evaluate("innerWidth"), f"{file.name} overflows at {width}"
                    outside = page.evaluate(OUTSIDE)
                    assert not outside, f"{file.name} at {width}: {outside} leave their drawing"
                    colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
                    assert page.evaluate("document.title.length > 0")
                    requests = [
                        e["request"]["url"] for e in page.named("Network.requestWillBeSent")
                    ]
                    assert requests == [file.resolve().as_uri()]
                    for kind in ("Log.entryAdded", "Runtime.exceptionThrown"):
                        assert not page.named(kind)
                    assert not page.named("Page.javascriptDialogOpening")
                assert colours[0] != colours[1]


OUTSIDE = """[...document.querySelectorAll('svg')].flatMap(drawing => {
  const box = drawing.getBoundingClientRect();
  return [...drawing.querySelectorAll('text')].filter(text => {
    const own = text.getBoundingClientRect();
    return own.left < box.left - 2 || own.right > box.right + 12;
  }).map(text => text.textContent);
})"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("dark", [False, True])
def test_all_text_has_the_contrast_of_wcag_aa(run: Run, dark: bool) -> None:
    """4.5 to 1 for every text on the page, https://www.w3.org/TR/WCAG22/#contrast-minimum."""
    with browser() as page:
        page.open(run.path / "report.html", 1280, dark)
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate(CONTRAST) >= 4.5


CONTRAST = """(() => {
  const parse = c => {
    const m = c.match(/[\\d.]+/g).map(Number);
    return m.length < 4 ? [...m, 1] : m;
  };
  const light = c => {
    const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    const [r, g, b] = c.map(v => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c[3] > 0) return c;
    }
    return [255, 255, 255, 1];
  };
  const ratio = e => {
    const style = getComputedStyle(e);
    const ink = parse(e.closest('svg') ? style.fill : style.color);
    const [a, b] = [light(ink.slice(0, 3)), light(behind(e).slice(0, 3))].sort((x, y) => y - x);
    return (a + .05) / (b + .05);
  };
  const written = e => e.tagName !== 'title'
    && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  return Math.min(...[...document.body.querySelectorAll('*')].filter(written).map(ratio));
})()"""

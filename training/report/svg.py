"""A plot as inline SVG, coloured by the page's style sheet. Knows axes and marks, not rewards.

Colours are classes, so that one drawing serves the light and the dark page; `<title>` elements name
every mark under the pointer and to screen readers.
"""

import math
from collections.abc import Callable, Sequence
from html import escape

Point = tuple[float, float]
Span = tuple[float, float]

WIDTH = 360


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, from low to high.

    >>> ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def plain(value: float) -> str:
    """A tick's label: no more digits than it has, thousands apart."""
    return f"{value:,.6g}".replace("-", "−")


def percent(value: float) -> str:
    return f"{100 * value:.0f} %"


class Plot:
    """Marks in data coordinates within axes; drawn in the order they are added."""

    def __init__(
        self,
        title: str,
        x: Span,
        y: Span,
        *,
        height: int = 240,
        left: int = 46,
        right: int = 12,
        top: int = 26,
        bottom: int = 44,
    ) -> None:
        self.title, self.height = title, height
        self.left, self.right, self.top, self.bottom = left, right, top, bottom
        self.x, self.y = _widened(x), _widened(y)
        self.marks: list[str] = []

    def px(self, x: float) -> float:
        inner = WIDTH - self.left - self.right
        return round(self.left + (x - self.x[0]) / (self.x[1] - self.x[0]) * inner, 1)

    def py(self, y: float) -> float:
        inner = self.height - self.top - self.bottom
        return round(
            self.height - self.bottom - (y - self.y[0]) / (self.y[1] - self.y[0]) * inner, 1
        )

    def x_axis(
        self, label: str, at: Sequence[float] | None = None, show: Callable[..., str] = plain
    ) -> None:
        base = self.height - self.bottom
        for tick in at if at is not None else ticks(*self.x):
            self.marks.append(_line(self.px(tick), base, self.px(tick), base + 4, "axis"))
            self.text(self.px(tick), base + 16, show(tick), "middle")
        self.marks.append(_line(self.left, base, WIDTH - self.right, base, "axis"))
        self.text((self.left + WIDTH - self.right) / 2, self.height - 6, label, "middle")

    def y_axis(
        self, label: str, at: Sequence[float] | None = None, show: Callable[..., str] = plain
    ) -> None:
        self.text(2, 10, label, "")
        for tick in at if at is not None else ticks(*self.y):
            y = self.py(tick)
            self.marks.append(_line(self.left, y, WIDTH - self.right, y, "grid"))
            self.text(self.left - 7, y + 4, show(tick), "end")

    def legend(self, entries: Sequence[tuple[str, str]]) -> None:
        """(name, colour) of each series, above the axes."""
        keys = "\u2003".join(_key(style) + " " + escape(name) for name, style in entries)
        self.marks.append(f'<text class="end" x="{WIDTH - self.right}" y="10">{keys}</text>')

    def line(self, points: Sequence[Point], style: str) -> None:
        path = " ".join(f"{self.px(x)},{self.py(y)}" for x, y in points)
        self.marks.append(f'<polyline class="{style}" points="{path}"/>')

    def band(self, lower: Sequence[Point], upper: Sequence[Point], style: str) -> None:
        path = " ".join(f"{self.px(x)},{self.py(y)}" for x, y in [*lower, *reversed(upper)])
        self.marks.append(f'<polygon class="{style}" points="{path}"/>')

    def bar(self, x: Span, y: Span, style: str, name: str = "") -> None:
        left, right, top, base = self.px(x[0]), self.px(x[1]), self.py(y[1]), self.py(y[0])
        width, tall = max(right - left - 1, 0.5), base - top
        self.marks.append(
            f'<rect class="{style}" x="{left}" y="{top}" width="{width:.1f}" height="{tall:.1f}">'
            f"{_title(name)}</rect>"
        )

    def dot(self, x: float, y: float, style: str, radius: float = 4, name: str = "") -> None:
        self.marks.append(
            f'<circle class="{style}" cx="{self.px(x)}" cy="{self.py(y)}" r="{radius}">'
            f"{_title(name)}</circle>"
        )

    def segment(self, start: Point, end: Point, style: str) -> None:
        ends = self.px(start[0]), self.py(start[1]), self.px(end[0]), self.py(end[1])
        self.marks.append(_line(*ends, style))

    def text(self, x: float, y: float, text: str, style: str) -> None:
        """x, y in the drawing's own units."""
        self.marks.append(f'<text class="{style}" x="{x}" y="{y}">{escape(text)}</text>')

    def svg(self) -> str:
        label = escape(self.title)
        opening = f'<svg viewBox="0 0 {WIDTH} {self.height}" role="img" aria-label="{label}">'
        return opening + "".join(self.marks) + "</svg>"


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line class="{style}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def _key(style: str) -> str:
    return f'<tspan class="key {style}">{"– –" if "dashed" in style else "—"}</tspan>'


def _title(name: str) -> str:
    return f"<title>{escape(name)}</title>" if name else ""


def _widened(span: Span) -> Span:
    """A span of no width has nothing to divide by."""
    return span if span[1] > span[0] else (span[0] - 0.5, span[0] + 0.5)

"""The pictures of `fairness`, as SVG: readable on light and dark pages, made of text, so that they can be compared.

Only drawing is here, and what is run for it. An image viewer that knows no media queries shows the light one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from benchmarks import fair_models
from benchmarks.fair_runs import UNBOUNDED, at_full_load, cumulative, patient, run, two_endpoints
from lmq_broker.forecast.figures import cost, demands, light_users
from lmq_broker.forecast.traces import dealt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from benchmarks.fair_runs import Plan
    from lmq_broker.forecast.replay import Served

SERVICE = "fairness-service.svg"
TRADE = "fairness-trade.svg"

_STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328; }
  .title { font-size: 15px; font-weight: 600; }
  .muted { fill: #59636e; }
  .small { font-size: 12px; }
  .page { fill: #ffffff; }
  .grid { stroke: #d8dee4; stroke-width: 1; }
  .axis { stroke: #8c959f; stroke-width: 1; }
  .line { fill: none; stroke-width: 2.5; stroke-linejoin: round; stroke-linecap: round; }
  .asked { stroke-width: 1.5; stroke-dasharray: 2 5; }
  .light { stroke: #0b7a75; } .heavy { stroke: #bc4c00; } .other { stroke: #59636e; }
  .light-ink { fill: #0b7a75; } .heavy-ink { fill: #bc4c00; } .other-ink { fill: #59636e; }
  .goal { fill: #0b7a75; fill-opacity: 0.10; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .muted { fill: #9198a1; }
    .page { fill: #0d1117; }
    .grid { stroke: #2b323b; }
    .axis { stroke: #656c76; }
    .light { stroke: #3fc7bd; } .heavy { stroke: #f0883e; } .other { stroke: #9198a1; }
    .light-ink { fill: #3fc7bd; } .heavy-ink { fill: #f0883e; } .other-ink { fill: #9198a1; }
    .goal { fill: #3fc7bd; fill-opacity: 0.14; }
  }
"""


@dataclass(slots=True)
class Canvas:
    """A picture that is being drawn."""

    width: int
    height: int
    what: str
    """Said by readers of screens, and where the picture cannot be shown."""
    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'
        )

    def line(self, points: Iterable[tuple[float, float]], kind: str) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{path}" class="line {kind}"/>')

    def rule(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>')

    def box(self, x: float, y: float, width: float, height: float, kind: str) -> None:
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" class="{kind}"/>'
        )

    def dot(self, x: float, y: float, radius: float, kind: str) -> None:
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="{kind}"/>')

    def write(self, path: Path) -> None:
        """Put the picture into a file."""
        page = f'<rect width="{self.width}" height="{self.height}" rx="6" class="page"/>'
        path.write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" role="img">\n<title>{escape(self.what)}</title>\n<style>{_STYLE}</style>\n{page}\n'
            + "\n".join(self.parts)
            + "\n</svg>\n",
            encoding="utf-8",
        )


class Plot(NamedTuple):
    """A pair of axes on a canvas."""

    canvas: Canvas
    left: float
    top: float
    width: float
    height: float
    x_from: float
    x_to: float
    y_to: float

    def x(self, value: float) -> float:
        return self.left + self.width * (value - self.x_from) / (self.x_to - self.x_from)

    def y(self, value: float) -> float:
        return self.top + self.height * (1 - value / self.y_to)

    def axes(
        self, x_ticks: Sequence[tuple[float, str]], y_ticks: Sequence[tuple[float, str]], *, y_named: bool
    ) -> None:
        for value, name in y_ticks:
            kind = "axis" if value == 0 else "grid"
            self.canvas.rule(self.left, self.y(value), self.left + self.width, self.y(value), kind)
            if y_named:
                self.canvas.text(self.left - 8, self.y(value) + 4, name, "muted small", "end")
        for value, name in x_ticks:
            self.canvas.text(self.x(value), self.top + self.height + 18, name, "muted small", "middle")


# --- service over time -----------------------------------------------------------------------------------------------


_PANELS = (
    ("fifo", "FIFO"),
    ("strict", "strict, all of one priority"),
    ("vtc", "VTC"),
    ("blfq", "BLFQ"),
)


def draw_service(plan: Plan, path: Path) -> None:
    """Draw what the heaviest user and the light users had been served over time, under each policy."""
    requests = dealt(at_full_load(plan), 3, 0)
    demand = demands(requests)
    light = light_users(demand)
    heaviest = max(demand, key=lambda user: (demand[user], user))
    over_s = 3000
    canvas = Canvas(
        1000,
        330,
        "Share of their requests that the light users and the heaviest user had been served over time, by policy",
    )
    canvas.text(24, 30, "Served so far, of all that each asks for", "title")
    _legend(canvas, 470, 26, len(light), heaviest)
    for number, (choice, title) in enumerate(_PANELS):
        plan.say(f"picture: {choice}")
        served = run(choice, requests, two_endpoints(3, 10.0)).served
        plot = Plot(canvas, 66 + number * 232, 76, 210, 196, 0, over_s, 1.0)
        canvas.text(plot.left, 64, title, "muted")
        plot.axes(
            [(minute * 60, str(minute)) for minute in (0, 10, 20, 30, 40)],
            [(ratio, f"{ratio:.0%}") for ratio in (0, 0.25, 0.5, 0.75, 1.0)], y_named=number == 0,
        )  # fmt: skip
        for kind, users in (("heavy", frozenset({heaviest})), ("light", light)):
            of_them = [each for each in served if each.request.user in users]
            total = sum(cost(each.request) for each in of_them)
            for asked, curve in ((True, _asked(of_them, over_s)), (False, _had(of_them, over_s))):
                points = [
                    (plot.x(second), plot.y(curve[second] / total)) for second in range(0, over_s + 1, 20)
                ]
                canvas.line(points, f"{kind} asked" if asked else kind)
    canvas.text(
        66,
        318,
        "minutes; arena replay, 3 models on 2 endpoints that hold one each, a load takes 10 s",
        "muted small",
    )
    canvas.write(path)


def _legend(canvas: Canvas, x: float, y: float, light: int, heaviest: str) -> None:
    for kind, name, offset in (
        ("light", f"the {light} light users", 0),
        ("heavy", f"the heaviest user ({heaviest})", 190),
    ):
        canvas.line([(x + offset, y), (x + offset + 24, y)], kind)
        canvas.text(x + offset + 32, y + 4, name, "small")
    canvas.line([(x + 420, y), (x + 444, y)], "other asked")
    canvas.text(x + 452, y + 4, "asked for", "small")


def _asked(served: Sequence[Served], over_s: int) -> list[float]:
    """Return how much had been asked for by each second."""
    curve = [0.0] * (over_s + 1)
    for each in served:
        curve[min(over_s, -(-each.request.at_ms // 1000))] += cost(each.request)
    for second in range(over_s):
        curve[second + 1] += curve[second]
    return curve


def _had(served: Sequence[Served], over_s: int) -> list[float]:
    curves = cumulative(served, over_s).values()
    return [sum(column) for column in zip(*curves, strict=True)]


# --- makespan against light users' waits -----------------------------------------------------------------------------


PATIENCES = (1.0, 2.0, 3.0, 4.0, 5.0, 8.0)


def draw_trade(plan: Plan, path: Path) -> None:
    """Draw what patience buys: makespan against the p99 of light users' waits."""
    canvas = Canvas(
        1000,
        430,
        "Makespan over the ideal one against the 99th percentile of light users' waits, by policy and patience",
    )
    canvas.text(24, 30, "What patience with the loaded model buys, and what it costs", "title")
    ideal_s = fair_models.ideal_makespan_s(plan)
    for number, load_s in enumerate(fair_models.LOADS_S):
        _trade_panel(plan, canvas, 74 + number * 480, load_s, ideal_s)
    canvas.write(path)


_MARK_WIDTH, _MARK_HEIGHT = 44, 13
"""Within so many pixels two marks share a text."""


def _trade_panel(plan: Plan, canvas: Canvas, left: float, load_s: float, ideal_s: float) -> None:
    def found(choice: str, patience: float | None = None) -> tuple[float, float] | None:
        plan.say(f"picture: loads of {load_s:.0f} s, {choice} {patience or ''}")
        mean = fair_models.over_maps(plan, choice, load_s, None if patience is None else patient(patience))
        return None if mean is None else (mean.makespan_s / ideal_s, mean.light_p99_s)

    most_s = 350.0
    plot = Plot(canvas, left, 84, 410, 270, 1.0, 1.6, most_s)
    canvas.text(left, 66, f"a load takes {load_s:.0f} s: light users' wait, p99", "muted")
    ratios = (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6)
    plot.axes([(ratio, f"{ratio:.1f}") for ratio in ratios],
              [(wait_s, f"{wait_s} s") for wait_s in range(0, int(most_s) + 1, 50)], y_named=True)  # fmt: skip
    canvas.text(
        left + plot.width, plot.top + plot.height + 38, "makespan / ideal without swaps", "muted small", "end"
    )
    free = found(UNBOUNDED)
    assert free is not None
    limit, half_s = fair_models.LIMITS[load_s], free[1] / 2
    canvas.box(plot.x(1.0), plot.y(half_s), plot.x(limit) - plot.x(1.0), plot.y(0) - plot.y(half_s), "goal")
    canvas.text(plot.x(1.0) + 8, plot.y(0) - 10, "goal", "light-ink small")
    marks = {
        f"T = {patience:g}": point
        for patience in PATIENCES
        if (point := found("blfq", patience)) is not None and _is_inside(plot, point)
    }
    marks["unbounded"] = free
    canvas.line([(plot.x(x), plot.y(y)) for x, y in marks.values()], "light")
    shipped = found("blfq")
    assert shipped is not None
    for names, at in _together(plot, marks | {"as it ships": shipped}):
        _mark(plot, at, names, "light-ink", 6 if "ships" in names else 4)
    outside = []
    for choice in ("strict", "vtc", "fifo"):
        point = found(choice)
        if point is None:
            outside.append(f"{choice}: stood still")
        elif _is_inside(plot, point):
            _mark(plot, point, choice, "heavy-ink", 5)
        else:
            outside.append(f"{choice}: {point[0]:.2f}, {point[1]:,.0f} s")
    if outside:
        canvas.text(left, 416, f"outside: {'; '.join(outside)}", "muted small")


def _together(plot: Plot, marks: dict[str, tuple[float, float]]) -> list[tuple[str, tuple[float, float]]]:
    """Return the marks, those that would be written over each other with one text."""
    found: list[tuple[str, tuple[float, float]]] = []
    for name, point in marks.items():
        for number, (names, other) in enumerate(found):
            apart = abs(plot.x(point[0]) - plot.x(other[0])), abs(plot.y(point[1]) - plot.y(other[1]))
            if apart[0] < _MARK_WIDTH and apart[1] < _MARK_HEIGHT:
                found[number] = (f"{names}, {name.removeprefix('T = ')}", other)
                break
        else:
            found.append((name, point))
    return found


def _is_inside(plot: Plot, point: tuple[float, float]) -> bool:
    return plot.x_from <= point[0] <= plot.x_to and point[1] <= plot.y_to


def _mark(plot: Plot, point: tuple[float, float], name: str, kind: str, radius: float) -> None:
    x, y = plot.x(point[0]), plot.y(point[1])
    plot.canvas.dot(x, y, radius, kind)
    plot.canvas.text(x + radius + 4, y - 5, name, f"{kind} small")


PICTURES: dict[str, Callable[[Plan, Path], None]] = {SERVICE: draw_service, TRADE: draw_trade}


def draw_all(plan: Plan, folder: Path) -> None:
    """Draw all pictures into the folder of the document that shows them."""
    for name, draw in PICTURES.items():
        draw(plan, folder / name)

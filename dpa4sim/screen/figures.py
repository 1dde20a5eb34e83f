"""Figures of a campaign, drawn on matplotlib figures of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpa4sim.plots import DPI, FAINT, GRID, INK, PALETTE
from dpa4sim.screen.systems import Point, SystemHull

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NEAR = 0.2
"""eV/atom; higher phases have the last colour and, in histograms, the last bin."""

MOST_LABELS = 30
"""Stable phases of a figure that are named."""

BIN, ENDS = 0.025, 20
"""eV/atom, and bins on each side of the hull."""

LEAST_HEIGHT = 0.1
"""eV/atom above the elements; a binary figure ends there or, if its hull is deeper, as far up."""

COLOURS = "viridis_r"
LINE = "#57606a"

TRIANGLE = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 3**0.5 / 2]])
TETRAHEDRON = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.5, 0.866, 0.0], [0.5, 0.289, 0.816]])


def save(figure: Figure, path: str | Path) -> None:
    """A PNG without the time at which it was made."""
    figure.savefig(path, metadata={"Software": "dpa4sim"} if str(path).endswith(".png") else None)


def hull_figure(hull: SystemHull) -> Figure:
    """The convex hull of a system of two, three or four elements."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8), dpi=DPI, layout="constrained")
    if len(hull.elements) == 2:
        _binary(figure.subplots(), hull)
        return figure
    corners = TRIANGLE if len(hull.elements) == 3 else _turned(TETRAHEDRON)
    axes = figure.subplots()
    axes.set_aspect("equal")
    axes.axis("off")
    _simplex(axes, hull, corners)
    return figure


def _binary(axes: Axes, hull: SystemHull) -> None:
    """Formation energy over composition, and the lower hull."""
    _style(axes)
    xs = [point.shares[1] for point in hull.points]
    ys = [point.formation_energy for point in hull.points]
    line = sorted({place for edge in hull.edges for place in edge}, key=lambda place: xs[place])
    axes.plot([xs[i] for i in line], [ys[i] for i in line], color=LINE, linewidth=1.4, zorder=2)
    colours = _scatter(axes, hull.points, xs, ys)
    low = min(0.0, *ys)
    high = min(max(0.0, *ys), max(LEAST_HEIGHT, -low))
    margin = 0.12 * (high - low)
    axes.set(xlim=(-0.03, 1.03), ylim=(low - margin, high + margin))
    axes.set_xlabel(f"share of {hull.elements[1]} in {hull.name}", color=INK)
    axes.set_ylabel("formation energy (eV/atom)", color=INK)
    _label(axes, hull.points, xs, ys)
    _colour_bar(axes, colours)


def _simplex(axes: Axes, hull: SystemHull, corners: np.ndarray) -> None:
    """Compositions in a triangle or a tetrahedron, and which stable phases are neighbours."""
    places = np.array([point.shares for point in hull.points]) @ corners
    for one, two in hull.edges:
        axes.plot(*places[[one, two], :2].T, color=LINE, linewidth=0.8, alpha=0.7, zorder=1)
    for i in range(len(corners)):
        for j in range(i):
            axes.plot(*corners[[i, j], :2].T, color=INK, linewidth=1.2, zorder=1.5)
    colours = _scatter(axes, hull.points, places[:, 0], places[:, 1])
    axes.margins(0.1)
    axes.autoscale_view()
    _label(axes, hull.points, places[:, 0], places[:, 1])
    _colour_bar(axes, colours)


def _turned(corners: np.ndarray) -> np.ndarray:
    """Seen from a little to the side and above, so that no corner hides another."""
    around, tilt = np.deg2rad(8), np.deg2rad(-69)
    spin = np.array(
        [[np.cos(around), -np.sin(around), 0], [np.sin(around), np.cos(around), 0], [0, 0, 1]]
    )
    lean = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    return (corners - corners.mean(0)) @ spin.T @ lean.T


def _scatter(axes: Axes, points: Sequence[Point], xs: Any, ys: Any) -> Any:
    """Squares are references, circles candidates; the stable are larger and ringed."""
    xs, ys = np.asarray(xs), np.asarray(ys)
    drawn = None
    for marker, is_candidate in (("s", False), ("o", True)):
        for stable in (False, True):
            chosen = [
                i
                for i, point in enumerate(points)
                if (point.candidate is not None) == is_candidate and point.stable == stable
            ]
            drawn = axes.scatter(
                xs[chosen],
                ys[chosen],
                c=[points[i].above for i in chosen],
                cmap=COLOURS,
                vmin=0,
                vmax=NEAR,
                marker=marker,
                s=52 if stable else 18,
                linewidths=1.2 if stable else 0.3,
                edgecolors=INK if stable else "white",
                zorder=4 if stable else 3,
            )
    return drawn


def _label(axes: Axes, points: Sequence[Point], xs: Any, ys: Any) -> None:
    """Names of the stable phases, where there is room beside them."""
    places = axes.transData.transform(np.column_stack([xs, ys])) * 72 / axes.figure.dpi
    taken: list[tuple[float, float, float, float]] = []
    named: set[str] = set()
    elements_first = sorted(range(len(points)), key=lambda i: max(points[i].shares) < 1)
    for point, place in ((points[i], places[i]) for i in elements_first):
        if not point.stable or point.formula in named or len(named) >= MOST_LABELS:
            continue
        named.add(point.formula)
        width = 5.4 * len(point.formula)
        for right, up in ((5, -11), (-5 - width, -11), (5, 5), (-5 - width, 5)):
            x, y = place[0] + right, place[1] + up
            box = (x, y, x + width, y + 9)
            if not any(_overlap(box, other) for other in taken):
                taken.append(box)
                _name(axes, point, (right, up), axes.transData.inverted(), place)
                break


def _overlap(one: tuple[float, ...], two: tuple[float, ...]) -> bool:
    apart = one[0] > two[2] or two[0] > one[2] or one[1] > two[3] or two[1] > one[3]
    return not apart


def _name(axes: Axes, point: Point, offset: tuple[float, float], back: Any, place: Any) -> None:
    axes.annotate(
        _subscripts(point.formula),
        back.transform(place * axes.figure.dpi / 72),
        xytext=offset,
        textcoords="offset points",
        fontsize=8,
        color=INK,
        fontweight="bold" if point.candidate is not None else "normal",
        zorder=5,
    )


def _subscripts(formula: str) -> str:
    """Digits lowered, as far as Unicode has them."""
    return formula.translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def _colour_bar(axes: Axes, colours: Any) -> None:
    bar = axes.figure.colorbar(colours, ax=axes, shrink=0.75, extend="max")
    bar.set_label("above the hull (eV/atom)", color=INK, fontsize=9)
    bar.ax.tick_params(colors=INK, labelsize=8.5)
    bar.outline.set_visible(False)  # type: ignore[operator]


def distances_figure(reference: Sequence[float], everything: Sequence[float]) -> Figure:
    """How many candidates are how far above the hulls; eV/atom."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 4.9), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    _style(axes)
    first = max(-ENDS, int(np.floor(min([0.0, *reference]) / BIN)))
    bins = (BIN * np.arange(first, ENDS + 1)).tolist()
    outline: dict[str, Any] = {"histtype": "step", "color": PALETTE[1], "lw": 1.8}
    filled: dict[str, Any] = {"color": PALETTE[0], "alpha": 0.55}
    for values, label, look in (
        (reference, "of the references", outline),
        (everything, "of everything", filled),
    ):
        inside = np.clip(values, bins[0], bins[-1])
        axes.hist(inside, bins=bins, label=label, **look)
    axes.axvline(0, color=INK, linewidth=0.9)
    axes.set_xlabel("above the hull (eV/atom); the ends hold what is beyond", color=INK)
    axes.set_ylabel("candidates", color=INK)
    axes.legend(frameon=False, fontsize=8.5, title="hull", title_fontsize=8.5)
    return figure


def relaxation_figure(
    steps: Sequence[int], fmax: Sequence[float], statuses: Sequence[str]
) -> Figure:
    """Moves until the end, the forces that were left (eV/Å), and how candidates ended."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.0), dpi=DPI, layout="constrained")
    ends, moves, forces = figure.subplots(1, 3)
    counts = Counter(statuses).most_common()[::-1]
    ends.barh([name for name, _ in counts], [n for _, n in counts], color=PALETTE[0], alpha=0.75)
    for place, (_, n) in enumerate(counts):
        ends.annotate(f" {n:,}", (n, place), va="center", fontsize=8.5, color=INK)
    ends.set_xlabel("candidates", color=INK)
    ends.margins(x=0.2)
    moves.hist(steps, bins=30, color=PALETTE[0], alpha=0.75)
    moves.set_xlabel("moves", color=INK)
    moves.set_ylabel("candidates", color=INK)
    positive = [value for value in fmax if value and value > 0]
    if positive:
        low, high = np.log10(min(positive)), np.log10(max(positive))
        forces.hist(positive, bins=np.logspace(low, high + 1e-3, 30), color=PALETTE[0], alpha=0.75)
        forces.set_xscale("log")
    forces.set_xlabel("largest force left (eV/Å)", color=INK)
    for axes in (ends, moves, forces):
        _style(axes)
    return figure


def throughput_figure(progress: Sequence[tuple[float, int]]) -> Figure:
    """Structures that were done over the time of work, s."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 3.4), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    _style(axes)
    seconds, done = np.array(progress, float).T
    unit, name = (
        (3600, "h") if seconds[-1] > 7200 else (60, "min") if seconds[-1] > 300 else (1, "s")
    )
    axes.plot(seconds / unit, done, color=PALETTE[0], linewidth=1.8)
    axes.set_xlabel(f"time of work ({name})", color=INK)
    axes.set_ylabel("structures done", color=INK)
    if seconds[-1] > 0:
        rate = 3600 * done[-1] / seconds[-1]
        axes.set_title(f"{rate:,.0f} structures/h", loc="left", fontsize=10, color=INK)
    return figure


def as_svg(draw: Callable[[], Figure]) -> str:
    """A figure as an element for a page; its text stays text."""
    from io import StringIO

    from matplotlib import rc_context

    stream = StringIO()
    with rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "dpa4sim", "font.family": "sans-serif"}
    ):
        draw().savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9)

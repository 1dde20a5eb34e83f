"""Figures: parity with reference labels, and relaxed against measured volumes.

Drawn on matplotlib figures of their own; no global state is touched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AXES = {
    "energy": ("energy", "eV/atom", 1e3, "meV/atom"),
    "forces": ("force component", "eV/Å", 1e3, "meV/Å"),
    "stress": ("stress component", "eV/Å$^3$", 1e3, "meV/Å$^3$"),
    "magnetic forces": ("magnetic force component", "eV/μB", 1e3, "meV/μB"),
}
"""What a panel shows, its unit, and factor and unit of its errors."""

CURVES = {
    "energy_mae": "energy MAE (meV/atom)",
    "force_mae": "force MAE (meV/Å)",
    "stress_mae": "stress MAE (GPa)",
    "magnetic_force_mae": "magnetic force MAE (meV/μB)",
    "property_mae": "MAE of the property",
    "property_scaled_mae": "MAE / spread of the labels",
}
"""Columns of train.csv that are drawn."""

INK, FAINT, GRID = "#22272e", "#8b949e", "#e6e8eb"
PALETTE = ("#4c6ef5", "#f76707", "#12b886", "#e64980", "#7950f2", "#868e96", "#fab005")
DPI = 160
BAND = 0.05
"""Relative width of the shaded band: a usual error of semilocal DFT volumes is 1 to 4 %."""

APART = 0.12
"""Labelled outliers differ this much in the logarithm of a volume, or their names would overlap."""

MANY = 4000
"""From so many points on a parity panel counts them in hexagons."""


@dataclass(frozen=True)
class Crystal:
    """One point of `draw_volumes`.

    Args:
        label: shown beside outliers.
        family: chooses the colour.
        measured: Å^3 per atom.
        relaxed: Å^3 per atom.
        steps: moves until it stopped.
        converged: whether it stopped because it was done.
    """

    label: str
    family: str
    measured: float
    relaxed: float
    steps: int
    converged: bool

    @property
    def deviation(self) -> float:
        """Relaxed / measured - 1, in percent."""
        return 100 * (self.relaxed / self.measured - 1)


def draw_parity(panels: Mapping[str, tuple[np.ndarray, np.ndarray]], path: str | Path) -> None:
    """One panel per quantity: prediction over reference, with MAE and RMSE.

    Args:
        panels: by quantity (energy, forces, stress): reference and prediction in eV/atom, eV/Å
            or eV/Å^3; under any other name, of a property in its own unit.
        path: .png, .pdf or .svg.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(panels), 4.2), dpi=DPI, layout="constrained")
    for axes, (name, (reference, predicted)) in zip(
        np.ravel(figure.subplots(1, len(panels))), panels.items(), strict=True
    ):
        what, unit, factor, error_unit = AXES.get(name, (name, "", 1.0, ""))
        _style(axes)
        low, high = _limits(reference, predicted)
        axes.plot([low, high], [low, high], color=FAINT, linewidth=1, zorder=1)
        if len(reference) > MANY:
            axes.hexbin(reference, predicted, gridsize=70, bins="log", cmap="Blues", mincnt=1)
        else:
            axes.scatter(reference, predicted, s=9, color=PALETTE[0], alpha=0.6, linewidths=0)
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        where = f"{what} ({unit})" if unit else what
        axes.set_xlabel(f"reference {where}", color=INK)
        axes.set_ylabel(f"predicted {where}", color=INK)
        error = factor * (predicted - reference)
        mae, rmse = np.abs(error).mean(), np.sqrt((error**2).mean())
        text = f"MAE {mae:.3g} {error_unit}\nRMSE {rmse:.3g} {error_unit}\n{len(error)} values"
        axes.text(0.04, 0.96, text, transform=axes.transAxes, va="top", fontsize=9, color=INK)
    figure.savefig(path)


def draw_curves(rows: Sequence[Mapping[str, float]], path: str | Path) -> None:
    """Errors of training and validation, and the learning rate, over the steps.

    Args:
        rows: those of train.csv, in its units.
        path: .png, .pdf or .svg.
    """
    from matplotlib.figure import Figure

    panels = [
        (name, label)
        for name, label in CURVES.items()
        if any(np.isfinite(row.get(f"valid_{name}", np.nan)) for row in rows)
    ]
    figure = Figure(figsize=(4.2 * (len(panels) + 1), 3.6), dpi=DPI, layout="constrained")
    *errors, last = np.ravel(figure.subplots(1, len(panels) + 1))
    steps = [row["step"] for row in rows]
    for axes, (name, label) in zip(errors, panels, strict=True):
        _style(axes)
        for kind, colour in (("train", FAINT), ("valid", PALETTE[0])):
            values = [row[f"{kind}_{name}"] for row in rows]
            text = {"train": "training, on the way", "valid": "validation, averaged weights"}[kind]
            axes.plot(steps, values, color=colour, linewidth=1.6, marker=".", label=text)
        for number, key in enumerate(k for k in rows[0] if k.endswith(f":{name}")):
            colour, text = PALETTE[1 + number % (len(PALETTE) - 1)], key.removeprefix("valid_")
            values = [row[key] for row in rows]
            axes.plot(steps, values, color=colour, linewidth=1.0, label=text.partition(":")[0])
        axes.set(yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:.3g}")
        axes.set_ylabel(label, color=INK)
        axes.legend(frameon=False, fontsize=8.5)
    _style(last)
    last.plot(steps, [row["learning_rate"] for row in rows], color=PALETTE[1], marker=".")
    last.set_ylabel("learning rate", color=INK)
    for axes in (*errors, last):
        axes.set_xlabel("step", color=INK)
    figure.savefig(path)


def draw_volumes(crystals: Sequence[Crystal], path: str | Path) -> None:
    """Relaxed against measured volumes, their deviation by family, and how the batch emptied.

    Args:
        crystals: in any order; families are coloured in the order of their size.
        path: .png, .pdf or .svg.
    """
    from matplotlib.figure import Figure

    names = [crystal.family for crystal in crystals]
    families = sorted(set(names), key=lambda name: (-names.count(name), name))
    colour = dict(zip(families, PALETTE * len(families), strict=False))
    figure = Figure(figsize=(11.0, 5.6), dpi=DPI, layout="constrained", facecolor="white")
    grid = figure.add_gridspec(2, 2, width_ratios=(1.22, 1), height_ratios=(1.5, 1))
    _draw_volume_parity(figure.add_subplot(grid[:, 0]), crystals, colour)
    _draw_deviations(figure.add_subplot(grid[0, 1]), crystals, colour)
    _draw_emptying(figure.add_subplot(grid[1, 1]), crystals)
    figure.savefig(path)


def _draw_volume_parity(
    axes: Axes, crystals: Sequence[Crystal], colour: Mapping[str, str], n_labels: int = 6
) -> None:
    _style(axes)
    low = 0.85 * min(min(c.measured, c.relaxed) for c in crystals)
    high = 1.15 * max(max(c.measured, c.relaxed) for c in crystals)
    line = np.array([low, high])
    axes.fill_between(line, (1 - BAND) * line, (1 + BAND) * line, color="#f1f3f5", zorder=0)
    axes.plot(line, line, color=FAINT, linewidth=1, zorder=1)
    for family, shade in colour.items():
        members = [c for c in crystals if c.family == family]
        axes.scatter(
            [c.measured for c in members],
            [c.relaxed for c in members],
            s=34,
            color=shade,
            alpha=0.8,
            edgecolors="white",
            linewidths=0.5,
            label=f"{family} ({len(members)})",
            zorder=3,
        )
    _label_outliers(axes, crystals, n_labels)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
    ticks = [t for t in (5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200) if low < t < high]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, [str(t) for t in ticks])
        axis.set_ticks([], minor=True)
    axes.set_xlabel("measured volume (Å$^3$/atom)", color=INK)
    axes.set_ylabel("relaxed volume (Å$^3$/atom)", color=INK)
    title = f"{len(crystals)} crystals, relaxed in one batch"
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", color=INK)
    axes.legend(
        loc="upper left", frameon=False, fontsize=9.5, labelcolor=INK, handletextpad=0.2,
        borderpad=0.2,
    )  # fmt: skip
    axes.text(
        0.985, 0.015, f"band: ±{100 * BAND:.0f} %", transform=axes.transAxes, ha="right",
        fontsize=9, color=FAINT,
    )  # fmt: skip


def _label_outliers(axes: Axes, crystals: Sequence[Crystal], n_labels: int) -> None:
    """Formulas of the largest deviations, on the side where they stick out, none on another."""
    taken: list[np.ndarray] = []
    for crystal in sorted(crystals, key=lambda c: -abs(c.deviation)):
        place = np.log([crystal.measured, crystal.relaxed])
        if len(taken) == n_labels or abs(crystal.deviation) < 100 * BAND:
            return
        if any(np.abs(place - other).max() < APART for other in taken):
            continue
        taken.append(place)
        above = crystal.deviation > 0
        axes.annotate(
            re.sub(r"(\d+)", r"$_{\1}$", crystal.label),
            (crystal.measured, crystal.relaxed),
            xytext=(-5, 4) if above else (5, -4),
            textcoords="offset points",
            ha="right" if above else "left",
            va="bottom" if above else "top",
            fontsize=9,
            color=INK,
        )


def _draw_deviations(axes: Axes, crystals: Sequence[Crystal], colour: Mapping[str, str]) -> None:
    """A row per family: every crystal a dot (a triangle beyond the edge), the median a bar."""
    _style(axes)
    axes.axvspan(-100 * BAND, 100 * BAND, color="#f1f3f5", zorder=0)
    axes.axvline(0, color=FAINT, linewidth=1, zorder=1)
    deviations = np.array([c.deviation for c in crystals])
    reach = max(2 * 100 * BAND, 1.1 * float(np.quantile(np.abs(deviations), 0.98)))
    for row, (family, shade) in enumerate(colour.items()):
        values = np.array([c.deviation for c in crystals if c.family == family])
        heights = row + _swarm(values, 2 * reach / 90)
        for inside, marker, size in (
            (np.abs(values) <= reach, "o", 11),
            (values > reach, ">", 22),
            (values < -reach, "<", 22),
        ):
            shown = np.clip(values[inside], -reach, reach)
            axes.scatter(
                shown, heights[inside], s=size, marker=marker, color=shade, alpha=0.75,
                linewidths=0, zorder=3,
            )  # fmt: skip
        axes.plot([np.median(values)] * 2, [row - 0.36, row + 0.36], color=INK, linewidth=1.8)
    axes.set_yticks(range(len(colour)), list(colour))
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(-1.04 * reach, 1.04 * reach), ylim=(len(colour) - 0.4, -0.6))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("relaxed / measured volume - 1 (%)", color=INK)
    title = f"median error {np.median(np.abs(deviations)):.1f} %"
    axes.set_title(title, loc="left", fontsize=11, color=INK)


def _swarm(values: np.ndarray, width: float, spread: float = 0.07) -> np.ndarray:
    """Offsets that keep dots of one bin apart: 0, +1, -1, +2, ... times `spread`, within a row."""
    offsets = np.zeros(len(values))
    seen: dict[int, int] = {}
    for i in np.argsort(values):
        place = round(values[i] / width)
        count = seen[place] = seen.get(place, -1) + 1
        offsets[i] = spread * ((count + 1) // 2) * (1 if count % 2 else -1)
    return np.clip(offsets, -0.38, 0.38)


def _draw_emptying(axes: Axes, crystals: Sequence[Crystal]) -> None:
    """How many crystals were not converged at each step; those that never were stay."""
    from matplotlib.ticker import MaxNLocator

    _style(axes)
    stops = np.sort([c.steps for c in crystals if c.converged])
    steps = np.arange(max(c.steps for c in crystals) + 2)
    moving = len(crystals) - np.searchsorted(stops, steps, side="right")
    axes.fill_between(steps, moving, step="post", color=PALETTE[0], alpha=0.18, linewidth=0)
    axes.step(steps, moving, where="post", color=PALETTE[0], linewidth=1.8)
    axes.set(xlim=(0, steps[-1]), ylim=(0, 1.05 * len(crystals)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step", color=INK)
    axes.set_ylabel("still moving", color=INK)
    title = f"{len(stops)} of {len(crystals)} converged"
    half = (len(crystals) + 1) // 2
    if len(stops) >= half:
        title += f", half of all by step {stops[half - 1]}"
    axes.set_title(title, loc="left", fontsize=11, color=INK)


def _style(axes: Axes) -> None:
    """Open frame, faint grid, dark grey text."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9.5)


def _limits(*arrays: Any) -> tuple[float, float]:
    """Common limits of arrays, with a margin."""
    low, high = min(a.min() for a in arrays), max(a.max() for a in arrays)
    margin = 0.05 * (high - low) or 0.5
    return float(low - margin), float(high + margin)

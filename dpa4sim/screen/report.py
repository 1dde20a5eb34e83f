"""One page that holds a whole campaign: no network, no second file; and its figures as PNG."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from dpa4sim import __version__
from dpa4sim.pool.checkpoint import whole
from dpa4sim.screen import figures
from dpa4sim.screen.index import PhaseIndex
from dpa4sim.screen.systems import SystemHull, drawable, system_hulls

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).with_name("report.html")

MOST_SYSTEMS = 200
"""Whose hulls are on the page, those with most candidates first."""

MOST_FIGURES = 12
"""Systems whose hulls are PNG files."""

CLOSE = (0.025, 0.05, 0.1)
"""eV/atom above the hull; candidates below are counted."""


def write_page(
    folder: str | Path,
    results: pa.Table,
    table: pa.Table,
    references: PhaseIndex,
    *,
    title: str = "Screening campaign",
    facts: Mapping[str, str] | None = None,
    progress: Sequence[tuple[float, int]] = (),
) -> Path:
    """Write report.html and figures; returns the path of the page.

    Args:
        folder: where they go; it exists.
        results: rows of the campaign; structures are not looked at.
        table: `hull_table` of them.
        references: that went into it.
        title: of the page.
        facts: what stands below the title, such as the model.
        progress: seconds of work, and structures done by then.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder = Path(folder)
    results = results.sort_by("id")
    systems = drawable(table)
    hulls = list(system_hulls(table, references, systems[:MOST_SYSTEMS]))
    draw = _figures(results, table, progress)
    for hull in hulls[:MOST_FIGURES]:
        draw[f"hull-{hull.name}"] = partial(figures.hull_figure, hull)
    for name, figure in draw.items():
        with whole(folder / f"{name}.png") as file:
            figures.save(figure(), file)
    values = {
        "title": escape(title),
        "facts": " ".join(
            f"<span>{escape(name)} <b>{escape(text)}</b></span>"
            for name, text in (facts or {}).items()
        ),
        "cards": "".join(_card(*card) for card in cards(table)),
        "drawn": _drawn(len(systems), len(hulls)),
        "distances": figures.as_svg(draw["distances"]),
        "relaxation": figures.as_svg(draw["relaxation"]),
        "throughput": _throughput(draw.get("throughput")),
        "footer": f"Made by dpa4sim {__version__}. The same rows: hull.csv and hull.parquet.",
        "ramp": ", ".join(_ramp(9)),
        "ramp_colours": json.dumps(_ramp(64)),
        "near": f"{figures.NEAR:g}",
        "least": f"{figures.LEAST_HEIGHT:g}",
        "data": pack({"rows": _rows(table), "systems": _places(hulls, table)}),
        "more": pack(_details(results, table)),
    }
    template = TEMPLATE.read_text(encoding="utf-8")
    text = re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], template)
    with whole(folder / "report.html") as file:
        file.write_text(text, encoding="utf-8")
    return folder / "report.html"


def cards(table: pa.Table) -> list[tuple[int, str, bool]]:
    """How many candidates are what; the last of each says whether it is good news."""
    counts = pc.value_counts(table["status"]).to_pylist()
    ordered = sorted(counts, key=lambda each: -each["counts"])
    found = [(table.num_rows, "candidates", False)]
    found += [(each["counts"], str(each["values"]).replace("_", " "), False) for each in ordered]
    found.append((pc.sum(table["stable"]).as_py() or 0, "stable", True))
    ranked = table.filter(pc.is_valid(table["rank"]))["e_above_hull_self"]
    for limit in CLOSE:
        near = pc.sum(pc.less_equal(ranked, limit)).as_py() or 0
        found.append((near, f"within {1e3 * limit:g} meV/atom", False))
    return found


def pack(content: Any) -> str:
    """JSON, compressed, as text without a character that a page would read as its own."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def _figures(
    results: pa.Table, table: pa.Table, progress: Sequence[tuple[float, int]]
) -> dict[str, Callable[[], Figure]]:
    """By name of their file."""
    ranked = table.filter(pc.is_valid(table["rank"]))
    reference = ranked["e_above_hull_reference"].drop_null().to_pylist()
    distances = partial(
        figures.distances_figure, reference, ranked["e_above_hull_self"].to_pylist()
    )
    relaxation = partial(
        figures.relaxation_figure,
        results["steps"].drop_null().to_pylist(),
        results["fmax"].drop_null().to_pylist(),
        results["status"].to_pylist(),
    )
    draw: dict[str, Callable[[], Figure]] = {"distances": distances, "relaxation": relaxation}
    if len(progress) > 1:
        draw["throughput"] = partial(figures.throughput_figure, list(progress))
    return draw


def _rows(table: pa.Table) -> dict[str, Any]:
    """What the table shows, by the page's names; numbers as long as they are read."""
    rows: dict[str, Any] = {
        name: table[name].to_pylist() for name in ("rank", "name", "n_atoms", "formula", "status")
    }
    rows["system"] = table["chemical_system"].to_pylist()
    rows["stable"] = [int(each) for each in table["stable"].to_pylist()]
    rows["flags"] = [" ".join(each or ()) for each in table["flags"].to_pylist()]
    for name, column in (
        ("self", "e_above_hull_self"),
        ("reference", "e_above_hull_reference"),
        ("formation", "formation_energy"),
    ):
        rows[name] = _rounded(table[column], 5)
    return _with_words(rows, ("formula", "system", "status", "flags"))


def _details(results: pa.Table, table: pa.Table) -> dict[str, Any]:
    """What is said about the chosen row: unpacked only when one is chosen."""
    rows: dict[str, Any] = {
        "decomposition": table["decomposition"].to_pylist(),
        "decomposition_reference": table["decomposition_reference"].to_pylist(),
        "missing": table["missing_references"].to_pylist(),
        "reason": table["reason"].to_pylist(),
        "start": results["space_group_start"].to_pylist(),
        "group": table["space_group"].to_pylist(),
        "steps": results["steps"].to_pylist(),
        "fmax": _rounded(results["fmax"], 4),
        "volume": _rounded(pc.divide(results["volume"], results["n_atoms"]), 2),
    }
    words = ("decomposition", "decomposition_reference", "missing", "reason")
    return _with_words(rows, words)


def _with_words(rows: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Texts of these columns once, and their places in the rows."""
    rows["words"] = {}
    for name in names:
        words = sorted({each or "" for each in rows[name]})
        places = {word: place for place, word in enumerate(words)}
        rows["words"][name] = words
        rows[name] = [places[each or ""] for each in rows[name]]
    return rows


def _rounded(column: Any, digits: int) -> list[float | None]:
    finite = pc.if_else(pc.is_finite(column), column, None)
    return pc.round(finite, digits).to_pylist()  # type: ignore[no-any-return]


def _places(hulls: Sequence[SystemHull], table: pa.Table) -> list[dict[str, Any]]:
    """Figures of systems; a candidate is the number of its row."""
    rows = {number: row for row, number in enumerate(table["id"].to_pylist())}
    return [
        {
            "name": hull.name,
            "elements": hull.elements,
            "points": [
                (
                    [round(share, 5) for share in point.shares],
                    round(point.formation_energy, 5),
                    0 if point.stable else round(point.above, 5),
                    point.formula,
                    None if point.candidate is None else rows[point.candidate],
                    point.name,
                )
                for point in hull.points
            ],
            "edges": hull.edges,
            "left_out": hull.left_out,
        }
        for hull in hulls
    ]


def _card(count: int, text: str, good: bool) -> str:
    kind = ' class="good"' if good else ""
    return f"<li{kind}><strong>{count:,}</strong><span>{escape(text)}</span></li>"


def _drawn(total: int, drawn: int) -> str:
    if drawn == total:
        return ""
    return (
        f"{drawn:,} of {total:,} systems are here, those with most candidates; elements without a "
        "reference leave a system out."
    )


def _throughput(draw: Callable[[], Figure] | None) -> str:
    if draw is None:
        return ""
    return f"<div>{figures.as_svg(draw)}</div>"


def _ramp(n: int) -> list[str]:
    """The colours of the distance from the hull."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps[figures.COLOURS](i / (n - 1))) for i in range(n)]

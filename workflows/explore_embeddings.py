"""A map of crystals as a model sees them, and which of them it takes to be alike.

    python workflows/explore_embeddings.py [FILE...] [--model seed] [--colour KEY] [--near NAME]

Every crystal is the mean of its atoms' features (descriptors, or the head's last hidden layer),
each feature in units of its spread over the set and cut at three of them, or a few crystals unlike
all others would make the map.  The map shows the first two principal components, coloured by the
volume per atom, or by what the frames' info has under KEY: a number, or a word.  The table lists
the nearest neighbours of one crystal by distance over all components.  Without files: the built-in
crystals at their measured lattices.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from recipe import CRYSTALS, leave

from dpa4sim.adapters.files import read_structures
from dpa4sim.batch import Batch
from dpa4sim.cli.options import open_single_model
from dpa4sim.cli.table import table
from dpa4sim.complaint import complaints
from dpa4sim.embed import embed_batch
from dpa4sim.errors import ConfigError, DataError
from dpa4sim.plots import DPI, FAINT, INK, PALETTE
from dpa4sim.pool.progress import Progress
from dpa4sim.potential import Potential
from dpa4sim.property import PropertyModel

KINDS = ("atomic_feature", "descriptor")
VOLUME = "volume"
TOGETHER = 32
"""Crystals that are embedded in one batch."""

FARTHEST = 3.0
"""Robust deviations at which a feature is cut."""

NAMED = 7
"""Words that get a colour of their own, the most frequent; the others are grey."""

LABELLED = 16
"""Crystals whose names are written on the map: the most isolated, where there is room."""

ROOM = np.array([0.16, 0.03])
"""What a name takes of the width and the height of the map."""


@dataclass(frozen=True)
class Crystal:
    """A crystal of the map.

    Args:
        name: from the frame's info, else its formula.
        system: the structure.
        info: of the frame.
    """

    name: str
    system: Batch
    info: dict[str, Any]


def read_crystals(
    paths: Sequence[str | Path], model: Potential | PropertyModel
) -> tuple[list[Crystal], int]:
    """Those that the model can take, and how many others there are.

    Raises:
        DataError: fewer than three can be used.
    """
    records = [record for record in read_structures(paths) if isinstance(record.batch, Batch)]
    reasons = complaints([record.batch for record in records], model.known_elements)
    found = []
    for record, reason in zip(records, reasons, strict=True):
        if reason is None:
            info = {} if record.atoms is None else dict(record.atoms.info)
            formula = "?" if record.atoms is None else record.atoms.get_chemical_formula("metal")
            found.append(Crystal(str(info.get("name", formula)), record.batch, info))
    if len(found) < 3:
        raise DataError(
            f"{len(found)} of {len(records)} structures can be used; a map needs three. Give more, "
            f"of the elements that the model knows: {', '.join(model.config.species)}."
        )
    return found, len(records) - len(found)


def features_of(
    model: Potential | PropertyModel, crystals: Sequence[Crystal], kind: str
) -> Float[np.ndarray, "crystal feature"]:
    """Mean over the atoms of each crystal."""
    rows, bar = [], Progress("embed", len(crystals), None)
    for start in range(0, len(crystals), TOGETHER):
        batch = Batch.concatenate(c.system for c in crystals[start : start + TOGETHER])
        values = getattr(embed_batch(model, batch.to(model.device)), kind).double().cpu()
        total = values.new_zeros(batch.n_systems, values.shape[1])
        total = total.index_add(0, batch.system_idx, values)
        rows.append((total / batch.n_atoms[:, None]).numpy())
        bar.advance(batch.n_systems)
    bar.close()
    return np.concatenate(rows)


def standardised(
    features: Float[np.ndarray, "crystal feature"],
) -> Float[np.ndarray, "crystal feature"]:
    """Every feature in robust deviations from its median, cut at `FARTHEST` of them, and centred.

    One that is the same everywhere stays 0.
    """
    off = features - np.median(features, 0)
    spread = 1.4826 * np.median(np.abs(off), 0)
    flat = spread <= 1e-9 * np.abs(features).max(initial=1.0)
    x = np.clip(np.where(flat, 0.0, off / np.where(flat, 1.0, spread)), -FARTHEST, FARTHEST)
    return x - x.mean(0)


def principal(
    x: Float[np.ndarray, "crystal feature"],
) -> tuple[Float[np.ndarray, "crystal 2"], Float[np.ndarray, " 2"]]:
    """First two principal components of centred rows, and their shares of the variance.

    X = U S V^T;  components = U S.  The sign of each is set by its largest entry.
    """
    left, size, _ = np.linalg.svd(x, full_matrices=False)
    places = left[:, :2] * size[:2]
    places = places * np.sign(places[np.abs(places).argmax(0), range(places.shape[1])])
    return places, size[:2] ** 2 / (size**2).sum()


def nearest(
    x: Float[np.ndarray, "crystal feature"], row: int, n: int
) -> tuple[Int[np.ndarray, " near"], Float[np.ndarray, " near"]]:
    """Rows nearest to one, itself left out, and their distances."""
    distance = np.linalg.norm(x - x[row], axis=1)
    order = np.argsort(distance, kind="stable")
    order = order[order != row][:n]
    return order, distance[order]


def find(crystals: Sequence[Crystal], name: str) -> int:
    """The row of a crystal.

    Raises:
        ConfigError: no such name, with those that are like it.
    """
    names = [crystal.name for crystal in crystals]
    if name in names:
        return names.index(name)
    near = get_close_matches(name, names, 3) or names[:3]
    raise ConfigError(f"There is no crystal '{name}' on the map. Did you mean {', '.join(near)}?")


def values_of(crystals: Sequence[Crystal], key: str) -> list[Any]:
    """What the map is coloured by.

    Raises:
        ConfigError: a crystal has no such entry.
    """
    if key == VOLUME:
        return [float(c.system.volume[0]) / len(c.system.positions) for c in crystals]
    for crystal in crystals:
        if key not in crystal.info:
            known = ", ".join([VOLUME, *crystal.info])
            raise ConfigError(f"{crystal.name} has no '{key}' to colour it by. It has {known}.")
    values = [crystal.info[key] for crystal in crystals]
    if all(np.isreal(value) and np.ndim(value) == 0 for value in values):
        return [float(value) for value in values]
    return [str(value) for value in values]


def named_rows(places: Float[np.ndarray, "crystal 2"], first: Sequence[int]) -> list[int]:
    """Rows whose names fit on the map: `first`, then the most isolated."""
    away = np.array([np.sort(np.linalg.norm(places - one, axis=1))[1] for one in places])
    scaled = places / np.ptp(places, axis=0)
    found: list[int] = []
    for row in [*first, *np.argsort(-away).tolist()]:
        apart = np.abs(scaled[found] - scaled[row]) > ROOM
        if row not in found and apart.any(1).all():
            found.append(row)
        if len(found) >= LABELLED:
            break
    return found


def draw(
    places: Float[np.ndarray, "crystal 2"],
    shares: Float[np.ndarray, " 2"],
    crystals: Sequence[Crystal],
    key: str,
    path: Path,
    chosen: Sequence[int] = (),
) -> None:
    """The map; `chosen` crystals are ringed, the first of them boldly."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 6.0), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    values = values_of(crystals, key)
    x, y = places.T
    if isinstance(values[0], float):
        low, high = np.quantile(values, (0.02, 0.98))
        dots = axes.scatter(x, y, c=values, s=26, cmap="viridis", vmin=low, vmax=high, linewidths=0)
        unit = " per atom (Å$^3$)" if key == VOLUME else ""
        figure.colorbar(dots, label=f"{key}{unit}", shrink=0.8)
    else:
        common = [word for word, _ in Counter(values).most_common(NAMED)]
        kind = np.array([common.index(word) if word in common else -1 for word in values])
        axes.scatter(*places[kind < 0].T, s=20, color=FAINT, alpha=0.5, linewidths=0)
        for number, word in enumerate(common):
            where = places[kind == number].T
            axes.scatter(*where, s=28, color=PALETTE[number], linewidths=0, label=word)
        axes.legend(frameon=False, fontsize=8.5, title=key)
    for order, row in enumerate(chosen):
        width = 2.0 if order == 0 else 1.0
        axes.scatter(*places[row], s=90, facecolors="none", edgecolors=INK, linewidths=width)
    for row in named_rows(places, chosen[:1]):
        axes.annotate(
            crystals[row].name, places[row], (5, 4), textcoords="offset points", fontsize=7.5,
            color=INK,
        )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(f"first component, {100 * shares[0]:.0f} % of the variance", color=INK)
    axes.set_ylabel(f"second component, {100 * shares[1]:.0f} %", color=INK)
    figure.savefig(path)


def write_places(
    places: Float[np.ndarray, "crystal 2"], crystals: Sequence[Crystal], key: str, path: Path
) -> None:
    """map.csv: name, coordinates, value."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("name", "first", "second", key))
        for crystal, place, value in zip(crystals, places, values_of(crystals, key), strict=True):
            writer.writerow((crystal.name, f"{place[0]:.6g}", f"{place[1]:.6g}", value))


def main(words: Sequence[str] | None = None) -> int:
    """Embed, draw, print the neighbours."""
    args = _arguments(words)
    if args.neighbours < 1:
        raise ConfigError(f"--neighbours {args.neighbours} is too small. Give 1 or more.")
    model = open_single_model(args)
    crystals, left_out = read_crystals(args.inputs or [CRYSTALS], model)
    row = 0 if args.near is None else find(crystals, args.near)
    values = values_of(crystals, args.colour)
    x = standardised(features_of(model, crystals, args.feature))
    places, shares = principal(x)
    order, distances = nearest(x, row, args.neighbours)
    args.out.mkdir(parents=True, exist_ok=True)
    picture = args.out / "map.png"
    draw(places, shares, crystals, args.colour, picture, [row, *order.tolist()])
    write_places(places, crystals, args.colour, args.out / "map.csv")
    typical = np.median([np.median(np.linalg.norm(x - one, axis=1)) for one in x])
    rows = [(crystals[row].name, "0.00", _text(values[row]))]
    rows += [
        (crystals[k].name, f"{distance:.2f}", _text(values[k]))
        for k, distance in zip(order, distances, strict=True)
    ]
    print(table((f"nearest to {crystals[row].name}", "distance", args.colour), rows))
    skipped = f", {left_out} left out" if left_out else ""
    print(f"\n{len(crystals)} crystals{skipped}; two of them are {typical:.2f} apart, as a median")
    print(picture)
    return 0


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", metavar="FILE", nargs="*", help="structures, in any format")
    parser.add_argument("--model", default="seed", help="a released name or a file [seed]")
    parser.add_argument("--branch", help="branch of a multi-task DeePMD-kit checkpoint")
    parser.add_argument("--device", default="cpu", help="where to compute, such as cuda [cpu]")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    parser.add_argument("--feature", choices=KINDS, default=KINDS[0], help=f"[{KINDS[0]}]")
    parser.add_argument("--colour", metavar="KEY", default=VOLUME, help=f"[{VOLUME}]")
    parser.add_argument("--near", metavar="NAME", help="whose neighbours are listed [the first]")
    parser.add_argument("--neighbours", type=int, default=8, help="how many are listed [8]")
    parser.add_argument("-o", "--out", type=Path, default=Path("embeddings"), help="a folder")
    return parser.parse_args(words)


if __name__ == "__main__":
    leave(main)

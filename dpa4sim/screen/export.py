"""What a campaign found, in the formats of others: extxyz, CIF, ASE database, pymatgen, tables."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from dpa4sim.errors import ConfigError
from dpa4sim.pool.checkpoint import whole
from dpa4sim.screen.references import MODEL_KEY
from dpa4sim.screen.table import STRUCTURE, to_atoms

if TYPE_CHECKING:
    from ase import Atoms

SAID = ("formation_energy", "e_above_hull_reference", "e_above_hull_self", "correction_per_atom")
"""Figures of the hull that go along with a structure, in eV/atom."""

TAKEN = {"id": "candidate", "formula": "reduced_formula", "fmax": "largest_force"}
"""Names of our labels in ASE's database, where it has other uses for their own."""

ROWS_AT_ONCE = 1000


def export(
    results: pa.Table,
    hull: pa.Table,
    path: str | Path,
    *,
    kind: str,
    max_e_above_hull: float | None = None,
    model_hash: str = "",
) -> int:
    """Write relaxed structures, the lowest above the hull first; the file appears whole.

    Args:
        results: rows of the campaign, with their structures.
        hull: `hull_table` of them.
        path: a file, or for "cif" a folder that does not exist or is empty.
        kind: one of `KINDS`.
        max_e_above_hull: leave out what is higher above the hull of everything, eV/atom; None
            takes every structure with an energy.
        model_hash: of the model, for "entries".

    Returns:
        How many were written.

    Raises:
        ConfigError: the kind is not known or the path cannot be used.
    """
    if kind not in KINDS:
        raise ConfigError(f"kind={kind!r} is not known. Valid: {', '.join(KINDS)}.")
    path = Path(path)
    if not path.parent.is_dir():
        raise ConfigError(f"There is no folder {path.parent} to write {path.name} in. Make it.")
    chosen = select(results, hull, max_e_above_hull)
    metadata = {**(hull.schema.metadata or {}), b"model_hash": model_hash.encode()}
    KINDS[kind](chosen.replace_schema_metadata(metadata), path)
    return int(chosen.num_rows)


def select(results: pa.Table, hull: pa.Table, max_e_above_hull: float | None) -> pa.Table:
    """Results and hull side by side: ranked rows in their order, then others with an energy."""
    own = ["id", *(name for name in hull.column_names if name not in results.column_names)]
    extra = hull.select(own).append_column("place", pc.fill_null(hull["rank"], 1 << 62))
    mask = pc.is_valid(hull["energy_per_atom"])
    if max_e_above_hull is not None:
        low = pc.less_equal(hull["e_above_hull_self"], max_e_above_hull)
        mask = pc.fill_null(pc.and_(pc.is_valid(hull["rank"]), low), False)
    extra = extra.filter(mask).combine_chunks()
    # pyarrow joins no tables with lists, so rows are looked up by id
    places = pc.index_in(extra["id"], value_set=pc.cast(results["id"], pa.int64()))
    joined = results.take(places)
    for name in extra.column_names[1:]:
        joined = joined.append_column(name, extra[name])
    return joined.sort_by([("place", "ascending"), ("id", "ascending")]).drop(["place"])


def write_csv(table: pa.Table, path: Path) -> None:
    """Without structures; flags are joined by semicolons."""
    table = table.drop([name for name in STRUCTURE if name in table.column_names])
    if "flags" in table.column_names:
        joined = pc.binary_join(table["flags"].combine_chunks(), ";")
        table = table.set_column(table.column_names.index("flags"), "flags", joined)
    with whole(path) as partial:
        pcsv.write_csv(table, partial)


def structures(chosen: pa.Table) -> Iterator[tuple[dict[str, Any], Atoms]]:
    """Rows with their atoms, a few in memory at a time."""
    for batch in chosen.to_batches(max_chunksize=ROWS_AT_ONCE):
        for row in batch.to_pylist():
            yield row, to_atoms(row)


def _write_parquet(table: pa.Table, path: Path) -> None:
    with whole(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def _write_extxyz(chosen: pa.Table, path: Path) -> None:
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    with whole(path) as partial, partial.open("w", encoding="utf-8") as stream:
        for row, atoms in structures(chosen):
            atoms.info = _labels(row)
            atoms.calc = SinglePointCalculator(atoms, energy=row["energy"])
            write(stream, atoms, format="extxyz")


def _write_cif(chosen: pa.Table, path: Path) -> None:
    from ase.io import write

    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} exists and is no empty folder. Give the name of a new folder.")
    path.mkdir(exist_ok=True)
    width = len(str(max(1, chosen.num_rows)))
    for place, (row, atoms) in enumerate(structures(chosen), start=1):
        name = re.sub(r"[^A-Za-z0-9.+-]+", "_", f"{row['formula']}_{row['name']}")[:80]
        write(path / f"{place:0{width}}_{name}.cif", atoms, format="cif")


def _write_db(chosen: pa.Table, path: Path) -> None:
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.db import connect

    if path.suffix != ".db":
        raise ConfigError(f"{path} should end in .db.")
    with whole(path) as partial:
        partial.unlink(missing_ok=True)
        with connect(partial, type="db", append=False) as database:
            for row, atoms in structures(chosen):
                atoms.calc = SinglePointCalculator(atoms, energy=row["energy"])
                labels = {TAKEN.get(name, name): value for name, value in _labels(row).items()}
                database.write(atoms, key_value_pairs=labels)


def _write_entries(chosen: pa.Table, path: Path) -> None:
    """A JSON list, one entry after the other, compressed if the name ends in .gz."""
    from monty.json import MontyEncoder
    from pymatgen.entries.computed_entries import ComputedStructureEntry, ConstantEnergyAdjustment
    from pymatgen.io.ase import AseAtomsAdaptor

    metadata = {key.decode(): value.decode() for key, value in chosen.schema.metadata.items()}
    name = f"{metadata.get('corrections', '').upper()} by pymatgen {metadata.get('pymatgen', '')}"
    with whole(path) as partial, _text(partial, path.suffix == ".gz") as stream:
        between = "[\n"
        for row, atoms in structures(chosen):
            shift = row["correction_per_atom"] * row["n_atoms"]
            entry = ComputedStructureEntry(
                AseAtomsAdaptor.get_structure(atoms),
                row["energy"],
                energy_adjustments=[ConstantEnergyAdjustment(shift, name=name)] if shift else None,
                parameters={MODEL_KEY: metadata["model_hash"]},
                data={key: value for key, value in _labels(row).items() if key != "name"},
                entry_id=row["name"],
            )
            stream.write(between + json.dumps(entry.as_dict(), cls=MontyEncoder))
            between = ",\n"
        stream.write("\n]\n" if chosen.num_rows else "[]\n")


def _text(path: Path, compressed: bool) -> Any:
    if compressed:
        return gzip.open(path, "wt", encoding="utf-8")
    return path.open("w", encoding="utf-8")


def _labels(row: Mapping[str, Any]) -> dict[str, Any]:
    """What says which candidate it is and where it stands; only what is known."""
    names = ("id", "name", "formula", "status", "rank", "steps", "fmax", "space_group", *SAID)
    labels = {name: row[name] for name in names if row.get(name) is not None}
    if row["flags"]:
        labels["flags"] = " ".join(row["flags"])
    return labels


KINDS: dict[str, Callable[[pa.Table, Path], None]] = {
    "extxyz": _write_extxyz,
    "cif": _write_cif,
    "db": _write_db,
    "entries": _write_entries,
    "parquet": _write_parquet,
    "csv": write_csv,
}

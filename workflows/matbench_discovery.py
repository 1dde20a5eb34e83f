"""Matbench Discovery: relax the WBM structures, and write the files and figures of a submission.

    python workflows/matbench_discovery.py DATA --model MODEL --name NAME [-o FOLDER] [--kappa FILE]

DATA is a folder with these files of the benchmark, which its site tells where to download:

    2023-12-13-wbm-summary.csv.gz                         what DFT found, and the unique prototypes
    2022-10-19-wbm-init-structs.jsonl.gz                  where relaxations start, or
    2024-08-04-wbm-initial-atoms.extxyz.zip               the same
    2022-10-19-wbm-computed-structure-entries.jsonl.gz    what DFT relaxed, for RMSD and corrections
    2023-02-07-mp-elemental-reference-entries.json.gz     energies of the elements

Relaxations follow FIRE with ASE's Frechet cell filter to 0.02 eV/Å, at most 500 steps.  FOLDER
holds their checkpoints: the same command goes on after any interruption.  The energies get the
corrections of MaterialsProject2020Compatibility as the labels have them; `--no-corrections` is for
a model that learnt corrected energies.  The installed pymatgen makes these corrections and the
labels were made by that of 2023: NAME.yml says which version it was.

It writes NAME-wbm-IS2RE.csv.gz, NAME-wbm-geo-opt.jsonl.gz and NAME.yml.  The figures of the YAML
are those of the leaderboard; the authors, the licence and the training are left for you to fill in.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ase import Atoms
from discovery_metrics import (
    TRUE_FORMATION,
    TRUE_HULL,
    UNIQUE,
    combined_score,
    rmsd,
    subset_metrics,
)
from pymatgen.core import Composition, Structure
from pymatgen.entries.computed_entries import ComputedEntry, ComputedStructureEntry
from pymatgen.io.ase import AseAtomsAdaptor
from recipe import leave

from dpa4sim.adapters.ase import to_atoms
from dpa4sim.cli.options import open_model
from dpa4sim.cli.table import fixed, table
from dpa4sim.errors import ConfigError, DataError, Status
from dpa4sim.pool.checkpoint import whole
from dpa4sim.potential import EnergyModel
from dpa4sim.relax import relax_each
from dpa4sim.screen.corrections import adjustment

SUMMARY = "2023-12-13-wbm-summary.csv.gz"
STARTS = ("2022-10-19-wbm-init-structs.jsonl.gz", "2024-08-04-wbm-initial-atoms.extxyz.zip")
ENTRIES = "2022-10-19-wbm-computed-structure-entries.jsonl.gz"
ELEMENTS = "2023-02-07-mp-elemental-reference-entries.json.gz"

ID = "material_id"
PREDICTED = "pred_e_form_per_atom_dpa4"
STRUCTURE = "pred_structure_dpa4"

FMAX, MAX_STEPS = 0.02, 500
RELAXED = (Status.CONVERGED, Status.MAX_STEPS)


def read_summary(path: Path) -> pd.DataFrame:
    """Labels by material id.

    Raises:
        DataError: the file or one of its columns is missing.
    """
    summary = pd.read_csv(_there(path)).set_index(ID)
    missing = [name for name in (TRUE_HULL, TRUE_FORMATION, UNIQUE) if name not in summary]
    if missing:
        raise DataError(
            f"{path} has no column {missing[0]}. Download the file of that name again; its columns "
            f"are {', '.join(summary.columns[:8])}, ..."
        )
    return summary


def _there(path: Path) -> Path:
    if not path.is_file():
        raise DataError(
            f"There is no {path}. Download it from the data page of Matbench Discovery; nothing is "
            "fetched from here."
        )
    return path


def read_starts(folder: Path) -> Iterator[tuple[str, Atoms]]:
    """Material ids and unrelaxed structures.

    Raises:
        DataError: neither file is there.
    """
    found = [folder / name for name in STARTS if (folder / name).is_file()]
    if not found:
        raise DataError(f"{folder} holds neither {STARTS[0]} nor {STARTS[1]}. Download one.")
    if found[0].suffix == ".zip":
        yield from _zipped(found[0])
        return
    for line in lines(found[0]):
        structure = Structure.from_dict(line["initial_structure"])
        yield line[ID], AseAtomsAdaptor.get_atoms(structure, msonable=False)


def _zipped(path: Path) -> Iterator[tuple[str, Atoms]]:
    from ase.io import read

    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".extxyz"):
                text = io.StringIO(archive.read(name).decode())
                atoms = read(text, format="extxyz")
                yield str(atoms.info.get(ID, Path(name).stem)), atoms


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a .jsonl.gz, one by one."""
    with gzip.open(_there(path), "rt", encoding="utf-8") as stream:
        yield from (json.loads(line) for line in stream if line.strip())


def element_energies(path: Path) -> dict[str, float]:
    """eV/atom of the elements, rounded as the benchmark does."""
    with gzip.open(_there(path), "rt", encoding="utf-8") as stream:
        entries = json.load(stream)
    return {
        symbol: round(ComputedEntry.from_dict(entry).energy_per_atom, 4)
        for symbol, entry in entries.items()
    }


def formation_energy(composition: Composition, energy: float, ends: Mapping[str, float]) -> float:
    """eV/atom, from the energy (eV) of the whole composition."""
    amounts = composition.get_el_amt_dict()
    return (energy - sum(n * ends[symbol] for symbol, n in amounts.items())) / sum(amounts.values())


def relaxed(
    potential: EnergyModel, starts: Iterable[tuple[str, Atoms]], directory: Path | None
) -> Iterator[tuple[str, Structure, float, str]]:
    """Material ids, relaxed structures, energies (eV) and how relaxations ended, as they end."""
    names: list[str] = []

    def structures() -> Iterator[Atoms]:
        for name, atoms in starts:
            names.append(name)
            yield atoms

    records = relax_each(
        potential,
        structures(),
        fmax=FMAX,
        max_steps=MAX_STEPS,
        optimizer="fire",
        cell_filter="frechet",
        directory=directory,
    )
    for record in records:
        status = record.status.name.lower()
        energy = record.energy if record.status in RELAXED else float("nan")
        atoms = to_atoms(record.batch)[0]
        yield names[record.index], AseAtomsAdaptor.get_structure(atoms), energy, status


def predictions(
    results: Iterable[tuple[str, Structure, float, str]],
    entries: Mapping[str, ComputedStructureEntry],
    ends: Mapping[str, float],
    corrections: bool,
) -> Iterator[dict[str, Any]]:
    """A line per crystal: formation energy (eV/atom), RMSD, and what the submission keeps.

    Args:
        results: of `relaxed`.
        entries: what DFT relaxed, by material id.
        ends: energies of the elements, eV/atom.
        corrections: add those of the scheme to the model's energies.
    """
    for name, structure, energy, status in results:
        if name not in entries:
            raise DataError(f"{ENTRIES} has no entry {name}. Download it again.")
        true = entries[name]
        line = {ID: name, "energy": energy, "status": status, PREDICTED: float("nan")}
        line |= {"rmsd": float("nan"), STRUCTURE: structure.as_dict()}
        if np.isfinite(energy):
            line["correction"] = _correction(true, structure, energy) if corrections else 0.0
            total = energy + line["correction"]
            line[PREDICTED] = formation_energy(structure.composition, total, ends)
            line["rmsd"] = rmsd(structure, true.structure)
        yield line


def _correction(true: ComputedStructureEntry, structure: Structure, energy: float) -> float:
    """Of our structure, taken as calculated like the one of DFT; eV."""
    data = {key: value for key, value in true.data.items() if key != "oxidation_states"}
    return adjustment(
        ComputedStructureEntry(structure, energy, parameters=true.parameters, data=data)
    )


def write_predictions(found: Sequence[Mapping[str, Any]], folder: Path, name: str) -> None:
    """The CSV of formation energies and the JSON lines of structures, sorted by material id."""
    ordered = sorted(found, key=lambda line: _natural(line[ID]))
    energies = pd.DataFrame(ordered)[[ID, PREDICTED, "energy", "status", "rmsd"]]
    with whole(folder / f"{name}-wbm-IS2RE.csv.gz") as partial:
        energies.round(6).to_csv(partial, index=False, compression={"method": "gzip", "mtime": 0})
    with whole(folder / f"{name}-wbm-geo-opt.jsonl.gz") as partial:
        raw = gzip.GzipFile(partial, "wb", mtime=0)
        with raw, io.TextIOWrapper(raw, encoding="utf-8") as stream:
            for line in ordered:
                kept = {key: line[key] for key in (ID, "energy", STRUCTURE)}
                print(json.dumps(_plain(kept)), file=stream)


def _natural(name: str) -> list[tuple[int, str]]:
    """wbm-1-2 before wbm-1-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split("-")]


def submission(
    name: str, metrics: Mapping[str, Mapping[str, float]], found: Sequence[Mapping[str, Any]],
    kappa_srme: float | None, corrections: bool,
) -> dict[str, Any]:  # fmt: skip
    """What NAME.yml says, figures rounded as on the leaderboard."""
    distances = np.array([line["rmsd"] for line in found], float)
    matched = np.isfinite(distances)
    mean = float(distances[matched].mean()) if matched.any() else float("nan")
    geometry = {"pred_file": f"{name}-wbm-geo-opt.jsonl.gz", "struct_col": STRUCTURE}
    geometry["symprec=1e-2"] = {
        "rmsd": round(mean, 4),
        "n_structures": len(found),
        "n_unmatched": int((~matched).sum()),
    }
    discovery: dict[str, Any] = {"pred_file": f"{name}-wbm-IS2RE.csv.gz", "pred_col": PREDICTED}
    for subset, values in metrics.items():
        discovery[subset] = {
            key: value if isinstance(value, int) else round(value, 3)
            for key, value in values.items()
        }
    figures: dict[str, Any] = {"discovery": discovery, "geo_opt": geometry}
    if kappa_srme is not None:
        figures["phonons"] = {"kappa_103": {"κ_SRME": round(kappa_srme, 4)}}
        score = combined_score(metrics["unique_prototypes"]["F1"], kappa_srme, mean)
        figures["combined_performance_score"] = round(score, 3)
    return {
        "model_name": name,
        "model_key": name.lower(),
        "train_task": "S2EFS",
        "test_task": "IS2RE-SR",
        "targets": "EFS_G",
        "hyperparams": {
            "max_force": FMAX,
            "max_steps": MAX_STEPS,
            "ase_optimizer": "FIRE",
            "cell_filter": "FrechetCellFilter",
        },
        "requirements": {package: version(package) for package in ("dpa4sim", "torch", "pymatgen")},
        "corrections": "MaterialsProject2020Compatibility" if corrections else "none",
        "metrics": figures,
    }


def write_yaml(content: Mapping[str, Any], path: Path) -> None:
    """By a library: names such as NO would else become truth values."""
    from ruamel.yaml import YAML

    writer = YAML()
    writer.allow_unicode = True
    with whole(path) as partial, partial.open("w", encoding="utf-8") as stream:
        writer.dump(_plain(content), stream)


def _plain(content: Any) -> Any:
    """Numbers that are none become null."""
    if isinstance(content, Mapping):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple | np.ndarray):
        return [_plain(value) for value in content]
    if isinstance(content, float | np.floating):
        return float(content) if np.isfinite(content) else None
    return int(content) if isinstance(content, np.integer) else content


def report(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """A row per subset."""
    names = ("F1", "DAF", "Precision", "Accuracy", "MAE", "RMSE", "R2")
    rows = [[subset, *(fixed(found[key], 3) for key in names)] for subset, found in metrics.items()]
    return table(("subset", *names), rows)


def evaluate(potential: EnergyModel, args: argparse.Namespace) -> dict[str, Any]:
    """Relax, compare, write; returns what the YAML says.

    Raises:
        DataError: a file of the benchmark is missing or lacks something.
    """
    summary = read_summary(args.data / SUMMARY)
    ends = element_energies(args.data / ELEMENTS)
    entries = {
        line[ID]: ComputedStructureEntry.from_dict(line["computed_structure_entry"])
        for line in lines(args.data / ENTRIES)
    }
    chosen = (each for each in read_starts(args.data) if each[0] in summary.index)
    results = relaxed(potential, chosen, args.out / "relaxations")
    found = list(predictions(results, entries, ends, not args.no_corrections))
    formation = pd.Series({line[ID]: line[PREDICTED] for line in found}, dtype=float)
    metrics = subset_metrics(summary, formation)
    write_predictions(found, args.out, args.name)
    content = submission(args.name, metrics, found, read_kappa(args.kappa), not args.no_corrections)
    write_yaml(content, args.out / f"{args.name}.yml")
    print(report(metrics))
    return content


def read_kappa(path: Path | None) -> float | None:
    """The mean of kappa_SRME that `kappa.py` wrote.

    Raises:
        DataError: the file holds none.
    """
    if path is None:
        return None
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["kappa_srme"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} holds no kappa_srme ({error!r}). Give the kappa.json that "
            "workflows/kappa.py writes."
        ) from None


def main(words: Sequence[str] | None = None) -> int:
    """Check, relax, evaluate, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", metavar="DATA", type=Path, help="folder of the benchmark's files")
    parser.add_argument("--model", required=True, help="a released name or a file")
    parser.add_argument("--name", required=True, help="of the submission")
    parser.add_argument("--branch", help="branch of a multi-task DeePMD-kit checkpoint")
    parser.add_argument("--device", default="cpu", help="where to compute, such as cuda [cpu]")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    parser.add_argument(
        "--no-corrections", action="store_true", help="the model's are in its labels"
    )
    parser.add_argument("--kappa", type=Path, metavar="FILE", help="kappa.json of kappa.py")
    parser.add_argument("-o", "--out", type=Path, default=Path("runs/matbench_discovery"))
    args = parser.parse_args(words)
    read_kappa(args.kappa)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"The folder {args.out} cannot be made: {error}.") from error
    evaluate(open_model(args), args)
    print(f"{args.name}.yml and the files of the submission are in {args.out}.")
    return 0


if __name__ == "__main__":
    leave(main)

"""Thermal conductivity of the 103 phononDB crystals, and kappa_SRME against DFT.

    python workflows/kappa.py STRUCTURES REFERENCE --model MODEL [-o FOLDER]

STRUCTURES is 2024-11-09-phononDB-PBE-103-structures.extxyz and REFERENCE is
2024-11-09-kappas-phononDB-PBE-noNAC.json.gz of Matbench Discovery, whose site tells where to
download them.  It needs phono3py 3.30 (`pip install 'dpa4sim[kappa]'`): later versions have no
Wigner transport equation.

Each crystal is relaxed in its space group (FIRE, 1e-4 eV/Å, 300 steps, no shear), its supercells
with displaced atoms (0.03 Å) are evaluated in batches, and phono3py makes force constants and
conductivities at 300 K of them.  A crystal that loses its symmetry or has imaginary modes scores 2,
the worst.  FOLDER/kappa.json has the mean, which `matbench_discovery.py --kappa` takes; every
finished crystal is in FOLDER/crystals, so that the same command goes on after any interruption.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import spglib
from ase import Atoms
from ase.io import iread
from jaxtyping import Float
from recipe import forces_of as forces_in_batches
from recipe import leave

import dpa4sim
from dpa4sim.adapters.ase import to_atoms
from dpa4sim.cli.options import open_model
from dpa4sim.cli.table import fixed, table
from dpa4sim.errors import ConfigError, DataError, Status
from dpa4sim.pool.checkpoint import whole
from dpa4sim.potential import EnergyModel

PHONO3PY = "3.30.0"
WIGNER = "MS-SMM19"
"""The Wigner transport equation by phono3py's name; the benchmark's figures are from it."""

ID = "material_id"
FMAX, MAX_STEPS = 1e-4, 300
DISPLACEMENT_A = 0.03
SYMMETRY_PRECISION_A = 1e-5
TEMPERATURE_K = 300.0
BOUNDARY_UM = 1e6
"""Mean free path at which a boundary scatters: none."""

IMAGINARY_THZ = -1e-2
"""Optical modes below are imaginary; the acoustic ones at Gamma may be that far from zero."""

WORST = 2.0
ATOMS_AT_ONCE = 4000


def forces_of(
    potential: EnergyModel, cells: Sequence[Atoms | None], n_atoms: int
) -> Float[np.ndarray, "cell atom 3"]:
    """Forces of supercells, eV/Å, many in one evaluation; zeros where there is none.

    Args:
        n_atoms: of every cell.
    """
    found = np.zeros((len(cells), n_atoms, 3))
    wanted = {place: cell for place, cell in enumerate(cells) if cell is not None}
    forces = forces_in_batches(potential, list(wanted.values()), ATOMS_AT_ONCE)
    for place, each in zip(wanted, forces, strict=True):
        found[place] = each
    return found


def conductivity(potential: EnergyModel, atoms: Atoms) -> dict[str, Any]:
    """Mode-resolved conductivity of a relaxed crystal by phono3py, W/(m K).

    Args:
        atoms: with `fc2_supercell`, `fc3_supercell` and `q_point_mesh` in their info.

    Returns:
        Whether there are imaginary modes; if not, `kappa_tot_rta` (temperature, 6),
        `mode_kappa_tot_rta` (temperature, q point, band, 6) and `mode_weights`.
    """
    from phono3py import Phono3py
    from phonopy.structure.atoms import PhonopyAtoms

    unit = PhonopyAtoms(atoms.symbols, cell=atoms.cell.array, positions=atoms.positions)
    phonons = Phono3py(
        unitcell=unit,
        supercell_matrix=_matrix(atoms, "fc3_supercell"),
        phonon_supercell_matrix=_matrix(atoms, "fc2_supercell"),
        primitive_matrix="auto",
        symprec=SYMMETRY_PRECISION_A,
    )
    phonons.mesh_numbers = [int(n) for n in np.ravel(_info(atoms, "q_point_mesh"))]
    phonons.generate_displacements(distance=DISPLACEMENT_A)
    cells = [_atoms(cell) for cell in phonons.phonon_supercells_with_displacements]
    phonons.phonon_forces = forces_of(potential, cells, len(phonons.phonon_supercell))
    phonons.produce_fc2(symmetrize_fc2=True)
    phonons.init_phph_interaction(symmetrize_fc3q=False)
    phonons.run_phonon_solver()
    frequencies, _, _ = phonons.get_phonon_data()
    if has_imaginary_modes(frequencies):
        return {"has_imaginary_modes": True}
    cells = [_atoms(cell) for cell in phonons.supercells_with_displacements]
    phonons.forces = forces_of(potential, cells, len(phonons.supercell))
    phonons.produce_fc3(symmetrize_fc3r=True)
    phonons.init_phph_interaction(symmetrize_fc3q=False)
    phonons.run_thermal_conductivity(
        temperatures=[TEMPERATURE_K],
        is_isotope=True,
        transport_type=WIGNER,
        boundary_mfp=BOUNDARY_UM,
    )
    done = phonons.thermal_conductivity
    found = done.get_extra_kappa_output()
    modes = mode_conductivity(
        found["mode_kappa_P_RTA"][0], found["mode_kappa_C"][0], done.mode_heat_capacities
    )
    return {
        "has_imaginary_modes": False,
        "kappa_tot_rta": np.asarray(found["kappa_TOT_RTA"][0]).tolist(),
        "mode_kappa_tot_rta": modes.tolist(),
        "mode_weights": np.asarray(done.grid_weights).tolist(),
    }


def mode_conductivity(
    particles: Float[np.ndarray, "temperature q band 6"],
    coherence: Float[np.ndarray, "temperature q band band 6"],
    heat: Float[np.ndarray, "temperature q band"],
) -> Float[np.ndarray, "temperature q band 6"]:
    """Both parts by mode; of a pair's coherence each mode has its share of the heat capacity.

    kappa_s = kappa^P_s + sum_t 2 C_t / (C_s + C_t) kappa^C_ts
    """
    total = heat[:, :, :, None] + heat[:, :, None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(total > 0, 2 * heat[:, :, :, None] / total, 0.0)
    return particles + (share[..., None] * coherence).sum(2)


def has_imaginary_modes(frequencies: Float[np.ndarray, "q band"]) -> bool:
    """Whether a mode is unstable (THz); acoustic ones at Gamma, the first q, may be a little."""
    at_gamma, elsewhere = frequencies[0], frequencies[1:]
    if not np.isfinite(frequencies).all():
        return True
    worst = [at_gamma[3:].min(initial=0), elsewhere.min(initial=0), at_gamma[:3].min(initial=0)]
    return bool(worst[0] < 0 or worst[1] < 0 or worst[2] < IMAGINARY_THZ)


def average(tensor: Any) -> Float[np.ndarray, "..."]:
    """Mean of xx, yy and zz."""
    return np.asarray(tensor, float)[..., :3].mean(-1)


def srme(predicted: Mapping[str, Any], true: Mapping[str, Any]) -> float:
    """Symmetric relative mean error of a crystal's conductivity, mode by mode, 0 to 2.

        2 sum_s |kappa_s - kappa_s^true| / (n_q (kappa + kappa^true))

    Args:
        predicted: of `conductivity`; whatever is missing or imaginary scores 2.
        true: the same keys from DFT, or averages under `mode_kappa_tot_avg`, `kappa_tot_avg`.
    """
    if predicted.get("has_imaginary_modes", True) or predicted.get("broken_symmetry", False):
        return WORST
    own = average(predicted["mode_kappa_tot_rta"])[0]
    total = float(average(predicted["kappa_tot_rta"])[0])
    other, other_total = _true_modes(true)
    if own.shape != other.shape or not math.isfinite(total) or not np.isfinite(own).all():
        return WORST
    error = float(np.abs(own - other).sum()) / float(np.sum(predicted["mode_weights"]))
    return float(2 * error / (total + other_total))


def _true_modes(true: Mapping[str, Any]) -> tuple[Float[np.ndarray, "q band"], float]:
    """At the first temperature."""
    total = true.get("kappa_tot_avg")
    total = average(true["kappa_tot_rta"]) if total is None else total
    modes = true.get("mode_kappa_tot_avg")
    if modes is None:
        modes = true.get("mode_kappa_tot_rta")
        modes = None if modes is None else average(modes)
    if modes is None:
        parts = (true[key] for key in ("mode_kappa_P_RTA", "mode_kappa_C", "heat_capacity"))
        modes = average(mode_conductivity(*(np.asarray(part, float) for part in parts)))
    return np.asarray(modes, float)[0], float(np.ravel(total)[0])


def read_reference(path: Path) -> dict[str, dict[str, Any]]:
    """What DFT says, by material id: a table by columns, as pandas writes it.

    Raises:
        DataError: the file cannot be read or lacks a column.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            columns = json.load(stream)
        names = columns[ID]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no table of conductivities with a column {ID} ({error!r}). Download "
            "2024-11-09-kappas-phononDB-PBE-noNAC.json.gz."
        ) from None
    return {
        name: {column: values.get(row) for column, values in columns.items()}
        for row, name in names.items()
    }


def relaxed(potential: EnergyModel, atoms: Atoms) -> tuple[Atoms, bool]:
    """Relaxed without shear in its space group, and whether it still has that afterwards."""
    before = space_group(atoms)
    result = dpa4sim.relax(
        potential,
        [atoms],
        fmax=FMAX,
        max_steps=MAX_STEPS,
        optimizer="fire",
        mask=[True] * 3 + [False] * 3,
        fix_symmetry=True,
        progress=False,
    )
    if result.status[0] not in (Status.CONVERGED, Status.MAX_STEPS):
        raise DataError(f"it does not relax: {result.reasons[0]}")
    (after,) = to_atoms(result.batches[0])
    after.info = dict(atoms.info)
    return after, space_group(after) == before


def space_group(atoms: Atoms) -> int:
    """Its number."""
    cell = atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers
    found = spglib.get_symmetry_dataset(cell, symprec=SYMMETRY_PRECISION_A)
    return 1 if found is None else int(found.number)


def crystal(potential: EnergyModel, atoms: Atoms) -> dict[str, Any]:
    """What is known about a crystal; an error is a sentence under `error`."""
    try:
        structure, kept = relaxed(potential, atoms)
        if not kept:
            return {"broken_symmetry": True}
        return {"broken_symmetry": False, **conductivity(potential, structure)}
    except (DataError, RuntimeError, ValueError, ArithmeticError) as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _atoms(cell: Any) -> Atoms | None:
    if cell is None:
        return None
    return Atoms(cell.symbols, cell=cell.cell, positions=cell.positions, pbc=True)


def _info(atoms: Atoms, key: str) -> Any:
    if key not in atoms.info:
        raise DataError(f"it has no '{key}' in its info; the benchmark's structures do")
    return atoms.info[key]


def _matrix(atoms: Atoms, key: str) -> np.ndarray:
    found = np.asarray(_info(atoms, key), int)
    return np.diag(found) if found.size == 3 else found.reshape(3, 3)


def check_phono3py() -> None:
    """Is the right version there?

    Raises:
        ConfigError: it is not.
    """
    try:
        found = version("phono3py")
    except PackageNotFoundError:
        found = "none"
    if found != PHONO3PY:
        raise ConfigError(
            f"This needs phono3py {PHONO3PY}, and {found} is installed. "
            "Type: pip install 'dpa4sim[kappa]'."
        )


def score(found: Mapping[str, Mapping[str, Any]], true: Mapping[str, Any]) -> dict[str, float]:
    """kappa_SRME of every crystal of the reference; one that was not computed scores 2."""
    return {name: srme(found[name], true[name]) if name in found else WORST for name in true}


def report(found: Mapping[str, Mapping[str, Any]], scores: Mapping[str, float]) -> str:
    """A row per crystal that was computed."""
    rows = []
    for name, result in found.items():
        total = result.get("kappa_tot_rta")
        said = "imaginary modes" if result.get("has_imaginary_modes") else ""
        said = "symmetry lost" if result.get("broken_symmetry") else said
        kappa = float("nan") if total is None else float(average(total)[0])
        note = str(result.get("error", said))
        rows.append([name, fixed(kappa, 3), fixed(scores.get(name, WORST), 4), note])
    return table(("crystal", "kappa (W/m/K)", "SRME", "note"), rows)


def main(words: Sequence[str] | None = None) -> int:
    """Compute what is missing, score everything, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("structures", metavar="STRUCTURES", type=Path, help="extxyz")
    parser.add_argument("reference", metavar="REFERENCE", type=Path, help=".json.gz")
    parser.add_argument("--model", required=True, help="a released name or a file")
    parser.add_argument("--branch", help="branch of a multi-task DeePMD-kit checkpoint")
    parser.add_argument("--device", default="cpu", help="where to compute, such as cuda [cpu]")
    parser.add_argument("--dtype", default="float64", choices=("float32", "float64"))
    parser.add_argument("-o", "--out", type=Path, default=Path("runs/kappa"))
    args = parser.parse_args(words)
    check_phono3py()
    return evaluate(open_model(args), args)


def evaluate(potential: EnergyModel, args: argparse.Namespace) -> int:
    """Every crystal of the file that FOLDER does not have yet, then the scores."""
    true = read_reference(args.reference)
    if not args.structures.is_file():
        raise DataError(f"There is no {args.structures}. Download it from Matbench Discovery.")
    done = args.out / "crystals"
    done.mkdir(parents=True, exist_ok=True)
    found = {}
    for atoms in iread(args.structures, format="extxyz"):
        name = str(_info(atoms, ID))
        file = done / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)}.json"
        if not file.exists():
            with whole(file) as partial:
                partial.write_text(json.dumps(crystal(potential, atoms)), encoding="utf-8")
        found[name] = json.loads(file.read_text(encoding="utf-8"))
    scores = score(found, true)
    mean = float(np.mean(list(scores.values())))
    print(report(found, scores))
    print(f"kappa_SRME {mean:.4f} over {len(scores)} crystals, {len(found)} of them computed.")
    content = {"kappa_srme": mean, "crystals": scores, "computed": sorted(found)}
    content["phono3py"] = PHONO3PY  # type: ignore[assignment]
    with whole(args.out / "kappa.json") as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    leave(main)

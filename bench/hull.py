"""Time and memory of the hull: many candidates against many references.

    python -m bench hull [--references 150000] [--candidates 2000] [--quick]

Compounds of two to five of 80 elements with random energies, a fifth of them in systems of metals
and oxygen, as databases have them.  The references are written to a file as pymatgen writes
entries and read back; the distances of some candidates are compared with a phase diagram of
everything that can matter to them.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from bench.measure import company
from bench.record import save
from dpa4sim.screen.hull import hull_table
from dpa4sim.screen.references import References, read_references
from dpa4sim.screen.table import to_table

MODEL = "bench"
CHECKED = 25
"""Candidates that are compared with pymatgen alone."""


def symbols() -> list[str]:
    """The elements up to bismuth, without the noble gases."""
    from ase.data import chemical_symbols

    gases = {"He", "Ne", "Ar", "Kr", "Xe"}
    return [symbol for symbol in chemical_symbols[1:84] if symbol not in gases]


def compounds(n: int, seed: int) -> Iterator[tuple[dict[str, int], float]]:
    """Compositions with an energy (eV) of the whole."""
    rng, elements = random.Random(seed), symbols()
    weights = [1, 5, 6, 2]  # of 2, 3, 4 and 5 elements
    for _ in range(n):
        (size,) = rng.choices([2, 3, 4, 5], weights)
        chosen = rng.sample(elements, size)
        if rng.random() < 0.4 and "O" not in chosen:
            chosen[0] = "O"
        amounts = {symbol: rng.randint(1, 6) for symbol in chosen}
        yield amounts, sum(amounts.values()) * rng.gauss(-0.5, 0.5)


def write_references(path: Path, n: int) -> None:
    """Entries of the elements and of `n` compounds, one a line."""
    with path.open("w") as file:
        known = [({symbol: 1}, 0.0) for symbol in symbols()]
        for i, (amounts, energy) in enumerate((*known, *compounds(n, seed=0))):
            parameters = {"model_hash": MODEL}
            entry = {"composition": amounts, "energy": energy, "entry_id": f"r{i}"}
            print(json.dumps({**entry, "parameters": parameters}), file=file)


def candidates(n: int) -> pa.Table:
    """Results of a campaign, the structures left out."""
    from ase.data import atomic_numbers
    from pymatgen.core import Composition

    rows: list[dict[str, Any]] = []
    for i, (amounts, energy) in enumerate(compounds(n, seed=1)):
        composition = Composition(amounts)
        numbers = [atomic_numbers[s] for s, amount in amounts.items() for _ in range(amount)]
        row = {"id": i, "name": f"c{i}", "formula": composition.reduced_formula}
        row |= {"chemical_system": composition.chemical_system, "n_atoms": len(numbers)}
        row |= {"status": "converged", "reason": "", "flags": [], "numbers": numbers}
        rows.append({**row, "energy": energy})
    return to_table(rows)


def worst_difference(found: pa.Table, references: References) -> float:
    """From one phase diagram per candidate by pymatgen alone, eV/atom."""
    from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
    from pymatgen.core import Composition

    everything = list(references)
    worst = 0.0
    for row in found.slice(0, CHECKED).to_pylist():
        wanted = set(row["chemical_system"].split("-"))
        entries = [
            PDEntry(Composition(phase.formula), phase.energy_per_atom * n)
            for phase in everything
            if wanted.issuperset(phase.elements)
            for n in (Composition(phase.formula).num_atoms,)
        ]
        composition = Composition(row["formula"])
        entry = PDEntry(composition, row["energy_per_atom"] * composition.num_atoms)
        above = PhaseDiagram(entries).get_e_above_hull(entry, allow_negative=True)
        worst = max(worst, abs(above - row["e_above_hull_reference"]))
    return worst


def measure(n_references: int, n_candidates: int) -> dict[str, Any]:
    """Seconds, MB and the check."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "references.jsonl"
        write_references(path, n_references)
        table = candidates(n_candidates)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        start = time.perf_counter()
        references = read_references([path], model_hash=MODEL)
        reading = time.perf_counter() - start
        file_mb = path.stat().st_size / 1e6
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    start, start_cpu = time.perf_counter(), time.process_time()
    found = hull_table(table, references)
    ranking, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    systems = len(set(found["chemical_system"].to_pylist()))
    return {
        "references": n_references,
        "compositions": len(references),
        "file_mb": file_mb,
        "reading_s": reading,
        "candidates": n_candidates,
        "systems": systems,
        "hull_s": ranking,
        "hull_cpu_s": cpu,
        "ms_per_system": 1e3 * ranking / max(1, systems),
        "memory_mb": {
            "before": before,
            "read": after,
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        },
        "stable": sum(found["stable"].to_pylist()),
        "worst_difference_ev_per_atom": worst_difference(found, references),
        "company": company(),
    }


def main(arguments: list[str]) -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(prog="python -m bench hull", description=__doc__)
    parser.add_argument("--references", type=int, default=150_000)
    parser.add_argument("--candidates", type=int, default=2000)
    parser.add_argument("--quick", action="store_true", help="2,000 and 100; nothing is recorded")
    args = parser.parse_args(arguments)
    n_references, n_candidates = (2000, 100) if args.quick else (args.references, args.candidates)
    result = measure(n_references, n_candidates)
    print(json.dumps(result, indent=1))
    if not args.quick:
        print(save("hull", result))

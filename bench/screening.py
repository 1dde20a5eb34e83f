"""A campaign without a model: what ingest, ledger, leases, parts and ranking cost by themselves.

    python -m bench screening [--candidates 100000] [--references 20000]

Decorated and strained crystals with a potential that is zero everywhere: every relaxation ends at
its first step.  Stated: structures per second of each stage, the size of what is written, and the
largest memory of the process after each stage; memory is flat when it does not follow the number
of candidates, so a tenth of them is run first.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ase import Atoms

from bench.measure import company
from bench.record import save
from dpa4sim.batch import Batch
from dpa4sim.pool.checkpoint import model_fingerprint
from dpa4sim.potential import Prediction
from dpa4sim.screen.campaign import open_campaign
from dpa4sim.screen.candidate import Candidate
from dpa4sim.screen.rank import rank, write_tables
from dpa4sim.screen.run import init, run
from dpa4sim.screen.settings import Candidates, Hull, Model, Relaxation, Settings

SYMBOLS = ("Li", "Na", "Mg", "Al", "Ca", "Ti", "Mn", "Fe", "Ni", "Cu", "Zn", "O", "S", "F", "Cl")
MODEL = "Free"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Free:
    """E = 0: nothing acts on anything."""

    cutoff: float = 1.0
    device: torch.device = CPU

    def __call__(self, batch: Batch) -> Prediction:
        """Zero."""
        energies = torch.zeros_like(batch.positions[:, 0])
        energy, stress = torch.zeros_like(batch.cell[:, 0, 0]), torch.zeros_like(batch.cell)
        return Prediction(energy, torch.zeros_like(batch.positions), stress, energies)


def candidates(count: int) -> Iterator[Candidate]:
    """Cells of eight atoms of two or three elements, no two alike."""
    luck = random.Random(0)
    corners = [[x / 2, y / 2, z / 2] for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    for index in range(count):
        chosen = luck.sample(SYMBOLS, luck.choice((2, 3)))
        symbols = chosen + [luck.choice(chosen) for _ in range(8 - len(chosen))]
        lengths = [luck.uniform(4.5, 6.0) for _ in range(3)]
        shaken = [[x + luck.gauss(0, 0.01) for x in corner] for corner in corners]
        atoms = Atoms(symbols, scaled_positions=shaken, cell=lengths, pbc=True)
        yield Candidate(f"c{index}", f"given#{index}", atoms)


def references(path: Path, count: int) -> None:
    """The elements, and compounds with random energies, as pymatgen writes them."""
    luck = random.Random(1)
    entries = [({symbol: 1}, 0.0) for symbol in SYMBOLS]
    for _ in range(count - len(SYMBOLS)):
        chosen = luck.sample(SYMBOLS, luck.choice((2, 3, 4)))
        amounts = {symbol: luck.randint(1, 6) for symbol in chosen}
        entries.append((amounts, luck.uniform(-0.5, 0.3) * sum(amounts.values())))
    with path.open("w") as file:
        for number, (amounts, energy) in enumerate(entries):
            entry = {"composition": amounts, "energy": energy, "entry_id": f"r{number}"}
            entry |= {"@module": "pymatgen.entries.computed_entries", "@class": "ComputedEntry"}
            file.write(json.dumps({**entry, "parameters": {"model_hash": MODEL}}) + "\n")


def peak_mib() -> float:
    """Largest resident memory of this process until now."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def campaign(count: int, n_references: int, deduplicate: bool) -> dict[str, Any]:
    """Seconds and memory of every stage."""
    potential, stages = Free(), {}
    with tempfile.TemporaryDirectory() as folder:
        known, place = Path(folder) / "references.jsonl", Path(folder) / "run"
        references(known, n_references)
        settings = Settings(
            model=Model(hash=model_fingerprint(potential)),
            candidates=Candidates(deduplicate=deduplicate),
            relax=Relaxation(max_edges=250_000.0),
            hull=Hull(references=(str(known),)),
        )

        def timed(name: str, work: Any) -> Any:
            begin = time.perf_counter()
            found = work()
            stages[name] = {"seconds": time.perf_counter() - begin, "peak_mib": peak_mib()}
            return found

        timed("ingest", lambda: init(place, settings, potential, candidates(count)).close())
        with open_campaign(place) as opened:
            timed("run", lambda: run(opened, potential))
            table = timed("rank", lambda: rank(opened))
            timed("write", lambda: write_tables(place, table))
            states = opened.ledger.states()
            leases = _leases(opened)
        sizes = {
            "ledger_bytes": (place / "ledger.sqlite").stat().st_size / count,
            "part_bytes": sum(p.stat().st_size for p in (place / "results").iterdir()) / count,
        }
    ranked = table["rank"].null_count
    return {
        "candidates": count,
        "stages": stages,
        "per_candidate": sizes,
        "states": states,
        "not_ranked": ranked,
        "lease_ms": leases,
    }


def _leases(opened: Any) -> float:
    """Milliseconds of a lease and its synced commit, over chunks that were put back."""
    parts = opened.ledger.parts()[:20]
    for part in parts:
        opened.ledger.requeue(part)
    begin = time.perf_counter()
    for _ in parts:
        opened.ledger.lease("bench", lambda held: True, 60.0, (1, 1))
    return 1e3 * (time.perf_counter() - begin) / max(len(parts), 1)


def main(arguments: list[str]) -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(prog="python -m bench screening", description=__doc__)
    parser.add_argument("--candidates", type=int, default=100_000)
    parser.add_argument("--references", type=int, default=20_000)
    parser.add_argument("--deduplicate", action="store_true")
    parser.add_argument("--quick", action="store_true", help="200 and 100; nothing is recorded")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    most, n_references = (200, 100) if args.quick else (args.candidates, args.references)
    rows = []
    for count in (most // 10, most):
        rows.append(campaign(count, n_references, args.deduplicate))
        for name, stage in rows[-1]["stages"].items():
            print(
                f"{count:7} {name:7} {stage['seconds']:8.1f} s "
                f"{count / stage['seconds']:9.0f} /s  peak {stage['peak_mib']:.0f} MiB"
            )
    if args.quick:
        return
    settings = {"references": args.references, "deduplicate": args.deduplicate, "threads": 1}
    result = {"settings": settings, "rows": rows, "company": company()}
    print("record:", save("screening", result))


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])

"""From the name of a chemical system to its ranked convex hull, without a file of candidates.

    python workflows/screen_hull.py Li-Fe-O [--model seed] [--references FILE...] [-o FOLDER]

The built-in prototypes take the elements of the system wherever the charges add up to nothing and
the radii fit; all of them are relaxed in one campaign, together with built-in crystals of the
elements and known binaries as references, and ranked by energy above the hull.  The folder is a
campaign: the same command, or `dpa4sim screen run FOLDER`, goes on after any interruption.
`--substitute` puts the elements into structures of your own instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from recipe import NOT_ALL, leave

from dpa4sim.cli.options import open_model
from dpa4sim.cli.table import fixed, table
from dpa4sim.errors import ConfigError
from dpa4sim.pool.checkpoint import model_fingerprint
from dpa4sim.potential import EnergyModel
from dpa4sim.screen.decorate import elements_of
from dpa4sim.screen.element_table import solids
from dpa4sim.screen.rank import write_report
from dpa4sim.screen.run import absolute, init
from dpa4sim.screen.runner import run
from dpa4sim.screen.settings import Candidates, Hull, Model, Relaxation, Settings

HEADERS = ("rank", "candidate", "above hull (meV/atom)", "formation (eV/atom)", "falls apart into")
LISTED = 15


def settings_of(
    potential: EnergyModel,
    system: str,
    *,
    model: Model | None = None,
    substitute: Sequence[str | Path] = (),
    references: Sequence[str | Path] = (),
    relaxation: Relaxation | None = None,
) -> Settings:
    """The campaign of a chemical system.

    Args:
        system: elements joined by hyphens, such as Li-Fe-O.
        model: path and precision of the potential, for `dpa4sim screen run`; none for one that is
            made in Python.
        substitute: files of structures that take the elements instead of the prototypes.
        references: files of pymatgen entries, computed with the same model; the built-in crystals
            are relaxed where there is none.

    Raises:
        ConfigError: the system is not known, or an element has no built-in crystal.
    """
    missing = [symbol for symbol in elements_of(system) if symbol not in solids()]
    if missing and not references:
        raise ConfigError(
            f"No crystal of {', '.join(missing)} is built in, so there is nothing to compare "
            f"{system} with. Give entries by --references."
        )
    known = model or Model()
    return Settings(
        model=Model(
            path=known.path,
            branch=known.branch,
            dtype=known.dtype,
            hash=model_fingerprint(potential),
        ),
        candidates=Candidates(chemical_systems=(system,), substitute=absolute(substitute)),
        relax=relaxation or Relaxation(),
        hull=Hull(references=absolute(references), built_in=not references),
    )


def screen_system(
    potential: EnergyModel, settings: Settings, folder: Path, *, progress: bool | None = None
) -> pa.Table:
    """Make the candidates, relax, rank, write the report; returns the table of the hull.

    Raises:
        ConfigError, DataError: a setting or a file cannot be used.
        ResumeError: the folder belongs to another campaign.
    """
    with init(folder, settings, potential, progress=progress) as campaign:
        run(campaign, potential, progress=progress)
        return write_report(campaign)


def report(ranked: pa.Table, listed: int = LISTED) -> str:
    """The lowest candidates, one per row."""
    rows = ranked.filter(pc.is_valid(ranked["rank"])).sort_by("rank").slice(0, listed)
    return table(HEADERS, [_line(row) for row in rows.to_pylist()], left=2)


def _line(row: dict) -> list[str]:
    above, formed = row["e_above_hull_self"], row["formation_energy"]
    return [
        str(row["rank"]),
        row["name"],
        "-" if above is None else fixed(1e3 * above, 1),
        "-" if formed is None else fixed(formed, 3),
        "" if row["stable"] else row["decomposition"] or "",
    ]


def main(words: Sequence[str] | None = None) -> int:
    """Screen, print the lowest candidates."""
    args = _arguments(words)
    potential = open_model(args)
    is_file = Path(args.model).is_file()
    path = absolute([args.model])[0] if is_file else args.model
    settings = settings_of(
        potential,
        args.system,
        model=Model(path=path, branch=args.branch or "", dtype=args.dtype),
        substitute=args.substitute,
        references=args.references,
        relaxation=Relaxation(fmax=args.fmax, max_steps=args.max_steps),
    )
    folder = args.out or Path("runs") / f"screen_{args.system}"
    ranked = screen_system(potential, settings, folder, progress=True)
    print(report(ranked))
    print(f"{ranked.num_rows} candidates; the whole table and its page are in {folder / 'report'}.")
    ended = set(ranked["status"].to_pylist())
    return 0 if ended <= {"converged", "duplicate"} else NOT_ALL


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("system", metavar="A-B-C", help="elements, such as Li-Fe-O")
    parser.add_argument(
        "--substitute", metavar="FILE", nargs="+", default=[], help="your structures instead"
    )
    parser.add_argument(
        "--references", metavar="FILE", nargs="+", default=[], help="pymatgen entries as JSON"
    )
    parser.add_argument("--model", default="seed", help="a released name or a file [seed]")
    parser.add_argument("--branch", help="branch of a multi-task DeePMD-kit checkpoint")
    parser.add_argument("--device", default="cpu", help="where to compute, such as cuda [cpu]")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "float64"), help="[float32]"
    )
    parser.add_argument("--fmax", type=float, default=0.02, help="converged below, eV/Å [0.02]")
    parser.add_argument("--max-steps", type=int, default=500, help="moves per structure [500]")
    parser.add_argument("-o", "--out", type=Path, help="a folder [runs/screen_A-B-C]")
    return parser.parse_args(words)


if __name__ == "__main__":
    leave(main)

"""screen(): candidates in, a table of energies above the hull out; and the steps that it takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dpa4sim.direct import is_conservative
from dpa4sim.ensemble import limit_spread
from dpa4sim.errors import ConfigError, DataError
from dpa4sim.moments import magnetic_elements
from dpa4sim.pool.checkpoint import model_fingerprint
from dpa4sim.potential import EnergyModel
from dpa4sim.screen.campaign import Campaign, alone, begin
from dpa4sim.screen.candidate import Candidate
from dpa4sim.screen.ingest import check_sources, ingest, is_complete
from dpa4sim.screen.rank import rank
from dpa4sim.screen.runner import run
from dpa4sim.screen.settings import Candidates, Hull, Model, Relaxation, Settings

if TYPE_CHECKING:
    from ase import Atoms


def screen(
    potential: EnergyModel,
    candidates: Any,
    references: str | Path | Sequence[str | Path] = (),
    *,
    directory: str | Path,
    fmax: float = 0.02,
    cell: bool = True,
    optimizer: str = "lbfgs",
    max_steps: int = 500,
    pressure_gpa: float = 0.0,
    max_force_spread: float | None = None,
    mixed_references: bool = False,
    corrections: str = "none",
    built_in_references: bool = False,
    deduplicate: bool = True,
    chunk_size: int = 512,
    max_edges: float | None = None,
    progress: bool | None = None,
) -> pa.Table:
    """Relax candidates and say how far each is above the convex hull, eV/atom.

    The same call goes on in the same directory after any interruption.

    Args:
        candidates: paths (files, folders, globs), or an iterable of Candidate, Atoms or what
            `dpa4sim.relax` takes.
        references: files of pymatgen entries, computed with the same model.
        directory: of the campaign.
        fmax: converged when every force and cell-force row is shorter, eV/Å.
        cell: whether cells relax.
        optimizer: "lbfgs" or "fire".
        max_steps: moves per structure.
        pressure_gpa: external pressure.
        max_force_spread: of an ensemble, eV/Å; structures beyond are flagged uncertain and not
            ranked.
        mixed_references: let references be of another theory or model.
        corrections: "none" or "mp2020".
        built_in_references: relax built-in crystals of the elements, and common binaries, too.
        deduplicate: relax only one of several equal structures.
        chunk_size: candidates that are relaxed and stored together.
        max_edges: edges in the working set; None measures what the device can hold.
        progress: as of `dpa4sim.relax`.

    Returns:
        One row per candidate, of the schema `dpa4sim.screen.hull.HULL`.

    Raises:
        ConfigError, DataError: a setting, path or reference cannot be used.
        ResumeError: the directory belongs to another campaign, or cannot be written.
    """
    limit_spread(potential, max_force_spread)
    files = _paths(candidates)
    relaxation: dict[str, Any] = {"optimizer": optimizer, "fmax": float(fmax), "cell": cell}
    relaxation |= {"max_steps": max_steps, "pressure_gpa": float(pressure_gpa)}
    relaxation |= {"max_force_spread": float(max_force_spread or 0)}
    if max_edges is not None and not max_edges > 0:
        raise ConfigError(f"max_edges={max_edges} is too small. Give 1 or more.")
    settings = Settings(
        model=Model(hash=model_fingerprint(potential)),
        candidates=Candidates(
            files=absolute(files or ()), deduplicate=deduplicate, chunk_size=chunk_size
        ),
        relax=Relaxation(**relaxation, max_edges=float(max_edges or 0)),
        hull=Hull(
            references=absolute(_paths(references) or ()),
            mixed_references=mixed_references,
            corrections=corrections,  # type: ignore[arg-type]
            built_in=built_in_references,
        ),
    )
    given = None if files is not None else named(candidates)
    with init(directory, settings, potential, given, progress=progress) as campaign:
        run(campaign, potential, progress=progress)
        return rank(campaign)


def init(
    directory: str | Path,
    settings: Settings,
    potential: EnergyModel,
    given: Iterable[Candidate] | None = None,
    *,
    progress: bool | None = None,
) -> Campaign:
    """Begin a campaign and read its candidates, or what is missing of them.

    Args:
        settings: with the hash of the potential.
        potential: says which elements it knows.
        given: candidates that are in no file.
        progress: as of `dpa4sim.relax`.

    Raises:
        ConfigError, DataError: a setting or a path cannot be used.
        ResumeError: the directory belongs to another campaign, or cannot be written.
    """
    from dpa4sim.adapters.files import named_files

    if not is_conservative(potential):
        raise ConfigError(
            "screen compares energies at their minima, and this model predicts forces directly: "
            "where they vanish need not be a minimum. Take a conservative model."
        )
    if magnetic_elements(potential):
        raise ConfigError(
            "A model with spins cannot screen: candidates have no magnetic moments, and two "
            "magnetic orders of one crystal would pass for duplicates. Use dpa4sim.relax."
        )
    asked = settings.candidates
    if given is None and not asked.files and not asked.chemical_systems:
        raise ConfigError("There are no candidates. Give files, or a chemical system.")
    for path in (*asked.files, *asked.substitute):
        if not Path(path).is_file():
            named_files(path)
    for path in settings.hull.references:
        if not Path(path).is_file():
            raise DataError(f"There is no file {path} of references. Give an existing file.")
    campaign = begin(directory, settings)
    try:
        with alone(campaign):
            if is_complete(campaign.ledger) and given is None:
                check_sources(campaign.ledger, asked)
            else:
                known = getattr(potential, "known_elements", None)
                ingest(campaign.ledger, settings, given, known, progress)
    except BaseException:
        campaign.close()
        raise
    return campaign


def absolute(paths: Iterable[str | Path]) -> tuple[str, ...]:
    """Paths that mean the same from everywhere."""
    return tuple(str(Path(path).absolute()) for path in paths)


def named(structures: Any) -> Iterator[Candidate]:
    """Candidates from anything that holds structures, with names."""
    if not isinstance(structures, Iterable) or _is_one(structures):
        structures = [structures]
    for index, structure in enumerate(structures):
        if isinstance(structure, Candidate):
            yield structure
        else:
            yield from _candidates(structure, f"given#{index}")


def _candidates(structure: Any, source: str) -> Iterator[Candidate]:
    from ase import Atoms

    from dpa4sim.adapters.ase import to_atoms
    from dpa4sim.adapters.files import structures_to_batches

    try:
        found: list[Atoms] = (
            [structure]
            if isinstance(structure, Atoms)
            else [to_atoms(batch)[0] for batch in structures_to_batches(structure)]
        )
    except DataError as error:
        yield Candidate(source, source, None, str(error))
        return
    for place, atoms in enumerate(found):
        label = source if len(found) == 1 else f"{source}.{place}"
        name = atoms.info.get("name") or f"{atoms.get_chemical_formula()}-{label.split('#')[-1]}"
        yield Candidate(str(name), label, atoms)


def _is_one(structures: Any) -> bool:
    """Whether it is one structure, though it can be iterated over."""
    from ase import Atoms
    from pymatgen.core.structure import SiteCollection

    return isinstance(structures, Atoms | SiteCollection)


def _paths(values: Any) -> list[str | Path] | None:
    """The paths that are given; None when it is something else."""
    if isinstance(values, str | Path):
        return [values]
    if isinstance(values, Sequence) and all(isinstance(value, str | Path) for value in values):
        return list(values)
    return None

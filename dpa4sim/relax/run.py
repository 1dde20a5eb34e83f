"""relax() and relax_each(): structures in, relaxed structures and their Status out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dpa4sim.batch import Batch
from dpa4sim.direct import check_conservative
from dpa4sim.ensemble import limit_spread
from dpa4sim.errors import ConfigError, DataError
from dpa4sim.pool.capacity import Capacity, edge_capacity
from dpa4sim.pool.checkpoint import Store, model_fingerprint
from dpa4sim.pool.pool import Pool
from dpa4sim.pool.progress import Progress
from dpa4sim.pool.queue import Job
from dpa4sim.potential import EnergyModel
from dpa4sim.relax.cell import CELL_FILTERS
from dpa4sim.relax.fire import FireSettings
from dpa4sim.relax.freedom import check_options
from dpa4sim.relax.lbfgs import LbfgsSettings
from dpa4sim.relax.method import Relaxation
from dpa4sim.relax.result import Relaxed, RelaxResult, raise_if
from dpa4sim.relax.spins import check_moments
from dpa4sim.relax.terms import Terms

OPTIMIZERS = ("lbfgs", "fire")

CHECK_EVERY = {"cpu": 1, "cuda": 4}
"""Steps between two looks at who has finished: on a processor a look is free, a step is not."""


def relax(
    potential: EnergyModel,
    structures: Any,
    *,
    fmax: float = 0.02,
    cell: bool | Sequence[bool] = True,
    optimizer: str | None = None,
    cell_filter: str = "frechet",
    max_steps: int = 500,
    pressure_gpa: float | Sequence[float] = 0.0,
    mask: Sequence[bool] | None = None,
    hydrostatic: bool = False,
    constant_volume: bool = False,
    fixed_atoms: Sequence[Sequence[int]] | None = None,
    fix_symmetry: bool = False,
    max_force_spread: float | None = None,
    allow_non_conservative: bool = False,
    moments: bool = False,
    magnetic_fmax: float = 0.01,
    strict: bool = False,
    progress: bool | None = None,
    max_edges: float | None = None,
    check_every: int | None = None,
    directory: str | Path | None = None,
    checkpoint_every_s: float = 60.0,
) -> RelaxResult:
    """Relax structures together; each one ends as it would alone.

    Args:
        structures: one-system Batches, one Batch of many, or what
            `adapters.files.structures_to_batches` takes (Atoms, Structure, a path, ...).
        fmax: converged when every force and cell-force row is shorter, eV/Å.
        cell: whether the cells relax, one answer for all or one per structure.
        optimizer: "lbfgs", or "fire" for the path that ASE's FIRE takes; None for "lbfgs", and
            for "fire" where moments relax.
        cell_filter: of "fire": "frechet" or "unit", as ASE names them.
        max_steps: moves per structure, exactly.
        pressure_gpa: external pressure, one for all or one per structure.
        mask: which strains may change (xx, yy, zz, yz, xz, xy).
        hydrostatic: the cell keeps its shape.
        constant_volume: the cell keeps its volume.
        fixed_atoms: per structure, the atoms that keep their fractional coordinates.  ASE's
            FixAtoms on Atoms is obeyed without it.
        fix_symmetry: keep the space group that the start has within 0.01 Å.
        max_force_spread: of an ensemble, eV/Å; a structure ends as UNCERTAIN, at its last geometry
            below, when the members disagree by more about the force on an atom.
        allow_non_conservative: take a model of direct forces, for fixed cells.
        moments: of a model with spins: the magnetic moments relax together with the positions, by
            optimizer="fire" only; else they are held.
        magnetic_fmax: relaxing moments are converged when every magnetic force is shorter, eV per
            Bohr magneton.
        strict: raise about a structure that is invalid or falls sick, instead of marking it.
        progress: None shows a bar on a terminal; True also writes lines elsewhere; False neither.
        max_edges: edges in the working set; None measures what the device can hold.
        check_every: steps between two looks at which structures have finished; None for 1 on the
            CPU and 4 on CUDA.
        directory: where to keep checkpoints; the same call goes on there after any interruption
            and, on the same hardware, ends with the same bits (to rounding with recorded steps,
            see docs/kernels.md).
        checkpoint_every_s: seconds between two checkpoints.

    Raises:
        ConfigError: a setting cannot be used.
        DataError: `strict`, and a structure is invalid or fell sick.
        ResumeError: the directory belongs to other work.
    """
    from dpa4sim.adapters.files import stream_structures

    if isinstance(structures, Sequence) and not len(structures):
        return RelaxResult.collect([])
    entries = list(stream_structures(structures))
    _check_state([batch for batch, _ in entries])
    for name, value in (
        ("cell", cell),
        ("pressure_gpa", pressure_gpa),
        ("fixed_atoms", fixed_atoms),
    ):
        _check_length(name, value, len(entries))
    records = relax_each(
        potential,
        [source if source is not None else batch for batch, source in entries],
        fmax=fmax,
        cell=cell,
        optimizer=optimizer,
        cell_filter=cell_filter,
        max_steps=max_steps,
        pressure_gpa=pressure_gpa,
        mask=mask,
        hydrostatic=hydrostatic,
        constant_volume=constant_volume,
        fixed_atoms=fixed_atoms,
        fix_symmetry=fix_symmetry,
        max_force_spread=max_force_spread,
        allow_non_conservative=allow_non_conservative,
        moments=moments,
        magnetic_fmax=magnetic_fmax,
        strict=strict,
        progress=progress,
        max_edges=max_edges,
        check_every=check_every,
        directory=directory,
        checkpoint_every_s=checkpoint_every_s,
    )
    return RelaxResult.collect(sorted(records, key=lambda record: record.index))


def relax_each(
    potential: EnergyModel,
    structures: Any,
    *,
    fmax: float = 0.02,
    cell: bool | Iterable[bool] = True,
    optimizer: str | None = None,
    cell_filter: str = "frechet",
    max_steps: int = 500,
    pressure_gpa: float | Iterable[float] = 0.0,
    mask: Sequence[bool] | None = None,
    hydrostatic: bool = False,
    constant_volume: bool = False,
    fixed_atoms: Iterable[Sequence[int]] | None = None,
    fix_symmetry: bool = False,
    max_force_spread: float | None = None,
    allow_non_conservative: bool = False,
    moments: bool = False,
    magnetic_fmax: float = 0.01,
    strict: bool = False,
    progress: bool | None = None,
    max_edges: float | None = None,
    check_every: int | None = None,
    directory: str | Path | None = None,
    checkpoint_every_s: float = 60.0,
) -> Iterator[Relaxed]:
    """Relax any number of structures; each is handed out as soon as it has ended.

    Args as of `relax`; `structures` may be an iterator without end, and is read only as far as
    there is room.  What is given per structure may be an iterator too.

    Raises:
        ConfigError, DataError, ResumeError: as `relax`.
    """
    fixed = cell is False or (isinstance(cell, Sequence) and not any(cell))
    strained = None if fixed else ("cell=True", "cell=False (--fixed-cell)")
    check_conservative(potential, "relax", allow_non_conservative, strained)
    limited = limit_spread(potential, max_force_spread)
    optimizer = optimizer or ("fire" if moments else "lbfgs")
    kind = torch.device(potential.device).type
    every = CHECK_EVERY.get(kind, 1) if check_every is None else check_every
    _check_settings(fmax, max_steps, optimizer, cell_filter, max_edges, every)
    check_moments(potential, moments, magnetic_fmax, optimizer, fix_symmetry)
    capacity = edge_capacity(potential) if max_edges is None else Capacity(max_edges, math.inf)
    _check_strains(cell, mask, hydrostatic, constant_volume)
    terms = Terms(cell, pressure_gpa, fixed_atoms, mask, hydrostatic, constant_volume, fix_symmetry)
    turning = (moments, magnetic_fmax)
    method = _method(optimizer, cell_filter, fmax, max_steps, every, capacity.largest, turning)
    total = len(structures) if isinstance(structures, Sequence) else None
    store = None
    if directory is not None:
        asked = {"work": "relax", **method.described(), **terms.described()}
        asked["model"] = model_fingerprint(potential)
        if max_force_spread is not None:
            asked["max_force_spread"] = max_force_spread
        store = Store(directory, asked, checkpoint_every_s)
    jobs = terms.jobs(structures, potential)
    return _run(limited, method, capacity, jobs, total, strict, progress, store)


def _run(
    potential: EnergyModel,
    method: Relaxation,
    capacity: Capacity,
    jobs: Iterator[Job],
    total: int | None,
    strict: bool,
    progress: bool | None,
    store: Store | None,
) -> Iterator[Relaxed]:
    try:
        with closing(Progress("relax", total, progress)) as reporter:
            pool: Pool[Any, Relaxed] = Pool(potential, method, capacity, reporter, store)
            for record in pool.run(jobs):
                raise_if(strict, record)
                yield record
    finally:
        if store is not None:
            store.close()


def _method(
    optimizer: str,
    cell_filter: str,
    fmax: float,
    max_steps: int,
    every: int,
    largest: float,
    turning: tuple[bool, float],
) -> Relaxation:
    kind: Any = LbfgsSettings if optimizer == "lbfgs" else FireSettings
    settings = kind(fmax=fmax, max_steps=max_steps, max_edges=largest)
    if isinstance(settings, FireSettings):
        settings = replace(settings, moments=turning[0], magnetic_fmax=turning[1])
    return Relaxation(settings, cell_filter, every)


def _check_state(systems: Sequence[Batch]) -> None:
    """Charge and spin are given for all or for none."""
    for name in ("charge", "spin"):
        given = sum(getattr(system, name) is not None for system in systems)
        if given not in (0, len(systems)):
            raise DataError(
                f"{given} of {len(systems)} structures carry '{name}'. "
                f"Give '{name}' for every structure or for none."
            )


def _check_length(name: str, value: Any, total: int) -> None:
    """A setting per structure has one entry per structure."""
    if isinstance(value, Sequence) and len(value) != total:
        raise ConfigError(
            f"{name} has {len(value)} entries for {total} structures. "
            "Give one for all, or one entry per structure."
        )


def _check_settings(
    fmax: float,
    max_steps: int,
    optimizer: str,
    cell_filter: str,
    max_edges: float | None,
    check_every: int,
) -> None:
    for name, value, valid in (
        ("optimizer", optimizer, OPTIMIZERS),
        ("cell_filter", cell_filter, CELL_FILTERS),
    ):
        if value not in valid:
            raise ConfigError(f"{name}={value!r} is not known. Valid: {', '.join(valid)}.")
    for name, number, least in (
        ("max_steps", max_steps, 0),
        ("max_edges", 1 if max_edges is None else max_edges, 1),
        ("check_every", check_every, 1),
    ):
        if number < least:
            raise ConfigError(f"{name}={number} is too small. Give {least} or more.")
    if not fmax > 0:
        raise ConfigError(f"fmax={fmax} can never be reached. Give a positive force in eV/Å.")


def _check_strains(
    cell: Any, mask: Sequence[bool] | None, hydrostatic: bool, constant_volume: bool
) -> None:
    """Options of the strain leave something, and there is a cell that they could concern."""
    check_options(mask=mask, hydrostatic=hydrostatic, constant_volume=constant_volume)
    if cell is False and (mask is not None or hydrostatic or constant_volume):
        raise ConfigError(
            "mask, hydrostatic and constant_volume say how a cell may strain, and cell=False lets "
            "none. Leave them out, or set cell=True."
        )

"""md(): structures in, trajectories and their Status out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dpa4sim.batch import Batch, symbol
from dpa4sim.complaint import complaints
from dpa4sim.direct import check_conservative
from dpa4sim.edges import estimated_edges
from dpa4sim.ensemble import limit_spread
from dpa4sim.errors import SICK, DataError
from dpa4sim.moments import magnetic_elements, moments_complaint, with_moments
from dpa4sim.pool.capacity import Capacity, edge_capacity
from dpa4sim.pool.checkpoint import model_fingerprint
from dpa4sim.pool.pool import Pool
from dpa4sim.pool.progress import Progress
from dpa4sim.pool.queue import Job
from dpa4sim.potential import EnergyModel
from dpa4sim.simulate.dynamics import Dynamics, MDRun, Sampling, Simulated, Terms
from dpa4sim.simulate.layout import USUAL, Observable, Recording, SystemRecord
from dpa4sim.simulate.recorder import Recorder
from dpa4sim.simulate.settings import MDSettings
from dpa4sim.simulate.state import Conditions
from dpa4sim.units import GPA_PER_EV_A3

UNITS = {"energy": "eV", "kinetic_energy": "eV", "temperature": "K", "pressure_gpa": "GPa"}
UNITS |= {"volume": "Å^3", "msd": "Å^2"}
"""What the trajectory file holds of each sample."""


def md(
    potential: EnergyModel,
    structures: Any,
    *,
    ensemble: str = "nvt",
    thermostat: str = "langevin",
    coupling: str = "isotropic",
    temperature: float | Sequence[float] = 300.0,
    temperature_end: float | Sequence[float] | None = None,
    pressure_gpa: float | Sequence[float] = 0.0,
    pressure_end_gpa: float | Sequence[float] | None = None,
    timestep: float | Sequence[float] = 1.0,
    time_ps: float | Sequence[float] = 1.0,
    steps: int | Sequence[int] | None = None,
    thermostat_time: float | Sequence[float] = 100.0,
    barostat_time: float | Sequence[float] = 1000.0,
    bulk_modulus_gpa: float | Sequence[float] = 100.0,
    skip_ps: float | Sequence[float] = 0.0,
    seed: int | Sequence[int] = 0,
    replicas: int = 1,
    sample_every: int = 10,
    rdf_max: float = 0.0,
    rdf_bins: int = 200,
    output: str | Path | None = None,
    frame_every: int = 100,
    store: Sequence[str] = USUAL,
    positions: str = "float64",
    resume: bool = False,
    checkpoint_every_s: float = 60.0,
    max_force_spread: float | None = None,
    allow_non_conservative: bool = False,
    strict: bool = False,
    progress: bool | None = None,
    max_edges: float | None = None,
) -> list[MDRun]:
    """Molecular dynamics of many structures together; each goes the way it would go alone.

    Args:
        structures: as of `relax`.
        ensemble: "nve", "nvt" or "npt"; this and all up to `replicas` is told in
            `simulate.settings.MDSettings`.
        sample_every: steps between two samples of energy, temperature, pressure, volume, MSD.
        rdf_max: range in Å of pair distances to count at every sample; 0 for none.
        rdf_bins: bins over that range.
        output: an .h5 file for frames and samples; read it with `read_trajectory`.
        frame_every: steps between two stored frames; 0 for the last ones only.
        store: what a frame holds.
        positions: "float64", or "float32" for smaller files.
        resume: go on with `output` where an earlier, equal call was interrupted.
        checkpoint_every_s: seconds between two checkpoints, in a folder beside `output`.
        max_force_spread: of an ensemble, eV/Å; a trajectory ends as UNCERTAIN, at its last frame
            below, when the members disagree by more about the force on an atom.
        allow_non_conservative: take a model of direct forces, which conserve no energy; not in npt.
        strict: raise about a structure that is invalid or falls sick, instead of marking it.
        progress: None shows a bar on a terminal; True also writes lines elsewhere; False neither.
        max_edges: edges in the working set; None measures what the device can hold.

    Returns:
        One entry per trajectory: the replicas of the first structure, then of the second, ...

    Raises:
        ConfigError: a setting cannot be used.
        DataError: the output exists; or `strict`, and a structure is invalid or fell sick.
        ResumeError: the checkpoint belongs to other work.
    """
    settings = MDSettings(
        ensemble=ensemble,
        thermostat=thermostat,
        coupling=coupling,
        temperature=temperature,
        temperature_end=temperature_end,
        pressure_gpa=pressure_gpa,
        pressure_end_gpa=pressure_end_gpa,
        timestep=timestep,
        time_ps=time_ps,
        steps=steps,
        thermostat_time=thermostat_time,
        barostat_time=barostat_time,
        bulk_modulus_gpa=bulk_modulus_gpa,
        skip_ps=skip_ps,
        seed=seed,
        replicas=replicas,
    )
    strained = ('ensemble="npt"', 'ensemble="nvt"') if ensemble == "npt" else None
    check_conservative(potential, "md", allow_non_conservative, strained)
    from dpa4sim.adapters.files import structures_to_batches

    sampling = Sampling(sample_every, rdf_max, rdf_bins)
    sampled = tuple(
        Observable(name=name, interval=sample_every, unit=unit) for name, unit in UNITS.items()
    )
    recording = Recording(
        interval=frame_every, store=tuple(store), positions=positions, observables=sampled
    )
    systems = [system.to("cpu") for system in structures_to_batches(structures)]
    settings.check_lengths(len(systems))
    jobs = list(_jobs(systems, settings, sampling, potential))
    asked = {"work": "md", **asdict(settings), **asdict(sampling), "frame_every": frame_every}
    asked |= {"store": list(store), "positions": positions, "model": model_fingerprint(potential)}
    if max_force_spread is not None:
        asked["max_force_spread"] = max_force_spread
    limited, recorder = limit_spread(potential, max_force_spread), None
    if output is not None:
        records = [_system_record(job, settings) for job in jobs]
        recorder = Recorder(Path(output), recording, records, asked, asked["model"], resume)
    capacity = edge_capacity(potential) if max_edges is None else Capacity(max_edges, math.inf)
    method = Dynamics(settings, sampling, recorder, frame_every)
    checkpoints = recorder.checkpoints(asked, checkpoint_every_s) if recorder else None
    runs = []
    try:
        with closing(Progress("md", len(jobs), progress)) as reporter, closing(method):
            pool: Pool[Simulated, MDRun] = Pool(limited, method, capacity, reporter, checkpoints)
            for run in pool.run(iter(jobs)):
                _raise_if(strict, run)
                runs.append(run)
    finally:
        if checkpoints is not None:
            checkpoints.close()
    return sorted(runs, key=lambda run: run.index)


def _jobs(
    systems: Sequence[Batch], settings: MDSettings, sampling: Sampling, model: EnergyModel
) -> Iterator[Job]:
    """One job per replica of a structure."""
    reasons = complaints(systems, getattr(model, "known_elements", None))
    magnetic = magnetic_elements(model)
    for place, (given, wrong) in enumerate(zip(systems, reasons, strict=True)):
        system = with_moments(given, magnetic)
        reason = wrong or _unfit(system, settings) or moments_complaint(system, magnetic)
        edges = 0.0 if reason else float(estimated_edges(system, model.cutoff)[0])
        for replica in range(settings.replicas):
            skipped = -(-settings.n_skipped(place) // sampling.every) * sampling.every
            terms = Terms(
                settings.conditions(system, place, replica),
                torch.tensor([skipped]),
            )
            yield Job(place * settings.replicas + replica, system, terms, reason, edges)


def _unfit(system: Batch, settings: MDSettings) -> str | None:
    """What makes a usable structure unfit for this run."""
    n_periodic = int(system.pbc.sum())
    if settings.ensemble == "npt" and n_periodic < 3:
        return (
            f"a pressure needs a cell: it is periodic along {n_periodic} of 3 lattice vectors; "
            'use ensemble="nvt" for it'
        )
    return None


def _system_record(job: Job, settings: MDSettings) -> SystemRecord:
    """What the file says once about a trajectory."""
    structure, replica = divmod(job.index, settings.replicas)
    under: Conditions = job.terms.conditions
    numbers = Counter(job.system.atomic_numbers.tolist())
    formula = "".join(symbol(z) + (str(n) if n > 1 else "") for z, n in numbers.items())
    heated, pressed = settings.ensemble != "nve", settings.ensemble == "npt"
    kelvin = (float(under.temperature_start[0]), float(under.temperature_end[0]))
    gpa = (float(under.pressure_start[0]), float(under.pressure_end[0]))
    unset = (math.nan, math.nan)
    return SystemRecord(
        batch=job.system,
        label=f"{structure}-{formula}",
        replica=replica,
        timestep=float(under.timestep[0]),
        n_steps=int(under.n_steps[0]),
        temperature=kelvin if heated else unset,
        pressure_gpa=(GPA_PER_EV_A3 * gpa[0], GPA_PER_EV_A3 * gpa[1]) if pressed else unset,
    )


def _raise_if(strict: bool, run: MDRun) -> None:
    if strict and run.status in SICK:
        raise DataError(
            f"structure {run.structure}, replica {run.replica}: {run.reason}. "
            "Without strict=True it is marked and the others go on."
        )

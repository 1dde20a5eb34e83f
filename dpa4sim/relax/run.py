"""relax(): structures in, relaxed structures and their Status out, in the same order."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from dpa4sim.batch import Batch, complaint, symbol
from dpa4sim.errors import ConfigError, DataError, Status
from dpa4sim.potential import EnergyModel, Prediction
from dpa4sim.relax.cell import CELL_FILTERS, volume
from dpa4sim.relax.fire import FireSettings, FireState, fire_init, fire_step
from dpa4sim.relax.pack import join, take, to_device

OPTIMIZERS = ("fire",)

SICK = frozenset(
    {Status.NOT_FINITE, Status.EXPLODED, Status.COLLAPSED, Status.OUT_OF_MEMORY, Status.INVALID}
)
"""What `strict=True` raises about; running out of steps is an answer, not a sickness."""

LINE_EVERY_S = 10.0


@dataclass(frozen=True)
class Relaxed:
    """How one structure ended.

    Args:
        status: CONVERGED, MAX_STEPS, or what went wrong.
        reason: the status as a sentence, with what is known about this structure.
        steps: moves tried.
        evaluations: evaluations of the model.
        fmax: largest |F| of an atom, eV/Å.
        residual: what the criterion compares: as fmax, but with the forces in the frame of the
            start cell and the rows of the cell force, eV/Å.
        stress_max: largest |component| of the stress, eV/Å^3; NaN for a system without a cell.
        energy: eV.
        volume_change: V / V_start - 1; NaN for a system without a cell.
        batch: the last sound geometry, on the CPU.
        prediction: what the model said there; None when it was never asked.
    """

    status: Status
    reason: str
    steps: int
    evaluations: int
    fmax: float
    residual: float
    stress_max: float
    energy: float
    volume_change: float
    batch: Batch
    prediction: Prediction | None


@dataclass(frozen=True)
class RelaxResult:
    """One entry per structure in every list, in the order of the input.  Units: see Relaxed."""

    status: list[Status]
    reasons: list[str]
    steps: list[int]
    evaluations: list[int]
    fmax: list[float]
    residual: list[float]
    stress_max: list[float]
    energy: list[float]
    volume_change: list[float]
    batches: list[Batch]
    predictions: list[Prediction | None]

    def __len__(self) -> int:
        return len(self.status)

    @classmethod
    def collect(cls, records: Sequence[Relaxed]) -> RelaxResult:
        """Lists from records."""
        return cls(
            status=[r.status for r in records],
            reasons=[r.reason for r in records],
            steps=[r.steps for r in records],
            evaluations=[r.evaluations for r in records],
            fmax=[r.fmax for r in records],
            residual=[r.residual for r in records],
            stress_max=[r.stress_max for r in records],
            energy=[r.energy for r in records],
            volume_change=[r.volume_change for r in records],
            batches=[r.batch for r in records],
            predictions=[r.prediction for r in records],
        )

    def to_atoms(self) -> list[Any]:
        """The final structures as ase.Atoms, with their energy, forces and stress."""
        from dpa4sim.adapters.ase import to_atoms

        pairs = zip(self.batches, self.predictions, strict=True)
        return [to_atoms(batch, prediction)[0] for batch, prediction in pairs]


def relax(
    potential: EnergyModel,
    structures: Any,
    *,
    fmax: float = 0.02,
    cell: bool | Sequence[bool] = True,
    optimizer: str = "fire",
    cell_filter: str = "frechet",
    max_steps: int = 500,
    strict: bool = False,
    progress: bool | None = None,
    max_atoms: int = 8192,
    check_every: int = 10,
) -> RelaxResult:
    """Relax structures together; each one ends as it would alone.

    Args:
        structures: one-system Batches, one Batch of many, or what
            `adapters.files.structures_to_batches` takes (Atoms, Structure, a path, ...).
        fmax: converged when every force and cell-force row is shorter, eV/Å.
        cell: whether the cells relax, one answer for all or one per structure.
        max_steps: moves per structure, exactly.
        strict: raise about a structure that is invalid or falls sick, instead of marking it.
        progress: None shows a bar on a terminal; True also writes lines elsewhere; False neither.
        max_atoms: atoms in the working batch; a larger structure is relaxed by itself.
        check_every: steps between two looks at which structures have finished.

    Raises:
        ConfigError: a setting cannot be used.
        DataError: `strict`, and a structure is invalid or fell sick.
    """
    _check_settings(fmax, max_steps, optimizer, cell_filter, max_atoms, check_every)
    systems = _one_by_one(structures)
    moves = _per_structure(cell, len(systems))
    known = getattr(potential, "known_elements", None)
    records: dict[int, Relaxed] = {}
    queue: deque[_Job] = deque()
    for index, system in enumerate(systems):
        reason = complaint(system, known) or (_cell_complaint(system) if moves[index] else None)
        if reason is None:
            queue.append(_Job(index, system, moves[index]))
        else:
            records[index] = _invalid(system, reason)
            _raise_if(strict, index, records[index])

    filter_name = cell_filter if any(moves) else None
    settings = FireSettings(fmax=fmax, max_steps=max_steps)
    with closing(_Reporter(len(systems), progress)) as reporter:
        reporter.advance(structures=len(records))
        work = _Work(potential, filter_name, settings, max_atoms, check_every)
        for index, record in work.finished(queue, reporter):
            records[index] = record
            _raise_if(strict, index, record)
    return RelaxResult.collect([records[index] for index in range(len(systems))])


@dataclass(frozen=True)
class _Job:
    """A structure that waits for its relaxation."""

    index: int
    system: Batch
    moves_cell: bool

    @property
    def n_atoms(self) -> int:
        return self.system.positions.shape[0]


@dataclass(frozen=True)
class _Work:
    """The loop: a working batch that queued structures enter and finished ones leave."""

    model: EnergyModel
    cell_filter: str | None
    settings: FireSettings
    max_atoms: int
    check_every: int

    def finished(self, waiting: deque[_Job], reporter: _Reporter) -> Iterator[tuple[int, Relaxed]]:
        """Every job's index and record, in the order in which they finish.

        The host reads one tensor, the status, every `check_every` steps.
        """
        members: list[_Job] = []
        state: FireState | None = None
        while waiting or members:
            newcomers = self._admit(waiting, members)
            if newcomers:
                fresh = self._start(newcomers)
                state = fresh if state is None else join(state, fresh)
                members = [*members, *newcomers]
            if state is None:
                return
            done = (state.status != Status.RUNNING).tolist()
            if any(done):
                leaving = [s for s, is_done in enumerate(done) if is_done]
                staying = [s for s, is_done in enumerate(done) if not is_done]
                gone = to_device(take(state, leaving), "cpu")
                for place, s in enumerate(leaving):
                    yield members[s].index, _record(take(gone, [place]))
                reporter.advance(structures=len(leaving))
                members = [members[s] for s in staying]
                state = take(state, staying) if staying else None
                continue
            for _ in range(self.check_every):
                state = fire_step(state, self.model)
            reporter.advance(atom_steps=self.check_every * state.batch.positions.shape[0])

    def _admit(self, waiting: deque[_Job], members: Sequence[_Job]) -> list[_Job]:
        """The next jobs that fit beside the members; one job at least when there is no member."""
        room = self.max_atoms - sum(job.n_atoms for job in members)
        admitted: list[_Job] = []
        while waiting and (waiting[0].n_atoms <= room or not (members or admitted)):
            admitted.append(waiting.popleft())
            room -= admitted[-1].n_atoms
        return admitted

    def _start(self, jobs: Sequence[_Job]) -> FireState:
        device = self.model.device
        batch = Batch.concatenate(job.system for job in jobs).to(device)
        flags = torch.tensor([job.moves_cell for job in jobs], device=device)
        if self.cell_filter is None:
            return fire_init(batch, self.model, cell=False, settings=self.settings)
        return fire_init(
            batch, self.model, cell=flags, cell_filter=self.cell_filter, settings=self.settings
        )


def _record(state: FireState) -> Relaxed:
    """What the state of one system, on the CPU, says for people."""
    status, steps = Status(int(state.status[0])), int(state.steps[0])
    reason = f"{status.sentence} (step {steps})" if status in SICK else status.sentence
    start, end = float(volume(state.geometry.start_cell)[0]), float(volume(state.batch.cell)[0])
    return Relaxed(
        status=status,
        reason=reason,
        steps=steps,
        evaluations=int(state.evaluations[0]),
        fmax=float(state.prediction.forces.norm(dim=1).max()),
        residual=float(state.residual[0]),
        stress_max=float(state.prediction.stress.abs().max()),
        energy=float(state.prediction.energy[0]),
        volume_change=end / start - 1 if start > 0 else math.nan,
        batch=state.batch,
        prediction=state.prediction,
    )


def _invalid(system: Batch, reason: str) -> Relaxed:
    nan = math.nan
    return Relaxed(
        Status.INVALID, reason, 0, 0, nan, nan, nan, nan, nan, batch=system, prediction=None
    )


def _raise_if(strict: bool, index: int, record: Relaxed) -> None:
    if strict and record.status in SICK:
        numbers = Counter(record.batch.atomic_numbers.tolist())
        formula = "".join(symbol(z) + (str(n) if n > 1 else "") for z, n in numbers.items())
        raise DataError(
            f"structure {index} ({formula}, {numbers.total()} atoms): {record.reason}. "
            "Without strict=True it is marked and the others go on."
        )


def _cell_complaint(system: Batch) -> str | None:
    n_periodic = int(system.pbc.sum())
    if n_periodic == 3:
        return None
    return (
        f"its cell cannot relax: it is periodic along {n_periodic} of 3 lattice vectors; "
        "pass cell=False for it"
    )


def _one_by_one(structures: Any) -> list[Batch]:
    """One-system Batches, with `charge` and `spin` given for all of them or for none."""
    if isinstance(structures, Batch):
        batches = [structures]
    elif isinstance(structures, Sequence) and all(isinstance(s, Batch) for s in structures):
        batches = list(structures)
    else:
        from dpa4sim.adapters.files import structures_to_batches

        batches = list(structures_to_batches(structures))
    systems = [system for batch in batches for system in batch.to("cpu").split()]
    for name in ("charge", "spin"):
        given = sum(getattr(system, name) is not None for system in systems)
        if given not in (0, len(systems)):
            raise DataError(
                f"{given} of {len(systems)} structures carry '{name}'. "
                f"Give '{name}' for every structure or for none."
            )
    return systems


def _per_structure(cell: bool | Sequence[bool], count: int) -> list[bool]:
    flags = [cell] * count if isinstance(cell, bool) else [bool(flag) for flag in cell]
    if len(flags) != count:
        raise ConfigError(
            f"cell has {len(flags)} entries for {count} structures. "
            "Give True, False, or one entry per structure."
        )
    return flags


def _check_settings(
    fmax: float, max_steps: int, optimizer: str, cell_filter: str, max_atoms: int, check_every: int
) -> None:
    for name, value, valid in (
        ("optimizer", optimizer, OPTIMIZERS),
        ("cell_filter", cell_filter, CELL_FILTERS),
    ):
        if value not in valid:
            raise ConfigError(f"{name}={value!r} is not known. Valid: {', '.join(valid)}.")
    for name, number, least in (
        ("max_steps", max_steps, 0),
        ("max_atoms", max_atoms, 1),
        ("check_every", check_every, 1),
    ):
        if number < least:
            raise ConfigError(f"{name}={number} is too small. Give {least} or more.")
    if not fmax > 0:
        raise ConfigError(f"fmax={fmax} can never be reached. Give a positive force in eV/Å.")


class _Reporter:
    """Progress on stderr: a bar on a terminal, a line every ten seconds elsewhere if asked."""

    def __init__(self, total: int, progress: bool | None):
        terminal = sys.stderr.isatty()
        self.lines = progress is True and not terminal
        self.bar = tqdm(
            total=total,
            unit="structure",
            file=sys.stderr,
            disable=progress is False or not terminal,
        )
        self.total, self.structures, self.atom_steps = total, 0, 0
        self.start = self.last_line = time.monotonic()

    def advance(self, structures: int = 0, atom_steps: int = 0) -> None:
        """Count what is done since the last call."""
        self.structures += structures
        self.atom_steps += atom_steps
        self.bar.update(structures)
        self.bar.set_postfix_str(self._rates(), refresh=False)
        if self.lines and time.monotonic() - self.last_line >= LINE_EVERY_S:
            self._line()

    def close(self) -> None:
        """The last word."""
        self.bar.close()
        if self.lines:
            self._line()

    def _rates(self) -> str:
        seconds = max(time.monotonic() - self.start, 1e-9)
        per_hour, per_second = 3600 * self.structures / seconds, self.atom_steps / seconds
        return f"{per_hour:.3g} structures/h, {per_second:.3g} atom-steps/s"

    def _line(self) -> None:
        self.last_line = time.monotonic()
        print(f"relax: {self.structures}/{self.total}, {self._rates()}", file=sys.stderr)

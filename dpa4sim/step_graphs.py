"""Whole steps of relaxations and dynamics recorded as CUDA graphs: one launch for each.

A recording holds everything between two geometries: the edges out of a Verlet list, the network,
forces and stress, and the optimiser or integrator.  Its shapes are fixed, so the systems are padded
with silent ones, and a recording serves every working set that fits.

A system waits where its list no longer covers it, and where there is no room for its edges: the
step leaves it exactly as it was.  After some steps the host looks once; it renews the list, and
lets those catch up who have waited.  A system so fast that even a new list does not last for one
step takes that step by itself, as without recordings.  So every system takes the steps that it
would take anyway, as many as asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dpa4sim.batch import Batch
from dpa4sim.edges import Edges
from dpa4sim.errors import Status
from dpa4sim.graphs import Recorder, capacity, on_cuda
from dpa4sim.pool.capacity import is_out_of_memory
from dpa4sim.pool.pack import cut, hold, padded, rebuild, system_rows
from dpa4sim.verlet import VerletList, count, pick, verlet_list

if TYPE_CHECKING:
    from dpa4sim.potential import EnergyModel, Prediction

SKIN_A = 1.0
"""Beyond the cutoff; a molecular dynamics of 300 K uses it up in some ten steps."""

RENEWED_AT = 0.5
"""Share of the skin from which the list is renewed between two looks, before somebody waits."""

RECORDED_UP_TO = 10_000
"""Atoms.  Beyond, the device is busy anyway."""

SPARE_PAIRS, SPARE_EDGES = 1.3, 1.1
"""Room, over what there is when a recording is made; room for edges is paid for in every step."""

WASTE = 2.0
"""A recording is not used for fewer edges than its own by this factor."""

MOST = 16
"""Recordings that are kept."""

Step = Callable[[Any, Any], Any]
"""(state, model) -> state."""

Predict = Callable[[Batch, Edges], "Prediction"]
"""(batch, its edges, silent ones at the end) -> what the model says."""

Settle = Callable[[Any, int, Any], Any]
"""(padded state, number of silent systems, a recorded state or None) -> the same with what follows
from its composition, in the shapes of the recorded one if that has room."""


def take_steps(
    step: Step, state: Any, model: EnergyModel, n_steps: int, settle: Settle | None = None
) -> Any:
    """Take some steps, recorded ones where the model has them.

    Args:
        step: of an optimiser or integrator; asks the model once.
        state: a packable record with `batch`, `status` and `steps`.
        settle: for states with slots.
    """
    graphs: StepGraphs | None = getattr(model, "step_graphs", None)
    if graphs is not None:
        return graphs.advance(step, state, n_steps, settle)
    return _one_by_one(step, state, model, n_steps)


class StepGraphs:
    """The recordings of a model.

    Args:
        model: asked for what is not recorded.
        predict: the same for a batch whose edges are known; reads nothing back from the device.
        record: how; `graphs.on_cuda` but in tests.
        skin: Å, of the Verlet lists.
    """

    def __init__(
        self,
        model: EnergyModel,
        predict: Predict,
        record: Recorder = on_cuda,
        skin: float = SKIN_A,
    ) -> None:
        self.model, self.predict = model, predict
        self.record, self.skin = record, skin
        self.refused = False
        self._recordings: list[_Recording] = []
        self._seat: _Recording | None = None
        self._left: Any = None

    def advance(self, step: Step, state: Any, n_steps: int, settle: Settle | None) -> Any:
        """`n_steps` steps of every running system; see `take_steps`."""
        if self.refused or len(state.batch.positions) > RECORDED_UP_TO:
            return _one_by_one(step, state, self.model, n_steps)
        try:
            return self._advance(step, state, n_steps, settle)
        except NotRecordedError as error:
            self.refused = True
            self._recordings.clear()
            print(f"{error}; the steps are taken one by one instead", file=sys.stderr)
        return _one_by_one(step, state, self.model, n_steps)

    def _advance(self, step: Step, state: Any, n_steps: int, settle: Settle | None) -> Any:
        seat, is_new = self._seat, False
        if seat is None or state is not self._left or seat.step != _name(step):
            seat, is_new = self._seated(step, state, settle), True
        self._seat = None  # until all has gone well
        limit = state.steps + n_steps
        while True:
            seen = seat.run(limit, n_steps)
            if not seen.behind:
                break
            state = seat.state_like(state)
            if is_new and seen.is_stuck:
                state = self._leap(step, state, limit)
            seat, is_new = self._seated(step, state, settle), True
            n_steps = seen.behind
        state = seat.state_like(state)
        if seen.used < RENEWED_AT:
            self._seat, self._left = seat, state
        return state

    def _leap(self, step: Step, state: Any, limit: Int[Tensor, " system"]) -> Any:
        """One step without a list, of those who are behind."""
        moved, n_atoms = step(state, self.model), state.batch.n_atoms
        late = state.steps < limit
        return hold(late, state.batch.system_idx, system_rows(n_atoms), moved, state)

    def _seated(self, step: Step, state: Any, settle: Settle | None) -> _Recording:
        """A recording with the state in it, and a new list."""
        batch, cutoff = state.batch, self.model.cutoff
        found = verlet_list(batch, cutoff, self.skin)
        need = Sizes(
            n_atoms=len(batch.positions) + 1,
            n_systems=batch.n_systems + 1,
            n_pairs=found.n_pairs,
            n_edges=count(found, batch, cutoff),
        )
        for recording in self._fitting(need, step):
            whole = _whole(state, recording.sizes, settle, recording.state)
            if _signature(whole) == recording.signature:
                break
        else:
            whole = _whole(state, need.roomy(), settle)
            recording = self._recorded(step, whole, need.roomy())
        self._recordings = [*(r for r in self._recordings if r is not recording), recording][-MOST:]
        recording.load(whole, found)
        return recording

    def _fitting(self, need: Sizes, step: Step) -> list[_Recording]:
        """Recordings with room that do not waste too much of it, the smallest first."""
        name, most = _name(step), max(WASTE * need.n_edges, capacity(1))
        fitting = [
            recording
            for recording in self._recordings
            if recording.step == name
            and recording.sizes.hold(need)
            and recording.sizes.n_edges <= most
        ]
        return sorted(fitting, key=lambda recording: recording.sizes.n_edges)

    def _recorded(self, step: Step, whole: Any, sizes: Sizes) -> _Recording:
        """A new recording for states like this one."""
        blank = _Recording.blank(_name(step), whole, sizes, self.skin)

        def function(*tensors: Tensor) -> tuple[Tensor]:
            state, found, system_row, limit = blank.opened(tensors)
            model = _Listed(self.model, self.predict, found, sizes.n_edges)
            moved = step(state, model)
            goes = model.covered & (state.steps < limit)
            after = hold(goes, state.batch.system_idx, system_row, moved, state)
            for static, value in zip(_leaves(state), _leaves(after), strict=True):
                if value is not static:
                    static.copy_(value)
            return (model.used,)

        try:
            replay, (used,) = self.record(function, blank.tensors)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise NotRecordedError(f"A step cannot be recorded: {error}") from error
        return replace(blank, replay=replay, used=used)


class NotRecordedError(RuntimeError):
    """The device refuses to record a step."""


@dataclass(frozen=True)
class Sizes:
    """How much there is, or how much a recording has room for.

    Args:
        n_atoms: atoms, with one silent atom at least.
        n_systems: systems, with one silent system at least.
        n_pairs: pairs of the Verlet list.
        n_edges: edges.
    """

    n_atoms: int
    n_systems: int
    n_pairs: int
    n_edges: int

    def hold(self, need: Sizes) -> bool:
        """Whether all of it has room."""
        return all(room >= wanted for room, wanted in zip(self._all(), need._all(), strict=True))

    def roomy(self) -> Sizes:
        """Those of the next bucket, with room to become denser."""
        spare = (1.0, 1.0, SPARE_PAIRS, SPARE_EDGES)
        return Sizes(*(capacity(int(s * n)) for s, n in zip(spare, self._all(), strict=True)))

    def _all(self) -> tuple[int, ...]:
        return self.n_atoms, self.n_systems, self.n_pairs, self.n_edges


@dataclass(frozen=True)
class Seen:
    """What the host sees after some steps.

    Args:
        behind: steps that the slowest running system still has to make.
        is_stuck: whether one of those made none.
        used: largest share of its skin that a running system has used up.
    """

    behind: int
    is_stuck: bool
    used: float


@dataclass(frozen=True)
class _Recording:
    """One recorded step, and the tensors that it reads and writes.

    Args:
        step: which.
        sizes: of its tensors.
        state: padded; the recording changes it in place.
        found: its Verlet list.
        system_row: see `pack.hold`.
        limit: steps beyond which a system does not go.
        signature: of states that can be put into it.
        replay: takes the step.
        used: see `verlet.Picked`, of the latest step.
    """

    step: Any
    sizes: Sizes
    state: Any
    found: VerletList
    system_row: Int[Tensor, " row"]
    limit: Int[Tensor, " system"]
    signature: Any
    replay: Callable[[], None] | None = None
    used: Float[Tensor, " system"] | None = None

    @classmethod
    def blank(cls, step: Any, whole: Any, sizes: Sizes, skin: float) -> _Recording:
        """One without a recording yet, in which nobody goes anywhere."""
        device, n_atoms = whole.batch.device, whole.batch.n_atoms
        nothing = torch.zeros(0, dtype=torch.long, device=device)
        found = VerletList(
            center=nothing,
            neighbor=nothing,
            image=nothing.new_zeros(3, 0),
            real=nothing.bool(),
            place=whole.batch.positions.new_zeros(0, 3),
            cell=whole.batch.cell.new_zeros(0, 3, 3),
            skin=skin,
        )
        return cls(
            step=step,
            sizes=sizes,
            state=rebuild(torch.clone, whole),
            found=found.padded(sizes.n_pairs, sizes.n_atoms, sizes.n_systems),
            system_row=system_rows(n_atoms),
            limit=torch.zeros_like(whole.steps),
            signature=_signature(whole),
        )

    @property
    def tensors(self) -> list[Tensor]:
        """All that it reads and writes."""
        return [*_leaves(self.state), *self.found.tensors, self.system_row, self.limit]

    def opened(
        self, tensors: Sequence[Tensor]
    ) -> tuple[Any, VerletList, Int[Tensor, " row"], Int[Tensor, " system"]]:
        """State, list, system of each row and limit, with other tensors in the place of its own."""
        given = iter(tensors)
        state = rebuild(lambda _: next(given), self.state)
        found = self.found.with_tensors(given)
        return state, found, next(given), next(given)

    def load(self, whole: Any, found: VerletList) -> None:
        """Put a padded state and a list into it."""
        sizes = self.sizes
        listed = found.padded(sizes.n_pairs, sizes.n_atoms, sizes.n_systems)
        system_row = system_rows(whole.batch.n_atoms)
        given = [*_leaves(whole), *listed.tensors, system_row, torch.zeros_like(self.limit)]
        for static, value in zip(self.tensors, given, strict=True):
            static.copy_(value)

    def run(self, limit: Int[Tensor, " system"], n_steps: int) -> Seen:
        """Take some steps, none beyond the limit, and look."""
        if self.replay is None or self.used is None:
            raise RuntimeError("This step was never recorded.")
        n_systems, state = len(limit), self.state
        self.limit[:n_systems] = limit
        before = state.steps.clone()
        for _ in range(n_steps):
            self.replay()
        rows = (state.status, state.steps, before, self.limit, self.used)
        found = torch.stack([row[:n_systems].double() for row in rows]).tolist()
        running = [numbers for numbers in zip(*found, strict=True) if numbers[0] == Status.RUNNING]
        late = [(limit - steps, steps == old) for _, steps, old, limit, _ in running]
        late = [(missing, still) for missing, still in late if missing > 0]
        return Seen(
            behind=int(max((missing for missing, _ in late), default=0)),
            is_stuck=any(still for _, still in late),
            used=max((used for *_, used in running), default=0.0),
        )

    def state_like(self, state: Any) -> Any:
        """The state, without what pads it; see `pack.cut`."""
        return cut(self.state, state)


class _Listed:
    """A model whose edges come out of a Verlet list; asked once."""

    def __init__(
        self, model: EnergyModel, predict: Predict, found: VerletList, n_edges: int
    ) -> None:
        self.predict, self.found, self.n_edges = predict, found, n_edges
        self.device, self.cutoff = model.device, model.cutoff
        self.parts = (model,)  # compiled steps if the model's are

    def __call__(self, batch: Batch) -> Prediction:
        picked = pick(self.found, batch, self.cutoff, self.n_edges)
        self.covered, self.used = picked.covered, picked.used
        return self.predict(batch, picked.edges)


def _one_by_one(step: Step, state: Any, model: EnergyModel, n_steps: int) -> Any:
    for _ in range(n_steps):
        state = step(state, model)
    return state


def _whole(state: Any, sizes: Sizes, settle: Settle | None, like: Any = None) -> Any:
    """The state padded to these sizes."""
    whole, n_silent = padded(state, sizes.n_atoms, sizes.n_systems), sizes.n_systems
    return whole if settle is None else settle(whole, n_silent - state.batch.n_systems, like)


def _name(step: Step) -> Any:
    """Equal for equal steps."""
    if isinstance(step, partial):
        return step.func, step.args, tuple(sorted(step.keywords.items()))
    return step


def _leaves(record: Any) -> list[Tensor]:
    """Every tensor of a record, in one order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    rebuild(note, record)
    return found


def _signature(record: Any) -> Any:
    """Equal for records that differ in the values of their tensors only."""
    if isinstance(record, Tensor):
        return tuple(record.shape), record.dtype
    if is_dataclass(record):
        return type(record), *(_signature(getattr(record, f.name)) for f in fields(record))
    return record

"""The pool: a room of fixed size on the device, through which any number of systems pass.

Queued systems enter as soon as there is room, measured in edges; finished ones leave at once and
are handed out.  A system that is too large for the room is taken by itself; when memory runs out
all the same, the room is halved and the youngest members step aside until there is room again.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch

from dpa4sim.edges import estimated_edges
from dpa4sim.errors import Status
from dpa4sim.moments import magnetic_elements
from dpa4sim.pool.capacity import Capacity, is_out_of_memory
from dpa4sim.pool.checkpoint import Silent, Snapshot, Store
from dpa4sim.pool.pack import fill, flatten, join, take, to_device
from dpa4sim.pool.progress import Progress
from dpa4sim.pool.queue import Job, Queue
from dpa4sim.potential import EnergyModel


class Method[State, Result](Protocol):
    """What is done to the systems of the pool."""

    @property
    def result(self) -> type[Result]:
        """A dataclass of plain values, Batch and Prediction."""

    @property
    def stride(self) -> int:
        """Steps that one advance makes."""

    def start(self, jobs: Sequence[Job], model: EnergyModel) -> State:
        """A packable record with `batch` and `status`, one system per job."""

    def advance(self, state: State, jobs: Sequence[Job], model: EnergyModel) -> State:
        """Some steps, without reading the device; a system that has ended stands still."""

    def finish(self, state: State, job: Job, status: Status | None = None) -> Result:
        """What to say of a system that has ended; its state is on the CPU.

        Args:
            status: how it ended, if the state does not know.
        """

    def refuse(self, job: Job, status: Status, reason: str) -> Result:
        """What to say of a system that never moved."""

    def checkpoint(self) -> dict[str, Any]:
        """What else must be remembered, as JSON; everything handed out before is on the disk."""

    def resume(self, remembered: dict[str, Any] | None) -> None:
        """Put it back, before anything else is asked; None when the work is new."""


class Pool[State, Result]:
    """Drives a method over any number of jobs.

    Args:
        model: asked once per step for the whole working set.
        method: what is done.
        capacity: of the device, in edges.
        progress: told of what is done.
        store: where to keep checkpoints; None to keep none.
    """

    def __init__(
        self,
        model: EnergyModel,
        method: Method[State, Result],
        capacity: Capacity,
        progress: Progress,
        store: Store | None = None,
    ):
        self.model, self.method, self.progress, self.store = model, method, progress, store
        self.room, self.largest = float(capacity.working), float(capacity.largest)
        self.members: list[Job] = []
        self.state: Any = None
        self.aside: list[tuple[Job, Any]] = []
        self.unsaved: list[Result] = []
        self.lags = torch.device(model.device).type != "cpu"
        self.signal: int | None = None
        self.saved_at = time.monotonic()

    def run(self, jobs: Iterator[Job]) -> Iterator[Result]:
        """The result of every job, in the order in which they finish.

        Raises:
            ResumeError: the checkpoint was made with other jobs.
        """
        queue = Queue(jobs)
        yield from self._resume(self.store, queue)
        with self._signals():
            while True:
                yield from self._admit(queue)
                self._checkpoint(queue)
                if not self.members:
                    if queue.peek() is None and not self.aside:
                        break
                    continue
                yield from self._work()
        self._checkpoint(queue, last=True)

    def _work(self) -> Iterator[Result]:
        """Advance the members, and let those go that had ended before.

        A processor looks first, for it would only waste its time on systems that have ended; a
        GPU is given its next steps before the host reads how the last ones went.
        """
        glance = _Glance(self.state, self.model.cutoff)
        if self.lags:
            yield from self._advance()
        status, edges = glance.read()
        leaving = [s for s, ended in enumerate(status) if ended != Status.RUNNING]
        outgrown = [s for s, grown in enumerate(edges) if grown > self.largest]
        if len(status) != len(self.members):  # memory ran out, and somebody had to go
            return
        if leaving:
            yield from self._retire(leaving)
        elif outgrown:
            yield from self._retire(outgrown, Status.OUT_OF_MEMORY)
        elif sum(edges) > self.room and len(self.members) > 1:
            self._step_aside(edges)
        elif not self.lags:
            yield from self._advance()

    def _advance(self) -> Iterator[Result]:
        try:
            before = self.state
            self.state = self.method.advance(before, self.members, self.model)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.state = before
            yield from self._shrink()
            return
        self.progress.advance(atom_steps=self.method.stride * len(before.batch.positions))

    def _admit(self, queue: Queue) -> Iterator[Result]:
        """Let in what fits: first those who stepped aside, then the queue in its order."""
        while self.aside:
            job, one = self.aside[0]
            if self.members and self._taken() + job.edges > self.room:
                break
            del self.aside[0]
            self._seat([job], to_device(one, self.model.device))
        tried = False
        while not (self.aside or tried):
            while (first := queue.peek()) and (refusal := self._refusal(first)) is not None:
                queue.pop()
                yield self._hand_out(self.method.refuse(first, *refusal))
            newcomers = self._newcomers(queue)
            if newcomers:
                yield from self._start(newcomers, queue)
            head = queue.peek()
            tried = head is None or self._refusal(head) is None

    def _newcomers(self, queue: Queue) -> list[Job]:
        """Jobs from the head of the queue up to the first that does not fit or is refused."""
        newcomers: list[Job] = []
        taken = self._taken()
        queue.settle()
        while (job := queue.peek()) is not None and self._refusal(job) is None:
            taken += job.edges
            if taken > self.room and (self.members or newcomers):
                break
            newcomers.append(queue.pop())
        return newcomers

    def _taken(self) -> float:
        return sum(job.edges for job in self.members)

    def _refusal(self, job: Job) -> tuple[Status, str] | None:
        if job.refusal is not None:
            return Status.INVALID, job.refusal
        if job.edges > self.largest:
            return Status.OUT_OF_MEMORY, (
                f"{Status.OUT_OF_MEMORY.sentence}: about {job.edges:.2g} edges, and "
                f"{self.largest:.2g} fit"
            )
        return None

    def _start(self, newcomers: list[Job], queue: Queue) -> Iterator[Result]:
        try:
            fresh = self.method.start(newcomers, self.model)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._halve(sum(job.edges for job in newcomers))
            if len(newcomers) > 1 or self.members:
                queue.put_back(len(newcomers))
                return
            sentence = Status.OUT_OF_MEMORY.sentence
            refused = self.method.refuse(newcomers[0], Status.OUT_OF_MEMORY, sentence)
            yield self._hand_out(refused)
            return
        self._seat(newcomers, fresh)

    def _seat(self, jobs: list[Job], fresh: Any) -> None:
        self.state = fresh if self.state is None else join(self.state, fresh)
        self.members = [*self.members, *jobs]

    def _leave(self, leaving: Sequence[int]) -> tuple[list[Job], list[Any]]:
        """Take systems out of the working set; their jobs, and their states on the CPU."""
        gone = to_device(take(self.state, leaving), "cpu")
        jobs = [self.members[s] for s in leaving]
        chosen = set(leaving)
        staying = [s for s in range(len(self.members)) if s not in chosen]
        self.state = take(self.state, staying) if staying else None
        self.members = [self.members[s] for s in staying]
        return jobs, [take(gone, [place]) for place in range(len(leaving))]

    def _retire(self, leaving: Sequence[int], status: Status | None = None) -> Iterator[Result]:
        for job, one in zip(*self._leave(leaving), strict=True):
            yield self._hand_out(self.method.finish(one, job, status))

    def _hand_out(self, result: Result) -> Result:
        if self.store is not None:
            self.unsaved.append(result)
        self.progress.advance(structures=1)
        return result

    def _step_aside(self, edges: Sequence[float]) -> None:
        """The youngest members leave until the others fit; the eldest always stays."""
        staying, total = 1, edges[0]
        while staying < len(edges) and total + edges[staying] <= self.room:
            total += edges[staying]
            staying += 1
        pairs = zip(self.members, edges, strict=True)
        self.members = [replace(job, edges=grown) for job, grown in pairs]
        leaving = self._leave(range(staying, len(edges)))
        self.aside = [*zip(*leaving, strict=True), *self.aside]

    def _shrink(self) -> Iterator[Result]:
        """Memory ran out in a step: half the room; a single member has no room anywhere."""
        edges = [job.edges for job in self.members]
        self._halve(sum(edges))
        if len(edges) > 1:
            self._step_aside(edges)
            return
        (job,), (one,) = self._leave([0])
        yield self._hand_out(self.method.finish(one, job, Status.OUT_OF_MEMORY))

    def _halve(self, edges: float) -> None:
        self.room = max(min(self.room, edges) / 2, 1.0)
        if self.lags:
            torch.cuda.empty_cache()
        print(f"out of memory: going on with {self.room:.3g} edges at once", file=sys.stderr)

    def _resume(self, store: Store | None, queue: Queue) -> Iterator[Result]:
        """Hand out what was finished, and put everything else where it stood."""
        snapshot = None if store is None else store.load()
        if store is None or snapshot is None:
            self.method.resume(None)
            return
        facts = snapshot.facts
        self.method.resume(facts["method"])
        for result in store.finished(self.method.result):
            self.progress.skip(1)
            yield result
        n = len(facts["members"])
        jobs = queue.skip(facts["consumed"], facts["digest"], facts["members"] + facts["aside"])
        jobs = [replace(job, edges=e) for job, e in zip(jobs, facts["edges"], strict=True)]
        self.room, self.members = facts["room"], jobs[:n]
        if jobs[:n]:
            self.state = self._restored(jobs[:n], snapshot, "members.")
        if jobs[n:]:
            state = self._restored(jobs[n:], snapshot, "aside.")
            states = [to_device(take(state, [s]), "cpu") for s in range(len(jobs) - n)]
            self.aside = list(zip(jobs[n:], states, strict=True))

    def _restored(self, jobs: Sequence[Job], snapshot: Snapshot, prefix: str) -> Any:
        """The state of the checkpoint: begun with a model that says nothing, then filled."""
        model = self.model
        spread, magnetic = getattr(model, "has_spread", False), magnetic_elements(model)
        silent = Silent(model.device, model.cutoff, spread, magnetic)
        blank = self.method.start(jobs, silent)
        return fill(blank, snapshot.tensors, prefix)

    def _checkpoint(self, queue: Queue, last: bool = False) -> None:
        due = self.store is not None and time.monotonic() - self.saved_at >= self.store.every
        if self.store is not None and (due or last or self.signal is not None):
            self._save(self.store, queue, last)
        if self.signal is not None:
            raise _Stopped(self.signal)

    def _save(self, store: Store, queue: Queue, last: bool) -> None:
        aside = [one for _, one in self.aside]
        tensors = {} if self.state is None else flatten(self.state, "members.")
        tensors |= flatten(join(*aside), "aside.") if aside else {}
        jobs = [*self.members, *(job for job, _ in self.aside)]
        try:
            facts = {
                "consumed": queue.consumed,
                "digest": queue.digest,
                "members": [job.index for job in self.members],
                "aside": [job.index for job, _ in self.aside],
                "edges": [job.edges for job in jobs],
                "room": self.room,
                "method": self.method.checkpoint(),
                "finished": last,
            }
            store.save(self.unsaved, tensors, facts)
            self.unsaved = []
        except OSError as error:
            if last or self.signal is not None:
                raise
            print(
                f"checkpoint failed ({error}); the one before stands, the work goes on",
                file=sys.stderr,
            )
        self.saved_at = time.monotonic()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """With a store, SIGTERM and SIGINT wait for the end of a step and make a checkpoint."""
        if self.store is None or threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: Any) -> None:
            self.signal = number

        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        except _Stopped as stopped:
            for number, handler in before.items():
                signal.signal(number, handler)
            os.kill(os.getpid(), stopped.number)
            raise KeyboardInterrupt from None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Glance:
    """Status and estimated edges of every member, on their way to the host."""

    def __init__(self, state: Any, cutoff: float):
        edges = estimated_edges(state.batch, cutoff)
        both = torch.stack([state.status.double(), edges.double()])
        self.arrived: torch.cuda.Event | None = None
        if both.device.type == "cuda":
            self.copy = torch.empty(both.shape, dtype=both.dtype, pin_memory=True)
            self.copy.copy_(both, non_blocking=True)
            self.arrived = torch.cuda.Event()
            self.arrived.record()
        else:
            self.copy = both

    def read(self) -> tuple[list[int], list[float]]:
        """Wait for the numbers."""
        if self.arrived is not None:
            self.arrived.synchronize()
        status, edges = self.copy.tolist()
        return [int(value) for value in status], edges


class _Stopped(Exception):  # noqa: N818
    """A signal asked for the end, and the checkpoint is made."""

    def __init__(self, number: int):
        self.number = number

"""Jobs in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dpa4sim.batch import Batch
from dpa4sim.errors import ResumeError
from dpa4sim.pool.checkpoint import chain


@dataclass(frozen=True)
class Job:
    """A system that waits.

    Args:
        index: its place in the input.
        system: a Batch of one system on the CPU.
        terms: a packable record of one system, such as what may move in it.
        refusal: why it cannot be worked on; None when it can.
        edges: estimate of its edges.
    """

    index: int
    system: Batch
    terms: Any
    refusal: str | None = None
    edges: float = 0.0


class Queue:
    """Jobs in their order, and how far they have been taken."""

    def __init__(self, jobs: Iterator[Job]):
        self.jobs = jobs
        self.waiting: deque[Ticket] = deque()
        self.taken: list[Ticket] = []
        self.consumed, self.digest, self.latest = 0, "", ""

    def peek(self) -> Job | None:
        """The next job; None when there is no more."""
        if not self.waiting:
            job = next(self.jobs, None)
            if job is None:
                return None
            before, self.latest = self.latest, chain(self.latest, [job.system, job.terms])
            self.waiting.append(Ticket(job, before, self.latest))
        return self.waiting[0].job

    def pop(self) -> Job:
        """Take the next job."""
        ticket = self.waiting.popleft()
        self.taken.append(ticket)
        self.consumed, self.digest = self.consumed + 1, ticket.after
        return ticket.job

    def settle(self) -> None:
        """What was taken until now will not be put back."""
        self.taken.clear()

    def put_back(self, count: int) -> None:
        """The last `count` jobs were taken too early."""
        for _ in range(count):
            ticket = self.taken.pop()
            self.waiting.appendleft(ticket)
            self.consumed, self.digest = self.consumed - 1, ticket.before

    def skip(self, count: int, digest: str, keep: Sequence[int]) -> list[Job]:
        """Take `count` jobs; those of the named indices, in that order.

        Raises:
            ResumeError: they are not the ones that were taken before.
        """
        kept: dict[int, Job] = {}
        wanted = set(keep)
        while self.consumed < count and self.peek() is not None:
            job = self.pop()
            self.settle()
            if job.index in wanted:
                kept[job.index] = job
        if self.consumed != count or self.digest != digest:
            raise ResumeError(
                f"The first {count} structures are not those that this directory was begun with. "
                "Give the same structures in the same order, or a new directory."
            )
        return [kept[index] for index in keep]


@dataclass(frozen=True)
class Ticket:
    """A job and the digests of all jobs before it and up to it."""

    job: Job
    before: str
    after: str

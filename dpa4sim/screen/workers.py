"""Several processes on one machine: one per GPU, or sharing the cores."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from dpa4sim.errors import ConfigError, ResumeError
from dpa4sim.pool.progress import Progress
from dpa4sim.screen.campaign import Campaign

LIVES = 3
"""How often a worker that was killed is replaced."""

LOOK_S = 0.5
PATIENCE_S = 60.0
"""For workers that were told to stop, and make a checkpoint first."""


def run_workers(
    campaign: Campaign,
    n_workers: int,
    *,
    device: str = "cpu",
    shard: str = "",
    progress: bool | None = None,
    checkpoint_every_s: float = 60.0,
) -> None:
    """Let several processes work on a campaign until it is done.

    Args:
        n_workers: processes; on "cuda" they take the GPUs in turn.
        device: "cpu", "cuda", or one GPU for all.
        shard: i/n, or empty.
        progress: as of `dpa4sim.relax`.
        checkpoint_every_s: seconds between two checkpoints of a chunk.

    Raises:
        ConfigError: fewer than one worker.
        ResumeError: workers ended before the campaign did.
    """
    if n_workers < 1:
        raise ConfigError(f"--workers {n_workers}: give 1 or more.")
    words = ["screen", "run", str(campaign.directory), "--quiet"]
    words += ["--checkpoint-every", str(checkpoint_every_s)]
    words += ["--shard", shard] if shard else []
    team = [
        _Member(slot, [*words, "--device", name], n_workers if name == "cpu" else 0)
        for slot, name in enumerate(_devices(device, n_workers))
    ]
    i, n = parse_shard(shard)
    total = campaign.ledger.to_relax((i, n))
    with _stopping(team), closing(Progress("screen", total, progress)) as reporter:
        reporter.skip(campaign.ledger.relaxed()[0])
        seen = reporter.before
        while sum(member.look() for member in team):  # all, so that the dead are replaced
            now = campaign.ledger.relaxed()[0]
            reporter.advance(structures=now - seen)
            seen = now
            time.sleep(LOOK_S)
    failed = [member for member in team if member.code not in (0, 3)]
    if failed and set(campaign.ledger.chunks()) - {"done"}:
        raise ResumeError(
            f"{len(failed)} of {n_workers} workers ended early (exit code {failed[0].code}), and "
            "the campaign is not complete. See their messages above; then type the same again."
        )


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of "i/n"; the whole of an empty text.

    Raises:
        ConfigError: it is something else.
    """
    if not text:
        return 1, 1
    i, slash, n = text.partition("/")
    if not (slash and i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise ConfigError(f"--shard {text}: give i/n with i from 1 to n, such as 2/4.")
    return int(i), int(n)


class _Member:
    """A worker's place, which is filled again when a worker is killed.

    Args:
        slot: which place.
        words: of the command line.
        share: how many share the cores; 0 to leave the number of threads alone.
    """

    def __init__(self, slot: int, words: list[str], share: int):
        self.slot, self.words = slot, words
        self.environment = dict(os.environ)
        if share:
            threads = max((os.cpu_count() or 1) // share, 1)
            self.environment.setdefault("OMP_NUM_THREADS", str(threads))
        self.lives, self.code = LIVES, 0
        self.process = self._start()

    def look(self) -> bool:
        """Whether it is at work; replaces a worker that a signal has ended."""
        code = self.process.poll()
        if code is None:
            return True
        self.code = code
        if code < 0 and self.lives > 1:
            self.lives -= 1
            print(f"worker {self.slot} died (signal {-code}); another takes over", file=sys.stderr)
            self.process = self._start()
            return True
        return False

    def _start(self) -> subprocess.Popen[Any]:
        return subprocess.Popen(
            [sys.executable, "-m", "dpa4sim", *self.words],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
        )


def _devices(device: str, n_workers: int) -> Iterator[str]:
    if device != "cuda":
        yield from [device] * n_workers
        return
    import torch

    count = max(torch.cuda.device_count(), 1)
    yield from (f"cuda:{slot % count}" for slot in range(n_workers))


def die_with_parent() -> None:
    """On Linux: nobody works on when the command was killed."""
    if Path("/proc/self").exists():
        set_signal_of_parents_death = 1
        ctypes.CDLL(None).prctl(set_signal_of_parents_death, signal.SIGTERM)


@contextmanager
def _stopping(team: list[_Member]) -> Iterator[None]:
    """Whatever ends the command ends its workers; each makes a checkpoint first."""
    try:
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    except ValueError:  # not the main thread
        before = None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
        living = [member.process for member in team if member.process.poll() is None]
        for process in living:
            process.terminate()
        for process in living:
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

"""A worker: its name, its lock, which it holds as long as it lives, and its heartbeat."""

from __future__ import annotations

import fcntl
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from dpa4sim.errors import ResumeError
from dpa4sim.pool.checkpoint import claim
from dpa4sim.screen.ledger import Ledger
from dpa4sim.screen.records import Held

LEASE_S = 180.0
"""A worker that is silent for so long loses its chunk, even if it seems to live."""

BEAT_S = 30.0


class Worker:
    """Somebody who takes chunks.

    The lock tells others on this machine at once that the worker is dead; the heartbeat tells
    it to those who cannot see the lock, later.

    Args:
        ledger: path of the ledger.
        folder: where locks are kept.
    """

    def __init__(self, ledger: Path, folder: Path):
        self.name = uuid.uuid4().hex[:12]
        self.path, self.folder = ledger, folder
        hidden = folder / f".{self.name}"
        self._file = hidden.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        hidden.rename(_path(folder, self.name))  # nobody sees it without its lock
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Nobody works under this name any more."""
        self._ended.set()
        self._thread.join()
        _path(self.folder, self.name).unlink(missing_ok=True)
        self._file.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                ledger = Ledger(self.path)
                ledger.renew(self.name, LEASE_S)
                ledger.close()
            except ResumeError:
                continue  # a full disk: the work goes on, and says so when it has to write


def is_alive(folder: Path, name: str) -> bool:
    """Whether somebody holds the lock of a worker."""
    try:
        file: Any = _path(folder, name).open("r+")
    except FileNotFoundError:
        return False
    except OSError:
        return True  # of another user, it seems: its lease tells
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def holds(folder: Path, chunk: Held) -> bool:
    """Whether the worker that took a chunk still has it.

    One that has lost its lease and still holds the chunk's checkpoint is only slow.
    """
    if chunk.expires > time.time() and is_alive(folder, chunk.worker):
        return True
    work = chunk_folder(folder, chunk.chunk)
    if not work.is_dir():
        return False
    try:
        claim(work).close()
    except ResumeError:
        return True
    return False


def chunk_folder(folder: Path, chunk: int) -> Path:
    """Where the checkpoint of a chunk is."""
    return folder / f"chunk-{chunk:06}"


def sweep(folder: Path) -> None:
    """Remove the locks of the dead."""
    for path in folder.glob("worker-*.lock"):
        if not is_alive(folder, path.stem.removeprefix("worker-")):
            path.unlink(missing_ok=True)


def _path(folder: Path, name: str) -> Path:
    return folder / f"worker-{name}.lock"

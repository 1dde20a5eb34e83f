"""Progress of long work on stderr."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

LINE_EVERY_S = 10.0


class Progress:
    """A bar on a terminal; a line every ten seconds elsewhere, if asked.

    Args:
        verb: what is being done, the first word of a line.
        total: how many structures; None when nobody knows.
        progress: None shows a bar on a terminal; True also writes lines elsewhere; False neither.
    """

    def __init__(self, verb: str, total: int | None, progress: bool | None):
        terminal = sys.stderr.isatty()
        self.verb, self.total = verb, total
        self.lines = progress is True and not terminal
        hidden = progress is False or not terminal
        self.bar = tqdm(total=total, unit="structure", file=sys.stderr, disable=hidden)
        self.before, self.structures, self.atom_steps = 0, 0, 0
        self.start = self.last_line = time.monotonic()

    def skip(self, structures: int) -> None:
        """Count what an earlier run of the same work has finished."""
        self.before += structures
        self.bar.update(structures)

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
        of = "" if self.total is None else f"/{self.total}"
        done = self.before + self.structures
        print(f"{self.verb}: {done}{of}, {self._rates()}", file=sys.stderr, flush=True)

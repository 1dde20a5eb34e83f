"""Processes that are killed at random moments."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm


def killed(
    work: Callable[[Path], object], folder: Path, *, times: int, lasts: float, seed: int
) -> list[Path]:
    """Run `work` in a forked process and kill -9 it, again and again, until so many have died.

    Work that was killed is begun again in the same folder, which is how it resumes; work that
    ended before its moment had come leaves its folder as it is, and the next begins in a new
    one. So the number of deaths is what was asked for, however fast or slow the machine is.

    Args:
        work: does the work in the folder that it is given, or goes on with it.
        folder: where the folders are made, named by numbers.
        times: how often to kill.
        lasts: about how long the work takes, in seconds: the moments are up to a tenth of it.
        seed: of the moments.

    Returns:
        The folders, of which all but the last hold finished work.
    """
    luck = random.Random(seed)
    folders = [folder / "0"]
    deaths = 0
    fresh = True
    while deaths < times:
        if died_at(luck.uniform(0.01, 0.1) * lasts, lambda: work(folders[-1])):
            deaths += 1
            fresh = False
        else:
            lasts = lasts / 2 if fresh else lasts
            folders.append(folder / str(len(folders)))
            fresh = True
    return folders


def died_at(moment: float, work: Callable[[], object]) -> bool:
    """Whether a forked process was still at work when it was killed, so many seconds on."""
    child = os.fork()
    if child == 0:
        tqdm.set_lock(threading.RLock())  # else it dies with the lock that it shares with us
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)
    _, ending = os.waitpid(child, 0)
    assert os.WIFSIGNALED(ending) or os.WEXITSTATUS(ending) == 0, "the work itself failed"
    return os.WIFSIGNALED(ending)

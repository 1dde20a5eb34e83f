"""A counted run in a process of its own, to be killed:  crash.py DIRECTORY COUNT SLOWNESS"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from pool.countdown import Countdown, jobs
from toy import LennardJones

from dpa4sim.pool.capacity import Capacity
from dpa4sim.pool.checkpoint import Store
from dpa4sim.pool.pool import Pool
from dpa4sim.pool.progress import Progress


class Slow(LennardJones):
    """Takes its time, so that a signal meets it in the middle of something."""

    def __call__(self, batch):
        time.sleep(float(sys.argv[3]))
        return super().__call__(batch)


store = Store(sys.argv[1], {"work": "count"}, every=0.0)
pool = Pool(Slow(), Countdown(), Capacity(20000, 1e9), Progress("count", None, False), store)
for result in pool.run(jobs(int(sys.argv[2]))):
    print(result.index, result.steps, repr(result.total), flush=True)

"""Two shards by Parsl, one of whose workers is killed:  parsl_run.py CAMPAIGN OUT"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil

from dpa4sim.screen.cluster import local_config, run_shards


def kill_one(shards: Path, killed: list[int]) -> None:
    """The Parsl worker whose shard has begun."""
    while not killed:
        for process in psutil.process_iter():
            try:
                words, parent = process.cmdline(), process.ppid()
            except psutil.Error:  # it has just ended
                continue
            mine = [word for word in words if word.startswith(str(shards))]
            if "screen" in words and mine and list(Path(mine[0]).glob("work/worker-*.lock")):
                killed.append(parent)
                os.kill(parent, signal.SIGKILL)
                return
        time.sleep(0.02)


if __name__ == "__main__":
    campaign, out = map(Path, sys.argv[1:])
    killed: list[int] = []
    shards = campaign.with_name(f"{campaign.name}-shards")
    threading.Thread(target=kill_one, args=(shards, killed), daemon=True).start()
    run_shards(campaign, out, 2, local_config(2, campaign.with_name("parsl"))).close()
    print("killed", len(killed))

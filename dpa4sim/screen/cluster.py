"""Shards by Parsl: copies of a campaign are worked on wherever Parsl finds nodes, then merged.

A task that dies with its node is tried again, and goes on where its shard stood.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpa4sim.errors import ConfigError, ResumeError
from dpa4sim.pool.checkpoint import whole
from dpa4sim.screen.campaign import Campaign, check_complete, open_campaign, writable
from dpa4sim.screen.merge import merge
from dpa4sim.screen.workers import die_with_parent, parse_shard

if TYPE_CHECKING:
    from parsl.config import Config

RETRIES = 5
"""How often a shard is given to another node after a failure."""


def run_shards(
    directory: str | Path,
    out: str | Path,
    n_shards: int,
    config: Config,
    *,
    device: str = "cpu",
) -> Campaign:
    """Divide a campaign, run its shards by Parsl, and merge them.

    The same call goes on after any interruption.

    Args:
        directory: of a campaign whose candidates are read; it must be seen by all nodes, and
            `DIR-shards` is made beside it.
        out: of the merged campaign.
        n_shards: several per node, so that all end at about the same time.
        config: of Parsl, such as `local_config` or `slurm_config`.
        device: what a shard computes on.

    Raises:
        ConfigError: Parsl is not installed, or the number of shards is not that of the beginning.
        ResumeError: shards could not be finished.
    """
    parsl = _parsl()
    folders = divide(directory, n_shards)
    tasks: dict[str, Any] = {}
    with _programs_found(), parsl.load(config):
        app = parsl.python_app(work)
        for i, folder in enumerate(folders, 1):
            tasks[f"{i}/{n_shards}"] = app(sys.executable, str(folder), f"{i}/{n_shards}", device)
        failed = {shard: error for shard, task in tasks.items() if (error := task.exception())}
    if failed:
        shard, error = next(iter(failed.items()))
        raise ResumeError(
            f"{len(failed)} of {n_shards} shards were not finished; shard {shard}: {error}. "
            "What they have done is kept: give the same call again."
        )
    return merge(out, folders)


@contextmanager
def _programs_found() -> Iterator[None]:
    """Parsl looks its own programs up by name: they are beside Python, activated or not."""
    before = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), before])
    try:
        yield
    finally:
        os.environ["PATH"] = before


def divide(directory: str | Path, n_shards: int) -> list[Path]:
    """Copies of a campaign, one for each shard, beside it; those that exist stay as they are.

    Raises:
        ConfigError: it was divided otherwise before.
        ResumeError: its candidates are not all read.
    """
    parse_shard(f"1/{n_shards}")
    directory = Path(directory).absolute()
    folder = directory.with_name(f"{directory.name}-shards")
    folders = [folder / f"{i}-of-{n_shards}" for i in range(1, n_shards + 1)]
    others = {path for path in folder.glob("*-of-*") if path not in folders}
    if others:
        raise ConfigError(
            f"{folder} holds {min(others).name}, of another number of shards. Give that number, "
            "or remove the folder."
        )
    with open_campaign(directory) as campaign, writable(folder):
        check_complete(campaign)
        for place in folders:
            place.mkdir(parents=True, exist_ok=True)
            if not (place / "campaign.toml").exists():
                (place / "ledger.sqlite").unlink(missing_ok=True)
                campaign.ledger.copy(place / "ledger.sqlite")
                with whole(place / "campaign.toml") as partial:  # the last, so the copy is whole
                    shutil.copyfile(directory / "campaign.toml", partial)
    return folders


def work(python: str, folder: str, shard: str, device: str) -> None:
    """Run one shard to its end; imported by Parsl's workers."""
    from dpa4sim.screen.cluster import run_shard

    run_shard([python, "-m", "dpa4sim", "screen", "run", folder, "--shard", shard], device)


def run_shard(words: Sequence[str], device: str) -> None:
    """The command of a shard.

    Raises:
        ResumeError: it failed; the message is its own.
    """
    done = subprocess.run(
        [*words, "--device", device, "--quiet"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=die_with_parent,
    )
    if done.returncode not in (0, 3):
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ResumeError(lines[-1])


def local_config(n_workers: int, folder: str | Path) -> Config:
    """Parsl on this machine.

    Args:
        n_workers: shards at a time.
        folder: for Parsl's own files.
    """
    parsl = _parsl()
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    executor = HighThroughputExecutor(
        label="local",
        address="127.0.0.1",
        max_workers_per_node=n_workers,
        provider=LocalProvider(init_blocks=1, max_blocks=1),
    )
    return parsl.config.Config(executors=[executor], retries=RETRIES, run_dir=str(folder))


def slurm_config(
    folder: str | Path,
    *,
    partition: str,
    nodes: int,
    gpus_per_node: int,
    walltime: str = "24:00:00",
    account: str | None = None,
    worker_init: str = "",
) -> Config:
    """Parsl on a cluster with Slurm: every GPU works on one shard at a time.

    Args:
        folder: for Parsl's own files, seen by all nodes.
        partition: of Slurm.
        nodes: how many jobs of one node at most.
        gpus_per_node: GPUs of a node.
        walltime: of a job; what is not finished then is tried again in the next.
        account: that pays.
        worker_init: shell commands before the work, such as the activation of an environment.
    """
    parsl = _parsl()
    from parsl.executors import HighThroughputExecutor
    from parsl.launchers import SrunLauncher
    from parsl.providers import SlurmProvider

    provider = SlurmProvider(
        partition=partition,
        account=account,
        nodes_per_block=1,
        init_blocks=nodes,
        max_blocks=nodes,
        exclusive=True,
        scheduler_options=f"#SBATCH --gpus-per-node={gpus_per_node}",
        worker_init=worker_init,
        walltime=walltime,
        launcher=SrunLauncher(),
    )
    executor = HighThroughputExecutor(
        label="slurm",
        max_workers_per_node=gpus_per_node,
        available_accelerators=gpus_per_node,
        provider=provider,
    )
    return parsl.config.Config(executors=[executor], retries=RETRIES, run_dir=str(folder))


def _parsl() -> Any:
    try:
        import parsl
        import parsl.config
    except ImportError as error:
        raise ConfigError(
            "Shards on a cluster need the package parsl. Type: pip install 'dpa4sim[cluster]'"
        ) from error
    return parsl

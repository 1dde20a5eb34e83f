"""Several processes, shards, and their merge: the table is that of one process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from models import BASE, random_potential
from screening import METALS, begun, finished, given, settings
from toy import LennardJones

from dpa4sim.errors import ConfigError, ResumeError
from dpa4sim.pool.checkpoint import model_fingerprint
from dpa4sim.screen.campaign import open_campaign
from dpa4sim.screen.cluster import divide
from dpa4sim.screen.merge import merge
from dpa4sim.screen.run import init, run
from dpa4sim.screen.settings import Model
from dpa4sim.screen.workers import parse_shard, run_workers

N = 3
CHUNKS = 6


@pytest.fixture
def shards(tmp_path) -> list[Path]:
    """Three finished shards of 30 candidates."""
    begun(tmp_path / "run", 30).close()
    folders = divide(tmp_path / "run", N)
    for i, folder in enumerate(folders, 1):
        with open_campaign(folder) as campaign:
            run(campaign, LennardJones(), shard=(i, N), progress=False)
            assert set(campaign.ledger.chunks().items()) == {("done", 2), ("queued", 4)}
    return folders


def test_merged_shards_are_the_whole(tmp_path, shards):
    calm = finished(tmp_path / "calm", 30)
    with merge(tmp_path / "merged", shards[::-1]) as campaign:
        assert campaign.results().equals(calm)
        assert campaign.ledger.states() == {"converged": 30}
        assert campaign.ledger.chunks() == {"done": CHUNKS}
    assert finished(tmp_path / "merged", 30).equals(calm)


def test_a_merge_is_strict(tmp_path, shards):
    out = tmp_path / "merged"
    with pytest.raises(ResumeError, match=r"Shard 2/3 is missing"):
        merge(out, [shards[0], shards[2]])
    with pytest.raises(ResumeError, match=r"is shard 1/3, which .* given twice"):
        merge(out, [shards[0], shards[0], shards[2]])
    with pytest.raises(ConfigError, match="nothing to merge"):
        merge(out, [])
    with pytest.raises(ConfigError, match="exists"):
        merge(tmp_path, shards)
    other = divide(finished_other(tmp_path), N)[1]
    with pytest.raises(ResumeError, match=r"relax\.max_steps"):
        merge(out, [shards[0], other, shards[2]])
    part = min((shards[1] / "results").iterdir())
    content = part.read_bytes()
    part.write_bytes(content[:-1])
    with pytest.raises(ResumeError, match=r"chunk 1 is damaged.*--shard 2/3"):
        merge(out, shards)
    part.write_bytes(content)
    with open_campaign(shards[2]) as campaign:
        campaign.ledger.requeue(campaign.ledger.parts()[-1])
    with pytest.raises(ResumeError, match=r"chunk 5 is not done"):
        merge(out, shards)
    assert not out.exists()
    assert not list(tmp_path.glob(".merge-*"))


def finished_other(tmp_path: Path) -> Path:
    begun(tmp_path / "other", 30, max_steps=3).close()
    return tmp_path / "other"


def test_other_candidates_do_not_merge(tmp_path, shards):
    begun(tmp_path / "few", 29).close()
    stranger = divide(tmp_path / "few", N)[1]
    with open_campaign(stranger) as campaign:
        run(campaign, LennardJones(), shard=(2, N), progress=False)
    with pytest.raises(ResumeError, match="has other candidates"):
        merge(tmp_path / "merged", [shards[0], stranger, shards[2]])


def test_a_directory_is_one_shard_for_ever(shards):
    wrong = pytest.raises(ResumeError, match=r"was begun as shard 1/3, and now it is 2/3")
    with open_campaign(shards[0]) as campaign, wrong:
        run(campaign, LennardJones(), shard=(2, 3), progress=False)


def test_a_shard_is_spelt_right():
    assert parse_shard("2/4") == (2, 4)
    assert parse_shard("") == (1, 1)
    for wrong in ("0/4", "5/4", "2", "a/b", "1/0"):
        with pytest.raises(ConfigError, match="give i/n"):
            parse_shard(wrong)


def test_dividing_again_keeps_what_is_done(shards):
    assert divide(shards[0].parents[1] / "run", N) == shards
    with open_campaign(shards[0]) as campaign:
        assert campaign.ledger.relaxed()[0] == 10
    with pytest.raises(ConfigError, match="of another number of shards"):
        divide(shards[0].parents[1] / "run", 4)


def network(tmp_path: Path, count: int = 12):
    """A campaign whose model is a file, and how it ends in one process."""
    potential = random_potential(replace(BASE, species=METALS, channels=4), 0, "float32")
    potential.save(tmp_path / "model.safetensors")
    described = Model(path=str(tmp_path / "model.safetensors"), hash=model_fingerprint(potential))
    asked = replace(settings(chunk_size=2, max_steps=3), model=described)
    for name in ("calm", "run"):
        init(tmp_path / name, asked, potential, given(count), progress=False).close()
    with open_campaign(tmp_path / "calm") as campaign:
        run(campaign, potential, progress=False)
        return campaign.results()


def kill_the_first_worker(folder: Path, killed: list[int]) -> None:
    """As soon as a worker has a chunk, kill its process."""
    for _ in range(4000):
        for words in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = words.read_bytes().split(b"\0")
            except OSError:  # it has just ended
                continue
            mine = b"screen" in command and bytes(folder) in command
            if mine and list((folder / "work").glob("worker-*.lock")):
                killed.append(int(words.parent.name))
                os.kill(killed[0], signal.SIGKILL)
                return
        time.sleep(0.02)


@pytest.mark.slow
def test_workers_of_which_one_is_killed(tmp_path, capfd):
    calm = network(tmp_path)
    killed: list[int] = []
    killer = threading.Thread(target=kill_the_first_worker, args=(tmp_path / "run", killed))
    killer.start()
    with open_campaign(tmp_path / "run") as campaign:
        run_workers(campaign, 2, progress=False)
        killer.join()
        assert len(killed) == 1
        assert "died (signal 9); another takes over" in capfd.readouterr().err
        assert campaign.results().equals(calm)
        assert campaign.ledger.chunks() == {"done": 6}


@pytest.mark.slow
def test_parsl_with_two_workers_of_which_one_is_killed(tmp_path):
    pytest.importorskip("parsl", reason="parsl is not installed (extra 'cluster')")
    calm = network(tmp_path)
    script = Path(__file__).parent / "parsl_run.py"
    words = [sys.executable, str(script), str(tmp_path / "run"), str(tmp_path / "merged")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "killed 1" in done.stdout
    with open_campaign(tmp_path / "merged") as campaign:
        assert campaign.results().equals(calm)
        assert campaign.ledger.chunks() == {"done": 6}


def test_workers_that_fail_are_said(tmp_path):
    network(tmp_path, 4)
    shutil.move(tmp_path / "model.safetensors", tmp_path / "elsewhere.safetensors")
    with open_campaign(tmp_path / "run") as campaign:
        with pytest.raises(ResumeError, match="1 of 1 workers ended early"):
            run_workers(campaign, 1, progress=False)
        with pytest.raises(ConfigError, match="give 1 or more"):
            run_workers(campaign, 0)

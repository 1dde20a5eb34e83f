"""kill -9 at random moments: no result lost, none twice, and the same bytes in the end."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa
import pytest
from kill import killed
from screening import begun, finished

from dpa4sim.screen import ingest
from dpa4sim.screen.rank import rank, write_tables

CANDIDATES = 500
OPTIONS = {"chunk_size": 50, "max_steps": 8}


def tables(folder: Path) -> tuple[pa.Table, bytes]:
    """All results of a campaign, and its hull.csv."""
    results = finished(folder, CANDIDATES, **OPTIONS)
    with begun(folder, CANDIDATES, **OPTIONS) as campaign:
        write_tables(folder, rank(campaign, results))
    return results, (folder / "hull.csv").read_bytes()


@pytest.mark.slow
def test_a_campaign_that_is_killed_fifty_times(tmp_path, monkeypatch):
    monkeypatch.setattr(ingest, "BLOCK", 40)  # so that ingest dies in the middle, too
    (tmp_path / "calm").mkdir()
    finished(tmp_path / "warm", 10)  # imports are no part of the work
    started = time.monotonic()
    calm, csv = tables(tmp_path / "calm" / "run")
    lasts = time.monotonic() - started
    assert calm["id"].to_pylist() == list(range(CANDIDATES))

    def work(folder: Path) -> None:
        finished(folder, CANDIDATES, **OPTIONS)

    for folder in killed(work, tmp_path, times=50, lasts=lasts, seed=5):
        mine, its_csv = tables(folder)
        assert mine.equals(calm)
        assert its_csv == csv

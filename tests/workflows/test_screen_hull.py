"""From a system's name to its report, with a potential that costs nothing."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write
from toy import LennardJones

from dpa4sim.errors import ConfigError
from dpa4sim.screen.decorate import decorate
from dpa4sim.screen.settings import Relaxation

QUICK = Relaxation(max_steps=3, fmax=0.1, max_edges=20_000)
EXACT = 1e-9  # eV/atom; the table against its own definition


@pytest.fixture(scope="module")
def screen_hull(recipe) -> ModuleType:
    return recipe("screen_hull")


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("own") / "own.extxyz"
    write(path, [bulk("Ag", a=3.3), bulk("AgAu", "cesiumchloride", a=2.9)])
    return path


@pytest.fixture(scope="module")
def finished(screen_hull, tmp_path_factory):
    folder = tmp_path_factory.mktemp("screen") / "campaign"
    settings = screen_hull.settings_of(LennardJones(), "Cu-Ni", relaxation=QUICK)
    return folder, screen_hull.screen_system(LennardJones(), settings, folder, progress=False)


def test_every_decoration_is_in_the_table(finished) -> None:
    _, table = finished
    assert table["name"].to_pylist() == [candidate.name for candidate in decorate("Cu-Ni")]
    assert set(table["status"].to_pylist()) <= {"converged", "max_steps", "duplicate", "exploded"}
    assert table["missing_references"].to_pylist().count("") > 0.9 * table.num_rows


def test_above_the_hull_is_not_negative_and_something_is_judged(finished) -> None:
    _, table = finished
    above = [value for value in table["e_above_hull_self"].to_pylist() if value is not None]
    assert len(above) > 20
    assert min(above) > -EXACT
    assert np.ptp(above) > 0.01


def test_the_report_is_written(finished, screen_hull) -> None:
    folder, table = finished
    assert {"hull.csv", "hull.parquet", "report.html"} <= {
        p.name for p in (folder / "report").iterdir()
    }
    lines = screen_hull.report(table, listed=5).splitlines()
    assert len(lines) == 7  # headers, a rule, five candidates
    assert "above hull (meV/atom)" in lines[0]


def test_the_same_call_again_changes_nothing(finished, screen_hull) -> None:
    folder, table = finished
    before = (folder / "report" / "hull.csv").read_bytes()
    settings = screen_hull.settings_of(LennardJones(), "Cu-Ni", relaxation=QUICK)
    again = screen_hull.screen_system(LennardJones(), settings, folder, progress=False)
    assert again.equals(table)
    assert (folder / "report" / "hull.csv").read_bytes() == before


def test_own_structures_take_the_elements(screen_hull, own, tmp_path) -> None:
    settings = screen_hull.settings_of(LennardJones(), "Cu-Ni", substitute=[own], relaxation=QUICK)
    table = screen_hull.screen_system(LennardJones(), settings, tmp_path / "c", progress=False)
    assert {"Cu-from-Ag-0", "Ni-from-Ag-0"} <= set(table["name"].to_pylist())
    assert any(name.endswith("-from-AgAu-1") for name in table["name"].to_pylist())


def test_a_system_without_references_is_refused_at_once(screen_hull) -> None:
    with pytest.raises(ConfigError, match="No crystal of At is built in"):
        screen_hull.settings_of(LennardJones(), "At-Na")
    with pytest.raises(ConfigError, match="no chemical system"):
        screen_hull.settings_of(LennardJones(), "Copper")
    assert screen_hull.settings_of(LennardJones(), "At-Na", references=["x.json"]).hull.references


def test_command_line(screen_hull, monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(screen_hull, "open_model", lambda args: LennardJones())
    words = ["Ag-Au", "--max-steps", "3", "--fmax", "0.5", "-o", str(tmp_path / "c")]
    assert screen_hull.main(words) in (0, 3)
    printed = capsys.readouterr().out
    assert "candidates; the whole table" in printed
    assert "Ag" in printed.splitlines()[2]

"""md(): what goes in, what comes out, and what is refused."""

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kill import killed
from toy import Einstein, Free, LennardJones, Sick, crystals, from_atoms, without_bulk

import dpa4sim
from dpa4sim.batch import Batch
from dpa4sim.errors import ConfigError, DataError, ResumeError, Status
from dpa4sim.simulate import MDRun, md, read_trajectory
from dpa4sim.simulate.run import UNITS
from dpa4sim.units import BOLTZMANN_EV_K

SOLIDS = ("left_handed", "cubic", "hexagonal")
QUICK = {"time_ps": 0.03, "sample_every": 5, "frame_every": 10}


def solids() -> list[Batch]:
    return [from_atoms(crystals()[name]) for name in SOLIDS]


def places(runs: list[MDRun]) -> list[tuple]:
    """What decides whether two runs went the same way, bit for bit."""
    return [
        (
            *(run.index, run.status, run.steps, repr(run.drift), repr(run.msd)),
            *(repr(run.means), run.n_samples),
            *(run.batch.positions.tolist(), run.batch.cell.tolist()),
            None if run.velocities is None else run.velocities.tolist(),
        )
        for run in runs
    ]


def contents(path) -> list:
    """Everything a trajectory file says, frame by frame."""
    found = []
    with read_trajectory(path) as trajectory:
        for system in range(len(trajectory)):
            frames = trajectory.system(system)
            series = trajectory.observables(system)
            found.append(
                (
                    frames.step.tolist(),
                    frames.positions.tolist(),
                    frames.energy.tolist(),
                    {name: (s.step.tolist(), s.values.tolist()) for name, s in series.items()},
                )
            )
    return found


def test_one_entry_per_replica_in_the_order_of_the_input():
    runs = md(LennardJones(), solids(), replicas=2, **QUICK)
    assert [(run.index, run.structure, run.replica) for run in runs] == [
        (0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1), (4, 2, 0), (5, 2, 1),
    ]  # fmt: skip
    assert {run.status for run in runs} == {Status.COMPLETED}
    assert {run.steps for run in runs} == {30}
    assert {run.n_samples for run in runs} == {7}
    assert runs[0].time_ps == pytest.approx(0.03)
    assert not torch.equal(runs[0].batch.positions, runs[1].batch.positions)


def test_the_public_names():
    assert dpa4sim.md is md
    assert dpa4sim.read_trajectory is read_trajectory


def test_means_msd_and_energy_are_those_of_the_samples(tmp_path):
    out = tmp_path / "run.h5"
    runs = md(LennardJones(), solids(), output=out, **QUICK)
    trajectory = read_trajectory(out)
    for run in runs:
        series = trajectory.observables(run.index)
        assert set(series) == set(UNITS)
        for name, mean in run.means.items():
            assert series[name].values.mean() == pytest.approx(mean, rel=1e-12)
        assert series["msd"].values[-1] == pytest.approx(run.msd, rel=1e-12)
        frames = trajectory.system(run.index)
        assert frames.step.tolist() == [0, 10, 20, 30]
        assert frames.energy[-1] == pytest.approx(run.energy, rel=1e-12)
        assert (frames.positions[-1] == run.batch.positions.numpy()).all()
    trajectory.close()


def test_positions_in_float32_on_request(tmp_path):
    out = tmp_path / "run.h5"
    (run,) = md(LennardJones(), solids()[:1], output=out, positions="float32", **QUICK)
    with read_trajectory(out) as trajectory:
        stored = trajectory.system(0).positions[-1]
    assert (stored == run.batch.positions.float().numpy()).all()
    assert (stored != run.batch.positions.numpy()).any()


def test_skipped_time_is_not_averaged():
    whole = md(LennardJones(), solids()[:1], **QUICK)[0]
    late = md(LennardJones(), solids()[:1], skip_ps=0.02, **QUICK)[0]
    assert late.n_samples == 3
    assert late.means["temperature"] != whole.means["temperature"]
    assert 0 < late.msd < whole.msd


@pytest.mark.parametrize("options", [
    {"ensemble": "nve"},
    {"ensemble": "nvt", "thermostat": "bussi"},
    {"ensemble": "nvt", "thermostat": "langevin"},
    {"ensemble": "npt", "coupling": "isotropic", "pressure_gpa": 1.0},
    {"ensemble": "npt", "coupling": "triclinic"},
])  # fmt: skip
def test_who_shares_the_working_set_changes_no_bit(options):
    lengths = {"steps": [30, 17, 23], "sample_every": 5}
    together = md(LennardJones(), solids(), seed=[7, 8, 9], **lengths, **options)
    in_turns = md(LennardJones(), solids(), seed=[7, 8, 9], max_edges=700, **lengths, **options)
    assert places(in_turns) == places(together)
    alone = md(LennardJones(), solids()[1:2], seed=[8], steps=[17], sample_every=5, **options)
    assert places([replace(alone[0], index=1)]) == places(together[1:2])


def test_every_ensemble_does_what_its_name_says():
    system = [from_atoms(crystals()["cubic"])]
    settings = {"time_ps": 0.1, "temperature": 400.0, "sample_every": 10}
    nve = md(LennardJones(), system, ensemble="nve", **settings)[0]
    nvt = md(LennardJones(), system, ensemble="nvt", **settings)[0]
    npt = md(LennardJones(), system, ensemble="npt", barostat_time=100.0, **settings)[0]
    assert abs(nve.drift) < 1e-4
    assert torch.equal(nvt.batch.cell, system[0].cell)
    assert not torch.equal(npt.batch.cell, system[0].cell)


def test_temperatures_per_structure_even_when_there_are_as_many_as_steps():
    """A list as long as the run is per structure all the same: nothing is guessed from lengths."""
    atoms = [from_atoms(crystals()["cubic"])] * 3
    runs = md(
        Free(), atoms, ensemble="nvt", temperature=[100.0, 300.0, 900.0], steps=3, sample_every=1
    )
    kelvin = [run.means["temperature"] for run in runs]
    assert kelvin[0] < 200 < kelvin[1] < 500 < kelvin[2]


def test_a_ramp_ends_at_its_end():
    atoms = [from_atoms(crystals()["cubic"])] * 4
    ramp = {"temperature": 100.0, "temperature_end": 900.0, "thermostat_time": 5.0}
    runs = md(Free(), atoms, thermostat="bussi", time_ps=0.5, skip_ps=0.48, **ramp)
    kelvin = sum(run.means["temperature"] for run in runs) / 4
    assert 700 < kelvin < 1100


def test_sick_trajectories_are_marked_and_the_others_never_notice(tmp_path):
    good = solids()
    marked = replace(good[0], atomic_numbers=torch.full_like(good[0].atomic_numbers, Sick.MARK))
    bad = replace(good[0], positions=good[0].positions * math.nan)
    structures = [good[1], marked, bad, good[2]]
    out = tmp_path / "run.h5"
    model = Sick(LennardJones(), "forces", math.nan, from_call=9)
    runs = md(model, structures, seed=[1, 2, 3, 4], output=out, **QUICK)
    assert [run.status for run in runs] == [
        Status.COMPLETED, Status.NOT_FINITE, Status.INVALID, Status.COMPLETED,
    ]  # fmt: skip
    assert "(step 7)" in runs[1].reason
    assert torch.isfinite(runs[1].batch.positions).all()
    calm = md(LennardJones(), [good[1], good[2]], seed=[1, 4], **QUICK)
    assert places([replace(runs[3], index=1)]) == places(calm[1:])
    with read_trajectory(out) as trajectory:
        assert trajectory.n_frames(2) == 0
        assert trajectory.system(1).step[-1] == 7
    with pytest.raises(DataError, match="structure 2, replica 0"):
        md(model, structures, strict=True, **QUICK)


def test_pair_distances():
    run = md(LennardJones(), [from_atoms(crystals()["cubic"])], rdf_max=4.0, rdf_bins=40, **QUICK)[
        0
    ]
    assert run.rdf.shape == (40,)
    peak = (float(run.rdf.argmax()) + 0.5) * 0.1
    assert 2.0 < peak < 3.2
    assert run.rdf[:15].max() == 0


BAD = [
    ({"timestep": -1.0}, r"timestep=-1\.0 cannot be used\. Give a positive number"),
    ({"timestep": [1.0, -1.0, 1.0]}, r"timestep=-1\.0"),
    ({"temperature": [300.0, 400.0]}, r"temperature has 2 entries for 3 structures"),
    ({"temperature": math.nan}, r"temperature=nan"),
    ({"steps": 0}, r"steps=0 cannot be used\. Give 1 step or more"),
    ({"time_ps": 0.0}, r"time_ps=0\.0"),
    ({"ensemble": "nph"}, r"ensemble='nph' is not known\. Valid: nve, nvt, npt"),
    ({"thermostat": "nose"}, r"thermostat='nose'"),
    ({"coupling": "cubic"}, r"coupling='cubic'"),
    ({"temperature": 0.0}, r"temperature=0\.0 cannot be used\. Give more than 0 K"),
    ({"seed": -3}, r"seed=-3"),
    ({"replicas": 0}, r"replicas=0"),
    ({"sample_every": 0}, r"sample_every=0"),
    ({"frame_every": -1, "output": "x.h5"}, r"interval = -1"),
    ({"store": ("positions", "charges")}, r"'charges'"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "words"), BAD)
def test_bad_settings_are_refused_before_any_work(settings, words):
    def never(batch):
        raise AssertionError("the model was asked")

    never.cutoff, never.device = 6.0, torch.device("cpu")
    with pytest.raises(ConfigError, match=words):
        md(never, solids(), **settings)


def test_a_pressure_needs_a_cell():
    slab = from_atoms(without_bulk()["slab"])
    run = md(LennardJones(), [slab], ensemble="npt", **QUICK)[0]
    assert run.status is Status.INVALID
    assert "a pressure needs a cell: it is periodic along 2 of 3" in run.reason


def test_an_output_that_exists_is_not_overwritten(tmp_path):
    out = tmp_path / "run.h5"
    out.write_text("precious")
    with pytest.raises(DataError, match=r"exists\. Give another output, or resume=True"):
        md(LennardJones(), solids(), output=out, **QUICK)
    with pytest.raises(DataError, match="nothing to resume"):
        md(LennardJones(), solids(), output=out, resume=True, **QUICK)
    assert out.read_text() == "precious"
    with pytest.raises(DataError, match="should end in"):
        md(LennardJones(), solids(), output=tmp_path / "run.traj", **QUICK)
    with pytest.raises(DataError, match="There is no folder"):
        md(LennardJones(), solids(), output=tmp_path / "none" / "run.h5", **QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("options", [
    {"ensemble": "nvt", "thermostat": "langevin"},
    {"ensemble": "npt", "coupling": "triclinic"},
])  # fmt: skip
def test_a_run_killed_twenty_times_ends_like_one_that_never_was(tmp_path, options):
    """Trajectories and file, bit for bit; the trajectories have unlike lengths."""
    settings = {"steps": [400, 250, 333], "sample_every": 5, "frame_every": 20, "rdf_max": 4.0}
    settings |= {"replicas": 2, "max_edges": 3000, **options}
    started = time.monotonic()
    calm = md(LennardJones(), solids(), output=tmp_path / "calm.h5", **settings)
    lasts = time.monotonic() - started

    def safely(folder: Path) -> list[MDRun]:
        folder.mkdir(exist_ok=True)
        safe = {**settings, "output": folder / "run.h5", "checkpoint_every_s": lasts / 100}
        return md(LennardJones(), solids(), resume=True, **safe)

    for folder in killed(safely, tmp_path, times=20, lasts=lasts, seed=5):
        resumed = safely(folder)
        assert places(resumed) == places(calm)
        rdfs = [[repr(run.rdf.tolist()) for run in runs] for runs in (resumed, calm)]
        assert rdfs[0] == rdfs[1]
        assert contents(folder / "run.h5") == contents(tmp_path / "calm.h5")


def test_a_folder_with_the_name_of_the_checkpoint_is_not_touched(tmp_path):
    other = tmp_path / "run.checkpoint"
    other.mkdir()
    (other / "weights.bin").write_text("precious")
    with pytest.raises(ResumeError, match="holds other files"):
        md(LennardJones(), solids(), output=tmp_path / "run.h5", **QUICK)
    assert (other / "weights.bin").read_text() == "precious"
    assert not (tmp_path / "run.h5").exists()


def test_a_new_run_forgets_the_checkpoint_of_one_whose_file_is_gone(tmp_path):
    out = tmp_path / "run.h5"
    md(LennardJones(), solids(), output=out, **QUICK)
    out.unlink()
    hotter = md(LennardJones(), solids(), output=out, temperature=500.0, **QUICK)
    assert places(hotter) == places(md(LennardJones(), solids(), temperature=500.0, **QUICK))


def test_resume_wants_the_same_settings(tmp_path):
    out = tmp_path / "run.h5"
    md(LennardJones(), solids(), output=out, **QUICK)
    again = md(LennardJones(), solids(), output=out, resume=True, **QUICK)
    assert {run.status for run in again} == {Status.COMPLETED}
    with pytest.raises(ResumeError, match=r"begun with temperature = 300\.0, and now"):
        md(LennardJones(), solids(), output=out, resume=True, temperature=310.0, **QUICK)
    with pytest.raises(ResumeError, match="not those that this directory was begun with"):
        md(LennardJones(), solids()[::-1], output=out, resume=True, **QUICK)
    facts = json.loads((tmp_path / "run.checkpoint" / "run.json").read_text())
    assert facts["ensemble"] == "nvt"


def test_the_mean_kinetic_energy_of_oscillators():
    """Einstein atoms in one batch with unlike temperatures: 3/2 k T each, on average."""
    noise = torch.Generator().manual_seed(0)
    atoms = Batch.single(0.01 * torch.randn(60, 3, generator=noise), [18] * 60)
    settings = {"time_ps": 2.0, "skip_ps": 0.5, "thermostat_time": 20.0, "timestep": 2.0}
    runs = md(Einstein(2.0), [atoms] * 2, temperature=[200.0, 600.0], **settings)
    for run, kelvin in zip(runs, (200.0, 600.0), strict=True):
        expected = 0.5 * (3 * 60 - 3) * BOLTZMANN_EV_K * kelvin
        assert run.means["kinetic_energy"] == pytest.approx(expected, rel=0.15)

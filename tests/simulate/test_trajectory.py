"""What goes into a trajectory file comes out again, by system."""

import json
import resource
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import ase.io
import h5py
import numpy as np
import pytest
import torch
from ase.units import fs
from synthetic_run import (
    SETTINGS,
    SIZES,
    environ_with,
    expected_steps,
    frames,
    moments,
    recording,
    records,
    value,
    write,
)
from synthetic_run import samples as sampled

from dpa4sim.errors import ConfigError, DataError, ResumeError, Status
from dpa4sim.simulate.growing_file import GrowingFile, reserve, trim
from dpa4sim.simulate.layout import COLUMNS, Counts, Observable, Recording
from dpa4sim.simulate.trajectory import even_runs, read_blocks, read_trajectory
from dpa4sim.simulate.writer import AHEAD, TrajectoryWriter

LENGTH = 90
"""Steps of the first system; neither it nor the others end on a multiple of every interval."""

EXTXYZ_DIGITS = 1e-8
"""ASE writes eight decimals."""


def create(path: Path, chosen: Recording | None = None, length: int = LENGTH) -> TrajectoryWriter:
    return TrajectoryWriter.create(
        path, records(length), chosen or recording(), settings=SETTINGS, model="toy"
    )


def ran(path: Path, chosen: Recording | None = None) -> Path:
    with create(path, chosen) as writer:
        assert list(write(writer, moments(LENGTH)))
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return ran(tmp_path_factory.mktemp("run") / "run.h5")


def datasets(path: Path) -> dict[str, np.ndarray]:
    found = {}
    with h5py.File(path, "r") as file:
        file.visititems(
            lambda name, item: (
                found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
            )
        )
    return found


def assert_same_contents(left: Path, right: Path) -> None:
    first, second = datasets(left), datasets(right)
    assert first.keys() == second.keys()
    for name in first:
        assert np.asarray(first[name]).dtype == np.asarray(second[name]).dtype
        assert np.array_equal(first[name], second[name], equal_nan=first[name].dtype.kind == "f")


@pytest.mark.parametrize("system", range(len(SIZES)))
def test_every_number_of_a_system_comes_back(path, system):
    with read_trajectory(path) as trajectory:
        assert len(trajectory) == len(SIZES)
        found = trajectory.system(system)
    record = records(LENGTH)[system]
    steps = expected_steps(LENGTH, system, 8, last=True)
    assert found.step.tolist() == steps
    assert found.time.tolist() == [record.timestep * step for step in steps]
    assert found.label == record.label
    assert found.atomic_numbers.tolist() == record.batch.atomic_numbers.tolist()
    assert found.pbc.tolist() == record.batch.pbc[0].tolist()
    assert set(found.status.tolist()) == {Status.RUNNING}
    for name, (axis, shape, _) in COLUMNS.items():
        full = (SIZES[system], *shape) if axis == "atom" else (1, *shape)
        wanted = torch.stack([value(name, system, step, full) for step in steps])
        stored = getattr(found, name)
        assert stored.dtype == np.float64
        assert np.array_equal(stored, wanted.reshape(stored.shape).numpy()), name


@pytest.mark.parametrize("system", range(len(SIZES)))
def test_every_sample_of_a_system_comes_back_at_its_own_interval(path, system):
    with read_trajectory(path) as trajectory:
        found = trajectory.observables(system)
    assert found.keys() == {"msd", "volume", "rdf"}
    for each in recording().observables:
        steps = expected_steps(LENGTH, system, each.interval, last=False)
        wanted = torch.stack([value(each.name, system, step, each.shape) for step in steps])
        assert found[each.name].step.tolist() == steps
        assert found[each.name].time.tolist() == [(0.5 + system) * step for step in steps]
        assert np.array_equal(found[each.name].values, wanted.numpy())


def test_the_file_says_what_it_is(path):
    with read_trajectory(path) as trajectory:
        assert trajectory.model == "toy"
        assert trajectory.settings == SETTINGS
        assert trajectory.recording == recording()
        assert trajectory.versions.keys() == {"dpa4sim", "torch", "numpy", "h5py"}
        assert trajectory.units["forces"] == "eV/Å"
        assert trajectory.units["msd"] == "Å^2"
        assert trajectory.labels == [record.label for record in records(LENGTH)]
        assert trajectory.replica.tolist() == [0, 1, 0, 1, 0, 1]
        assert trajectory.timestep.tolist() == [0.5 + s for s in range(6)]
        assert trajectory.n_steps.tolist() == [LENGTH + 7 * s for s in range(6)]
        assert trajectory.temperature[2].tolist() == [302.0, 400.0]
        assert trajectory.pressure_gpa[3].tolist() == pytest.approx([0.3, 2.0])
        assert trajectory.n_atoms.tolist() == list(SIZES)
    with h5py.File(path, "r") as file:
        assert file["rows/velocities"].attrs["unit"] == "Å/fs"


def test_positions_in_single_precision_on_request(tmp_path):
    with read_trajectory(ran(tmp_path / "run.h5", recording("float32"))) as trajectory:
        found = trajectory.system(2)
    assert found.positions.dtype == np.float32
    assert found.velocities.dtype == np.float64
    exact = value("positions", 2, int(found.step[3]), (SIZES[2], 3))
    assert np.array_equal(found.positions[3], exact.float().numpy())


def test_frames_for_ase_carry_what_was_stored(path):
    with read_trajectory(path) as trajectory:
        images = list(trajectory.frames(2))
        found = trajectory.system(2)
        last = trajectory.system(2, slice(-1, None))
    assert len(images) == len(found)
    atoms = images[4]
    assert np.array_equal(atoms.positions, found.positions[4])
    assert np.array_equal(atoms.cell.array, found.cell[4])
    assert atoms.pbc.tolist() == found.pbc.tolist()
    assert atoms.get_potential_energy() == found.energy[4]
    assert np.array_equal(atoms.get_forces(), found.forces[4])
    assert np.allclose(atoms.get_velocities() * fs, found.velocities[4], rtol=1e-14)
    assert atoms.get_stress(voigt=False)[0, 0] == found.stress[4][0, 0]
    assert atoms.info["step"] == 32
    assert atoms.info["time_fs"] == 32 * 2.5
    assert np.array_equal(last.positions[0], images[-1].positions)
    assert found.volume[4] == pytest.approx(atoms.get_volume())


def test_extxyz_holds_every_frame(path, tmp_path):
    with read_trajectory(path) as trajectory:
        n_frames = [trajectory.n_frames(s) for s in range(len(trajectory))]
        assert trajectory.to_extxyz(tmp_path / "all.xyz") == sum(n_frames)
        assert trajectory.to_extxyz(tmp_path / "one.xyz", system=3) == n_frames[3]
        one = trajectory.system(3)
        with pytest.raises(DataError, match="exists"):
            trajectory.to_extxyz(tmp_path / "one.xyz")
        with pytest.raises(DataError, match="cannot be written"):
            trajectory.to_extxyz(tmp_path / "nowhere" / "one.xyz")
    images = ase.io.read(tmp_path / "one.xyz", ":")
    assert len(images) == n_frames[3]
    assert np.allclose(images[5].positions, one.positions[5], rtol=0, atol=EXTXYZ_DIGITS)
    assert images[5].get_potential_energy() == pytest.approx(one.energy[5], abs=EXTXYZ_DIGITS)
    assert images[5].info["step"] == one.step[5]
    assert len(ase.io.read(tmp_path / "all.xyz", ":")) == sum(n_frames)


def test_only_what_was_asked_for_is_stored(tmp_path):
    lean = ran(tmp_path / "lean.h5", replace(recording(), store=("cell", "energy")))
    assert not [name for name in datasets(lean) if name.startswith("rows/")]
    with read_trajectory(lean) as trajectory:
        found = trajectory.system(1)
        assert found.positions is None
        assert len(found.energy) == len(found)
        with pytest.raises(DataError, match="no positions"):
            next(trajectory.frames(1))


def test_an_interval_of_zero_stores_the_last_frames_only(tmp_path):
    ends = ran(tmp_path / "ends.h5", replace(recording(), interval=0))
    with read_trajectory(ends) as trajectory:
        assert [trajectory.system(s).step.tolist() for s in range(6)] == [
            [LENGTH + 7 * s] for s in range(6)
        ]


def test_one_system_is_read_without_the_others(path, monkeypatch):
    read = []

    def watched(dataset, starts, length):
        read.append((dataset.name, len(starts) * length))
        return read_blocks(dataset, starts, length)

    monkeypatch.setattr("dpa4sim.simulate.trajectory.read_blocks", watched)
    with read_trajectory(path) as trajectory:
        trajectory.system(1)
        whole = trajectory.counts
    n_frames = len(expected_steps(LENGTH, 1, 8, last=True))
    most = {"/frames/system": whole.frames}
    assert {name for name, _ in read} >= {"/rows/positions", "/frames/energy"}
    assert all(n == most.get(name, n_frames * SIZES[1] ** 1) for name, n in read)


def test_evenly_spaced_starts_are_one_request():
    assert even_runs(np.array([])) == []
    assert even_runs(np.array([7])) == [(0, 1)]
    assert even_runs(np.arange(0, 5000, 5)) == [(0, 1000)]
    assert even_runs(np.array([0, 5, 10, 17, 22, 27])) == [(0, 3), (3, 6)]
    noise = np.cumsum(np.random.default_rng(0).integers(3, 6, 200))
    runs = even_runs(noise)
    assert [first for first, _ in runs] == [0, *(stop for _, stop in runs[:-1])]
    assert runs[-1][1] == 200


@pytest.mark.parametrize("length", [1, 3])
def test_blocks_are_slices(tmp_path, length):
    rows = np.random.default_rng(0).normal(size=(700, 2))
    starts = np.cumsum(np.random.default_rng(1).integers(3, 5, 150))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        dataset = file.create_dataset("x", data=rows, chunks=(16, 2), maxshape=(None, 2))
        found = read_blocks(dataset, starts, length)
    assert np.array_equal(found, np.stack([rows[s : s + length] for s in starts]))


def test_frames_go_in_at_any_pace_and_come_out_the_same(tmp_path, path, monkeypatch):
    """One append per moment, or one for the whole run: the same datasets."""
    monkeypatch.setattr("dpa4sim.simulate.growing_file.PER_WRITE", 1)
    assert_same_contents(path, ran(tmp_path / "eager.h5"))
    monkeypatch.setattr("dpa4sim.simulate.growing_file.PER_WRITE", 2**30)
    monkeypatch.setattr("dpa4sim.simulate.growing_file.PATIENCE_S", 1e6)
    assert_same_contents(path, ran(tmp_path / "lazy.h5"))


def test_room_that_was_reserved_is_given_back(tmp_path):
    path = ran(tmp_path / "run.h5")
    size = path.stat().st_size
    trim(path)
    assert path.stat().st_size == size
    reserve(path, 2 * size)
    assert path.stat().st_size == 2 * size
    trim(path)
    assert path.stat().st_size == size


def test_hdf5_never_meets_a_full_disk(tmp_path, path, monkeypatch):
    """It fails where room is reserved, half of which may have been granted."""
    full, run = tmp_path / "full.h5", moments(LENGTH)

    def grudging(file: Path, n_bytes: int) -> None:
        reserve(file, n_bytes)
        raise OSError(28, "No space left on device")

    writer = create(full)
    list(write(writer, run[:20]))
    counts, size = writer.checkpoint(), full.stat().st_size
    monkeypatch.setattr("dpa4sim.simulate.growing_file.reserve", grudging)
    list(write(writer, run[20:24]))
    with pytest.raises(DataError, match="No space left"):
        writer.checkpoint()
    assert full.stat().st_size > size
    with pytest.raises(DataError, match="No space left"):
        writer.close()
    assert full.stat().st_size <= size
    monkeypatch.undo()
    inode = full.stat().st_ino
    with TrajectoryWriter.resume(full, counts) as writer:
        list(write(writer, run[20:]))
    assert full.stat().st_ino == inode
    assert_same_contents(path, full)


def test_handed_over_tensors_may_change_afterwards(tmp_path):
    moment = frames([2], [8])
    with create(tmp_path / "run.h5") as writer:
        writer.frames(moment)
        for name in COLUMNS:
            getattr(moment, name).fill_(7.0)
        moment.steps.fill_(16)
    with read_trajectory(tmp_path / "run.h5") as trajectory:
        found = trajectory.system(2)
    assert found.step.tolist() == [8]
    assert np.array_equal(found.positions[0], value("positions", 2, 8, (8, 3)).numpy())


def test_the_run_waits_when_the_disk_is_slow(tmp_path, monkeypatch):
    """No more than a few moments are ever held in memory."""
    held, gather = [], GrowingFile.gather

    def slow(self, *args):
        held.append(handed - len(held))
        gather(self, *args)

    monkeypatch.setattr(GrowingFile, "gather", slow)
    with create(tmp_path / "run.h5") as writer:
        for step in range(0, 800, 8):
            handed = step // 8 + 1
            writer.frames(frames([0], [step]))
    assert len(held) == 100
    assert max(held) <= AHEAD + 2


@pytest.mark.parametrize("cut", [0, 1, 20, 33])
def test_a_closed_file_goes_on_from_a_checkpoint(tmp_path, path, cut):
    """After a clean end behind the checkpoint: what came after it is dropped and comes again."""
    run = moments(LENGTH)
    resumed = tmp_path / "resumed.h5"
    counts = Counts()
    with create(resumed) as writer:
        for n in write(writer, run[: cut + 5]):
            if n == cut:
                counts = Counts(**json.loads(json.dumps(asdict(writer.checkpoint()))))
    with TrajectoryWriter.resume(resumed, counts) as writer:
        with read_trajectory(resumed) as trajectory:
            assert counts.covers(trajectory.counts)
        assert list(write(writer, run[cut:]))
    assert_same_contents(path, resumed)
    assert not list(tmp_path.glob("*.part"))


def test_a_file_closed_at_its_checkpoint_is_used_again(tmp_path, path):
    """And what it already holds, handed over again, is not stored twice."""
    run, resumed = moments(LENGTH), tmp_path / "resumed.h5"
    with create(resumed) as writer:
        list(write(writer, run[:17]))
        counts = writer.checkpoint()
    inode = resumed.stat().st_ino
    with TrajectoryWriter.resume(resumed, counts) as writer:
        list(write(writer, run[13:]))
    assert resumed.stat().st_ino == inode
    assert_same_contents(path, resumed)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.h5"
    create(path).close()
    with pytest.raises(ResumeError, match="fewer than the checkpoint"):
        TrajectoryWriter.resume(path, Counts(frames=1, rows=3))
    with pytest.raises(DataError, match="There is no file"):
        TrajectoryWriter.resume(tmp_path / "other.h5", Counts())


def test_unusable_outputs_are_refused_before_any_work(tmp_path):
    (tmp_path / "there.h5").write_text("mine")
    with pytest.raises(DataError, match="exists"):
        create(tmp_path / "there.h5")
    assert (tmp_path / "there.h5").read_text() == "mine"
    with pytest.raises(DataError, match="There is no folder"):
        create(tmp_path / "nowhere" / "run.h5")
    with pytest.raises(DataError, match="cannot be written"):
        create(Path("/proc/run.h5"))
    with pytest.raises(ConfigError, match="JSON"):
        TrajectoryWriter.create(
            tmp_path / "run.h5", records(8), recording(), settings={"f": object()}
        )
    with pytest.raises(DataError, match="no system"):
        TrajectoryWriter.create(tmp_path / "run.h5", [], recording(), settings={})
    assert [file.name for file in tmp_path.iterdir()] == ["there.h5"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interval": -1}, "interval = -1"),
        ({"store": ("positions", "spin")}, "'spin'"),
        ({"positions": "float16"}, "float16"),
        ({"observables": (Observable(name="a", interval=1),) * 2}, "named twice"),
    ],
)
def test_an_impossible_recording_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        Recording(**change)


def test_an_impossible_observable_is_refused():
    with pytest.raises(ConfigError, match="interval 0"):
        Observable(name="msd", interval=0)
    with pytest.raises(ConfigError, match="called 'step'"):
        Observable(name="step", interval=1)
    with pytest.raises(ConfigError, match="called 'a/b'"):
        Observable(name="a/b", interval=1)


def test_frames_that_do_not_fit_are_refused(tmp_path):
    good = frames([0, 1], [0, 0])
    with create(tmp_path / "run.h5") as writer:
        with pytest.raises(DataError, match="stores 'forces'"):
            writer.frames(replace(good, forces=None))
        with pytest.raises(DataError, match="'positions' of a frame has shape"):
            writer.frames(replace(good, systems=[0, 2]))
        with pytest.raises(DataError, match="'steps' has shape"):
            writer.frames(replace(good, systems=[0]))
        with pytest.raises(DataError, match="6 systems, counted from 0"):
            writer.frames(replace(good, systems=[0, 6]))
        steps, values = torch.tensor([0, 0]), sampled([0, 1], [0, 0])
        with pytest.raises(DataError, match="is no observable"):
            writer.observables([0, 1], steps, {"entropy": values["msd"]})
        with pytest.raises(DataError, match="also holds 'volume'"):
            writer.observables([0, 1], steps, {"msd": values["msd"]})
        with pytest.raises(DataError, match="Observable 'rdf' has shape"):
            writer.observables([0, 1], steps, values | {"rdf": values["rdf"][:, :2]})
    with pytest.raises(DataError, match="is closed"):
        writer.frames(good)
    writer.close()


def test_what_is_no_trajectory_is_refused(tmp_path):
    with pytest.raises(DataError, match="There is no file"):
        read_trajectory(tmp_path / "run.h5")
    (tmp_path / "text.h5").write_text("not HDF5 at all")
    with pytest.raises(DataError, match="cannot be read as HDF5"):
        read_trajectory(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w", libver="v110"):
        pass
    with pytest.raises(DataError, match="has the format None"):
        read_trajectory(tmp_path / "other.h5")


def test_a_system_that_is_not_there_is_refused(path):
    with read_trajectory(path) as trajectory:
        for bad in (-1, 6):
            with pytest.raises(DataError, match=f"no system {bad}"):
                trajectory.system(bad)
            with pytest.raises(DataError, match=f"no system {bad}"):
                next(trajectory.frames(bad))


def fill_the_disk(path: Path) -> None:
    """Runs in a process of its own: write until the file may not grow any more, then look."""
    writer = create(path)
    list(write(writer, moments(LENGTH)[:20]))
    counts = writer.checkpoint()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 40_000, hard))
    with pytest.raises(DataError, match="could not be written") as failure:  # noqa: PT012
        for step in range(0, 10**6, 8):
            writer.frames(frames([0, 1, 2], [step] * 3))
    assert "frames are safe" in str(failure.value)
    with read_trajectory(path) as trajectory:
        assert trajectory.counts.covers(counts)
        for s in (0, 1, 2):
            found = trajectory.system(s)
            wanted = [value("positions", s, int(k), (SIZES[s], 3)).numpy() for k in found.step]
            assert np.array_equal(found.positions, np.stack(wanted))
    with pytest.raises(DataError, match="could not be written"):
        writer.checkpoint()
    with pytest.raises(DataError, match="could not be written"):
        writer.close()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    for again in (Counts(), counts):
        with pytest.raises(DataError, match=r"cannot be (written|opened)"):
            TrajectoryWriter.resume(path, again)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    with TrajectoryWriter.resume(path, counts) as writer:
        list(write(writer, moments(LENGTH)[20:]))


def test_a_full_disk_is_an_error_and_nothing_written_is_lost(tmp_path, path):
    full = tmp_path / "full.h5"
    done = subprocess.run(
        [sys.executable, __file__, str(full)],
        env=environ_with(Path(__file__).parents[1]),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert_same_contents(path, full)


def test_a_writer_that_nobody_closes_still_writes_everything(tmp_path, path):
    code = (
        "import sys; sys.argv = ['', '-']\n"
        f"import runpy; space = runpy.run_path({__file__!r})\n"
        "from synthetic_run import moments, write\n"
        f"writer = space['create'](space['Path']({str(tmp_path / 'left.h5')!r}))\n"
        "list(write(writer, moments(space['LENGTH'])))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environ_with(Path(__file__).parents[1]),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert_same_contents(path, tmp_path / "left.h5")


@pytest.mark.gpu
def test_handing_over_does_not_wait_for_cuda(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    moment = frames([0, 1], [8, 8])
    moved = replace(
        moment,
        **{name: getattr(moment, name).cuda() for name in ("steps", "status", *COLUMNS)},
    )
    with create(tmp_path / "run.h5") as writer:
        writer.frames(moved)
        torch.cuda.set_sync_debug_mode("error")
        try:
            writer.frames(replace(moved, steps=moved.steps + 8))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    with read_trajectory(tmp_path / "run.h5") as trajectory:
        found = trajectory.system(1)
    assert found.step.tolist() == [8, 16]
    assert np.array_equal(found.positions[1], value("positions", 1, 8, (1, 3)).numpy())


if __name__ == "__main__":
    fill_the_disk(Path(sys.argv[1]))

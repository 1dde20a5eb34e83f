"""Neighbour lists against a plain enumeration of images, in float64."""

import math

import pytest
import torch

from dpa4sim import pair_search
from dpa4sim.batch import Batch
from dpa4sim.edges import Edges, computable, neighbors, pad
from dpa4sim.errors import DataError

TOLERANCE_A = 1e-12
"""Wrapping first moves a vector by a few last bits of a coordinate."""

FAR_TOLERANCE_A = 1e-9
"""Coordinates of 1e6 Å have last bits of 1e-10 Å."""

NO_CUDA = "needs a CUDA device"


def enumerate_edges(batch: Batch, cutoff: float) -> list[tuple[int, int, torch.Tensor]]:
    """(i, j, vector) of one system: all images along periodic vectors, far enough out."""
    positions, cell, pbc = batch.positions, batch.cell[0], batch.pbc[0].tolist()
    reach = []
    for axis in range(3):
        if not pbc[axis]:
            reach.append(0)
            continue
        rows = torch.stack([cell[k] for k in range(3) if pbc[k] and k != axis] or [cell[axis] * 0])
        basis = torch.linalg.qr(rows[rows.norm(dim=1) > 0].T)[0]
        height = cell[axis] - basis @ (basis.T @ cell[axis])
        spread = (positions @ torch.linalg.pinv(cell * torch.tensor(pbc)[:, None]))[:, axis]
        width = float(spread.max() - spread.min())
        reach.append(math.ceil(cutoff / float(height.norm()) + width) + 1)
    grids = [torch.arange(-n, n + 1, dtype=torch.float64) for n in reach]
    images = torch.cartesian_prod(*grids)
    found = []
    for i in range(len(positions)):
        for j in range(len(positions)):
            vectors = positions[j] - positions[i] + images @ cell
            length = vectors.norm(dim=1)
            origin = (images == 0).all(1) & (i == j)
            found += [(i, j, v) for v in vectors[(length <= cutoff) & ~origin]]
    return found


def sorted_rows(center, neighbor, vector) -> torch.Tensor:
    rows = torch.cat([torch.stack([center, neighbor], 1).double(), vector], 1)
    keys = torch.cat([rows[:, :2], (rows[:, 2:] * 1e6).round()], 1)
    for column in range(4, -1, -1):
        order = torch.argsort(keys[:, column], stable=True)
        rows, keys = rows[order], keys[order]
    return rows


def assert_matches(found: Edges, batch: Batch, cutoff: float, tolerance: float = TOLERANCE_A):
    """`found` is exactly the enumeration, and its CSR offsets hold."""
    start, parts = 0, []
    for system in batch.split():
        triples = enumerate_edges(system, cutoff)
        if triples:
            i, j, v = zip(*triples, strict=True)
            parts.append(
                sorted_rows(torch.tensor(i) + start, torch.tensor(j) + start, torch.stack(v))
            )
        start += len(system.positions)
    expected = torch.cat(parts) if parts else torch.zeros(0, 5, dtype=torch.float64)
    got = sorted_rows(found.center, found.neighbor, found.vector)
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)
    assert_well_formed(found, len(batch.positions))


def assert_well_formed(found: Edges, n_atoms: int):
    assert found.vector.dtype == torch.float64
    assert found.center.dtype == found.neighbor.dtype == found.row_ptr.dtype == torch.int64
    assert bool((found.center.diff() >= 0).all())
    counts = torch.bincount(found.center, minlength=n_atoms)
    assert torch.equal(found.row_ptr.diff(), counts)
    assert int(found.row_ptr[0]) == 0
    same = found.center.diff() == 0
    assert bool((found.neighbor.diff()[same] >= 0).all())


def assert_same_bits(first: Edges, second: Edges):
    for name in ("center", "neighbor", "vector", "row_ptr"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


def random_system(generator: torch.Generator) -> Batch:
    """1-12 atoms in a crystal, slab, wire or molecule; any handedness; often unwrapped."""

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    n_atoms = int(torch.randint(1, 13, (1,), generator=generator))
    cell = torch.diag(2.5 + 5 * uniform(3)) + 2.0 * (uniform(3, 3) - 0.5)
    pbc = (uniform(3) < 0.7).tolist()
    if float(uniform(1)) < 0.3:
        cell = cell[torch.tensor([1, 0, 2])]
    if float(uniform(1)) < 0.3:
        cell[2] = cell[2] + 2 * cell[0] - cell[1]
    positions = uniform(n_atoms, 3) @ cell
    if float(uniform(1)) < 0.4:
        turns = torch.randint(-3, 4, (n_atoms, 3), generator=generator).double()
        positions = positions + (turns * torch.tensor(pbc)) @ cell
    cell[~torch.tensor(pbc)] *= float(uniform(1) < 0.5)
    return Batch.single(positions, torch.ones(n_atoms), cell, pbc)


def system(positions, cell=None, pbc=False) -> Batch:
    positions = torch.as_tensor(positions, dtype=torch.float64).reshape(-1, 3)
    cell = None if cell is None else torch.as_tensor(cell, dtype=torch.float64)
    return Batch.single(positions, torch.ones(len(positions)), cell, pbc)


def points(n_atoms: int, size: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return size * torch.rand(n_atoms, 3, generator=generator, dtype=torch.float64)


def through_warp(monkeypatch):
    """Search as on CUDA: warp compiles the same kernels for the CPU."""
    monkeypatch.setattr(pair_search, "_search_vesin", pair_search._search_warp)


CUBE = torch.eye(3, dtype=torch.float64)
HARD = {
    "molecule": system(points(9, 5.0)),
    "molecule with a cell": system(points(9, 5.0), 3.0 * CUBE, False),
    "slab": system(points(6, 4.0), torch.diag(torch.tensor([3.0, 4.0, 20.0])), (True, True, False)),
    "slab without a third vector": system(
        points(6, 4.0), torch.diag(torch.tensor([3.0, 4.0, 0.0])), (True, True, False)
    ),
    "slab whose open vector lies in the plane": system(
        points(6, 4.0), [[3.0, 0, 0], [1.0, 4.0, 0], [2.0, 2.0, 0]], (True, True, False)
    ),
    "upright slab": system(
        points(6, 4.0), [[3.0, 0, 0], [0.5, 0, 4.0], [0, 0, 0]], (True, True, False)
    ),
    "upright wire": system(
        points(6, 4.0), [[0, 0, 2.5], [0, 0, 0], [0, 0, 0]], (True, False, False)
    ),
    "wire": system(points(5, 4.0), torch.diag(torch.tensor([2.5, 0.0, 0.0])), (True, False, False)),
    "wire along a slanted b": system(
        points(5, 4.0), [[0, 0, 0], [1.0, 2.0, 2.0], [2.0, 4.0, 4.0]], (False, True, False)
    ),
    "left-handed": system(points(7, 4.0), [[0, 4.0, 0], [4.0, 0, 0.5], [0.3, 0, 4.0]], True),
    "mirrored": system(points(7, 4.0), -4.0 * CUBE, True),
    "skewed": system(points(4, 4.0), [[4.0, 0, 0], [15.0, 4.0, 0], [-9.0, 11.0, 4.0]], True),
    "needle": system(points(3, 4.0), [[2.0, 0, 0], [1.9, 0.4, 0], [0, 0, 30.0]], True),
    "one atom": system([[1.0, 2.0, 3.0]], 2.3 * CUBE, True),
    "one atom, fcc primitive": system(
        [[9.0, 0.1, -4.0]], [[0, 1.8, 1.8], [1.8, 0, 1.8], [1.8, 1.8, 0]], True
    ),
    "one atom alone": system([[1.0, 2.0, 3.0]]),
    "no neighbours": system(90.0 * points(4, 1.0), 100.0 * CUBE, True),
    "no neighbours, no cell": system([[0, 0, 0], [50.0, 0, 0], [0, 1e5, 0]]),
    "on the faces": system([[0, 0, 0], [1.5, 0, 0], [0, 3.0, 0], [-3.0, 1.5, 6.0]], 3 * CUBE, True),
    "unwrapped": system(points(5, 3.0) + torch.tensor([[40.0, -33.0, 7.0]]), 3.1 * CUBE, True),
    "coincident atoms": system([[0, 0, 0], [0, 0, 0], [1.0, 1.0, 1.0]], 4.0 * CUBE, True),
}


@pytest.mark.parametrize("name", HARD)
def test_hard_cases_match_the_enumeration(name):
    assert_matches(neighbors(HARD[name], 4.5), HARD[name], 4.5)


@pytest.mark.parametrize("seed", range(25))
def test_random_mixed_batches_match_the_enumeration(seed):
    generator = torch.Generator().manual_seed(seed)
    batch = Batch.concatenate([random_system(generator) for _ in range(6)])
    cutoff = 1.0 + 4.0 * float(torch.rand(1, generator=generator))
    assert_matches(neighbors(batch, cutoff), batch, cutoff)


def test_a_system_has_the_same_bits_alone_and_in_any_batch():
    generator = torch.Generator().manual_seed(7)
    parts = [random_system(generator) for _ in range(30)] + list(HARD.values())
    whole = neighbors(Batch.concatenate(parts), 4.0)
    shuffled = torch.randperm(len(parts), generator=generator).tolist()
    other = neighbors(Batch.concatenate([parts[p] for p in shuffled]), 4.0)
    for batch_edges, sequence in ((whole, parts), (other, [parts[p] for p in shuffled])):
        start = 0
        for part in sequence:
            alone, n_atoms = neighbors(part, 4.0), len(part.positions)
            low, high = batch_edges.row_ptr[start], batch_edges.row_ptr[start + n_atoms]
            cut = Edges(
                batch_edges.center[low:high] - start,
                batch_edges.neighbor[low:high] - start,
                batch_edges.vector[low:high],
                batch_edges.row_ptr[start : start + n_atoms + 1] - low,
            )
            assert_same_bits(cut, alone)
            start += n_atoms


def test_coordinates_a_million_angstrom_away_find_the_same_neighbours():
    near = points(6, 3.0)
    turns = torch.tensor([[3e5, 0, 0], [0, -2e5, 0], [0, 0, 1e5], [1, 1, 1], [0, 0, 0], [9, 9, 9]])
    cell = torch.tensor([[3.0, 0.1, 0], [0, 3.5, 0.2], [0.3, 0, 4.0]], dtype=torch.float64)
    home = neighbors(system(near, cell, True), 5.0)
    away = neighbors(system(near + turns.double() @ cell, cell, True), 5.0)
    assert torch.equal(home.center, away.center)
    assert torch.equal(home.neighbor, away.neighbor)
    torch.testing.assert_close(home.vector, away.vector, rtol=0, atol=FAR_TOLERANCE_A)


def test_every_edge_has_its_reverse_to_the_last_bit():
    found = neighbors(HARD["skewed"], 5.0)
    forward = {(int(i), int(j), *v.tolist()) for i, j, v in _rows(found)}
    backward = {(int(j), int(i), *(0.0 - v).tolist()) for i, j, v in _rows(found)}
    assert forward == backward
    assert len(forward) == found.n_edges


def _rows(found: Edges):
    return zip(found.center, found.neighbor, found.vector, strict=True)


def test_an_edge_of_exactly_the_cutoff_counts_and_a_longer_one_does_not():
    pair = system([[0, 0, 0], [3.0, 0, 0]])
    assert neighbors(pair, 3.0).n_edges == 2
    assert neighbors(pair, math.nextafter(3.0, 0.0)).n_edges == 0


@pytest.mark.parametrize(
    "sick",
    [
        system([[0, 0, 0], [math.nan, 0, 0]], 4 * CUBE, True),
        system([[0, 0, 0], [math.inf, 0, 0]]),
        system([[0, 0, 0], [1e30, 0, 0]]),
        system([[0, 0, 0], [1.0, 0, 0]], math.nan * CUBE, True),
        system([[0, 0, 0], [1.0, 0, 0]], 1e30 * CUBE, True),
        system([[0, 0, 0], [1.0, 0, 0]], 0 * CUBE, True),
        system([[0, 0, 0], [1.0, 0, 0]], 1e-3 * CUBE, True),
        system([[0, 0, 0], [1.0, 0, 0]], [[3.0, 0, 0], [3.0, 1e-9, 0], [0, 0, 3.0]], True),
        system(
            [[0, 0, 0], [1.0, 0, 0]], [[3.0, 0, 0], [6.0, 0, 0], [0, 0, 3.0]], (True, True, False)
        ),
    ],
    ids=[
        "nan",
        "inf",
        "far",
        "nan-cell",
        "far-cell",
        "zero-cell",
        "tiny-cell",
        "flat-cell",
        "flat-slab",
    ],
)
def test_a_sick_system_gets_no_edges_and_its_neighbours_do_not_notice(sick):
    well = [HARD["skewed"], HARD["slab"]]
    mixed = Batch.concatenate([well[0], sick, well[1]])
    assert computable(mixed, 5.0).tolist() == [True, False, True]
    found, clean = neighbors(mixed, 5.0), neighbors(Batch.concatenate(well), 5.0)
    assert_well_formed(found, len(mixed.positions))
    assert torch.equal(found.vector, clean.vector)
    shift = torch.tensor([0, 0, 0, 0] + [2] * 6)
    assert torch.equal(found.center, clean.center + shift[clean.center])
    assert torch.equal(found.neighbor, clean.neighbor + shift[clean.neighbor])
    alone = neighbors(sick, 5.0)
    assert alone.n_edges == 0
    assert alone.row_ptr.tolist() == [0, 0, 0]


def test_no_gradient_reaches_the_positions():
    batch = system(points(4, 3.0).requires_grad_(), 4 * CUBE, True)
    assert not neighbors(batch, 4.0).vector.requires_grad


def test_float32_positions_give_float64_vectors():
    batch = HARD["left-handed"]
    single = batch.with_geometry(batch.positions.float(), batch.cell.float())
    double = batch.with_geometry(batch.positions.float().double(), batch.cell.float().double())
    assert_same_bits(neighbors(single, 4.0), neighbors(double, 4.0))


def test_the_order_is_the_same_when_the_sort_key_does_not_fit():
    found = neighbors(HARD["skewed"], 5.0)
    shuffle = torch.randperm(found.n_edges, generator=torch.Generator().manual_seed(0))
    image = torch.arange(found.n_edges)[:, None] % 5 - torch.tensor([2, 1, 0])
    pairs = pair_search.Pairs(found.center[shuffle], found.neighbor[shuffle], image[shuffle].T)
    short, long = pair_search.order(pairs, 4), pair_search.order(pairs, 2**30)
    for order in (short, long):
        columns = [pairs.center, pairs.neighbor, *pairs.image]
        rows = torch.stack([column[order] for column in columns], 1).tolist()
        assert rows == sorted(rows)


def test_cost_grows_with_atoms_not_with_their_square():
    density = 0.05
    counts = []
    for n_atoms in (1000, 4000):
        size = (n_atoms / density) ** (1 / 3)
        counts.append(neighbors(system(points(n_atoms, size), size * CUBE, True), 5.0).n_edges)
    assert counts[1] == pytest.approx(4 * counts[0], rel=0.05)


def test_padding_is_longer_than_the_cutoff_and_leaves_row_ptr_alone():
    found = neighbors(HARD["slab"], 4.0)
    padded = pad(found, found.n_edges + 5, 4.0)
    assert padded.n_edges == found.n_edges + 5
    assert torch.equal(padded.row_ptr, found.row_ptr)
    assert torch.equal(padded.vector[: found.n_edges], found.vector)
    assert padded.center[-5:].tolist() == padded.neighbor[-5:].tolist() == [5] * 5
    assert bool((padded.vector[-5:].norm(dim=1) > 4.0).all())
    assert bool((padded.center.diff() >= 0).all())
    assert_same_bits(pad(found, found.n_edges, 4.0), found)


def test_padding_that_does_not_fit_is_refused():
    found = neighbors(HARD["slab"], 4.0)
    with pytest.raises(DataError, match=f"at least {found.n_edges}"):
        pad(found, found.n_edges - 1, 4.0)


def test_wide_empty_boxes_are_searched_by_a_tree(monkeypatch):
    monkeypatch.setattr(pair_search, "VESIN_BINS", 0.0)
    generator = torch.Generator().manual_seed(4)
    parts = [random_system(generator) for _ in range(20)] + list(HARD.values())
    for part in parts:
        assert_matches(neighbors(part, 4.5), part, 4.5)


@pytest.mark.parametrize("shape", [(1e7, 1, 1), (1e7, 50, 1), (1e7, 1e7, 1), (1e7, 1e7, 1e7)])
@pytest.mark.parametrize("pbc", [False, True])
def test_fragments_that_fly_apart_do_not_end_the_process(shape, pbc):
    corner = torch.tensor(shape, dtype=torch.float64)
    cell = torch.diag(2 * corner + 5.0) if pbc else None
    batch = system(torch.stack([0 * corner, 0 * corner + 1.0, corner, corner + 1.0]), cell, pbc)
    found = neighbors(batch, 4.0)
    assert found.n_edges >= 4
    assert bool((found.vector.norm(dim=1) <= 4.0).all())


@pytest.mark.parametrize("naive_up_to", [1024, 0], ids=["naive", "cell list"])
def test_the_cuda_search_matches_the_enumeration(monkeypatch, naive_up_to):
    monkeypatch.setattr(pair_search, "NAIVE_UP_TO", naive_up_to)
    generator = torch.Generator().manual_seed(3)
    parts = [random_system(generator) for _ in range(20)] + list(HARD.values())
    batch = Batch.concatenate(parts)
    by_vesin = neighbors(batch, 4.5)
    through_warp(monkeypatch)
    assert_same_bits(neighbors(batch, 4.5), by_vesin)
    for part in parts[::4]:
        assert_matches(neighbors(part, 4.5), part, 4.5)


def test_the_cuda_search_grows_its_matrix_instead_of_truncating(monkeypatch):
    batch = Batch.concatenate([HARD["one atom"], HARD["molecule"]])
    expected = neighbors(batch, 4.5)
    through_warp(monkeypatch)
    monkeypatch.setattr(pair_search, "FIRST_CAPACITY", 1)
    assert_same_bits(neighbors(batch, 4.5), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_CUDA)
def test_cuda_gives_the_edges_of_the_cpu():
    batch = Batch.concatenate(list(HARD.values()))
    on_cpu, on_gpu = neighbors(batch, 4.5), neighbors(batch.to("cuda"), 4.5)
    assert torch.equal(on_gpu.center.cpu(), on_cpu.center)
    assert torch.equal(on_gpu.neighbor.cpu(), on_cpu.neighbor)
    torch.testing.assert_close(on_gpu.vector.cpu(), on_cpu.vector, rtol=0, atol=TOLERANCE_A)

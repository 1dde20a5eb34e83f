from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from dense_lbfgs import dense_hessian
from toy import crystals, from_atoms, without_bulk

from dpa4sim.batch import Batch
from dpa4sim.edges import Edges, neighbors, pad
from dpa4sim.relax import hessian
from dpa4sim.relax.freedom import Freedom, from_strain, unconstrained
from dpa4sim.relax.hessian import PairHessian, covalent_radii, divided, pair_hessian, solve
from dpa4sim.relax.layout import DENSE_UP_TO, SIDES, Layout, lay_out

CUTOFF_A = 4.5
"""Longer than some bonds' reach and shorter than others': both limits act."""

ENTRY_TOLERANCE = 1e-11
"""eV/Å^2 and eV; the sums are the same in another order, of terms up to 1e3."""

SOLUTION_TOLERANCE = 1e-11
"""Relative; the condition number of P is below 1e3."""


def dense(system: Batch, freedom: Freedom) -> np.ndarray:
    return dense_hessian(system, freedom.movable.numpy(), freedom.strain[0].numpy(), CUTOFF_A)


def block_form(matrix: np.ndarray) -> np.ndarray:
    """P without its couplings: 3 x 3 per atom, 6 x 6 for the strain."""
    kept = np.zeros_like(matrix)
    for start in range(0, len(matrix) - 6, 3):
        kept[start : start + 3, start : start + 3] = matrix[start : start + 3, start : start + 3]
    kept[-6:, -6:] = matrix[-6:, -6:]
    return kept


def structures() -> list[Batch]:
    """Unlike sizes; a molecule, a slab, one atom in a cell, one atom without a cell."""
    lone = Batch.single(torch.ones(1, 3), torch.tensor([29]))
    atoms = [*crystals().values(), *without_bulk().values()]
    return [from_atoms(a) for a in atoms] + [lone]


def constrained(systems: Sequence[Batch]) -> list[Freedom]:
    """In turns: free; with fixed atoms and two strains; with a cell that stands still."""
    freedoms = []
    for s, system in enumerate(systems):
        cell = bool(system.pbc.all()) and s % 3 != 2
        freedom = unconstrained(system, cell)
        if s % 3 == 1:
            movable = freedom.movable.clone()
            movable[1::2] = 0.0
            directions = torch.eye(6, dtype=torch.float64)[:2]
            directions[0, 2], directions[1, 4] = 1.0, 2.0
            basis = torch.linalg.qr(directions.T)[0]
            freedom = replace(freedom, movable=movable)
            freedom = replace(freedom, strain=freedom.strain @ (basis @ basis.T))
        freedoms.append(freedom)
    return freedoms


def together(freedoms: Sequence[Freedom]) -> Freedom:
    names = ("moves_cell", "pressure", "strain", "keeps_volume", "movable")
    return Freedom(*(torch.cat([getattr(f, name) for f in freedoms]) for name in names))


def computed(
    batch: Batch, freedom: Freedom, edges: Edges | None = None, **options: int | bool
) -> tuple[PairHessian, Layout]:
    layout = lay_out(batch.n_atoms.tolist(), "cpu", **options).open()
    edges = neighbors(batch, CUTOFF_A) if edges is None else edges
    radii = covalent_radii(batch.atomic_numbers)
    return pair_hessian(edges, radii, batch, batch.volume, freedom, layout), layout


def right_sides(layout: Layout, seed: int = 0) -> torch.Tensor:
    noise = np.random.default_rng(seed).normal(size=(len(layout.source), 3, 3))
    return torch.tensor(noise)


def assert_solves(
    systems: Sequence[Batch], freedoms: Sequence[Freedom], form=lambda p: p, **options
):
    matrix, layout = computed(Batch.concatenate(systems), together(freedoms), **options)
    right = right_sides(layout)
    solution = solve(matrix, right, layout)
    for s, (system, freedom) in enumerate(zip(systems, freedoms, strict=True)):
        rows = slice(int(layout.row_ptr[s]), int(layout.row_ptr[s + 1]))
        expected = np.linalg.solve(form(dense(system, freedom)), right[rows].reshape(-1, 3).numpy())
        off = np.abs(solution[rows].reshape(-1, 3).numpy() - expected).max()
        assert off < SOLUTION_TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("options", [{}, {"rounded": True}])
def test_the_solution_is_that_of_the_definition(options):
    systems = structures()
    assert_solves(systems, [unconstrained(s, bool(s.pbc.all())) for s in systems], **options)
    assert_solves(systems, constrained(systems), **options)


def test_large_systems_take_the_block_form():
    """Those of at most four atoms keep their coupling."""
    systems = structures()
    small = {len(s.positions) for s in systems if len(s.positions) <= 4}

    def form(matrix: np.ndarray) -> np.ndarray:
        return matrix if len(matrix) // 3 - 2 <= 4 else block_form(matrix)

    assert len(small) > 1
    assert_solves(systems, constrained(systems), form, dense_up_to=4)


def test_every_side_is_used_and_its_neighbour_is_not():
    sizes = [0, 1, *(side - 2 for side in SIDES), DENSE_UP_TO + 1]
    slots = lay_out(sizes, "cpu")
    assert slots.classes == ((4, 4), *((side, 1) for side in SIDES[1:]))
    assert slots.has_large
    assert not lay_out(sizes[:-1], "cpu").has_large
    assert lay_out([3] * 5, "cpu", rounded=True).classes == ((8, 8),)
    assert lay_out([3], "meta").classes == ((8, 1),)


def test_rows_hold_atoms_then_strain():
    layout = lay_out([2, 0, 1], "cpu").open()
    atoms = torch.arange(9.0, dtype=torch.float64).view(3, 3)
    strain = 100 + torch.arange(18.0, dtype=torch.float64).view(3, 6)
    rows = layout.rows(atoms, strain)
    first = [0, 1, 2, 3, 4, 5, 100, 101, 102, 103, 104, 105]
    assert rows[:4].flatten().tolist() == first
    assert rows[4:6].flatten().tolist() == list(range(106, 112))
    assert torch.equal(layout.atoms(rows), atoms)
    assert torch.equal(layout.strain(rows), strain)
    assert layout.sum(rows)[:, 0].tolist() == [0 + 3 + 100 + 103, 106 + 109, 6 + 112 + 115]


def test_the_edges_of_a_static_shape_give_the_same_bits(monkeypatch):
    """On the CPU what is no bond is left out, elsewhere it counts zero; padding counts nothing."""
    batch = Batch.concatenate(structures()[::-1])  # padding hangs on the last: a crystal
    freedom = together(constrained(structures())[::-1])
    edges = neighbors(batch, CUTOFF_A)
    plain, layout = computed(batch, freedom, edges)
    right = right_sides(layout)
    expected = solve(plain, right, layout)
    padded = pad(edges, edges.n_edges + 50, 1.0)  # 2 Å long: bonds if they were edges
    counted, _ = computed(batch, freedom, padded)
    assert torch.equal(solve(counted, right, layout), expected)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    masked, _ = computed(batch, freedom, padded)
    assert torch.equal(solve(masked, right, layout), expected)


def test_the_company_changes_no_bit():
    systems, freedoms = structures(), constrained(structures())
    noise = np.random.default_rng(3)
    everything, layout = computed(Batch.concatenate(systems), together(freedoms))
    right = right_sides(layout)
    whole = solve(everything, right, layout)
    rows = [slice(a, b) for a, b in zip(layout.row_ptr[:-1], layout.row_ptr[1:], strict=True)]
    for size in (1, 1, 1, 2, 3, 5, 8, 13):
        chosen = noise.integers(len(systems), size=size).tolist()
        batch = Batch.concatenate(systems[s] for s in chosen)
        part, inner = computed(batch, together([freedoms[s] for s in chosen]))
        found = solve(part, torch.cat([right[rows[s]] for s in chosen]), inner)
        assert torch.equal(found, torch.cat([whole[rows[s]] for s in chosen]))


def test_a_failed_factorisation_falls_back_to_the_diagonal(monkeypatch):
    systems = structures()
    freedoms = [unconstrained(s, bool(s.pbc.all())) for s in systems]
    matrix, layout = computed(Batch.concatenate(systems), together(freedoms))
    right = right_sides(layout)
    healthy = solve(matrix, right, layout)
    factorise = torch.linalg.cholesky_ex

    def second_fails(matrices: torch.Tensor):
        factor, info = factorise(matrices)
        info[0] = 5
        return factor, info

    monkeypatch.setattr(torch.linalg, "cholesky_ex", second_fails)
    found = solve(matrix, right, layout)
    failed = 0
    for s, system in enumerate(systems):
        rows = slice(int(layout.row_ptr[s]), int(layout.row_ptr[s + 1]))
        if torch.equal(found[rows], healthy[rows]):
            continue
        failed += 1
        diagonal = np.diag(dense(system, freedoms[s])).reshape(-1, 3, 1)
        np.testing.assert_allclose(
            found[rows], right[rows].numpy() / diagonal, rtol=SOLUTION_TOLERANCE
        )
    assert failed == len(layout.classes)


def test_a_hessian_that_is_no_number_harms_its_own_system_only():
    systems = structures()
    batch = Batch.concatenate(systems)
    freedom = together([unconstrained(s, bool(s.pbc.all())) for s in systems])
    edges = neighbors(batch, CUTOFF_A)
    healthy, layout = computed(batch, freedom, edges)
    right = right_sides(layout)
    sick = batch.system_idx[edges.center] == 3
    vector = torch.where(sick[:, None], edges.vector * 1e200, edges.vector)
    radii = covalent_radii(batch.atomic_numbers)
    radii = torch.where(batch.system_idx == 3, 1e250 * radii, radii)
    matrix = pair_hessian(
        replace(edges, vector=vector), radii, batch, batch.volume, freedom, layout
    )
    found, expected = solve(matrix, right, layout), solve(healthy, right, layout)
    ill = layout.system_row == 3
    assert torch.isfinite(found).all()
    assert torch.equal(found[~ill], expected[~ill])
    assert not torch.equal(found[ill], expected[ill])


def test_fixed_things_do_not_answer():
    systems, freedoms = structures(), constrained(structures())
    freedom = together(freedoms)
    matrix, layout = computed(Batch.concatenate(systems), freedom)
    allowed = layout.rows(
        freedom.movable[:, None].expand(-1, 3).contiguous(), torch.ones(len(systems), 6).double()
    )
    strain = from_strain(torch.randn(len(systems), 3, 3, dtype=torch.float64))
    strain = (freedom.strain @ strain[:, :, None])[:, :, 0]
    right = layout.rows(freedom.movable[:, None] * torch.ones_like(layout.atoms(allowed)), strain)
    answer = solve(matrix, right[:, :, None], layout)[:, :, 0]
    assert (layout.atoms(answer)[freedom.movable == 0] == 0).all()
    q = layout.strain(answer)
    inside = (freedom.strain @ q[:, :, None])[:, :, 0]
    torch.testing.assert_close(inside, q, rtol=0, atol=ENTRY_TOLERANCE)


def test_covalent_radii():
    numbers = torch.tensor([1, 29, 99])
    assert covalent_radii(numbers).tolist() == [0.31, 1.32, hessian.UNKNOWN_RADIUS_A]


def test_springs_between_all_pairs_of_blocks_are_symmetric():
    """The reverse of each bond adds what its own direction leaves out."""
    system = structures()[1]
    matrix, layout = computed(system, unconstrained(system, True))
    (side, _), n = layout.classes[0], len(system.positions)
    blocks = matrix.squares[:-1].view(side, side, 3, 3)
    for i, j in product(range(n), repeat=2):
        torch.testing.assert_close(blocks[i, j], blocks[j, i].T, rtol=0, atol=ENTRY_TOLERANCE)
    torch.testing.assert_close(matrix.strain, matrix.strain.mT, rtol=0, atol=ENTRY_TOLERANCE)


def test_what_a_device_divides_by_is_the_same():
    """The formula of a device, on tensors that only say that they are on one."""

    class Elsewhere(torch.Tensor):
        device = torch.device("cuda")

    generator = torch.Generator().manual_seed(0)
    root = torch.randn(3, 12, 12, generator=generator, dtype=torch.float64)
    factor = torch.linalg.cholesky(root @ root.transpose(1, 2) + 12 * torch.eye(12))
    right = torch.randn(3, 12, 4, generator=generator, dtype=torch.float64)
    expected = divided(right, factor)
    found = divided(right.as_subclass(Elsewhere), factor).as_subclass(torch.Tensor)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)

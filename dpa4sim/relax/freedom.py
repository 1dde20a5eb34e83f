"""What may move in a relaxation, and against which pressure.

A symmetric strain eps is six numbers q in an orthonormal basis:  eps = sum_k q_k B_k.  B_k has a 1
at xx, yy, zz, or 1/sqrt(2) at yz and zy, xz and zx, xy and yx, in this order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpa4sim.batch import Batch, dot
from dpa4sim.errors import ConfigError, DataError
from dpa4sim.lattice import volume
from dpa4sim.units import GPA_PER_EV_A3

STRAINS = ("xx", "yy", "zz", "yz", "xz", "xy")

SYMPREC_A = 0.01
"""Atoms this close to where a symmetry would put them are taken to belong there."""

_ROOT2 = math.sqrt(2.0)


@dataclass(frozen=True)
class Orbits:
    """Which atoms a symmetry group carries onto each other, and how.

    Averaging a vector field over the group is: carry every vector of an orbit back to its first
    atom, average, carry the average forth.

    Args:
        order: the atoms of a system orbit by orbit, numbered within the system.
        length: row k of a system: how many atoms its k-th orbit has; zero beyond the last.
        member_of: the orbit of each atom, numbered within the system.
        carry: rotation from the first atom of the orbit to this one, behind the projector on the
            vectors that the site symmetry of the first leaves alone; Cartesian.
    """

    order: Int[Tensor, " atom"]
    length: Int[Tensor, " atom"]
    member_of: Int[Tensor, " atom"]
    carry: Float[Tensor, "atom 3 3"]


@dataclass(frozen=True)
class Freedom:
    """What may move, one row per system or atom.

    Args:
        moves_cell: whether the cell is free at all.
        pressure: external pressure in eV/Å^3; what falls is E + p V.
        strain: projector on the symmetric strains that are allowed, in the basis B_k: mask,
            hydrostatic, constant volume and symmetry; zero for a cell that stands still.
        keeps_volume: whether the volume is constant.
        movable: 0 for an atom that stays at its fractional coordinates, else 1.
        orbits: the symmetry to keep; None when no system of the run keeps any.
    """

    moves_cell: Bool[Tensor, " system"]
    pressure: Float[Tensor, " system"]
    strain: Float[Tensor, "system 6 6"]
    keeps_volume: Bool[Tensor, " system"]
    movable: Float[Tensor, " atom"]
    orbits: Orbits | None = None


def unconstrained(batch: Batch, cell: bool | Bool[Tensor, " system"] = True) -> Freedom:
    """Every atom free, zero pressure; the cells free or not, one answer for all or one each."""
    device = batch.device
    flags = torch.as_tensor(cell, device=device).expand(batch.n_systems).clone()
    identity = torch.eye(6, dtype=torch.float64, device=device)
    return Freedom(
        moves_cell=flags,
        pressure=torch.zeros(batch.n_systems, dtype=torch.float64, device=device),
        strain=identity * flags[:, None, None],
        keeps_volume=torch.zeros_like(flags),
        movable=torch.ones_like(batch.positions[:, 0], dtype=torch.float64),
    )


def trivial_orbits(batch: Batch) -> Orbits:
    """No symmetry: every atom by itself.  For the mates of systems that keep theirs."""
    atoms = torch.arange(len(batch.positions), device=batch.device)
    numbered = atoms - _first_atom(batch)
    identity = torch.eye(3, dtype=torch.float64, device=batch.device)
    return Orbits(
        order=numbered,
        length=torch.ones_like(numbered),
        member_of=numbered.clone(),
        carry=identity.repeat(len(atoms), 1, 1),
    )


def free(
    system: Batch,
    *,
    cell: bool = True,
    pressure_gpa: float = 0.0,
    mask: Sequence[bool] | None = None,
    hydrostatic: bool = False,
    constant_volume: bool = False,
    fixed_atoms: Sequence[int] | Sequence[bool] | None = None,
    fix_symmetry: bool | float = False,
) -> tuple[Batch, Freedom]:
    """One structure and what may move in it; the structure changes only to refine its symmetry.

    Options narrow each other: the strains that are left are those that every option allows.

    Args:
        system: a Batch of one system, on the CPU.
        cell: whether the cell moves; it must be periodic in three dimensions.
        pressure_gpa: external pressure, GPa.
        mask: the strains xx, yy, zz, yz, xz, xy that may change; None for all.
        hydrostatic: the cell grows and shrinks only, its shape stays.
        constant_volume: the shape changes only, the volume stays.
        fixed_atoms: indices, or one flag per atom, of those that keep their fractional
            coordinates; with a symmetry, atoms equivalent to a fixed one stay as well.
        fix_symmetry: keep the space group found within 0.01 Å (True) or this many Å.

    Raises:
        ConfigError: an option cannot be used, whatever the structure.
        DataError: an option does not fit this structure.
    """
    check_options(
        pressure_gpa=pressure_gpa,
        mask=mask,
        hydrostatic=hydrostatic,
        constant_volume=constant_volume,
        fix_symmetry=fix_symmetry,
    )
    asked = {"pressure_gpa": pressure_gpa != 0.0, "mask": mask is not None}
    asked |= {"hydrostatic": hydrostatic, "constant_volume": constant_volume}
    _check_cell(system, cell, asked)
    n_atoms = len(system.positions)
    movable = 1.0 - _flags(fixed_atoms, n_atoms).double()
    strain, orbits = allowed_strains(mask, hydrostatic, constant_volume), None
    if fix_symmetry:
        from dpa4sim.relax import symmetry

        symprec = SYMPREC_A if fix_symmetry is True else float(fix_symmetry)
        system, found = symmetry.refine(system, symprec)
        orbits = found.orbits
        strain = intersection(strain, symmetry.invariant_strains(found.rotations))
        movable = _whole_orbits(movable, orbits)
    moves_cell = bool(cell and strain.any())
    if not moves_cell and not movable.any():
        raise DataError(
            "Nothing may move: every atom is fixed and the cell stands still. "
            "Leave an atom out of fixed_atoms or let the cell move."
        )
    return system, Freedom(
        moves_cell=torch.tensor([moves_cell]),
        pressure=torch.tensor([pressure_gpa / GPA_PER_EV_A3], dtype=torch.float64),
        strain=strain[None] * float(moves_cell),
        keeps_volume=torch.tensor([bool(constant_volume)]),
        movable=movable,
        orbits=orbits,
    )


def allowed_strains(
    mask: Sequence[bool] | None = None, hydrostatic: bool = False, constant_volume: bool = False
) -> Float[Tensor, "strain strain"]:
    """Projector on the strains that all of these options allow; zero when they leave none."""
    uniform = torch.tensor([1.0, 1, 1, 0, 0, 0], dtype=torch.float64) / math.sqrt(3.0)
    growth = torch.outer(uniform, uniform)
    projector = torch.eye(6, dtype=torch.float64)
    if mask is not None:
        projector = torch.diag(torch.tensor([float(flag) for flag in mask], dtype=torch.float64))
    if hydrostatic:
        projector = intersection(projector, growth)
    if constant_volume:
        projector = intersection(projector, torch.eye(6, dtype=torch.float64) - growth)
    return projector


def intersection(first: Float[Tensor, "n n"], second: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Projector on what two projectors both leave alone: eigenvalue 2 of their sum.  On the host.

    Directions less than 1e-5 apart count as one.
    """
    values, vectors = torch.linalg.eigh(first + second)
    shared = vectors[:, values > 2.0 - 1e-10]
    projector = shared @ shared.T
    return torch.where(projector.abs() > 1e-12, projector, 0.0)


def to_strain(q: Float[Tensor, "system 6"]) -> Float[Tensor, "system 3 3"]:
    """The strain sum_k q_k B_k."""
    xx, yy, zz = q[:, 0], q[:, 1], q[:, 2]
    yz, xz, xy = (q[:, 3:] / _ROOT2).unbind(1)
    return torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], 0).reshape(3, 3, -1).permute(2, 0, 1)


def from_strain(matrix: Float[Tensor, "system 3 3"]) -> Float[Tensor, "system 6"]:
    """q_k = B_k : M, the coefficients of the symmetric part."""
    double = (matrix + matrix.transpose(1, 2)) / _ROOT2
    diagonal = [matrix[:, k, k] for k in range(3)]
    return torch.stack([*diagonal, double[:, 1, 2], double[:, 0, 2], double[:, 0, 1]], 0).T


def project_strain(freedom: Freedom, q: Float[Tensor, "system 6"]) -> Float[Tensor, "system 6"]:
    """The part of a strain, or of the work against one, that is allowed."""
    products = freedom.strain * q[:, None, :]
    total = products[:, :, 0]
    for k in range(1, 6):
        total = total + products[:, :, k]
    return total


def project_forces(
    freedom: Freedom, batch: Batch, forces: Float[Tensor, "atom 3"]
) -> Float[Tensor, "atom 3"]:
    """The part of the forces that may move atoms: none on fixed ones, and the symmetry kept.

    Args:
        forces: in the frame of the start, or of any cell strained within the symmetry.
    """
    forces = freedom.movable[:, None] * forces
    return forces if freedom.orbits is None else symmetrize(freedom.orbits, batch, forces)


def cell_work(
    freedom: Freedom, batch: Batch, stress: Float[Tensor, "system 3 3"]
) -> Float[Tensor, "system 3 3"]:
    """W = -V (stress + p 1), what the enthalpy falls by per unit of allowed strain, in eV.

    Zero where the cell stands still, whatever the stress there.
    """
    identity = torch.eye(3, dtype=torch.float64, device=batch.device)
    size = -volume(batch.cell)
    work = size[:, None, None] * stress + (size * freedom.pressure)[:, None, None] * identity
    work = to_strain(project_strain(freedom, from_strain(work)))
    return torch.where(freedom.moves_cell[:, None, None], work, 0.0)


def symmetrize(
    orbits: Orbits, batch: Batch, vectors: Float[Tensor, "atom 3"]
) -> Float[Tensor, "atom 3"]:
    """Average of a vector field over the group, in place of each of its vectors.

        v_i <- c_i  mean_j  c_j^T v_j        c = carry, j in the orbit of i

    Linear; the same bits in any batch.
    """
    start = _first_atom(batch)
    carry = orbits.carry
    local = carry[:, 0] * vectors[:, :1] + carry[:, 1] * vectors[:, 1:2]
    local = local + carry[:, 2] * vectors[:, 2:]
    offsets = torch.nn.functional.pad(orbits.length.cumsum(0), (1, 0))
    total = torch.segment_reduce(
        local.index_select(0, orbits.order + start).contiguous(),
        "sum",
        offsets=offsets,
        unsafe=True,
        initial=0,
    )
    mean = total / orbits.length.clamp(min=1).double()[:, None]
    mine = mean.index_select(0, orbits.member_of + start)
    return dot(carry, mine[:, None].expand_as(carry))


def check_options(
    *,
    pressure_gpa: float = 0.0,
    mask: Sequence[bool] | None = None,
    hydrostatic: bool = False,
    constant_volume: bool = False,
    fix_symmetry: bool | float = False,
) -> None:
    """Raise about what cannot be used whatever the structure; see `free`.

    Raises:
        ConfigError: a number is not one, or the options leave no strain.
    """
    if not math.isfinite(pressure_gpa):
        raise ConfigError(f"pressure_gpa = {pressure_gpa} is not a pressure. Give a number in GPa.")
    if mask is not None and len(mask) != 6:
        raise ConfigError(
            f"mask has {len(mask)} entries. Give six flags, for the strains {', '.join(STRAINS)}."
        )
    if not (math.isfinite(fix_symmetry) and fix_symmetry >= 0):
        raise ConfigError(
            f"fix_symmetry = {fix_symmetry} is no tolerance. Give True, False or a length in Å."
        )
    if not allowed_strains(mask, hydrostatic, constant_volume).any():
        given = {"mask": mask is not None, "hydrostatic": hydrostatic}
        given["constant_volume"] = constant_volume
        names = " and ".join(name for name, is_given in given.items() if is_given)
        raise ConfigError(
            f"{names} leave(s) no strain that could change. "
            "Drop one of the options, or set cell=False for a cell that stands still."
        )


def _check_cell(system: Batch, cell: bool, options: dict[str, bool]) -> None:
    """Raise about options that this structure's cell cannot follow."""
    n_periodic = int(system.pbc.sum())
    if cell and n_periodic < 3:
        raise DataError(
            f"its cell cannot relax: it is periodic along {n_periodic} of 3 lattice vectors. "
            "Set cell=False for it."
        )
    asked = [name for name, is_asked in options.items() if is_asked]
    if not cell and asked:
        raise DataError(
            f"{' and '.join(asked)} cannot be used, for its cell stands still. "
            f"Set cell=True, or leave {'it' if len(asked) == 1 else 'them'} out for this structure."
        )


def _flags(
    fixed_atoms: Sequence[int] | Sequence[bool] | None, n_atoms: int
) -> Bool[Tensor, " atom"]:
    """One flag per atom from flags or indices."""
    chosen = torch.as_tensor([] if fixed_atoms is None else list(fixed_atoms))
    flags = torch.zeros(n_atoms, dtype=torch.bool)
    if chosen.dtype == torch.bool:
        if len(chosen) != n_atoms:
            raise DataError(
                f"fixed_atoms has {len(chosen)} flags for {n_atoms} atoms. "
                "Give one per atom, or the indices of the fixed ones."
            )
        return chosen
    beyond = [index for index in chosen.tolist() if index not in range(n_atoms)]
    if beyond:
        raise DataError(
            f"fixed_atoms names atom {beyond[0]}, and there are {n_atoms} atoms. "
            f"Give whole numbers from 0 to {n_atoms - 1}."
        )
    flags[chosen.long()] = True
    return flags


def _first_atom(batch: Batch) -> Int[Tensor, " atom"]:
    """The packed number of the first atom of each atom's system."""
    return (batch.n_atoms.cumsum(0) - batch.n_atoms).index_select(0, batch.system_idx)


def _whole_orbits(movable: Float[Tensor, " atom"], orbits: Orbits) -> Float[Tensor, " atom"]:
    """Zero for every atom that is equivalent to a fixed one.  On the host."""
    least = torch.ones_like(movable)
    least = least.scatter_reduce(0, orbits.member_of, movable, "amin")
    return least[orbits.member_of]

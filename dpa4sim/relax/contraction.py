"""How the blocks of the pair Hessian follow from moments of the bonds.

With b a bond and w its weight, the moments are  M2_ab = sum w b_a b_b,  M3_abc = sum w b_a b_b b_c
and M4_abcd.  Only components with ascending axes are summed over bonds.  An entry of a block is a
short sum of components and of their traces with constant weights: a table, worked out here from
the equations.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, product

import torch
from jaxtyping import Float, Int
from torch import Tensor

TRANSVERSE = 0.1
"""t, the stiffness of a bond across its axis in units of that along it."""

MANY_COLUMNS = 1000
"""From here on a processor spends its time on memory, and no longer on the number of calls."""

PAIRS = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
"""Axes of the components of M2, and of the strains q_k."""

TRIPLES = tuple(combinations_with_replacement(range(3), 3))
QUADS = tuple(combinations_with_replacement(range(3), 4))

Axes = tuple[int, ...]

_SQUARE = tuple(product(range(3), repeat=2))


@dataclass(frozen=True)
class Contraction:
    """Entry e is  sum_t weight[t, e] source[index[t, e]],  source = components, then traces.

    Args:
        trace: the three components that a trace adds up.
        index: of the source.
        weight: zero where an entry has fewer terms than the longest.
    """

    trace: Int[Tensor, "3 trace"]
    index: Int[Tensor, "term entry"]
    weight: Float[Tensor, "term entry"]

    def of(self, components: Float[Tensor, "component n"]) -> Float[Tensor, "entry n"]:
        """Every entry, term by term: the same bits whatever the number of columns."""
        columns, is_cpu = components.shape[1], components.device.type == "cpu"
        if is_cpu and columns >= MANY_COLUMNS and not torch.compiler.is_compiling():
            return self._row_by_row(components)
        thirds = components.index_select(0, self.trace.flatten()).view(*self.trace.shape, columns)
        source = torch.cat([components, thirds[0] + thirds[1] + thirds[2]])
        terms = source.index_select(0, self.index.flatten()) * self.weight.view(-1, 1)
        terms = terms.view(*self.index.shape, columns)
        total = terms[0]
        for term in terms.unbind(0)[1:]:
            total = total + term
        return total

    def _row_by_row(self, components: Float[Tensor, "component n"]) -> Float[Tensor, "entry n"]:
        """The same additions without a copy of any row."""
        rows = list(components.unbind(0))
        rows += [rows[a] + rows[b] + rows[c] for a, b, c in self.trace.T.tolist()]
        total = components.new_empty(self.index.shape[1], components.shape[1])
        term = torch.empty_like(rows[0])
        places, weights = self.index.T.tolist(), self.weight.T.tolist()
        for out, mine, factors in zip(total.unbind(0), places, weights, strict=True):
            torch.mul(rows[mine[0]], factors[0], out=out)
            for place, factor in zip(mine[1:], factors[1:], strict=True):
                out += torch.mul(rows[place], factor, out=term)
        return total


def moments(
    bond: Float[Tensor, "3 edge"], weight: Float[Tensor, " edge"], factors: Int[Tensor, "2 31"]
) -> tuple[Float[Tensor, "6 edge"], Float[Tensor, "25 edge"]]:
    """Components of w b b, then of w b b b and w b b b b, of each bond."""
    if bond.device.type == "cpu" and not torch.compiler.is_compiling():
        return _one_by_one(bond, weight)
    first, second = factors
    pair = bond.index_select(0, first[:6]) * bond.index_select(0, second[:6])
    weighted = weight * pair
    triple = weighted.index_select(0, first[6:16]) * bond.index_select(0, second[6:16])
    quad = weighted.index_select(0, first[16:]) * pair.index_select(0, second[16:])
    return weighted, torch.cat([triple, quad])


def _one_by_one(
    bond: Float[Tensor, "3 edge"], weight: Float[Tensor, " edge"]
) -> tuple[Float[Tensor, "6 edge"], Float[Tensor, "25 edge"]]:
    """The same products, without a copy of any factor: on a processor ten times as fast."""
    n_edges, axes = bond.shape[1], bond.unbind(0)
    pair = bond.new_empty(len(PAIRS), n_edges)
    higher = bond.new_empty(len(TRIPLES) + len(QUADS), n_edges)
    for out, (i, j) in zip(pair.unbind(0), _CHOSEN, strict=False):
        torch.mul(axes[i], axes[j], out=out)
    weighted = weight * pair
    left, pairs, rows = weighted.unbind(0), pair.unbind(0), higher.unbind(0)
    last = len(PAIRS) + len(TRIPLES)
    for out, (i, j) in zip(rows, _CHOSEN[len(PAIRS) : last], strict=False):
        torch.mul(left[i], axes[j], out=out)
    for out, (i, j) in zip(rows[len(TRIPLES) :], _CHOSEN[last:], strict=True):
        torch.mul(left[i], pairs[j], out=out)
    return weighted, higher


def _factors() -> Int[Tensor, "2 31"]:
    """Which two rows are multiplied into each component; see `moments`."""
    chosen = [*PAIRS, *((_place(t[1:], PAIRS), t[0]) for t in TRIPLES)]
    chosen += [(_place(q[:2], PAIRS), _place(q[2:], PAIRS)) for q in QUADS]
    return torch.tensor(chosen).T.contiguous()


def _atom_block() -> Contraction:
    """(1 - t) M2_ab + t delta_ab tr M2;  rows u_i, columns u_i."""
    entries = []
    for a, b in product(range(3), repeat=2):
        entries.append([((a, b), 1 - TRANSVERSE), ((), TRANSVERSE * (a == b))])
    return _table(PAIRS, [()], entries)


def _coupling() -> Contraction:
    """-(1 - t) B_k : M3_a - t (B_k tr M3)_a;  rows q_k, columns u_i."""
    entries = []
    for strain, a in product(_basis(), range(3)):
        along = [((a, b, c), -(1 - TRANSVERSE) * strain[b][c]) for b, c in _SQUARE]
        across = [((c,), -TRANSVERSE * strain[a][c]) for c in range(3)]
        entries.append([*along, *across])
    return _table(TRIPLES, [(0,), (1,), (2,)], entries)


def _strain_block() -> Contraction:
    """1/2 (1 - t) B_k : M4 : B_l + 1/2 t (B_k B_l) : tr M4;  rows q_k, columns q_l."""
    entries = []
    for left, right in product(_basis(), repeat=2):
        along = [
            ((a, b, c, d), 0.5 * (1 - TRANSVERSE) * left[a][b] * right[c][d])
            for (a, b), (c, d) in product(_SQUARE, repeat=2)
        ]
        across = [
            ((a, c), 0.5 * TRANSVERSE * left[a][b] * right[b][c])
            for a, b, c in product(range(3), repeat=3)
        ]
        entries.append([*along, *across])
    return _table(QUADS, PAIRS, entries)


def _basis() -> list[list[list[float]]]:
    """B_k: the symmetric strains with Frobenius norm 1 along `PAIRS`."""
    strains = [[[0.0] * 3 for _ in range(3)] for _ in PAIRS]
    for strain, (i, j) in zip(strains, PAIRS, strict=True):
        strain[i][j] = strain[j][i] = 1.0 if i == j else 0.5**0.5
    return strains


def _place(axes: Axes, names: Sequence[Axes]) -> int:
    """Which component has these axes, in any order."""
    return [tuple(sorted(name)) for name in names].index(tuple(sorted(axes)))


def _table(
    names: Sequence[Axes], traces: Sequence[Axes], entries: Iterable[list[tuple[Axes, float]]]
) -> Contraction:
    """Terms by the axes of their component, or, with two axes fewer, of their trace."""
    rank, collected = len(names[0]), []
    for entry in entries:
        terms: dict[int, float] = defaultdict(float)
        for axes, weight in entry:
            whole = len(axes) == rank
            place = _place(axes, names) if whole else len(names) + _place(axes, traces)
            terms[place] += weight
        collected.append({place: weight for place, weight in terms.items() if weight})
    longest = max(len(terms) for terms in collected)
    filled = [[*terms.items(), *[(0, 0.0)] * (longest - len(terms))] for terms in collected]
    trace = [[_place((*axes, c, c), names) for axes in traces] for c in range(3)]
    index = [[terms[t][0] for terms in filled] for t in range(longest)]
    weights = [[terms[t][1] for terms in filled] for t in range(longest)]
    return Contraction(
        torch.tensor(trace), torch.tensor(index), torch.tensor(weights, dtype=torch.float64)
    )


FACTORS = _factors()
_CHOSEN: list[list[int]] = FACTORS.T.tolist()
ATOM_BLOCK, COUPLING, STRAIN_BLOCK = _atom_block(), _coupling(), _strain_block()

"""Law: entries and compositions compare as pymatgen's own do, only sooner."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
from pymatgen.core import Composition, Element

from dpa4sim.screen.entries import compositions, entries
from dpa4sim.screen.index import Phase

pytestmark = pytest.mark.filterwarnings("ignore:No Pauling electronegativity")


def phases(n: int, seed: int) -> list[Phase]:
    """Different compositions, also of noble gases, whose electronegativity is not known."""
    rng = random.Random(seed)
    found = {}
    for i in range(n):
        symbols = rng.sample(["Li", "O", "Ar", "He", "Fe", "C"], rng.randint(1, 4))
        amounts = Composition({symbol: rng.choice([1, 2, 3, 0.5]) for symbol in symbols})
        phase = Phase.of(f"p{i}", amounts, rng.gauss(0, 1))
        found[phase.formula] = phase
    return list(found.values())


def test_the_order_is_that_of_pymatgen() -> None:
    known = phases(60, seed=3)
    ours = compositions(known)
    theirs = [Composition(dict(phase.amounts)) for phase in known]
    for i, j in combinations(range(len(known)), 2):
        assert (ours[i] < ours[j]) == (theirs[i] < theirs[j]), (known[i], known[j])
        assert (ours[j] < ours[i]) == (theirs[j] < theirs[i]), (known[i], known[j])
        assert (ours[i] == ours[j]) == (theirs[i] == theirs[j]) == (i == j)


def test_amounts_fractions_and_formulas_are_those_of_pymatgen() -> None:
    for phase, ours in zip(phases(20, seed=4), compositions(phases(20, seed=4)), strict=True):
        theirs = Composition(dict(phase.amounts))
        assert ours.reduced_formula == phase.formula
        for symbol in ("Li", "O", "Ar", "Fe", "Xe"):
            assert ours[Element(symbol)] == theirs[Element(symbol)]
            assert ours[symbol] == theirs[symbol]
            assert ours.get_atomic_fraction(symbol) == theirs.get_atomic_fraction(symbol)


def test_compositions_of_different_calls_compare_as_pymatgen_compares_them() -> None:
    (oxide,) = compositions([Phase.of("a", Composition("Li2O"), -1.0)])
    (again,) = compositions([Phase.of("b", Composition("Li2O"), -2.0)])
    (carbide,) = compositions([Phase.of("c", Composition("Fe2C"), -1.0)])
    assert oxide == again
    assert hash(oxide) == hash(again)
    assert oxide != carbide, "the same amounts of other elements"
    assert (oxide < carbide) == (Composition("Li2O") < Composition("Fe2C"))
    assert oxide == Composition("Li2O")


def test_entries_hold_the_energy_of_the_whole_and_equal_themselves() -> None:
    oxide = Phase.of("mp-1", Composition("Li4O2"), -12.0)
    first, second = entries([oxide, Phase.of("mp-2", Composition("LiO"), -3.0)])
    assert first.energy_per_atom == oxide.energy_per_atom == -2.0
    assert (first.energy, first.name) == (-6.0, "mp-1")
    assert first != second
    assert {first, second, first} == {first, second}

"""Text tables."""

from __future__ import annotations

import math

from dpa4sim.cli.table import fixed, properties, table


def test_columns_are_aligned():
    text = table(("name", "n"), [("a", "1"), ("longer", "10")])
    assert text.splitlines() == ["name     n", "------  --", "a        1", "longer  10"]


def test_no_rows():
    assert table(("a", "b"), []).splitlines() == ["a  b", "-  -"]


def test_numbers_that_are_none():
    assert [fixed(x, 2) for x in (1.005e0, -0.5, math.nan, math.inf)] == ["1.00", "-0.50", "-", "-"]


def test_long_values_are_indented():
    assert properties([("ab", "1\n2"), ("c", "3")]).splitlines() == ["ab  1", "    2", "c   3"]

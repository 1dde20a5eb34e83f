"""The ranked table: what it says of elements without a reference."""

from __future__ import annotations

import pyarrow as pa
import pytest

from dpa4sim.screen.hull import HULL
from dpa4sim.screen.rank import explained
from dpa4sim.screen.table import BUILT_IN, to_table


def built_in(**row) -> pa.Table:
    known = {"id": 1, "name": "F-solid", "source": BUILT_IN, "numbers": [9, 9], "flags": []}
    return to_table([known | row])


def ranked(missing: str, reason: str = "") -> pa.Table:
    row = {"id": 0, "missing_references": missing, "reason": reason}
    return pa.Table.from_pylist([row], schema=HULL)


@pytest.mark.parametrize(
    ("row", "how"),
    [
        ({"status": "not_finite"}, "not_finite"),
        ({"status": "exploded", "flags": ["exploded"]}, "exploded"),
        ({"status": "converged", "flags": ["fragmented", "symmetry_changed"]}, "fragmented, symm"),
    ],
)
def test_why_a_built_in_crystal_is_no_reference(row, how):
    (reason,) = explained(ranked("F"), built_in(**row))["reason"].to_pylist()
    assert reason.startswith(f"no reference of F: the built-in crystal F-solid ended as {how}")


def test_other_reasons_and_no_reason_stay():
    crystals = built_in(status="exploded")
    (reason,) = explained(ranked("F", "it exploded"), crystals)["reason"].to_pylist()
    assert reason == "it exploded"
    assert explained(ranked(""), crystals)["reason"].to_pylist() == [""]
    (reason,) = explained(ranked("Li"), crystals)["reason"].to_pylist()
    assert reason.startswith("no reference of Li: none was given")

"""Energy corrections of the Materials Project, by pymatgen, for entries that we make ourselves.

The scheme mends known errors of PBE and PBE+U: use it only for a model that learnt uncorrected
energies of that kind.  Its figures differ between versions of pymatgen, so what was applied is
always said with the version.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from dpa4sim.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pymatgen.core import Composition, Structure
    from pymatgen.entries.computed_entries import ComputedEntry

SCHEMES = ("none", "mp2020")

STRUCTURAL = frozenset("OS")
"""Elements whose correction depends on their bonds: oxide or peroxide, sulfide or polysulfide."""

OURS = "dpa4sim"
"""Under `software`; for VASP the scheme would ask for the names of the pseudopotentials."""


def check_scheme(scheme: str) -> None:
    """Refuse a scheme that is not there.

    Raises:
        ConfigError: it is not known.
    """
    if scheme not in SCHEMES:
        raise ConfigError(f"corrections={scheme!r} is not known. Valid: {', '.join(SCHEMES)}.")


def describe(scheme: str) -> dict[str, str]:
    """The scheme and what it depends on, for the tables that it went into."""
    return {"corrections": scheme, "pymatgen": version("pymatgen")}


def correct(
    composition: Composition, energy: float, structure: Callable[[], Structure] | None = None
) -> float:
    """What MaterialsProject2020Compatibility adds to an energy, eV.

    The calculation is taken as one that follows the project's rules: GGA+U with its U values where
    it uses them, else GGA.

    Args:
        composition: of the whole cell.
        energy: of the whole cell, eV, uncorrected.
        structure: called only where bonds matter; without it the formula has to tell.
    """
    from pymatgen.entries.computed_entries import ComputedEntry, ComputedStructureEntry

    scheme = _scheme()
    u_values = scheme.u_settings.get(max(composition.elements, key=lambda e: e.X).symbol, {})
    hubbards = {e.symbol: u_values[e.symbol] for e in composition.elements if e.symbol in u_values}
    parameters = {"software": OURS, "hubbards": hubbards}
    parameters["run_type"] = "GGA+U" if any(hubbards.values()) else "GGA"
    entry: ComputedEntry
    if structure is not None and STRUCTURAL & {e.symbol for e in composition.elements}:
        entry = ComputedStructureEntry(structure(), energy, parameters=parameters)
    else:
        entry = ComputedEntry(composition, energy, parameters=parameters)
    return adjustment(entry)


def adjustment(entry: ComputedEntry) -> float:
    """What MaterialsProject2020Compatibility adds to the uncorrected energy of an entry, eV.

    Raises:
        DataError: the scheme does not cover the entry; the message says why.
    """
    from pymatgen.entries.compatibility import CompatibilityError

    entry.data.setdefault("oxidation_states", _oxidation_states(entry.composition.reduced_formula))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one per entry whose oxidation states nobody can guess
        try:
            return float(sum(each.value for each in _scheme().get_adjustments(entry)))
        except (CompatibilityError, ValueError) as error:
            text = str(error).split(" for {", maxsplit=1)[0].strip().rstrip(".")
            raise DataError(f"it has no correction of the scheme mp2020: {text}") from None


@cache
def _scheme() -> Any:
    from pymatgen.entries.compatibility import MaterialsProject2020Compatibility

    return MaterialsProject2020Compatibility()


@cache
def _oxidation_states(formula: str) -> dict[str, float]:
    """As the scheme guesses them, once for all cells of a composition."""
    from pymatgen.core import Composition

    try:
        guesses = Composition(formula).oxi_state_guesses(max_sites=-20)
    except ValueError:
        return {}
    return dict(guesses[0]) if guesses else {}

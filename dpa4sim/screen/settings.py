"""What a campaign was asked to do: frozen dataclasses <-> campaign.toml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from dpa4sim import __version__
from dpa4sim.errors import ConfigError, ResumeError
from dpa4sim.mapping import from_mapping

WHERE = "The campaign"
DECIDES = ("torch", "pymatgen", "moyopy", "ase")
"""Packages whose version can change a number of the table."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """The model, and what tells it from any other.

    Args:
        path: released name or file; empty for one that was made in Python.
        branch: of a multi-task checkpoint.
        dtype: precision of the network.
        hash: of its weights and precision.
    """

    path: str = ""
    branch: str = ""
    dtype: str = "float32"
    hash: str = ""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Where candidates come from, and how they are cut into chunks.

    Args:
        files: structure files, folders or globs.
        chemical_systems: such as Li-Fe-O, whose prototypes are decorated.
        substitute: files whose structures take the elements of the chemical systems instead.
        structure_column: of CSV files; empty looks for a usual name.
        name_column: of CSV files; empty looks for a usual name.
        deduplicate: relax only one of several equal structures.
        chunk_size: candidates that are leased, relaxed and stored together.
        reader_timeout_s: after so long a reader is given up; its structure is invalid.
    """

    files: tuple[str, ...] = ()
    chemical_systems: tuple[str, ...] = ()
    substitute: tuple[str, ...] = ()
    structure_column: str = ""
    name_column: str = ""
    deduplicate: bool = True
    chunk_size: int = 512
    reader_timeout_s: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Relaxation:
    """Settings of `dpa4sim.relax`.

    Args:
        fmax: converged when every force and cell-force row is shorter, eV/Å.
        cell: whether cells relax.
        optimizer: lbfgs or fire.
        cell_filter: of fire.
        max_steps: moves per structure.
        pressure_gpa: external pressure.
        fix_symmetry: keep the space group of the start.
        max_edges: edges in the working set; 0 for what the first device can hold.
        max_force_spread: of an ensemble, eV/Å; a structure with a larger one is flagged uncertain
            and not ranked; 0 for no limit.
    """

    fmax: float = 0.02
    cell: bool = True
    optimizer: Literal["lbfgs", "fire"] = "lbfgs"
    cell_filter: Literal["frechet", "unit"] = "frechet"
    max_steps: int = 500
    pressure_gpa: float = 0.0
    fix_symmetry: bool = False
    max_edges: float = 0.0
    max_force_spread: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Hull:
    """What the candidates are compared with.

    Args:
        references: files of pymatgen entries.
        mixed_references: let references be of another theory or model than the candidates.
        corrections: none, or those of Materials Project 2020.
        built_in: relax built-in crystals of the elements, and common binaries, as references.
    """

    references: tuple[str, ...] = ()
    mixed_references: bool = False
    corrections: Literal["none", "mp2020"] = "none"
    built_in: bool = False


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A campaign."""

    model: Model = field(default_factory=Model)
    candidates: Candidates = field(default_factory=Candidates)
    relax: Relaxation = field(default_factory=Relaxation)
    hull: Hull = field(default_factory=Hull)

    def __post_init__(self) -> None:
        for key, value, least in (
            ("candidates.chunk_size", self.candidates.chunk_size, 1),
            ("relax.max_steps", self.relax.max_steps, 0),
            ("relax.max_edges", self.relax.max_edges, 0),
            ("relax.max_force_spread", self.relax.max_force_spread, 0),
        ):
            if value < least:
                raise ConfigError(f"{key} = {value} is too small. Give {least} or more.")
        for key, number in (
            ("relax.fmax", self.relax.fmax),
            ("candidates.reader_timeout_s", self.candidates.reader_timeout_s),
        ):
            if not number > 0:
                raise ConfigError(f"{key} = {number}. Give a positive number.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for TOML."""
        return asdict(self)


def from_dict(values: Mapping[str, Any]) -> Settings:
    """Checked settings from plain values.

    Raises:
        ConfigError: an unknown key, or a value that cannot be.
    """
    return from_mapping(Settings, values, WHERE)


def versions() -> dict[str, str]:
    """Versions of everything that decides a number of the table."""
    found = {"dpa4sim": __version__}
    for name in DECIDES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def agree(place: object, before: Mapping[str, Any], now: Mapping[str, Any], remedy: str) -> None:
    """What is asked for now is what a campaign was begun with.

    Args:
        place: what was begun.
        before: values by key.
        now: values by key.
        remedy: what to do about a difference.

    Raises:
        ResumeError: one differs; the message names it.
    """
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise ResumeError(
                f"{place} was begun with {key} = {before.get(key)!r}, and now it is "
                f"{now.get(key)!r}. {remedy}"
            )

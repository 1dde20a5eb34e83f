"""dpa4sim info MODEL: the model card."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from textwrap import fill
from typing import Any

from dpa4sim.cli.options import add_model, open_single_model
from dpa4sim.cli.table import properties, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL."""
    add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Print what the model is and where it comes from."""
    from dpa4sim.branches import branch_names

    names = branch_names(args.model) if args.branch is None else ()
    if names:
        return _list_branches(args.model, names)
    potential = open_single_model(args)
    config = potential.config
    n_weights = sum(weight.numel() for weight in potential.model.parameters())
    rows = [
        ("model", args.model),
        ("parameters", f"{n_weights:,}"),
        ("elements", fill(f"{len(config.species)}: {' '.join(config.species)}", 80)),
        ("cutoff", f"{config.cutoff:g} Å"),
        ("blocks", f"{len(config.degrees)}, degrees {_list(config.degrees)}"),
        ("channels", str(config.channels)),
    ]
    head = config.property_head
    if head.name:
        kind = "intensive" if head.intensive else "extensive"
        rows.append(("property", f"{head.name}, {head.task_dim} numbers, {kind}"))
    if config.has_spins:
        kind = "virtual atoms" if config.has_virtual_atoms else "native"
        if config.has_virtual_atoms:
            kind += f" at {_list(config.spin.virtual_scale)} Å per Bohr magneton"
        rows.append(("spins", f"{_list(config.spin.magnetic)}, {kind}"))
    rows += [(f"option {name}", text) for name, text in _unusual(config)]
    rows += list(_card(potential.card))
    print(properties(rows))
    return 0


def _list_branches(model: str, names: Sequence[str]) -> int:
    """The branches of a file, of which --branch chooses one."""
    from dpa4sim.property import load_any

    rows = []
    for name in names:
        found = load_any(model, branch=name)
        n_weights = sum(weight.numel() for weight in found.model.parameters())
        what = found.config.property_head.name or "energy"
        rows.append((name, what, f"{n_weights:,}", str(len(found.config.species))))
    print(table(("branch", "predicts", "parameters", "elements"), rows, left=2))
    print(f"\n{len(names)} branches; the card of one: dpa4sim info {model} --branch {names[0]}")
    return 0


def _unusual(config: Any) -> list[tuple[str, str]]:
    """Options that differ from the defaults, apart from those with a row of their own."""
    shown = {"species", "cutoff", "channels", "n_blocks", "property_head", "spin"}
    return [
        (field.name, _text(getattr(config, field.name)))
        for field in fields(config)
        if field.name not in shown
        and field.default is not MISSING
        and getattr(config, field.name) != field.default
    ]


def _card(card: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """The card's entries, nested ones with a dotted name."""
    rows: list[tuple[str, str]] = []
    for name, value in card.items():
        key = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            rows += _card(value, f"{key}: ")
        else:
            rows.append((key, _text(value)))
    return rows


def _text(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return _list(value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _list(values: Any) -> str:
    return " ".join(map(_text, values))

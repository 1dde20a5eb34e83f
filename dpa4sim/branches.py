"""Branches: models of several theories that share their trunk, in one file.

Every branch is a plain network, as fast as any; a file holds what all of them share once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dpa4sim.config import DPA4Config
from dpa4sim.direct import DirectModel
from dpa4sim.errors import ConfigError, ModelError
from dpa4sim.model_file import BRANCHES_FORMAT, released
from dpa4sim.potential import Potential
from dpa4sim.property import PropertyModel, load_any

SHARED = "shared/"
"""Prefix of tensors that are equal in all branches; others have BRANCH/."""


class Branches(Mapping[str, Potential | PropertyModel | DirectModel]):
    """Models by the name of their branch.

    Args:
        members: a Potential or a PropertyModel under each name.

    Raises:
        ConfigError: no member, or a name that is empty or has a slash.
    """

    def __init__(self, members: Mapping[str, Potential | PropertyModel | DirectModel]) -> None:
        if not members:
            raise ConfigError("Branches need a model. Give {'water': dpa4sim.load(PATH), ...}.")
        self.members = dict(members)
        for name in self.members:
            check_name(name)

    @property
    def card(self) -> dict[str, Any]:
        """The cards of the branches."""
        return {name: model.card for name, model in self.members.items()}

    def __getitem__(self, name: str) -> Potential | PropertyModel | DirectModel:
        return self.members[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)

    def save(self, path: str | Path) -> None:
        """Write all branches into one .safetensors file, which appears whole or not at all."""
        path = Path(path)
        states = {name: model.model.state_dict() for name, model in self.members.items()}
        described = {
            name: {"config": model.config.to_dict(), "card": model.card}
            for name, model in self.members.items()
        }
        header = {"format": BRANCHES_FORMAT, "branches": described, "units": {"length": "angstrom"}}
        partial = path.with_name(f".{path.name}.partial")
        save_file(once(states), partial, metadata={"dpa4sim": json.dumps(header)})
        partial.replace(path)


def check_name(name: str) -> None:
    """Refuse a name that a file cannot hold.

    Raises:
        ConfigError: it is empty, or has a slash, a dot, a colon or a space at its ends.
    """
    if not name or name != name.strip() or set(name) & set("/.:"):
        raise ConfigError(f"A branch cannot be called {name!r}. Leave out '/', '.' and ':'.")


def once(states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of all branches, those that are equal in all of them once."""
    first, *others = states.values()
    same = {
        name: value
        for name, value in first.items()
        if all(_equal(value, other.get(name)) for other in others)
    }
    tensors = {f"{SHARED}{name}": value.contiguous() for name, value in same.items()}
    for branch, state in states.items():
        tensors |= {
            f"{branch}/{name}": value.contiguous()
            for name, value in state.items()
            if name not in same
        }
    return tensors


def load_branches(
    model: str | Path, *, device: str | torch.device = "cpu", dtype: str = "float32"
) -> Branches:
    """Open every branch of a file; arguments of `dpa4sim.load`.

    Raises:
        ModelError: no such model, a damaged or foreign file, or one without branches.
    """
    names = branch_names(model)
    if not names:
        raise ModelError(f"{model} has no branches. Open it by dpa4sim.load(PATH).")
    return Branches(
        {name: load_any(model, branch=name, device=device, dtype=dtype) for name in names}
    )


def branch_names(model: str | Path) -> tuple[str, ...]:
    """The branches of a model; none for a single network, or for a file that cannot be read."""
    path = released().get(str(model), Path(model))
    if path.suffix != ".safetensors":
        from dpa4sim.adapters.deepmd import branches_of

        try:
            return branches_of(path)
        except ModelError:
            return ()
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("dpa4sim", "null"))
    except (SafetensorError, OSError, ValueError):
        return ()
    if not isinstance(header, dict) or header.get("format") != BRANCHES_FORMAT:
        return ()
    return tuple(header["branches"])


def select_branch(
    header: Mapping[str, Any], state: Mapping[str, Tensor], branch: str | None, path: Path
) -> tuple[DPA4Config, dict[str, Tensor], dict[str, Any]]:
    """Config, state and card of one branch of a file.

    Raises:
        ModelError: no branch is given, or one that the file does not have.
    """
    described = header["branches"]
    names = ", ".join(described)
    if branch is None:
        raise ModelError(
            f"{path} has the branches {names}. Choose one: branch='{next(iter(described))}'."
        )
    if branch not in described:
        raise ModelError(f"{path} has no branch '{branch}'. It has {names}.")
    own: dict[str, Tensor] = {}
    for prefix in (SHARED, f"{branch}/"):
        own |= {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    config = DPA4Config.from_dict(described[branch]["config"])
    return config, own, {"branch": branch} | described[branch].get("card", {})


def _equal(one: Tensor, other: Tensor | None) -> bool:
    if other is None or one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one, other)

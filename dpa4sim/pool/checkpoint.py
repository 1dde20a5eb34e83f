"""A run directory that survives kill -9: what is finished, and where everything else stands.

    run.json                 what was asked for: settings, model, versions
    results/00000.safetensors   the systems that finished since the checkpoint before, in order
    state.safetensors        the working set, to the last bit, and how many of the above count

Every file appears whole or not at all, the state after the results that it counts.  What lies
beyond the state is forgotten: the same numbers will be found again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dpa4sim import __version__
from dpa4sim.batch import Batch
from dpa4sim.edges import Edges
from dpa4sim.errors import ResumeError
from dpa4sim.model import DPA4
from dpa4sim.pool.pack import flatten
from dpa4sim.potential import EnergyModel, Potential, Prediction

FORMAT = 1


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint as it lies on the disk.

    Args:
        tensors: by name.
        facts: what else it says, JSON.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


class Store:
    """The run directory of one piece of work.

    Args:
        directory: made if missing.
        asked: settings that must be equal when the work is continued.
        every: seconds between two checkpoints.
        fresh: forget what an earlier run of this kind has left there.

    Raises:
        ResumeError: the directory is in use, holds other things, or is damaged.
    """

    def __init__(
        self, directory: str | Path, asked: Mapping[str, Any], every: float, fresh: bool = False
    ):
        self.directory, self.every = Path(directory), every
        if self.directory.exists() and not self.directory.is_dir():
            raise ResumeError(f"{self.directory} is a file. Give the name of a folder.")
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = claim(self.directory)
        try:
            if fresh and (self.directory / "run.json").exists():
                self._forget()
            self._agree(json.loads(json.dumps({**asked, "format": FORMAT})))
            (self.directory / "results").mkdir(exist_ok=True)
            self.parts = 0
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let others use the directory."""
        self._lock.close()

    def load(self) -> Snapshot | None:
        """The last checkpoint; None when there is none yet.

        Raises:
            ResumeError: the file is damaged.
        """
        path = self.directory / "state.safetensors"
        if not path.exists():
            return None
        snapshot = _read(path)
        self.parts = int(snapshot.facts["parts"])
        return snapshot

    def finished[Result](self, kind: type[Result]) -> Iterator[Result]:
        """The results that the last checkpoint counts, in the order in which they came."""
        for number in range(self.parts):
            part = _read(self._part(number))
            yield from decode(kind, part)

    def save(self, results: Sequence[Any], tensors: dict[str, Tensor], facts: dict) -> None:
        """One more part, if there is anything for it, and the state that counts it.

        Raises:
            OSError: the disk is full or read-only; the checkpoint before is untouched.
        """
        parts = self.parts
        if results:
            part = encode(results)
            _write(self._part(parts), part.tensors, part.facts)
            parts += 1
        _write(self.directory / "state.safetensors", tensors, {**facts, "parts": parts})
        self.parts = parts

    def _part(self, number: int) -> Path:
        return self.directory / "results" / f"{number:05}.safetensors"

    def _forget(self) -> None:
        """Remove what a run keeps here, `run.json` last, and nothing else."""
        shutil.rmtree(self.directory / "results", ignore_errors=True)
        for name in ("state.safetensors", "run.json"):
            (self.directory / name).unlink(missing_ok=True)

    def _agree(self, asked: dict[str, Any]) -> None:
        """What is asked for now must be what was asked for when the directory was made."""
        path = self.directory / "run.json"
        if not path.exists():
            if any(not file.name.startswith(".") for file in self.directory.iterdir()):
                raise ResumeError(f"{self.directory} holds other files. Give a new directory.")
            with whole(path) as partial:
                partial.write_text(json.dumps(asked, indent=1))
            return
        try:
            before = json.loads(path.read_text())
        except ValueError as error:
            raise ResumeError(f"{path} is damaged. Give a new directory.") from error
        for name in sorted(before.keys() | asked.keys()):
            if before.get(name) != asked.get(name):
                raise ResumeError(
                    f"{self.directory} was begun with {name} = {before.get(name)!r}, and now "
                    f"{name} = {asked.get(name)!r}. Give the same, or a new directory."
                )


def claim(directory: Path) -> Any:
    """The lock of a directory, held until it is closed or the process ends.

    Raises:
        ResumeError: another process has it.
    """
    handle = (directory / ".lock").open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.close()
        raise ResumeError(
            f"{directory} is in use by another process. Wait for it, or give another directory."
        ) from error
    return handle


class Silent:
    """A model that says zero and knows no edges: what it starts has the shapes and nothing else."""

    def __init__(
        self,
        device: torch.device,
        cutoff: float,
        has_spread: bool = False,
        magnetic: frozenset[int] = frozenset(),
    ):
        self.device, self.cutoff, self.has_spread = device, cutoff, has_spread
        self.magnetic_elements = magnetic

    def __call__(self, batch: Batch) -> Prediction:
        """Zero."""
        rows = batch.n_atoms.new_zeros(len(batch.positions) + 1)
        none = batch.n_atoms.new_zeros(0)
        vector = batch.positions.new_zeros(0, 3, dtype=torch.float64)
        searched = torch.ones_like(batch.n_atoms, dtype=torch.bool)
        spreads: dict[str, Any] = {}
        if self.has_spread:
            spreads["force_spread"] = torch.zeros_like(batch.positions[:, 0])
            spreads["energy_spread"] = torch.zeros_like(batch.cell[:, 0, 0])
            spreads["uncertain"] = ~searched
        if self.magnetic_elements:
            spreads["magnetic_forces"] = torch.zeros_like(batch.positions)
        return Prediction(
            energy=torch.zeros_like(batch.cell[:, 0, 0]),
            forces=torch.zeros_like(batch.positions),
            stress=torch.zeros_like(batch.cell),
            atomic_energies=torch.zeros_like(batch.positions[:, 0]),
            edges=Edges(none, none, vector, rows, searched),
            **spreads,
        )


def model_fingerprint(model: EnergyModel) -> str:
    """Tells models apart: weights and settings of a Potential, else its own word, else the type."""
    if not isinstance(model, Potential):
        return str(getattr(model, "fingerprint", type(model).__qualname__))
    way = f"{model.kernels}-{model.accuracy}"
    if model.network is not None:
        way = "compiled" if model.kernels == "torch" else f"{way}-compiled"
    usual = "" if way == "torch-exact" else f"-{way}"  # other settings give other bits
    return f"{network_digest(model.model)}-{model.dtype}{usual}"


def network_digest(network: DPA4) -> str:
    """Tells networks apart by their options and weights."""
    digest = hashlib.sha256(json.dumps(network.config.to_dict(), sort_keys=True).encode())
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def chain(before: str, records: Sequence[Any]) -> str:
    """Digest of everything up to now: that of what came before, and these records."""
    digest = hashlib.sha256(before.encode())
    for record in records:
        for name, tensor in flatten(record).items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def encode(results: Sequence[Any]) -> Snapshot:
    """Results as tensors and JSON."""
    tensors: dict[str, Tensor] = {}
    rows: list[dict[str, Any]] = []
    for place, result in enumerate(results):
        row: dict[str, Any] = {}
        for field in fields(result):
            value = getattr(result, field.name)
            if is_dataclass(value):
                tensors |= flatten(value, f"{place}.{field.name}.")
                row[field.name] = True
            elif isinstance(value, Tensor):
                tensors[f"{place}.{field.name}"] = value
                row[field.name] = True
            else:
                row[field.name] = int(value) if isinstance(value, IntEnum) else value
        rows.append(row)
    return Snapshot(tensors, {"rows": rows, "version": __version__})


def decode[Result](kind: type[Result], part: Snapshot) -> Iterator[Result]:
    """The results of `encode`."""
    hints = get_type_hints(kind)
    records: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in part.tensors.items():
        number, field, *rest = name.split(".", 2)
        records[f"{number}.{field}"]["".join(rest)] = tensor
    for place, row in enumerate(part.facts["rows"]):
        values: dict[str, Any] = {}
        for name, value in row.items():
            record: Any = next((t for t in _options(hints[name]) if is_dataclass(t)), None)
            given = records.get(f"{place}.{name}", {})
            if record is not None and value is not None:
                values[name] = record(**given)
            elif "" in given:
                values[name] = given[""]
            elif isinstance(hints[name], type) and issubclass(hints[name], IntEnum):
                values[name] = hints[name](value)
            else:
                values[name] = value
        yield kind(**values)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file that appears whole or not at all, and is on the disk when the block ends."""
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        yield partial
        _sync(partial)
        partial.replace(path)
        _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _write(path: Path, tensors: dict[str, Tensor], facts: Mapping[str, Any]) -> None:
    apart = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    with whole(path) as partial:
        _as_os_error(lambda: save_file(apart, partial, metadata={"facts": json.dumps(facts)}))


def _as_os_error(write: Callable[[], None]) -> None:
    """The safetensors library tells of a full disk in its own words."""
    try:
        write()
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _read(path: Path) -> Snapshot:
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            return Snapshot({name: file.get_tensor(name) for name in file.keys()}, facts)  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ResumeError(
            f"{path} is damaged or missing ({error}). Put it back, or begin in a new directory."
        ) from error


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) or (hint,)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""The run directory: what a training run writes, and where it goes on after kill -9.

    config.toml        settings as they were understood
    log.txt            everything that was said
    train.csv          a row per validation; the second row has the units
    last.safetensors   averaged weights of the last checkpoint
    best.safetensors   averaged weights with the best validation
    state.pt           all that the next step depends on
    curves.png  parity.png  report.json

Every file but the log and the table appears whole or not at all.
"""

from __future__ import annotations

import csv
import json
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
import torch

from dpa4sim.errors import ResumeError
from dpa4sim.pool.checkpoint import claim, whole
from dpa4sim.train.settings import Data, Run, Settings

MAY_CHANGE = ("checkpoint_every_s", "log_every_s", "max_skipped")
"""Keys of [run] that change no number."""


class RunDirectory:
    """The files of one training run.

    Args:
        path: made if missing.
        settings: must be equal to those that the directory was begun with.
        data: content hashes of the stores, by what they are for.

    Raises:
        ResumeError: the directory is in use, holds other things, or was begun otherwise.
    """

    def __init__(self, path: Path, settings: Settings, data: Mapping[str, str]):
        self.path = path
        if path.exists() and not path.is_dir():
            raise ResumeError(f"{path} is a file. Give the name of a folder with -o.")
        path.mkdir(parents=True, exist_ok=True)
        self._lock = claim(path)
        try:
            self._agree({**settings.to_dict(), "stores": dict(data)})
        except BaseException:
            self._lock.close()
            raise
        self.log = (path / "log.txt").open("a")

    def close(self) -> None:
        """Let others use the directory."""
        self.log.close()
        self._lock.close()

    def say(self, line: str) -> None:
        """A line of the log."""
        self.log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        self.log.flush()

    def load(self) -> dict[str, Any] | None:
        """The state of the last checkpoint; None when there is none yet.

        Raises:
            ResumeError: the file is damaged.
        """
        return read_state(self.path)

    def save(self, state: Mapping[str, Any]) -> None:
        """A checkpoint.

        Raises:
            OSError: the disk is full or read-only; the checkpoint before is untouched.
        """
        with whole(self.path / "state.pt") as partial:
            torch.save(dict(state), partial)

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """A small file of facts."""
        with whole(self.path / name) as partial:
            partial.write_text(json.dumps(values, indent=1) + "\n")

    def _agree(self, asked: dict[str, Any]) -> None:
        path = self.path / "config.toml"
        if not (self.path / "state.pt").exists():  # nothing to lose yet
            if not path.exists() and any(
                not file.name.startswith(".") for file in self.path.iterdir()
            ):
                raise ResumeError(f"{self.path} holds other files. Give a new directory with -o.")
            with whole(path) as partial:
                partial.write_text(tomli_w.dumps(without_none(asked)))
            return
        before, now = flat(read_toml(path)), flat(without_none(asked))
        usual = flat(without_none(Settings(run=Run(steps=10**9), data=Data(train="?")).to_dict()))
        for key in now.keys() & usual.keys() - before.keys():
            before[key] = usual[key]  # an older version did not know it
        for key in sorted(before.keys() | now.keys()):
            free = key.startswith("run.") and key.removeprefix("run.") in MAY_CHANGE
            if before.get(key) != now.get(key) and not free:
                raise ResumeError(
                    f"{self.path} was begun with {key} = {before.get(key)!r}, and now it is "
                    f"{now.get(key)!r}. Give the same, or a new directory with -o."
                )


def read_state(directory: Path) -> dict[str, Any] | None:
    """The state of the last checkpoint; None when there is none yet.

    Raises:
        ResumeError: the file is damaged.
    """
    path = directory / "state.pt"
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ResumeError(
            f"{path} is damaged ({error}). Put it back, or begin in a new directory."
        ) from error
    return state


def read_toml(path: Path) -> dict[str, Any]:
    """Values of a TOML file of ours.

    Raises:
        ResumeError: it is damaged.
    """
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ResumeError(f"{path} is damaged ({error}). Give a new directory with -o.") from error


def without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """What TOML can say: it has no null."""
    return {
        key: without_none(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value is not None
    }


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as table.key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


class Table:
    """train.csv: one row per validation, names in the first row and units in the second.

    Args:
        columns: name and unit.
    """

    def __init__(self, path: Path, columns: Mapping[str, str]):
        self.path, self.columns = path, columns
        self.rows: list[dict[str, float]] = []

    def rewind(self, step: int) -> None:
        """Take up the rows of an earlier run up to this step, and forget those after it."""
        if self.path.exists():
            with self.path.open(newline="") as file:
                lines = list(csv.DictReader(file))[1:]
            whole_lines = [line for line in lines if all(line.values())]
            rows = [{name: float(line[name]) for name in self.columns} for line in whole_lines]
            self.rows = [row for row in rows if row["step"] <= step]
        with whole(self.path) as partial, partial.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(self.columns)
            writer.writerow(self.columns.values())
            writer.writerows(self._texts(row) for row in self.rows)

    def add(self, row: Mapping[str, float]) -> None:
        """One row more."""
        self.rows.append(dict(row))
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow(self._texts(row))

    def _texts(self, row: Mapping[str, float]) -> list[str]:
        return [f"{row[name]:.8g}" for name in self.columns]

"""A campaign is a directory.

campaign.toml     settings, model hash, versions of everything that changes a number
ledger.sqlite     who the candidates are, and how far each has come
results/          a parquet part per finished chunk
work/             checkpoints of chunks at work; locks of living workers
report/           tables, figures, a page
"""

from __future__ import annotations

import fcntl
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import tomli_w

from dpa4sim.errors import ResumeError
from dpa4sim.pool.checkpoint import whole
from dpa4sim.screen.ingest import is_complete
from dpa4sim.screen.ledger import Ledger
from dpa4sim.screen.settings import Settings, agree, from_dict, versions
from dpa4sim.screen.table import RESULTS, read_part

FORMAT = 1
REMEDY = "Give the same, or begin in a new directory."
RESTORE = "Put back what was there, or begin in a new directory."


class Campaign:
    """An open campaign; see `begin` and `open_campaign`."""

    def __init__(self, directory: Path, settings: Settings, read_only: bool = False):
        self.directory, self.settings = directory, settings
        self.ledger = Ledger(directory / "ledger.sqlite", read_only)

    def close(self) -> None:
        """Let go of the ledger."""
        self.ledger.close()

    def __enter__(self) -> Campaign:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def parts(self) -> Path:
        """Folder of the results."""
        return self.directory / "results"

    @property
    def work(self) -> Path:
        """Folder of what is on its way."""
        return self.directory / "work"

    @property
    def report(self) -> Path:
        """Folder of the report."""
        return self.directory / "report"

    def check_model(self, found: str) -> None:
        """Refuse another model, other versions, and settings that were edited.

        Args:
            found: hash of the model that is at hand.

        Raises:
            ResumeError: something differs; the message names it.
        """
        asked = self.settings.model.hash
        agree(self.directory, {"model.hash": asked}, {"model.hash": found}, REMEDY)
        self.check_versions()

    def check_versions(self) -> None:
        """Refuse to go on with other versions than those of the beginning.

        Raises:
            ResumeError: one differs; the message names it.
        """
        before = _flat({"versions": _read(self.directory)["versions"]})
        agree(self.directory, before, _flat({"versions": versions()}), "Install that version.")

    def results(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Everything that is known until now, by candidate number.

        Relaxed structures that are equal to an earlier one carry the flag `duplicate`.

        Args:
            columns: leave out others; None for all.

        Raises:
            ResumeError: a part is damaged.
        """
        schema = RESULTS if columns is None else pa.schema([RESULTS.field(c) for c in columns])
        table = pa.concat_tables([schema.empty_table(), *self._parts(columns)])
        return _with_twins(table, self.ledger.twins())

    def select(self, numbers: Sequence[int]) -> pa.Table:
        """Rows of some candidates, without holding the others in memory.

        Raises:
            ResumeError: a part is damaged.
        """
        wanted = pa.array(numbers, type=pa.int64())
        tables = [table.filter(pc.is_in(table["id"], wanted)) for table in self._parts(None)]
        return pa.concat_tables([RESULTS.empty_table(), *tables])

    def _parts(self, columns: Sequence[str] | None) -> Iterator[pa.Table]:
        for part in self.ledger.parts():
            yield read_part(self.parts / part.name, part.size, part.digest, columns)


def begin(directory: str | Path, settings: Settings) -> Campaign:
    """Make a campaign, or open one that was begun in the same way.

    Raises:
        ResumeError: the directory holds something else, or a campaign with other settings.
    """
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise ResumeError(f"{directory} is a file. Give the name of a folder.")
    described = {"format": FORMAT, **settings.to_dict(), "versions": versions()}
    if (directory / "campaign.toml").exists():
        agree(directory, _flat(_read(directory)), _flat(described), REMEDY)
    else:
        if directory.exists() and any(not f.name.startswith(".") for f in directory.iterdir()):
            raise ResumeError(f"{directory} holds other files. Give a new directory.")
        with writable(directory):
            directory.mkdir(parents=True, exist_ok=True)
            with whole(directory / "campaign.toml") as partial:
                partial.write_text(tomli_w.dumps(described))
    return open_campaign(directory)


def open_campaign(directory: str | Path, read_only: bool = False) -> Campaign:
    """A campaign that was begun.

    Raises:
        ResumeError: there is none, or its settings were edited.
    """
    directory = Path(directory)
    described = _read(directory)
    chosen = {key: described[key] for key in ("model", "candidates", "relax", "hull")}
    campaign = Campaign(directory, from_dict(chosen), read_only)
    text = json.dumps(_flat(described), sort_keys=True)
    with _closed_on_error(campaign):
        before = campaign.ledger.fact("settings")
        if before is None and not read_only:
            before = campaign.ledger.settle("settings", text)
        if before is not None:
            agree(directory, json.loads(before), json.loads(text), RESTORE)
        if not read_only:
            with writable(directory):
                campaign.parts.mkdir(exist_ok=True)
                campaign.work.mkdir(exist_ok=True)
    return campaign


def check_complete(campaign: Campaign) -> None:
    """Refuse a campaign whose candidates are not all read.

    Raises:
        ResumeError: ingest was interrupted.
    """
    if not is_complete(campaign.ledger):
        raise ResumeError(
            f"{campaign.directory} has not read all its candidates. Give the command that began "
            "it again; it goes on where it was."
        )


@contextmanager
def alone(campaign: Campaign) -> Iterator[None]:
    """Work that one process does for all; others wait until it is done."""
    with writable(campaign.directory), (campaign.directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def writable(directory: Path) -> Iterator[None]:
    """A full disk or a folder that cannot be written, in our words."""
    try:
        yield
    except OSError as error:
        raise ResumeError(cannot_write(directory, error)) from error


def cannot_write(directory: Path, error: OSError) -> str:
    """What to say when a campaign cannot be written."""
    what = error.strerror or str(error)
    where = error.filename or directory
    return (
        f"{where} cannot be written: {what}. What was stored is safe; make room on the disk or "
        "the folder writable, then type the same command again."
    )


@contextmanager
def _closed_on_error(campaign: Campaign) -> Iterator[None]:
    try:
        yield
    except BaseException:
        campaign.close()
        raise


def _read(directory: Path) -> dict[str, Any]:
    path = directory / "campaign.toml"
    try:
        found = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ResumeError(
            f"{directory} is no campaign: it has no campaign.toml. Type: dpa4sim screen init "
            f"{directory} --model MODEL --candidates FILES."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ResumeError(f"{path} is damaged ({error}). {RESTORE}") from error
    missing = [key for key in ("model", "candidates", "relax", "hull") if key not in found]
    if found.get("format") != FORMAT or missing:
        raise ResumeError(
            f"{path} has the format {found.get('format')!r} or lacks a table; this version reads "
            f"{FORMAT}, with [model], [candidates], [relax], [hull] and [versions]. {RESTORE}"
        )
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as table.key, in the words of JSON."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = list(value) if isinstance(value, tuple) else value
    return found


def _with_twins(table: pa.Table, twins: Mapping[int, int]) -> pa.Table:
    """Mark relaxed structures that are equal to an earlier one."""
    if not twins or not {"id", "flags", "duplicate_of"} <= set(table.column_names):
        return table
    numbers = table["id"].to_pylist()
    flags = [
        [*old, "duplicate"] if number in twins else old
        for number, old in zip(numbers, table["flags"].to_pylist(), strict=True)
    ]
    firsts = [
        twins.get(number, old)
        for number, old in zip(numbers, table["duplicate_of"].to_pylist(), strict=True)
    ]
    for name, values in (("flags", flags), ("duplicate_of", firsts)):
        place = table.column_names.index(name)
        field = table.schema.field(place)
        table = table.set_column(place, field, pa.array(values, type=field.type))
    return table

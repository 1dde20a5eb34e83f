"""Entries of a large JSON file, one by one.

pymatgen writes NaN into its JSON (uncertainties that nobody knows), which is none by the standard:
streaming parsers stop there.  Python's own decoder reads it, and is asked here for one value after
the other.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Any

from dpa4sim.errors import DataError

CHUNK = 1 << 20
"""Characters read at once; doubled while one value is longer."""

SPACE = " \t\r\n"
COLUMNS = ("entry", "computed_structure_entry")
"""Of tables, one of which holds the entries."""


def entries_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and entries of a file.

    Raises:
        DataError: the file cannot be read, or something in it is no entry.
    """
    from monty.io import zopen

    name = "0"
    try:
        with zopen(path, mode="rt", encoding="utf-8") as stream:
            for name, value in _values(_Scanner(stream)):
                if not isinstance(value, dict) or not ({"composition", "structure"} & set(value)):
                    raise DataError(
                        f"{path} entry {name} is no computed entry: it has no composition. "
                        "Give pymatgen ComputedEntry or ComputedStructureEntry objects."
                    )
                yield name, value
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}. Give a JSON file.") from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is no JSON after entry {name}: {error.msg}. Repair or download it again."
        ) from None


class _Scanner:
    """A text, seen through a window that moves on."""

    def __init__(self, stream: IO[Any]):
        self._stream, self._text, self._at = stream, "", 0
        self._decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in SPACE:
                self._at += 1
            if self._at < len(self._text) or not self._more(CHUNK):
                return self._text[self._at : self._at + 1]

    def skip(self, valid: str) -> str:
        """The next character, which must be one of these."""
        found = self.peek()
        if not found or found not in valid:
            raise json.JSONDecodeError(f"found {found or 'the end'!r}, not one of {valid}", "", 0)
        self._at += 1
        return found

    def value(self) -> Any:
        """The next value as a whole."""
        self.peek()
        size = CHUNK
        while True:
            try:
                value, end = self._decode(self._text, self._at)
                # a number that ends with the window may go on after it
                if end < len(self._text) or not self._more(size):
                    self._at = end
                    return value
            except json.JSONDecodeError:
                if not self._more(size):
                    raise
            size *= 2

    def _more(self, size: int) -> bool:
        new = self._stream.read(size)
        self._text, self._at = self._text[self._at :] + new, 0
        return bool(new)


def _values(scanner: _Scanner) -> Iterator[tuple[str, Any]]:
    """Entries with their names, whatever way they are kept."""
    first = scanner.peek()
    if first == "[":
        yield from _list(scanner)
    elif first == "{":
        rest = yield from _table(scanner)
        if _is_line(rest):
            yield "0", _unwrapped(rest)
            for index, line in enumerate(_lines(scanner), start=1):
                yield str(index), _unwrapped(line)
    elif first:
        raise json.JSONDecodeError(f"found {first!r}, not a list or a table", "", 0)
    if left := scanner.peek():
        raise json.JSONDecodeError(f"found {left!r} after the end", "", 0)


def _list(scanner: _Scanner) -> Iterator[tuple[str, Any]]:
    scanner.skip("[")
    index, ends = 0, scanner.peek() == "]"
    if ends:
        scanner.skip("]")
    while not ends:
        yield str(index), scanner.value()
        index += 1
        ends = scanner.skip(",]") == "]"


def _table(
    scanner: _Scanner, columns: tuple[str, ...] = COLUMNS
) -> Generator[tuple[str, Any], None, dict[str, Any]]:
    """The entries among the values of a table or of one of its columns; returns what is none."""
    rest: dict[str, Any] = {}
    for key in _keys(scanner):
        if key in columns and scanner.peek() == "{":
            inner = yield from _table(scanner, ())
            if inner:
                rest[key] = inner
            continue
        value = scanner.value()
        if not rest and isinstance(value, dict) and "energy" in value:
            yield key, value
        else:
            rest[key] = value
    return rest


def _keys(scanner: _Scanner) -> Iterator[str]:
    """The keys of a table; the caller takes the value after each."""
    scanner.skip("{")
    ends = scanner.peek() == "}"
    if ends:
        scanner.skip("}")
    while not ends:
        if scanner.peek() != '"':
            scanner.skip('"')
        key = scanner.value()
        scanner.skip(":")
        yield key
        ends = scanner.skip(",}") == "}"


def _lines(scanner: _Scanner) -> Iterator[Any]:
    while scanner.peek():
        yield scanner.value()


def _is_line(found: dict[str, Any]) -> bool:
    """Whether it is one entry, perhaps in a column, and no table of columns."""
    return isinstance(found.get("energy"), int | float) or bool(set(COLUMNS) & set(found))


def _unwrapped(line: Any) -> Any:
    """An entry, or the entry in a column of a line, under the line's own name."""
    if isinstance(line, dict):
        for column in COLUMNS:
            if isinstance(line.get(column), dict):
                return {**line[column], "entry_id": line.get("material_id")}
    return line

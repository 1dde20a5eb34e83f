"""Settings from plain values, as TOML and JSON give them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from dpa4sim.errors import ConfigError


def from_mapping[Settings](
    cls: type[Settings], values: Mapping[str, Any], where: str, prefix: str = ""
) -> Settings:
    """A frozen dataclass from plain values, as TOML gives them; nested where its fields are.

    Args:
        where: what the values are from, for messages.
        prefix: key of the table that they are in, with a dot.

    Raises:
        ConfigError: an unknown key (with the nearest valid one) or a value of another type.
    """
    hints = get_type_hints(cls)
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    found = {}
    for key, value in values.items():
        if key not in names:
            near = difflib.get_close_matches(key, names, 1)
            hint = f"Did you mean '{prefix}{near[0]}'?" if near else f"Valid: {', '.join(names)}."
            raise ConfigError(f"{where} has an unknown key '{prefix}{key}'. {hint}")
        if not is_dataclass(hints[key]):
            found[key] = _coerce(hints[key], value, prefix + key)
        elif isinstance(value, Mapping):
            found[key] = from_mapping(hints[key], value, where, f"{prefix}{key}.")  # type: ignore[arg-type]
        else:
            raise ConfigError(f"{prefix}{key} = {value!r} should be a table, [{prefix}{key}].")
    missing = [
        field.name
        for field in fields(cls)  # type: ignore[arg-type]
        if field.name not in found and field.default is MISSING and field.default_factory is MISSING
    ]
    if missing:
        raise ConfigError(f"{where} does not say '{prefix}{missing[0]}', which has no default.")
    return cls(**found)


def _coerce(hint: Any, value: Any, key: str) -> Any:
    """The value as the field's type, or a ConfigError that says what is expected."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            choices = ", ".join(map(repr, get_args(hint)))
            raise ConfigError(f"{key} = {value!r}. Choose one of {choices}.")
        return value
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{key} = {value!r} should be a list.")
        return tuple(_coerce(get_args(hint)[0], item, key) for item in value)
    if get_origin(hint) is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key} = {value!r} should be a table.")
        inner = get_args(hint)[1]
        return {name: _coerce(inner, item, f"{key}.{name}") for name, item in value.items()}
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key} = {value!r} should be a table, [{key}].")
        return from_mapping(hint, value, f"[{key}]", f"{key}.")  # type: ignore[arg-type]
    if hint is Any:
        return value
    options = get_args(hint) or (hint,)
    if float in options and type(value) is int:
        value = float(value)
    if type(value) not in options and not (value is None and type(None) in options):
        names = " or ".join(getattr(option, "__name__", str(option)) for option in options)
        raise ConfigError(f"{key} = {value!r} is a {type(value).__name__}; expected {names}.")
    return value

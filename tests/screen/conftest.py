"""Campaigns of cheap crystals."""

from __future__ import annotations

from pathlib import Path

import pytest
from ase.io import write
from screening import alloys


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Twelve crystals in one extxyz file."""
    path = tmp_path / "alloys.extxyz"
    write(path, alloys(12))
    return path

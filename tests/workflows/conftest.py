"""Recipes are modules of workflows/, which is on the path while they are tested."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

WORKFLOWS = Path(__file__).parents[2] / "workflows"


@pytest.fixture(scope="session")
def recipe() -> Iterator[Callable[[str], ModuleType]]:
    """Import a recipe by its name."""
    sys.path.insert(0, str(WORKFLOWS))
    yield importlib.import_module
    sys.path.remove(str(WORKFLOWS))

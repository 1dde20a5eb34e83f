"""python -m bench CLAIM [options]"""

import sys
from importlib import import_module
from pathlib import Path


def main() -> None:
    """Run one claim's module."""
    skip = {"__init__", "__main__", "record", "allocator", "measure", "toys", "starts", "relaxers"}
    skip |= {"deepmd_worker", "deepmd_start", "deepmd_trainer", "chgnet_worker", "chgnet_peer"}
    skip |= {"chgnet_screen_worker", "mace_worker"}
    claims = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in skip)
    if len(sys.argv) < 2 or sys.argv[1] not in claims:
        sys.exit(f"usage: python -m bench CLAIM\nclaims: {', '.join(claims)}")
    import_module(f"bench.{sys.argv[1]}").main(sys.argv[2:])


main()

"""`python -m dpa4sim` is `dpa4sim`."""

import sys

from dpa4sim.cli import main

if __name__ == "__main__":
    sys.exit(main())

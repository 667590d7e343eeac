"""`python -m meshemu` is the `meshemu` command."""

import sys

from meshemu.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())

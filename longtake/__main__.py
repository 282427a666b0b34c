"""`python -m longtake` is the command `farm`."""

from __future__ import annotations

import sys


def main() -> int:
    from cluster.cli.main import main

    return main()


if __name__ == "__main__":
    sys.exit(main())

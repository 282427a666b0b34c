"""`python -m longtake` is the command `farm`."""

from __future__ import annotations

import sys


def main() -> int:
    from cluster.cli.supervise import start

    return start()


if __name__ == "__main__":
    sys.exit(main())

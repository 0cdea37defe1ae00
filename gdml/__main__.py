"""The ``gdml`` command, also as ``python -m gdml``."""

import os
import sys

from .errors import INTERRUPTED


def run() -> None:
    """Run the command line and end the program with its exit code."""
    # Threads that spin for ever while they wait for each other slow training down
    # more than tenfold as soon as another program uses one of the cores; threads that
    # sleep at once, by a half always. Has to be said before torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        from .cli import main

        code = main()
    except KeyboardInterrupt:  # while torch is loaded
        code = INTERRUPTED
    sys.exit(code)


if __name__ == "__main__":
    run()

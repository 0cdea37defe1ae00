"""The ``gdml`` command, also as ``python -m gdml``."""

import os
import sys

from .errors import INTERRUPTED


def run() -> None:
    """Run the command line and end the program with its exit code."""
    # Threads that spin while they wait for each other slow training down
    # more than tenfold as soon as another program uses one of the cores. Has to be said
    # before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from .cli import main

        code = main()
    except KeyboardInterrupt:  # while torch is loaded
        code = INTERRUPTED
    sys.exit(code)


if __name__ == "__main__":
    run()

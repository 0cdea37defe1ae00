"""``python -m gdml`` is the ``gdml`` command."""

import sys

from .cli import main

sys.exit(main())

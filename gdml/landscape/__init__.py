"""The energy landscape: minima by the thousand in one batch, and the saddle points between them."""

from .exploration import explore
from .likeness import Likeness
from .optimisers import OPTIMISERS
from .points import Astray, Landscape, Modes, Point
from .relaxation import Relaxed, relax_many
from .report import as_atoms, as_text, write_csv, write_points, write_unconverged
from .saddles import Climbed, climb_many

__all__ = [
    "OPTIMISERS",
    "Astray",
    "Climbed",
    "Landscape",
    "Likeness",
    "Modes",
    "Point",
    "Relaxed",
    "as_atoms",
    "as_text",
    "climb_many",
    "explore",
    "relax_many",
    "write_csv",
    "write_points",
    "write_unconverged",
]

"""What training chooses by itself."""

from typing import NamedTuple

from .descriptors import Descriptor


class Chosen(NamedTuple):
    """Hyper-parameters, and the root mean square error of forces (eV/Å) that they had on held-out geometries.

    With a descriptor if its metric was learned, too.
    """

    length_scale: float
    error: float | None
    noise: float
    descriptor: Descriptor | None = None

"""How much memory a job takes."""

import torch

from .errors import MemoryBudgetError
from .hardware import available_memory
from .solvers.cholesky import BLOCK

# Numbers in the dual jets and columns that Fourier sums treat at a time.
FOURIER = 100 * 1024 * 1024


def closed_form_bytes(
    n_frames: int, n_labels: int, size: int, order: int, n_translations: int = 1, is_local: bool = False
) -> int:
    """Peak memory of assembly and solution in closed form.

    Parameters
    ----------
    n_frames : int
        Geometries n.
    n_labels : int
        Labels of each, L.
    size, order : int
        Length D of a descriptor; |S|.
    n_translations : int
        More than one if sums over them are done in Fourier space.
    is_local : bool
        Whether atoms are compared instead of geometries: D² is left out then.

    Returns
    -------
    int
        8 [ (nL)² + 2 n D L + n L² + 2 D² + 3 |S| (D + L) + 2 b nL ]: the matrix, the
        labels' duals, a column of blocks, the intermediates of a pair of
        geometries, and columns of width b in the factorisation. With Fourier sums
        the intermediates are of a fixed size.
    """
    matrix = (n_frames * n_labels) ** 2
    duals = 2 * n_frames * size * n_labels
    column = n_frames * n_labels**2
    if n_translations > 1:
        duals, column = min(duals, FOURIER), column + FOURIER
    else:
        column += (0 if is_local else 2 * size**2) + 3 * order * (size + n_labels)
    factorisation = 2 * min(BLOCK, n_frames * n_labels) * n_frames * n_labels
    return 8 * (matrix + duals + column + factorisation)


def check_closed_form(
    n_frames: int,
    n_labels: int,
    size: int,
    order: int,
    n_translations: int = 1,
    is_local: bool = False,
    device: torch.device | str = "cpu",
) -> int:
    """The predicted peak memory in bytes, if it fits on the device.

    Raises
    ------
    MemoryBudgetError
        If it does not; the message says how many geometries would.
    """
    budget = available_memory(device)

    def bytes_of(n: int) -> int:
        return closed_form_bytes(n, n_labels, size, order, n_translations, is_local)

    needed = bytes_of(n_frames)
    if needed <= budget:
        return needed
    fits = n_frames
    while fits > 1 and bytes_of(fits) > budget:
        fits = min(fits - 1, int(fits * (budget / bytes_of(fits)) ** 0.5) + 1)
    raise MemoryBudgetError(
        f"{n_frames} geometries with {n_labels} labels each need {needed / 1e9:.1f} GB in closed form, "
        f"and {budget / 1e9:.1f} GB are available; {fits} geometries would fit"
    )

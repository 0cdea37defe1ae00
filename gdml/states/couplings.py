r"""How much states have in common, learned by marginal likelihood.

Labels y of all states have the covariance :math:`M = K \circ C + λ I`, with K the kernel between
all geometries and C the couplings of their states. With the best amplitude, the negative
logarithm of the marginal likelihood for each of N labels is

.. math:: \tfrac12 \log y^T M^{-1} y + \tfrac1{2N} \log\det M .

Its derivative by :math:`C_{st}` is the sum of :math:`G \circ K` over the block of the states s and
t, with G that by M. The couplings are :math:`C = L L^T` with a lower triangular L, the
logarithms of whose diagonal are parameters, and are scaled to a mean diagonal of one.

Sources: E. V. Bonilla, K. M. A. Chai and C. K. I. Williams, Adv. Neural Inf. Process. Syst. 20,
153 (2008), for the product of kernels; Rasmussen and Williams, Gaussian Processes for Machine
Learning (2006), ch. 5, for the likelihood.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from torch import Tensor

from ..errors import FitError
from ..metric import likelihood

MAX_STEPS, SETTLED = 50, 1e-6
START = 0.7  # correlation of all states, to start with
FREEDOM = 12.0  # of the logarithms of the diagonal of L: correlations up to 1 - 1e-10
FAILED = 1e3  # objective where the matrix is singular
ROUNDING = 1e-10  # of the largest eigenvalue, that the smallest may be below zero


def check_couplings(couplings: ArrayLike, states: tuple) -> np.ndarray:
    """Couplings (S, S) as an array, if they are a covariance of these states.

    Raises
    ------
    FitError
    """
    try:
        found = np.array(couplings, dtype=float)
    except (TypeError, ValueError) as error:
        raise FitError(f"couplings are 'auto' or a matrix between the states, not {couplings!r}") from error
    n = len(states)
    if found.shape != (n, n):
        raise FitError(f"couplings of {n} states ({name_states(states)}) have the shape {(n, n)}, not {found.shape}")
    if not np.isfinite(found).all():
        raise FitError("couplings contain NaN or infinite values")
    if not np.allclose(found, found.T, rtol=1e-10, atol=1e-12 * np.abs(found).max()):
        raise FitError("couplings must be symmetric: what one state says of another, that says of it")
    if not (found.diagonal() > 0).all():
        raise FitError(f"couplings of states with themselves must be positive, and they are {found.diagonal()}")
    smallest, *_, largest = np.linalg.eigvalsh(found)
    if smallest < -ROUNDING * largest:
        raise FitError(
            f"couplings must be positive semidefinite, and they have the eigenvalue {smallest:.3g}; the coupling of "
            "two states must not be larger than the root of the product of those with themselves"
        )
    return found


def name_states(states: tuple) -> str:
    """The states, for messages."""
    return ", ".join(map(repr, states))


class Evidence:
    """The marginal likelihood of labels of several states, as a function of their couplings.

    Parameters
    ----------
    matrix : (n L, n L) tensor
        K, between the labels of all geometries, without states or noise.
    y : (n, L) tensor
        The labels.
    states : (n,) int tensor
        The place of each geometry's state.
    n_states : int
    noise : float
    """

    def __init__(self, matrix: Tensor, y: Tensor, states: Tensor, n_states: int, noise: float):
        self.matrix, self.y, self.states, self.noise = matrix, y, states, noise
        self.of_state = torch.nn.functional.one_hot(states, n_states).to(y.dtype)

    def at(self, couplings: Tensor) -> tuple[float, Tensor]:
        """The negative logarithm for each label, and its derivative by the couplings (S, S)."""
        n, n_labels = self.y.shape
        factors = couplings[self.states][:, self.states]
        factors = factors.repeat_interleave(n_labels, 0).repeat_interleave(n_labels, 1)
        product = self.matrix * factors
        product.diagonal().add_(self.noise)
        factor, info = torch.linalg.cholesky_ex(product)
        if info:
            return FAILED, torch.zeros_like(couplings)
        value, slope = likelihood(factor, product, self.y)
        blocks = slope.mul_(self.matrix).view(n, n_labels, n, n_labels).sum((1, 3))
        return float(value), self.of_state.mT @ blocks @ self.of_state

    def best(self, start: Tensor | None = None) -> tuple[Tensor, float]:
        """The couplings (S, S) of the largest likelihood, and its negative logarithm for each label.

        Raises
        ------
        FitError
            If the matrix is singular with the couplings to start with.
        """
        start = self.guess() if start is None else start
        lower, n = torch.linalg.cholesky(start), len(start)
        corner = torch.arange(n)
        lower[corner, corner] = lower.diagonal().log()
        places = torch.tril_indices(n, n)
        on_diagonal = places[0] == places[1]
        theta = lower[places[0], places[1]].numpy()
        bounds = [(t - FREEDOM, t + FREEDOM) if d else (None, None) for t, d in zip(theta, on_diagonal)]
        if self.at(start)[0] == FAILED:
            raise FitError("the kernel matrix of the states is singular; raise the noise, or shorten the length scale")
        options = {"maxiter": MAX_STEPS, "ftol": SETTLED}
        found = minimize(self._objective, theta, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        return couplings_at(torch.tensor(found.x), n), float(found.fun)

    def _objective(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = torch.tensor(theta).requires_grad_()
        with torch.enable_grad():
            couplings = couplings_at(parameters, self.of_state.shape[1])
        value, slope = self.at(couplings.detach())
        (couplings * slope).sum().backward()
        return value, parameters.grad.numpy()

    def guess(self) -> Tensor:
        """Couplings to start with: the states' sizes as their labels', and equal correlations."""
        squares = self.of_state.mT @ self.y.square().mean(1) / self.of_state.sum(0)
        size = squares.clamp(min=1e-12 * float(squares.max())).sqrt()
        correlation = torch.full((len(size),) * 2, START, dtype=size.dtype).fill_diagonal_(1.0)
        return _normalised(correlation * size * size[:, None])


def couplings_at(theta: Tensor, n_states: int) -> Tensor:
    """Couplings (S, S) from parameters (S (S + 1) / 2,): the lower triangle of L, on its diagonal logarithms."""
    rows, columns = torch.tril_indices(n_states, n_states)
    lower = theta.new_zeros(n_states, n_states)
    lower = lower.index_put((rows, columns), torch.where(rows == columns, theta.exp(), theta))
    return _normalised(lower @ lower.mT)


def _normalised(couplings: Tensor) -> Tensor:
    return couplings * (len(couplings) / couplings.trace())


def correlation(couplings: np.ndarray) -> np.ndarray:
    """Correlations (S, S) of states, from their couplings."""
    size = np.sqrt(couplings.diagonal())
    return couplings / size / size[:, None]

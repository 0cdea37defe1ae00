"""The Gaussian process of a force field as a dense matrix, from energies of its kernel alone."""

import torch


def dense_blocks(field, points) -> torch.Tensor:
    """Covariance (P (1 + 3N), ...) of energies and slopes at P points, the derivatives by autograd."""
    rows = torch.tensor(field.descriptor.action(field.group).rows())

    def descriptor(r):
        return field.descriptor.evaluate(r[None]).x[0]

    def kernel(r, other):
        away = (descriptor(r) - descriptor(other)[rows]).square().sum(1)
        return field.kernel.profile((away + 1e-14).sqrt())[0].sum()

    def block(a, b):
        value = kernel(a, b)
        row = torch.func.grad(kernel, 1)(a, b).flatten()
        column = torch.func.grad(kernel, 0)(a, b).flatten()
        both = torch.func.jacfwd(torch.func.grad(kernel, 0), 1)(a, b).reshape(len(column), -1)
        return torch.cat([torch.cat([value[None], row])[None], torch.cat([column[:, None], both], 1)])

    points = [torch.tensor(p) for p in points]
    whole = torch.stack([torch.stack([block(a, b) for b in points]) for a in points]).permute(0, 2, 1, 3)
    return whole.flatten(0, 1).flatten(1)


def conditioned(whole, observe, ask, noise: float) -> torch.Tensor:
    """Covariance of what is asked for, given what is observed; rows of both say what they are made of."""
    inner = observe @ whole @ observe.T
    inner.diagonal().add_(noise)
    cross = observe @ whole @ ask.T
    return ask @ whole @ ask.T - cross.T @ torch.linalg.solve(inner, cross)

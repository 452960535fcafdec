"""Muon, an optimiser for weights that are matrices: its step is as long along each singular direction.

Adam looks at every weight for itself. A gradient of a matrix of weights, though, has directions, some of them
many times as strong as others, and what the weak ones ask for is drowned. Muon takes the running mean of the
gradients and brings its singular values near to one, so that rare directions are learned as fast as common
ones. What that is worth for the autoencoders of this book is measured in chapter 13.

Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024, first shown on convolutions;
PyTorch's own ``torch.optim.Muon`` takes parameters of two dimensions only. The length of a step follows Liu
et al., "Muon is scalable for LLM training", 2025.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

#: Coefficients of the odd polynomial ``a s + b s^3 + c s^5`` that is applied five times to all singular
#: values, once the matrix has been divided by its Frobenius norm. Values from 0.0015 on end between 0.68 and
#: 1.21, which does as well as 1; smaller ones grow 480-fold. (Jordan et al.)
POLYNOMIAL = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised.

    Parameters
    ----------
    params
        Weights with two dimensions or more. The first are the rows of a matrix, all others together its
        columns: a filter of a convolution is a row, and so is an input channel of a transposed convolution.
    lr
        Learning rate, at least 0. The root mean square of a step is about a fifth of it, as is usual for
        Adam's steps, so that one schedule serves both.
    weight_decay
        Decoupled weight decay, at least 0.
    momentum
        Decay of the running mean of the gradients, in [0, 1). The step looks one gradient ahead (Nesterov).

    Raises
    ------
    ValueError
        If a parameter is a vector or a setting is out of its range.

    Notes
    -----
    Explained in chapter 13.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of weights, with settings of its own or those of the optimiser."""
        super().add_param_group(param_group)
        try:
            self._check(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    @staticmethod
    def _check(group: dict[str, Any]) -> None:
        if not group["lr"] >= 0 or not group["weight_decay"] >= 0 or not 0 <= group["momentum"] < 1:
            raise ValueError(
                "lr and weight_decay must not be negative and momentum must lie in [0, 1), got "
                f"{group['lr']}, {group['weight_decay']} and {group['momentum']}"
            )
        for weight in group["params"]:
            if weight.ndim < 2:
                raise ValueError(f"Muon takes matrices, got a parameter of shape {tuple(weight.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Change all weights that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            # Matrices of one shape are orthogonalised together: many small products are slow one by one.
            alike: dict[Any, list[Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    alike[weight.shape, weight.dtype, weight.device].append(weight)
            for weights in alike.values():
                ahead = torch.stack([self._average(w, group["momentum"]).flatten(1) for w in weights])
                # Orthonormal rows or columns have entries with a mean square of 1 / (the longer side).
                length = group["lr"] * 0.2 * math.sqrt(max(ahead.shape[1:]))
                for weight, direction in zip(weights, orthogonalised(ahead), strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(direction.view(weight.shape), alpha=-length)
        return loss

    def _average(self, weight: Tensor, momentum: float) -> Tensor:
        """Update the running mean of the gradients; what it will be if the next gradient is like this one."""
        assert weight.grad is not None
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        mean = state["momentum_buffer"].lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(mean, momentum)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Matrices ``(N, rows, columns)`` with the same singular vectors and singular values near 1, where they
    were not tiny.

    The polynomial acts on singular values through products of a matrix with itself. All of them are taken on
    the small side: with ``G`` the Gram matrix ``M M^T``, ``a M + b M M^T M + c M M^T M M^T M = (a + b G + c
    G^2) M``, and ``G`` turns into ``(a + b G + c G^2) G (a + b G + c G^2)``. Rounding makes some
    eigenvalues of G that should be 0 negative, and with each iteration they would grow twelvefold; so G is
    computed anew halfway.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalised(matrices.mT).mT
    a, b, c = POLYNOMIAL
    matrices = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    gram = matrices @ matrices.mT
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    first, factor = a * identity, identity.expand_as(gram)
    for iteration in range(ITERATIONS):
        if iteration == ITERATIONS // 2:
            matrices = factor @ matrices
            gram, factor = matrices @ matrices.mT, identity.expand_as(gram)
        # Fused, because the products are small and every call costs as much as one.
        polynomial = torch.baddbmm(torch.add(first, gram, alpha=b), gram, gram, alpha=c)
        factor = polynomial @ factor
        gram = polynomial @ gram @ polynomial
    return factor @ matrices

"""Autoencoders of vectors: a multilayer perceptron and the linear autoencoder (PCA).

Both offer ``encode``, ``decode`` and ``forward = decode(encode(.))``, and keep their layers in two plain
``nn.Sequential``, so that their weights can be written down and run elsewhere in a few lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Activation = Literal["relu", "tanh", "silu"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU}


class MLPAutoencoder(nn.Module):
    """Fully connected autoencoder ``size -> hidden -> code -> reversed hidden -> size``.

    Parameters
    ----------
    size : int
        Length ``n`` of a sample.
    code : int
        Length of the code. Smaller than ``size`` it is a bottleneck; larger, the network can learn the
        identity.
    hidden : sequence of int, default (256,)
        Widths of the hidden layers of the encoder; the decoder has the same in reverse.
    activation : {"relu", "tanh", "silu"}, default "relu"
        Non-linearity after every hidden layer. The output layer is linear. Take a smooth one where second
        derivatives matter.
    activate_code : bool, default False
        Whether the code passes through the activation too. A code without it is a linear bottleneck; with
        "relu" it is non-negative and can be exactly zero, which sparse codes need.
    generator : torch.Generator, optional
        Source of the initial weights; without it they come from torch's global generator.

    Attributes
    ----------
    encoder, decoder : nn.Sequential
        ``nn.Linear`` layers with the activations between them.

    Raises
    ------
    ValueError
        If a width is not positive or the activation is unknown.

    Notes
    -----
    Explained in chapter 2. Widths and activation are the book's own choice.
    """

    def __init__(
        self,
        size: int,
        code: int,
        hidden: Sequence[int] = (256,),
        activation: Activation = "relu",
        activate_code: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; choose one of {', '.join(get_args(Activation))}")
        widths = [size, *hidden, code]
        if min(widths) < 1:
            raise ValueError(f"size, hidden and code must be at least 1, got {widths}")
        self.activation = activation
        self.encoder = _perceptron(widths, activation)
        self.decoder = _perceptron(widths[::-1], activation)
        if activate_code:
            self.encoder.append(_ACTIVATIONS[activation]())
        if generator is not None:
            initialise(self, generator)

    def encode(self, x: Tensor) -> Tensor:
        """Codes ``(B, code)`` of a batch ``(B, n)``."""
        return self.encoder(x)

    def decode(self, code: Tensor) -> Tensor:
        """Samples ``(B, n)`` of codes ``(B, code)``."""
        return self.decoder(code)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructions ``(B, n)`` of a batch ``(B, n)``."""
        return self.decode(self.encode(x))


def _perceptron(widths: Sequence[int], activation: Activation) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), _ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


@torch.no_grad()
def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Redraw every ``nn.Linear`` of ``model`` in place, uniform in ``+-1 / sqrt(inputs)`` as torch does.

    A generator of its own makes the initial weights independent of whatever ran before in the process.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            for parameter in layer.parameters():
                drawn = torch.rand(parameter.shape, generator=generator, device=generator.device)
                parameter.copy_(bound * (2 * drawn - 1))


class LinearAutoencoder(nn.Module):
    """Affine autoencoder ``decode(encode(x)) = V (U x + a) + b`` with a code of length ``code``.

    Trained to reconstruct, it ends at the subspace of PCA, which :meth:`from_pca` computes directly.

    Parameters
    ----------
    size : int
        Length ``n`` of a sample.
    code : int
        Length of the code, the rank of the map.

    Notes
    -----
    Explained in chapter 2.
    """

    def __init__(self, size: int, code: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(size, code)
        self.decoder = nn.Linear(code, size)

    @classmethod
    def from_pca(cls, samples: Tensor, code: int) -> LinearAutoencoder:
        """The least-squares optimum: orthogonal projection to the mean plus the first ``code`` principal
        directions.

        Parameters
        ----------
        samples : Tensor, ``(N, n)``
            Training samples. The model gets their dtype and device.
        code : int, at most ``min(N, n)``
            Number of principal directions kept.

        Raises
        ------
        ValueError
            If ``code`` exceeds the number of directions that the samples have.
        """
        count, size = samples.shape
        if not 1 <= code <= min(count, size):
            raise ValueError(
                f"code is {code}; {count} samples of length {size} allow 1 to {min(count, size)}"
            )
        mean = samples.mean(0)
        # Rows of `directions` are orthonormal, so encoder and decoder are transposes of one another.
        directions = torch.linalg.svd(samples - mean, full_matrices=False).Vh[:code]
        model = cls(size, code).to(samples)
        with torch.no_grad():
            model.encoder.weight.copy_(directions)
            model.encoder.bias.copy_(-directions @ mean)
            model.decoder.weight.copy_(directions.T)
            model.decoder.bias.copy_(mean)
        return model

    def encode(self, x: Tensor) -> Tensor:
        """Codes ``(B, code)`` of a batch ``(B, n)``."""
        return self.encoder(x)

    def decode(self, code: Tensor) -> Tensor:
        """Samples ``(B, n)`` of codes ``(B, code)``."""
        return self.decoder(code)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructions ``(B, n)`` of a batch ``(B, n)``."""
        return self.decode(self.encode(x))

"""Autoencoders of vectors: a multilayer perceptron and the linear autoencoder (PCA).

Both offer ``encode``, ``decode`` and ``forward = decode(encode(.))``, and keep their layers in two plain
``nn.Sequential``, so that their weights can be written down and run elsewhere in a few lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

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


class Residual(nn.Module):
    """``x + network(x)``: the identity for free, so that the network has to learn the repair only.

    Parameters
    ----------
    network : nn.Module
        Maps ``(B, n)`` to ``(B, n)``.

    Notes
    -----
    Explained in chapter 7.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructions ``(B, n)`` of a batch ``(B, n)``."""
        return x + self.network(x)


class Ensemble(nn.Module):
    """Several autoencoders of one shape, trained side by side as one model.

    A batch is cut into as many equal parts as there are members, and each member sees its own part only. So
    any objective that treats samples one by one trains all members at once, each as if it were alone (but for
    the clipping of gradients, which is of all together, and Adam's epsilon); on small networks that is about
    twice as fast as one after the other, because large matrix products use a CPU better.

    Parameters
    ----------
    members : sequence of MLPAutoencoder
        Of equal shape. Their weights are copied.

    Notes
    -----
    Used for the tables over several seeds in chapters 6 and 7.
    """

    def __init__(self, members: Sequence[MLPAutoencoder]) -> None:
        super().__init__()
        stacked, _ = stack_module_state(list(members))
        self.stacked = nn.ParameterDict({_flat(k): nn.Parameter(p.detach()) for k, p in stacked.items()})
        # The architecture without weights; inside a list it is no submodule, so it has no part in state_dict.
        self._skeleton = [deepcopy(members[0]).to("meta")]
        self._names = list(stacked)

    def __len__(self) -> int:
        return len(next(iter(self.stacked.values())))

    def encode(self, x: Tensor) -> Tensor:
        """Codes ``(B, code)`` of a batch ``(B, n)``, part k by member k."""
        return self._run("encoder", x)

    def decode(self, code: Tensor) -> Tensor:
        """Samples ``(B, n)`` of codes ``(B, code)``, part k by member k."""
        return self._run("decoder", code)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructions ``(B, n)`` of a batch ``(B, n)``, part k by member k."""
        return self.decode(self.encode(x))

    def members(self) -> list[MLPAutoencoder]:
        """The members as models of their own, in evaluation mode."""
        weights = {name: self.stacked[_flat(name)].detach() for name in self._names}
        models = [deepcopy(self._skeleton[0]).to_empty(device="cpu") for _ in range(len(self))]
        for k, model in enumerate(models):
            model.load_state_dict({name: weight[k] for name, weight in weights.items()})
        return [model.eval() for model in models]

    def _run(self, half: str, x: Tensor) -> Tensor:
        module = getattr(self._skeleton[0], half)
        weights = {
            name.removeprefix(f"{half}."): self.stacked[_flat(name)]
            for name in self._names
            if name.startswith(f"{half}.")
        }
        parts = x.unflatten(0, (len(self), -1))
        return vmap(lambda w, part: functional_call(module, w, (part,)))(weights, parts).flatten(0, 1)


def _flat(name: str) -> str:
    # A ParameterDict takes no dots in its keys.
    return name.replace(".", "_")


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
        code : int, at most ``min(N - 1, n)``
            Number of principal directions kept.

        Raises
        ------
        ValueError
            If ``code`` exceeds the number of directions that the samples have.
        """
        count, size = samples.shape
        most = min(count - 1, size)  # centred samples have one direction fewer than there are samples
        if not 1 <= code <= most:
            raise ValueError(f"code is {code}; {count} samples of length {size} allow 1 to {most}")
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

"""One training on several processes: several GPUs, or several machines, started by PyTorch's ``torchrun``.

Every process holds the model and draws the same whole batches, with the same corruption, from the same seed.
Each applies the model to its part of a batch, and three things are put together over all processes: the
statistics of batch norm, the outputs, from which every process computes the loss of the whole batch, and the
gradients. So a step is the step of a single process, for any objective and whatever the number of processes;
only the order in which sums are rounded differs.

The first process (rank 0) decides and writes: its clock, its checkpoints and its choice of what to resume
from count for all. In a process of its own, without ``torchrun``, everything here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

P = ParamSpec("P")
T = TypeVar("T")


class ProcessError(ValueError):
    """The processes cannot train together; the message names the mend."""


class FirstProcessFailed(RuntimeError):
    """The first process raised an error, which says there what is wrong; the others end with it."""


def world_size() -> int:
    """Number of processes that train together, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among them, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that ``torchrun`` started, as its environment variables say; nothing without it.

    Tensors on the CPU go by gloo, those on GPUs by nccl. Inside, only the first process prints to standard
    output.
    """
    if not dist.is_available() or not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        yield
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    if rank() == 0:
        yield
    else:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            yield
    # Not after an error: leaving a group waits for processes that may wait for this one. It ends with its
    # error instead, and torchrun ends the others.
    dist.destroy_process_group()


def own_device(device: torch.device) -> torch.device:
    """The device of this process: of the GPUs of its machine, the one of its local rank.

    Raises
    ------
    ProcessError
        If the machine has fewer GPUs than processes.
    """
    if world_size() == 1 or device.type != "cuda":
        return device
    index, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if index >= count:
        raise ProcessError(
            f"each process needs a GPU of its own, and this machine has {count}; start with "
            f"--nproc-per-node {count}, or train with --device cpu"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def on_first(task: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Do something in the first process only, and give every process what it returned.

    All processes have to call this together. What is returned must be picklable, with tensors on the CPU.

    Raises
    ------
    FirstProcessFailed
        In the other processes, if the task raised an error, which the first process raises on: so that
        none is left waiting.
    """
    if world_size() == 1:
        return task(*arguments, **options)
    outcome: list[Any] = [False, None]
    if rank() == 0:
        try:
            outcome = [True, task(*arguments, **options)]
        finally:
            dist.broadcast_object_list(outcome)
    else:
        dist.broadcast_object_list(outcome)
        if not outcome[0]:
            raise FirstProcessFailed("the first process failed and says why")
    return outcome[1]


def agree(clock: float, stop: bool = False) -> tuple[float, bool]:
    """The clock of the first process, in seconds, and whether any process was asked to stop."""
    if world_size() == 1:
        return clock, stop
    both = torch.tensor([clock if rank() == 0 else -torch.inf, stop], dtype=torch.float64)
    dist.all_reduce(both, dist.ReduceOp.MAX)
    return float(both[0]), bool(both[1])


def require_same(values: dict[str, Any]) -> None:
    """Refuse to train together what is not the same in all processes.

    Parameters
    ----------
    values
        By name, what has to be the same; picklable.

    Raises
    ------
    ProcessError
        In every process, if a value differs; names it.
    """
    if world_size() == 1:
        return
    everywhere: list[Any] = [None] * world_size()
    dist.all_gather_object(everywhere, values)
    for name in values:
        for other, its in enumerate(everywhere):
            if its[name] != everywhere[0][name]:
                raise ProcessError(
                    f"process {other} has other {name} than process 0; start all machines with the same "
                    "command, data and versions"
                )


def require_divisible(batch: int) -> None:
    """Refuse a batch that cannot be divided into equal parts, one for each process.

    Raises
    ------
    ProcessError
        Names the numbers of processes that are possible.
    """
    if batch % world_size():
        possible = ", ".join(str(n) for n in range(1, batch + 1) if batch % n == 0)
        raise ProcessError(
            f"a batch of {batch} cannot be divided evenly among {world_size()} processes; start one of "
            f"{possible} processes in all"
        )


class DataParallelModel:
    """A model as a function of whole batches that all processes compute together.

    Called with the same whole batch in every process, ``(B, ...)``, it gives the output of the whole batch in
    every process. A loss computed from it, the same in every process, leaves the gradient of that loss in
    each: ``DistributedDataParallel`` averages the gradients, and that of a gathered tensor is the sum over
    the losses of all processes.

    Parameters
    ----------
    model
        In training mode; its weights become those of the first process.

    Raises
    ------
    ProcessError
        When called, if the batch cannot be divided by the number of processes.
    """

    def __init__(self, model: nn.Module) -> None:
        self.replica = nn.parallel.DistributedDataParallel(model)
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        self.forwards = [(norm, partial(_batch_norm, norm)) for norm in norms]

    def __call__(self, batch: Tensor) -> Tensor:
        """``(B, ...)`` to the output of all of it."""
        require_divisible(len(batch))
        part = batch.chunk(world_size())[rank()]
        # For this call only, so that the model, its names and its other uses stay what they are.
        for norm, forward in self.forwards:
            norm.__dict__["forward"] = forward
        try:
            output = self.replica(part)
        finally:
            for norm, _ in self.forwards:
                del norm.__dict__["forward"]
        # Losses are computed in float32 at least, and not every backend sums anything shorter.
        return _Gather.apply(_wide(output))


class _Gather(torch.autograd.Function):
    """Parts ``(n, ...)``, one in each process, to the whole ``(world_size * n, ...)`` in every process."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # A part counts in the losses of all processes.
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(world_size())[rank()]


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _batch_norm(norm: _BatchNorm, x: Tensor) -> Tensor:
    """Batch norm of this process's part ``(n, C, ...)`` with the statistics of the whole batch.

    PyTorch's ``SyncBatchNorm`` does this on GPUs only; one way for all devices is tested on a CPU.
    """
    if not norm.training:
        return type(norm).forward(norm, x)
    wide = _wide(x)
    dims = [dim for dim in range(x.ndim) if dim != 1]
    parts = _Gather.apply(torch.stack(torch.var_mean(wide, dims, correction=0)).unsqueeze(0))
    variances, means = parts.unbind(1)
    mean = means.mean(0)
    # The variance within the parts and the variance between them.
    variance = (variances + (means - mean).square()).mean(0)
    if norm.track_running_stats:
        _follow(norm, mean.detach(), variance.detach(), count=world_size() * x.numel() // x.shape[1])
    scale = (variance + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight
    shift = -mean * scale
    if norm.affine:
        shift = shift + norm.bias
    shape = [-1 if dim == 1 else 1 for dim in range(x.ndim)]
    return torch.addcmul(shift.view(shape), wide, scale.view(shape)).to(x.dtype)


def _follow(norm: _BatchNorm, mean: Tensor, variance: Tensor, count: int) -> None:
    """Let the running statistics follow those ``(C,)`` of a batch of ``count`` values for each channel."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    momentum = 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, momentum)
    norm.running_var.lerp_(variance * (count / (count - 1)), momentum)

"""A second device on a machine that has only one: tensors that say they lie on a GPU, and behave so.

Nobody who made this book had a GPU. Here tensors carry a label, "on the GPU", while their numbers stay in
the memory of the CPU. What CUDA refuses is refused: tensors of both places in one operation, a generator of
one place for draws at the other, NumPy on what lies on the GPU. The arithmetic is that of the CPU, so results
can be compared too. What it cannot tell: whether CUDA has a kernel for an operation and a type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")

# They take tensors from both places, or hand one over.
ACROSS = {Tensor.copy_, Tensor.data.__set__, Tensor.grad.__set__, torch._has_compatible_shallow_copy_type}


class OnGPU(Tensor):
    """A tensor with the label; whoever makes one shares the memory of the tensor it is made of."""

    __torch_function__ = torch._C._disabled_torch_function_impl


class Generator(torch.Generator):
    """A generator of either device. Both draw the numbers of the CPU."""

    def __new__(cls, device: Any = CPU) -> Generator:
        self = super().__new__(cls, CPU)
        self.place = GPU if torch.device(device).type == "cuda" else CPU
        return self

    def __init__(self, device: Any = CPU) -> None:
        pass

    @property
    def device(self) -> torch.device:
        return self.place


class PretendGPU(TorchFunctionMode):
    """Within it, ``"cuda"`` is a device."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_gpu = any(isinstance(tensor, OnGPU) for tensor in tensors)
        if function == Tensor.device.__get__:
            return GPU if on_gpu else CPU
        if function == Tensor.is_cuda.__get__:
            return on_gpu
        if function in (Tensor.numpy, Tensor.__array__) and on_gpu:
            raise TypeError("can't convert cuda:0 device type tensor to numpy; use .cpu() first")
        if function in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return _moved(function, *args, **kwargs)
        if function is Tensor.__deepcopy__ and on_gpu:
            return _copied(*args)
        if function not in ACROSS:
            _require_one_place(function, tensors)
        place = GPU if on_gpu else CPU
        if kwargs.get("device") is not None:
            place, kwargs["device"] = _place(kwargs["device"]), CPU
        if kwargs.get("generator") is not None and kwargs["generator"].device != place:
            raise RuntimeError(
                f"{function.__name__}: expected a {place.type!r} device type for generator but found "
                f"{kwargs['generator'].device.type!r}"
            )
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **kwargs)
        return tree_map(_labelled, result) if place == GPU else result


def _place(device: Any) -> torch.device:
    return GPU if torch.device(device).type == "cuda" else CPU


def _labelled(value: Any) -> Any:
    return value.as_subclass(OnGPU) if isinstance(value, Tensor) and not isinstance(value, OnGPU) else value


def _require_one_place(function: Callable[..., Any], tensors: list[Tensor]) -> None:
    # A single number may come from the CPU, and so may an index, but not the other way round.
    if function in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(tensors[0], OnGPU):
        return
    numbers = [tensor for tensor in tensors if tensor.ndim > 0 or isinstance(tensor, OnGPU)]
    if len({isinstance(tensor, OnGPU) for tensor in numbers}) > 1:
        name = getattr(function, "__name__", function)
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, found cuda:0 and cpu")


def _moved(function: Callable[..., Any], tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``tensor.to(...)``, ``.cpu()`` and ``.cuda()``; a change of place copies, as it does for a GPU."""
    before = GPU if isinstance(tensor, OnGPU) else CPU
    after = {Tensor.cpu: CPU, Tensor.cuda: GPU}.get(function, before)
    rest: list[Any] = []
    for value in args if function is Tensor.to else ():
        if isinstance(value, Tensor):
            after = GPU if isinstance(value, OnGPU) else CPU
            rest.append(value.dtype)
        elif isinstance(value, (str, torch.device)):
            after = _place(value)
        elif isinstance(value, torch.dtype):
            rest.append(value)
    if kwargs.get("device") is not None:
        after = _place(kwargs["device"])
    kwargs = {key: value for key, value in kwargs.items() if key != "device" and value is not None}
    with torch._C.DisableTorchFunctionSubclass():
        moved = tensor.to(*rest, **kwargs) if rest or kwargs else tensor
        if after == before:
            return moved if moved is tensor or after == CPU else _labelled(moved)
        moved = moved.clone() if moved is tensor else moved
        return moved.as_subclass(OnGPU if after == GPU else Tensor)


def _copied(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        copy = tensor.detach().clone().as_subclass(OnGPU).requires_grad_(tensor.requires_grad)
    if isinstance(tensor, torch.nn.Parameter):
        copy._is_param = True
    memo[id(tensor)] = copy
    return copy


@contextmanager
def pretend_gpu(capability: tuple[int, int] = (8, 0)) -> Iterator[torch.device]:
    """A GPU of a compute capability, (7, 5) for a T4, (8, 0) for an A100; yields the device.

    ``torch.cuda.is_available()`` stays False, because torch itself would then look for the driver.
    """
    autocast = torch.autocast
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "Generator", Generator)
        patch.setattr(torch, "autocast", lambda device_type, *a, **k: autocast("cpu", *a, **k))
        patch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        patch.setattr(torch.cuda, "get_device_name", lambda device=None: "a pretended GPU")
        # A parameter that moves has to become another tensor: the label lies in its class.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with PretendGPU():
                yield torch.device("cuda")
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(overwrite)

"""A device for machines without: arrays of the CPU that say they are elsewhere, and mix with no others.

What runs with them does not forget to say where new arrays go, nor does it hand arrays
of a device to NumPy; that is the most frequent mistake in code for GPUs that was
written without one. Speed and precision of a real one are another matter.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from gdml import hardware, training
from gdml.dynamics import ring_polymer

# Of the kinds that torch knows, the one that needs no driver.
DEVICE = torch.device("meta")
ATEN = torch.ops.aten


class Pretended(torch.Tensor):
    """An array of the CPU that says it is on the device."""

    @staticmethod
    def __new__(cls, array: torch.Tensor) -> "Pretended":
        layout = {"strides": array.stride(), "storage_offset": array.storage_offset()}
        return torch.Tensor._make_wrapper_subclass(cls, array.shape, dtype=array.dtype, device=DEVICE, **layout)

    def __init__(self, array: torch.Tensor):
        self.array = array

    def __repr__(self) -> str:
        return f"Pretended({self.array})"

    @classmethod
    def __torch_dispatch__(cls, operation, types, arguments=(), options=None):
        options = dict(options or {})
        _check_strangers(operation, tree_leaves((arguments, options)))
        to_cpu = options.get("device") is not None and torch.device(options["device"]).type == "cpu"
        if options.get("device") is not None:
            options["device"] = torch.device("cpu")
        found = operation(*tree_map(_bare, arguments), **tree_map(_bare, options))
        if to_cpu:
            return found
        if operation is ATEN.copy_.default and not isinstance(arguments[0], cls):
            return arguments[0]
        found = tree_map(lambda v: cls(v) if isinstance(v, torch.Tensor) else v, found)
        return return_and_correct_aliasing(operation, arguments, options, found)


def _check_strangers(operation, values: list) -> None:
    """Raise where arrays of the CPU are among those of the device; copies and indices are allowed."""
    if operation in (ATEN.index.Tensor, ATEN.index_put_.default, ATEN.index_put.default):
        values = [values[0], *(v for v in values[1:] if isinstance(v, torch.Tensor) and v.is_floating_point())]
    strangers = [v for v in values if isinstance(v, torch.Tensor) and not isinstance(v, Pretended) and v.ndim]
    if strangers and operation not in (ATEN.copy_.default, ATEN._to_copy.default):
        shape = tuple(strangers[0].shape)
        raise RuntimeError(f"{operation}: an array {shape} of the CPU among those of the device")


def _bare(value):
    return value.array if isinstance(value, Pretended) else value


class _Device(TorchFunctionMode):
    """Sends what is asked for on the device to arrays that pretend to be there."""

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = dict(options or {})
        name = getattr(function, "__name__", "")
        if name == "numpy" and any(isinstance(v, Pretended) for v in arguments):
            raise TypeError("an array of the device cannot be NumPy's")
        if name == "tolist":
            return _bare(arguments[0]).tolist()
        if name == "new_tensor" and isinstance(arguments[0], Pretended):
            return Pretended(arguments[0].array.new_tensor(*arguments[1:], **options))
        if name == "__setitem__" and not isinstance(arguments[2], torch.Tensor):
            return function(*tree_map(_bare, arguments))
        asked = options.get("device")
        moves = name == "to" and len(arguments) > 1
        if moves and isinstance(arguments[1], (str, torch.device)):
            asked, arguments = torch.device(arguments[1]), (arguments[0], *arguments[2:])
            if asked.type == "cpu":
                return self._to_cpu(arguments[0], arguments[1:], options)
        if asked is None or torch.device(asked).type == "cpu":
            return function(*arguments, **options)
        options.pop("device", None)
        bare = tree_map(_bare, arguments)
        if moves and not arguments[1:] and not options:
            return Pretended(bare[0].clone()) if not isinstance(arguments[0], Pretended) else arguments[0]
        return Pretended(function(*bare, **options))

    def _to_cpu(self, array, arguments, options):
        bare = array.array.clone() if isinstance(array, Pretended) else array
        return bare.to(*arguments, **options) if arguments or options else bare


@contextmanager
def pretended_device() -> Iterator[torch.device]:
    """A device of the name "gpu"."""

    def generator_on(device: torch.device) -> torch.Generator:
        return torch.Generator()

    def check_device(device) -> torch.device:
        return DEVICE if str(device) in ("gpu", str(DEVICE)) else torch.device("cpu")

    with ExitStack() as stack:
        for module in (hardware, training, ring_polymer):
            stack.enter_context(mock.patch.object(module, "check_device", check_device))
        stack.enter_context(mock.patch.object(ring_polymer, "generator_on", generator_on))
        stack.enter_context(_Device())
        yield DEVICE

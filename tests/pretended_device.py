"""A second device for machines that have one: the values stand on the CPU, the rules are those of a GPU.

Every operator that meets tensors of two devices raises, as torch does; only a copy may cross, an index from the CPU,
and a number.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

# the backend that torch leaves to others, written in Python
_setup_privateuseone_for_python_backend("pretended")
# who saves and restores every device's random numbers asks it for its own: it has none
torch.pretended.get_rng_state = lambda *_: torch.empty(0, dtype=torch.uint8)
torch.pretended.set_rng_state = lambda *_: None
DEVICE = torch.device("pretended", 0)
CPU = torch.device("cpu")

_aten = torch.ops.aten
# the first tensor's device counts
_CROSSING = {_aten.copy_.default, _aten.index.Tensor, _aten.index_put_.default}


class Pretended(torch.Tensor):
    """A tensor that says that it is on `DEVICE`."""

    @staticmethod
    def __new__(cls, values, *, requires_grad=False):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, values.size(), strides=values.stride(), dtype=values.dtype, device=DEVICE
        )
        tensor.values_on_cpu = values
        return tensor

    def data_ptr(self):
        return self.values_on_cpu.data_ptr()

    def tolist(self):
        return self.values_on_cpu.tolist()

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        return call(operator, args, kwargs or {})


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        return call(operator, args, kwargs or {})


class _Lists(TorchFunctionMode):
    """Tensors made of lists, which torch fills in where no operator is seen."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.tensor:
            device = kwargs.pop("device", None)
            return torch.tensor(*args, **kwargs).to(device or CPU)
        if function is torch.Tensor.new_tensor:
            like, data = args
            options = {"dtype": like.dtype, "device": like.device} | kwargs
            return torch.tensor(data, dtype=options["dtype"]).to(options["device"])
        return function(*args, **kwargs)


@contextmanager
def pretended_device():
    """While it is entered, tensors can be made on `DEVICE` and moved there."""
    with _Lists(), _Operators():
        yield


def call(operator, args, kwargs):
    """The operator on the values, and the device that its outputs are on."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    counted = tensors[:1] if operator in _CROSSING else [t for t in tensors if t.ndim > 0]
    devices = {tensor.device for tensor in counted}
    if len(devices) > 1:
        raise RuntimeError(f"Expected all tensors to be on the same device: {operator}, {devices}")
    if operator is _aten._fused_sdp_choice.default:
        # the plain form of attention: the fused ones ask for the backend's name
        return 0
    device = next(iter(devices or {tensor.device for tensor in tensors}), CPU)
    if kwargs.get("device") is not None:
        device = torch.device(kwargs["device"])
        kwargs = {**kwargs, "device": CPU}
    owners = {id(t.values_on_cpu): t for t in tensors if isinstance(t, Pretended)}

    def bare(leaf):
        return leaf.values_on_cpu if isinstance(leaf, Pretended) else leaf

    def labelled(leaf):
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return owners.get(id(leaf), Pretended(leaf) if device == DEVICE else leaf)

    return tree_map(labelled, operator(*tree_map(bare, args), **tree_map(bare, kwargs)))


def move(module):
    """Put a module's parameters and buffers on the device."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                moved = Pretended(parameter.detach())
                part._parameters[name] = torch.nn.Parameter(moved, requires_grad=False)
        for name, values in part._buffers.items():
            if values is not None:
                part._buffers[name] = Pretended(values)
    return module

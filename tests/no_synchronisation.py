"""Refuses whatever would make the host wait for a device, or copy between the two."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten
# their results, or the shapes of their results, are known to the device alone
_WAIT = {
    _aten._local_scalar_dense.default,
    _aten.equal.default,
    _aten.is_nonzero.default,
    _aten.masked_select.default,
    _aten.nonzero.default,
    _aten.repeat_interleave.Tensor,
    _aten._unique2.default,
}
_INDEXED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default}
_COPIES = {_aten._to_copy.default, _aten.copy_.default}


class NoSynchronisation(TorchDispatchMode):
    """While it is entered, an operator that synchronises raises."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        on_a_device = any(tensor.device.type != "cpu" for tensor in tensors)
        if on_a_device and operator in _WAIT:
            raise AssertionError(f"{operator} waits for the device")
        if on_a_device and operator in _INDEXED:
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype == torch.bool or index.device.type == "cpu" for index in indices):
                raise AssertionError(f"{operator} waits for the device, or copies its index there")
        if operator in _COPIES:
            devices = {tensor.device for tensor in tensors}
            if kwargs.get("device") is not None:
                devices.add(torch.device(kwargs["device"]))
            if len(devices) > 1:
                raise AssertionError(f"{operator} copies between {devices}")
        return operator(*args, **kwargs)

"""Calls that are made on the device of the GPU suite with tensors of the CPU.

The bodies of the interpreter tests know nothing of devices: `at_device` takes a call's tensors to the
device, storages and all (so that strides, padding and aliases stay), makes the call, and brings results
and storages back. What a kernel writes where it must not is seen on the CPU.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from device import DEVICE
from torch import Tensor

from warpdraft.kernels.truncation_call import TruncationCall
from warpdraft.kernels.verification_triton import Nodes

Mapping = Callable[[Tensor], Tensor]


def at_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function on DEVICE; a call that names another backend than Triton stays where it is."""

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        if options.get("backend", "triton") != "triton":
            return function(*arguments, **options)
        # by their address: tensors that share a storage share it on the device
        storages: dict[int, tuple[Tensor, Tensor]] = {}
        originals: dict[int, Tensor] = {}
        kept = []

        def move(tensor: Tensor) -> Tensor:
            if tensor.device.type != "cpu" or not tensor.numel():
                return tensor.to(DEVICE)
            flat = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
            _, there = storages.setdefault(flat.data_ptr(), (flat, flat.to(DEVICE, copy=True)))
            moved = there.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
            originals[id(moved)] = tensor
            kept.append(moved)
            return moved

        def back(tensor: Tensor) -> Tensor:
            return originals[id(tensor)] if id(tensor) in originals else tensor.cpu()

        arguments, options = mapped(move, arguments), mapped(move, options)
        results = function(*arguments, **options)
        for here, there in storages.values():
            here.copy_(there)
        return Brought(results) if isinstance(results, TruncationCall) else mapped(back, results)

    return call


def mapped(mapping: Mapping, value: Any) -> Any:
    """A value with its tensors exchanged, also those of tuples, rules, operations and noise."""
    if isinstance(value, Tensor):
        return mapping(value)
    if isinstance(value, tuple):
        items = [mapped(mapping, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [mapped(mapping, item) for item in value]
    if isinstance(value, dict):
        return {key: mapped(mapping, item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, Nodes):
        changes = {
            field.name: mapped(mapping, getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.init
        }
        return dataclasses.replace(value, **changes)
    return value


class Brought:
    """An object of the device: its methods are called there, and its tensors are read from here."""

    def __init__(self, there: Any) -> None:
        self._there = there

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._there, name)
        return at_device(value) if callable(value) else mapped(Tensor.cpu, value)

"""Tensors as if on an accelerator, where there is none."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


class Far(Tensor):
    """Computes on the host, says that it lies on an ``xpu``, and notes in `reads` whatever brings it over."""

    reads: ClassVar[list[str]] = []

    @staticmethod
    def __new__(cls, value):
        return Tensor._make_wrapper_subclass(cls, value.shape, dtype=value.dtype, device="xpu")

    def __init__(self, value):
        self.value = value

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        name, options = function.__name__.split(".")[0], dict(kwargs or {})
        to = options.pop("device", None)
        found = function(*tree_map(lambda each: each.value if isinstance(each, Far) else each, args), **options)
        if name == "_local_scalar_dense" or (name == "_to_copy" and to is not None and torch.device(to).type == "cpu"):
            cls.reads.append(name)
            return found
        return tree_map(lambda each: Far(each) if isinstance(each, Tensor) else each, found)

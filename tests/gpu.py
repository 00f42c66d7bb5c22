"""The CPU's tests on a GPU: `pytest --gpu` has fastcnn's ops for CPU tensors computed by a device and brought back.

As with tests/simt, the ops' Python halves (fake kernels, gradients, vmap) come with them, and any test of fastcnn then
is one of the CUDA kernels. Strides survive the way if nothing overlaps and no element is left out.
"""

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.utils import _pytree as pytree

import fastcnn.ops
from fastcnn import _library

NAMESPACE = "fastcnn_gpu"
_kept: list[torch.library.Library] = []  # a registration lives as long as its Library


@cache
def load(names: frozenset[str] | None = None, ops=None, send: Callable[[torch.Tensor], torch.Tensor] | None = None):
    """torch.ops.fastcnn_gpu, of which those of these names have a kernel: that of `ops`, on tensors moved by `send`."""
    ops, send = ops or torch.ops.fastcnn, send or (lambda t: t.to("cuda"))
    names = _library.cuda_ops if names is None else names
    library = torch.library.Library(NAMESPACE, "FRAGMENT")
    for name in sorted(torch._C._dispatch_get_all_op_names()):
        if name.startswith("fastcnn::"):
            name = name.removeprefix("fastcnn::")
            library.define(str(getattr(torch.ops.fastcnn, name).default._schema).removeprefix("fastcnn::"))
            if name in names:
                library.impl(name, _moved(getattr(ops, name).default, send), "CPU")
    _kept.append(library)
    return getattr(torch.ops, NAMESPACE)


def _moved(op: Callable, send: Callable[[torch.Tensor], torch.Tensor]) -> Callable:
    def call(*args: Any) -> Any:
        tensor = lambda a: isinstance(a, torch.Tensor)
        there = pytree.tree_map(lambda a: send(a) if tensor(a) else a, args)
        _poison(op(*there))
        return pytree.tree_map(lambda a: a.to("cpu") if tensor(a) else a, op(*there))

    return call


def _poison(outputs: Any) -> None:
    """Makes NaN of all bytes of outputs that nobody keeps: the same call again gets their memory, in which an element
    that it does not write shows. torch's allocator for GPUs, unlike the CPU's, has no switch for that."""
    for t in pytree.tree_leaves(outputs):
        if isinstance(t, torch.Tensor):
            torch.empty(0, dtype=torch.uint8, device=t.device).set_(t.untyped_storage()).fill_(255)


def take_over(**options: Any) -> None:
    """fastcnn's functions and torch.ops.fastcnn compute on the GPU from here on."""
    moved = load(**options)
    for module in pkgutil.iter_modules(fastcnn.ops.__path__):
        op = importlib.import_module(f"fastcnn.ops.{module.name}")
        if hasattr(op, "define"):
            op.ops = op.define(NAMESPACE)
    torch.ops.fastcnn = moved

"""What the functional face of every op shares: when fastcnn computes, argument forms, the road of a call."""

import torch

from .. import _library
from .._config import config, logger
from ._define import transforming

FLOATING = frozenset((torch.float32, torch.float64, torch.float16, torch.bfloat16))


def native(x: torch.Tensor) -> bool:
    """Whether fastcnn's kernels compute on this tensor; if not, the stock PyTorch composition does."""
    if config.disabled or x.dtype not in FLOATING or x.device.type != "cpu" or x.layout != torch.strided:
        return False
    _library.require()
    return True


def pair(function: str, name: str, v) -> tuple[int, int]:
    """An int or a sequence of one or two ints as (height, width), as torch reads it."""
    if isinstance(v, (int, torch.SymInt)):
        return (v, v)
    if len(v) not in (1, 2):
        raise RuntimeError(f"{function}: expected {name} to be an int or a pair of ints, but got {tuple(v)}")
    return (v[0], v[-1])


def batched(function: str, x: torch.Tensor) -> torch.Tensor:
    """(C, H, W) as (1, C, H, W)."""
    if x.dim() == 4:
        return x
    if x.dim() != 3:
        raise RuntimeError(
            f"{function}: Expected 3D (unbatched) or 4D (batched) input, but got input of size: {list(x.shape)}"
        )
    return x.unsqueeze(0)


def tracing() -> bool:
    """Whether something other than eager PyTorch looks on: the public ops must then be called."""
    return torch.compiler.is_compiling() or transforming()


def dispatch(op, raw, needs_grad: bool, *args):
    """Calls an op by the cheapest road that is right: the public one where something traces (14 microseconds a call),
    the autograd.Function where a gradient is wanted (13), else the raw op (7)."""
    if config.verbose:
        shapes = ", ".join(str(tuple(a.shape)) for a in args if isinstance(a, torch.Tensor))
        logger.info("%s(%s) on %s", op.op._opname, shapes, _library.cpu_capability())
    if tracing():
        return op(*args)
    if needs_grad and torch.is_grad_enabled():
        return op.apply(*args)
    return raw(*args)

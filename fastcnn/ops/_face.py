"""What the functional face of every op shares: when fastcnn computes, argument forms, the road of a call."""

from typing import Any

import torch

from .. import _library
from .._config import STOCK, config, logger, road
from ._define import transforming

FLOATING = frozenset((torch.float32, torch.float64, torch.float16, torch.bfloat16))


def native(x: torch.Tensor, op: str) -> bool:
    """Whether fastcnn has a kernel of this op for this tensor; if not, the stock PyTorch composition computes."""
    if config.disabled or x.dtype not in FLOATING or x.layout is not torch.strided:
        return False
    if config.policy == "fastest" and road.candidate == STOCK:
        return False
    if not x.is_cpu:
        return x.is_cuda and op in _library.cuda_ops
    if _library.load_error is not None:
        _library.require()
    return True


def pair(function: str, name: str, v: Any) -> tuple[Any, Any]:
    """An int or a sequence of one or two ints as (height, width), as torch reads it."""
    if type(v) is tuple and len(v) == 2:
        return v
    if isinstance(v, (int, torch.SymInt)):
        return (v, v)
    if not isinstance(v, (tuple, list)):
        if not hasattr(v, "__index__"):  # NumPy's integers have it
            raise TypeError(f"{function}: expected {name} to be an int or a pair of ints, but got {v!r}")
        return (int(v), int(v))
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


def together(x: torch.Tensor, *tensors: torch.Tensor | None) -> bool:
    """Whether those that are there are tensors on x's device."""
    if x.is_cpu:
        for t in tensors:  # noqa: SIM110  on every call: a generator would take twice as long
            if t is not None and not getattr(t, "is_cpu", False):
                return False
        return True
    return all(t is None or getattr(t, "device", None) == x.device for t in tensors)


def refuse(function: str, input: torch.Tensor, **tensors) -> None:
    """Says what is wrong with tensors that do not all lie beside input."""
    for name, t in tensors.items():
        if not isinstance(t, torch.Tensor) and (t is not None or name == "weight"):
            raise TypeError(f"{function}: expected {name} to be a Tensor, but got {type(t).__name__}")
    devices = ", ".join(f"{name} on {t.device}" for name, t in tensors.items() if t is not None)
    raise RuntimeError(f"{function}: expected all tensors on one device, but got input on {input.device}, {devices}")


def autocast_cast(x: torch.Tensor, *tensors: torch.Tensor | None) -> tuple:
    """x and the tensors as torch's autocast would pass them to a convolution."""
    # Where no autocast is on, the first question, which is the cheaper, answers.
    if not (torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(x.device.type)):
        return x, *tensors
    dtype = torch.get_autocast_dtype(x.device.type)
    return tuple(t.to(dtype) if t is not None and t.dtype != torch.float64 else t for t in (x, *tensors))


TF32 = 4  # csrc/cuda/register_conv2d.cpp: kTf32


def allows_tf32() -> bool:
    """Whether torch lets cuDNN round float32 convolutions to TF32."""
    return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]


# As torch.compiler.assume_constant_result does, without its import of all of Dynamo, which cannot trace the question: a
# compiled graph keeps the answer that it was traced with.
allows_tf32._dynamo_marked_constant = True  # type: ignore[attr-defined]


def with_tf32(level: int, x: torch.Tensor) -> int:
    """The accuracy of a convolution as the ops take it: but for 'strict', CUDA's kernels may round float32 to TF32
    where torch lets cuDNN do so."""
    if x.is_cpu or not level or x.dtype is not torch.float32:
        return level
    return level + TF32 if allows_tf32() else level


def tracing() -> bool:
    """Whether something other than eager PyTorch looks on: the public ops must then be called."""
    return transforming() or torch.compiler.is_compiling()


def recording() -> bool:
    """Whether autograd records. Inference mode, after which Dynamo cannot ask, keeps it from that even where
    enable_grad() lies within."""
    return torch.is_grad_enabled() and (torch.compiler.is_compiling() or not torch.is_inference_mode_enabled())


def log(name: str, *tensors) -> None:
    """FASTCNN_VERBOSE: one line per dispatched kernel."""
    if config.verbose and not torch.compiler.is_compiling():
        shapes = ", ".join(f"{t.dtype} {tuple(t.shape)}".removeprefix("torch.") for t in tensors)
        logger.info("%s(%s) on %s", name, shapes, _library.cpu_capability() if tensors[0].is_cpu else tensors[0].device)


def dispatch(op, raw, needs_grad: bool, x, *args):
    """Calls an op by the cheapest road that is right: the public one where something traces, the autograd.Function
    where a gradient is wanted, else the raw op (14, 13 and 7 microseconds a call on one machine)."""
    log(op.op._opname, x)
    if tracing():
        return op(x, *args)
    if needs_grad and recording():
        return op.apply(x, *args)
    return raw(x, *args)

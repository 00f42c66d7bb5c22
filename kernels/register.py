"""How the kernels become ops: through torch.library.triton_op, so that torch.compile sees the launches within."""

import functools
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
import triton

from fastcnn._config import road

from .tiles import CANDIDATE

Tile = TypeVar("Tile")

INTERPRETED: bool = triton.knobs.runtime.interpret  # triton.jit asks the same as it decorates

# torch's own takes compiled kernels only. Under this name it finds the kernels in an op's source.
wrap_triton: Callable = (lambda kernel: kernel) if INTERPRETED else torch.library.wrap_triton


def triton_op(name: str, run: Callable, fake: Callable, mutates_args: tuple[str, ...] = ()):
    """Registers torch.ops.fastcnn.<name> with the schema of run's annotations and returns the OpOverload.

    run: launches by wrap_triton(kernel)[grid](...) where `on_triton` says so, else calls an op that has C++ kernels.
    fake: the same arguments; empty tensors of the outputs' sizes and strides.
    """
    register = torch.library.custom_op if INTERPRETED else torch.library.triton_op
    register(f"fastcnn::{name}", on_its_device(run), mutates_args=mutates_args).register_fake(fake)
    return getattr(torch.ops.fastcnn, name).default


def on_its_device(run: Callable) -> Callable:
    """Triton launches on torch's current device, which need not be that of the tensors."""

    @functools.wraps(run)
    def guarded(*args):
        x = args[0][0] if isinstance(args[0], (list, tuple)) else args[0]
        if x.is_cuda and type(x) in (torch.Tensor, torch.nn.Parameter):  # others are traced
            with torch.cuda.device(x.device):
                return run(*args)
        return run(*args)

    return guarded


@functools.cache
def unusable() -> str:
    """Why Triton cannot launch here, said once; '' where it can. It needs a C compiler at run time."""
    if INTERPRETED or not torch.cuda.is_available():
        return ""
    try:
        triton.runtime.driver.active.get_current_target()
    except Exception as error:  # whatever the compiler, the loader or the driver has to say
        said = f"Triton cannot launch: {error}".partition("\n")[0]
        warnings.warn(f"{said}; fastcnn's CUDA kernels compute instead", RuntimeWarning, stacklevel=2)
        return said
    return ""


def on_triton(x: torch.Tensor) -> bool:
    """Whether the Triton kernels compute for this tensor."""
    return x.is_cuda or INTERPRETED


def processors(x: torch.Tensor) -> int:
    """Streaming multiprocessors of x's device; an A100's where there is none."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count if torch.cuda.is_available() else 108


def timed_or(rule: Tile, candidates: Callable[[], dict[str, Tile]]) -> Tile:
    """The tile that policy "fastest" is timing or has found, else the rule's."""
    if not road.candidate.startswith(CANDIDATE):
        return rule
    return candidates().get(road.candidate, rule)  # a verdict may name what is no candidate any more

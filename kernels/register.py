"""How the kernels become ops: through torch.library.triton_op, so that torch.compile sees the launches within."""

from collections.abc import Callable

import torch
import triton

INTERPRETED: bool = triton.knobs.runtime.interpret  # triton.jit asks the same as it decorates

# torch's own takes compiled kernels only. Under this name it finds the kernels in an op's source.
wrap_triton: Callable = (lambda kernel: kernel) if INTERPRETED else torch.library.wrap_triton


def triton_op(name: str, run: Callable, fake: Callable, mutates_args: tuple[str, ...] = ()):
    """Registers torch.ops.fastcnn.<name> with the schema of run's annotations and returns the OpOverload.

    run: launches by wrap_triton(kernel)[grid](...) where `on_triton` says so, else calls an op that has C++ kernels.
    fake: the same arguments; empty tensors of the outputs' sizes and strides.
    """
    register = torch.library.custom_op if INTERPRETED else torch.library.triton_op
    register(f"fastcnn::{name}", run, mutates_args=mutates_args).register_fake(fake)
    return getattr(torch.ops.fastcnn, name).default


def on_triton(x: torch.Tensor) -> bool:
    """Whether the Triton kernels compute for this tensor."""
    return x.is_cuda or INTERPRETED


def processors(x: torch.Tensor) -> int:
    """Streaming multiprocessors of x's device; an A100's where there is none."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count if torch.cuda.is_available() else 108

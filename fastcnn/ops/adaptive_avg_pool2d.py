"""adaptive_avg_pool2d: what its C++ half (csrc/ops/adaptive_avg_pool2d.cpp) cannot say through the stable ABI."""

from types import SimpleNamespace

import torch
from torch.overrides import handle_torch_function, has_torch_function_unary

from ._define import register
from ._face import batched, dispatch, native
from ._policy import by_policy
from ._pool import average


def define(namespace: str) -> SimpleNamespace:
    """Registers the Python halves for the ops of `namespace` and returns the callables."""
    return average(namespace, "adaptive_avg_pool2d", lambda x, output_size: output_size)


def reference(x, output_size) -> torch.Tensor:
    """y[n,c,p,q] = mean of x[n,c,h,w] over floor(p*H/OH) <= h < ceil((p+1)*H/OH) and the same for w, in float64."""
    y = x.double()
    for dim, out in enumerate(output_size, start=2):
        size = x.shape[dim]
        p, h = torch.arange(out)[:, None], torch.arange(size)
        holds = (p * size // out <= h) & (h < -(-(p + 1) * size // out)) if out else torch.empty(0, size).bool()
        y = (y.movedim(dim, -1) @ (holds / holds.sum(1, keepdim=True).double()).T).movedim(-1, dim)
    return y


ops = register(define)


@by_policy
def adaptive_avg_pool2d(input, output_size):
    """Average pooling to a fixed size with torch.nn.functional.adaptive_avg_pool2d's rules (He et al. 2015: global
    average pooling for output_size 1).

    input: (N, C, H, W) or (C, H, W), floating point. output_size: an int or a pair (OH, OW), None for the input's own
    size. Returns (N, C, OH, OW) in input's dtype and memory format; half precision is summed in float32. RuntimeError
    on sizes that torch refuses.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(adaptive_avg_pool2d, (input,), input, output_size)
    if not native(input, "adaptive_avg_pool2d") or input.dim() not in (
        3,
        4,
    ):  # torch says what is wrong with other dimensions
        return torch.nn.functional.adaptive_avg_pool2d(input, output_size)
    if isinstance(output_size, (int, torch.SymInt)):
        size = (output_size, output_size)
    else:
        if len(output_size) != 2:
            raise RuntimeError(f"adaptive_avg_pool2d: output_size must be 2, but got {tuple(output_size)}")
        size = tuple(s if o is None else o for o, s in zip(output_size, input.shape[-2:]))
    x = batched("adaptive_avg_pool2d", input)
    y = dispatch(ops.op, ops.raw, x.requires_grad, x, size)
    return y if x is input else y.squeeze(0)

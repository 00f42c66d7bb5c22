"""local_response_norm: what its C++ half (csrc/ops/local_response_norm.cpp) cannot say through the stable ABI."""

from types import SimpleNamespace

import torch
from torch.overrides import handle_torch_function, has_torch_function_unary

from ._define import Differentiable, fold, memory_format, register, register_fake
from ._face import dispatch, native
from ._policy import by_policy


def window_sum(x, before: int, after: int, groups: int):
    """Sums of channels c-before to c+after of (N, C, H, W) within each of `groups` towers."""
    towers = x.unflatten(1, (groups, -1))
    most = towers.shape[2] - 1
    before, after = min(before, most), min(after, most)
    padded = torch.nn.functional.pad(towers, (0, 0, 0, 0, before, after))
    return padded.unfold(2, before + after + 1, 1).sum(-1).flatten(1, 2)


def define(namespace: str) -> SimpleNamespace:
    """Registers the Python halves for the ops of `namespace` and returns the callables."""
    ops = getattr(torch.ops, namespace)

    def fake(x, size, alpha, beta, k, groups, relu):
        torch._check(
            x.dim() == 4,
            lambda: f"local_response_norm: expected 4D input (N, C, H, W), but got input of size {list(x.shape)}",
        )
        return torch.empty_like(x, memory_format=memory_format(x))

    register_fake(f"{namespace}::local_response_norm", fake)
    register_fake(f"{namespace}::_local_response_norm", fake)
    register_fake(f"{namespace}::local_response_norm_backward", lambda grad, x, *args: fake(x, *args))
    torch.library.register_vmap(ops._local_response_norm.default, fold((0,))(ops._local_response_norm.default))

    def save(ctx, inputs, output):
        x, *ctx.args = inputs
        ctx.save_for_backward(x)

    def grad(ctx, g):
        return backward(g, *ctx.saved_tensors, *ctx.args), *[None] * len(ctx.args)

    def save_backward(ctx, inputs, output):
        g, x, *ctx.args = inputs
        ctx.save_for_backward(g, x)

    def grad_backward(ctx, v):
        g, x = ctx.saved_tensors
        return *second_order(v, g, x, *ctx.args), *[None] * len(ctx.args)

    norm = Differentiable(ops.local_response_norm.default, save, grad, fold((0,)), raw=ops._local_response_norm.default)
    backward = Differentiable(ops.local_response_norm_backward.default, save_backward, grad_backward, fold((0, 1)))
    return SimpleNamespace(norm=norm, backward=backward, raw=ops._local_response_norm.default)


def second_order(v, g, x, size, alpha, beta, k, groups, relu):
    """Gradients of sum(v * dx) for g and x, where dx = local_response_norm_backward(g, x), as torch operations.

    With S = sum of v*x over the window of c, and sums over the mirrored window W' of m:
    dg[c] = v*s^-b - 2ab*x*S*s^-(b+1);
    dx[m] = -2ab * (x * sum(v*g*s^-(b+1)) + v * sum(g*x*s^-(b+1)) + g*S*s^-(b+1)) +
          4a^2*b(b+1) * x * sum(g*x*S*s^-(b+2)).
    """
    dtype = x.dtype
    if dtype in (torch.float16, torch.bfloat16):
        v, g, x = v.float(), g.float(), x.float()
    negative = x <= 0

    def masked(t):
        return torch.where(negative, 0, t) if relu else t

    x, v = masked(x), masked(v)
    before, after = size // 2, (size - 1) // 2
    s = k + alpha * window_sum(x * x, before, after, groups)
    p = s**-beta
    q = p / s
    inner = window_sum(v * x, before, after, groups)

    def mirrored(t):
        return window_sum(t, after, before, groups)

    a, ab = 2 * alpha, 2 * alpha * beta
    dg = v * p - ab * x * q * inner
    dx = a * ab * (beta + 1) * x * mirrored(g * x * inner * q / s)
    dx = dx - ab * (x * mirrored(v * g * q) + v * mirrored(g * x * q) + g * inner * q)
    return dg.to(dtype), masked(dx).to(dtype)


def reference(x, size, alpha=1e-4, beta=0.75, k=1.0, groups=1, relu=False):
    """y[n,c] = x[n,c] / (k + alpha * sum over c-size//2 <= j <= c+(size-1)//2 of x[n,j]^2)^beta in float64.

    The window keeps to c's tower of C/groups channels; alpha multiplies the sum ('sum' mode). x: (N, C, H, W).
    """
    x = x.double()
    x = x.relu() if relu else x
    width = x.shape[1] // groups
    y = torch.empty_like(x)
    for c in range(x.shape[1]):
        tower = c - c % width if width else 0
        lo, hi = max(c - size // 2, tower), min(c + (size - 1) // 2, tower + width - 1)
        y[:, c] = x[:, c] / (k + alpha * (x[:, lo : hi + 1] ** 2).sum(1)) ** beta
    return y


ops = register(define)


@by_policy
def local_response_norm(input, size, alpha=1e-4, beta=0.75, k=1.0, *, alpha_mode="mean", groups=1, activation=None):
    """Local response normalization across channels with torch.nn.functional.local_response_norm's arguments.

    y[c] = x[c] / (k + a * sum over c - size//2 <= j <= c + (size-1)//2 of x[j]^2)^beta.
    alpha_mode 'mean': a = alpha/size, at borders too, as PyTorch; 'sum': a = alpha, the
    formula of Krizhevsky et al. 2012, section 3.3, for odd size.
    groups: the windows keep to each of this many towers of C/groups channels. activation 'relu': x = max(input, 0).

    input: (N, C, *), 3-D or higher, floating point; returns its shape, dtype and memory format. float16 and bfloat16
    compute in float32. ValueError: input below 3-D, an unknown alpha_mode or activation, 'sum' with an even size,
    groups that do not divide C. RuntimeError: size below 1.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            local_response_norm,
            (input,),
            input,
            size,
            alpha=alpha,
            beta=beta,
            k=k,
            alpha_mode=alpha_mode,
            groups=groups,
            activation=activation,
        )
    check("local_response_norm", input, size, alpha_mode, groups, activation)
    if not native(input, "local_response_norm"):
        return stock(input, size, alpha, beta, k, alpha_mode, groups, activation)
    if alpha_mode == "mean":
        alpha = alpha / size
    # torch's rule for what is not (N, C, H, W): the axes behind the channels are pixels.
    x = input if input.dim() == 4 else input.reshape(*input.shape[:2], 1, input.shape[2:].numel())
    y = dispatch(ops.norm, ops.raw, x.requires_grad, x, size, alpha, beta, k, groups, activation == "relu")
    return y if x is input else y.reshape(input.shape)


def check(function, input, size, alpha_mode, groups, activation) -> None:
    """The mistakes that the ops cannot name."""
    if input.dim() < 3:
        raise ValueError(f"Expected 3D or higher dimensionality input (got {input.dim()} dimensions)")
    if size < 1:
        raise RuntimeError(f"{function}: expected size of at least 1, but got {size}")
    if alpha_mode not in ("mean", "sum"):
        raise ValueError(f"{function}: expected alpha_mode to be 'mean' or 'sum', but got {alpha_mode!r}")
    if alpha_mode == "sum" and size % 2 == 0:
        raise ValueError(f"{function}: expected an odd size with alpha_mode='sum', but got {size}")
    if activation not in (None, "relu"):
        raise ValueError(f"{function}: expected activation to be None or 'relu', but got {activation!r}")
    if groups < 1 or input.shape[1] % groups:
        raise ValueError(
            f"{function}: expected groups to divide the channels of input ({input.shape[1]}), but got groups {groups}"
        )


def stock(input, size, alpha, beta, k, alpha_mode, groups, activation):
    """The same from PyTorch's operations."""
    if alpha_mode == "sum":
        alpha = alpha * size
    x = input.relu() if activation == "relu" else input
    if groups == 1:
        return torch.nn.functional.local_response_norm(x, size, alpha, beta, k)
    towers = x.unflatten(1, (groups, -1)).flatten(0, 1)
    return torch.nn.functional.local_response_norm(towers, size, alpha, beta, k).reshape(x.shape)

"""Gives an op its gradient and its vmap rule on every road that reaches it, from one description."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from .._library import load_error

transforming = torch._C._are_functorch_transforms_active


class Differentiable:
    """An op with a gradient. Three roads lead to the same formulas:

    - ``torch.ops.<namespace>.<op>`` itself, through ``register_autograd`` (raw callers, export, compile);
    - calling this object: the op, or under torch.func's transforms an autograd.Function, because those refuse
      ops that carry ``register_autograd``; gradient formulas call ops this way;
    - ``apply``: a plain autograd.Function, at a third of the cost per call, for eager mode.
    """

    def __init__(self, op, save: Callable, grad: Callable, vmap: Callable, raw=None):
        """op: an OpOverload. save(ctx, inputs, output) and grad(ctx, *grads): as in register_autograd.
        vmap(f): the rule for f, see `fold` and `loop` below. raw: the same computation without autograd."""
        self.op = op
        torch.library.register_autograd(op, grad, setup_context=save)
        torch.library.register_vmap(op, vmap(op))
        members: dict[str, Any] = {"forward": lambda *args: op(*args), "setup_context": save, "backward": grad}
        members["vmap"] = vmap(self)
        self._transformed = _function(f"{op._opname}_transformed", members)

        self.raw = raw or op

        def forward(ctx, *args):
            output = self.raw(*args)
            save(ctx, args, output)
            return output

        self.apply = _function(op._opname, {"forward": forward, "backward": grad}).apply

    def __call__(self, *args):
        return self._transformed.apply(*args) if transforming() else self.op(*args)


def _function(name: str, members: dict[str, Callable]) -> Any:
    """An autograd.Function with these static methods."""
    return type(name, (torch.autograd.Function,), {k: staticmethod(v) for k, v in members.items()})


def register(define: Callable[[str], Any]) -> Any:
    """define("fastcnn"); None where the native library did not load: `native` then raises before anything is called."""
    return define("fastcnn") if load_error is None else None


def _mapped(arg, dim) -> bool:
    """Whether vmap maps over this argument (in_dims of a list of ints is a list of None)."""
    return isinstance(arg, torch.Tensor) and dim is not None


def fold(batched: tuple[int, ...], size: int | None = None) -> Callable:
    """vmap of an op whose tensor arguments `batched` have a leading batch axis: folds the new axis into it.

    size: the position of an argument that holds a shape with that batch axis.
    A tensor argument that is mapped but not in `batched` (a weight) makes the rule loop instead.
    """

    def make(f):
        def rule(info, in_dims, *args):
            if any(_mapped(a, d) for i, (a, d) in enumerate(zip(args, in_dims)) if i not in batched):
                return loop(f)(info, in_dims, *args)
            n, folded = info.batch_size, list(args)
            for i in batched:
                if args[i] is not None:
                    x = args[i].movedim(in_dims[i], 0) if in_dims[i] is not None else args[i].expand(n, *args[i].shape)
                    folded[i] = x.flatten(0, 1)
            if size is not None:
                folded[size] = [n * args[size][0], *args[size][1:]]
            out = f(*folded)
            if isinstance(out, tuple):
                return tuple(o.unflatten(0, (n, -1)) for o in out), (0,) * len(out)
            return out.unflatten(0, (n, -1)), 0

        return rule

    return make


def loop(f) -> Callable:
    """vmap by one call for each slice."""

    def rule(info, in_dims, *args):
        def at(i):
            return [a.select(d, i) if _mapped(a, d) else a for a, d in zip(args, in_dims)]

        outs = [f(*at(i)) for i in range(info.batch_size)]
        if isinstance(outs[0], tuple):
            return tuple(torch.stack(o) for o in zip(*outs)), (0,) * len(outs[0])
        return torch.stack(outs), 0

    return rule


def memory_format(x: torch.Tensor) -> torch.memory_format:
    """The format in which a 4-D tensor's output is laid out: torch's rule, as csrc/ops/tensor.h has it."""
    return torch._prims_common.suggest_memory_format(x)


def autocast(namespace: str, name: str, op, first: int | None = None) -> None:
    """Under autocast, casts the op's floating-point tensors (float64 apart) to autocast's dtype.

    first: only those among so many first arguments; None means all.
    """

    def cast(t, dtype):
        lower = isinstance(t, torch.Tensor) and t.is_floating_point() and t.dtype != torch.float64
        return t.to(dtype) if lower else t

    def run(device, here, *args):
        dtype = torch.get_autocast_dtype(device)
        with torch._C._ExcludeDispatchKeyGuard(here):
            return op(*(cast(a, dtype) for a in args[:first]), *(args[first:] if first else ()))

    library = torch.library.Library(namespace, "FRAGMENT")
    for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        library.impl(name, partial(run, device, torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))), key)
    _libraries.append(library)


_libraries: list[torch.library.Library] = []  # a registration lives as long as its Library


def register_fake(name: str, fake: Callable) -> None:
    """torch.library.register_fake, with the checks of the kernels that a fake kernel's own arithmetic relies on.

    It also runs for a CPU tensor beside a meta one, and would then return memory that nobody has written.
    """
    namespace, op = name.split("::")
    schema = getattr(getattr(torch.ops, namespace), op.removesuffix(".default")).default._schema
    least = {"kernel_size": 1, "stride": 1, "dilation": 1}

    def checked(*args):
        tensors = [(a.name, v) for a, v in zip(schema.arguments, args) if isinstance(v, torch.Tensor)]
        if any(t.device != tensors[0][1].device for _, t in tensors):
            devices = ", ".join(f"{argument} on {t.device}" for argument, t in tensors)
            raise RuntimeError(f"{op}: expected all tensors on one device, but got {devices}")
        for argument, v in zip(schema.arguments, args):
            if argument.N and len(v) != argument.N:
                raise RuntimeError(f"{op}: expected {argument.name} to have {argument.N} values, but got {len(v)}")
            if argument.name in least and any(i < least[argument.name] for i in v):
                raise RuntimeError(f"{op}: expected {argument.name} of at least {least[argument.name]}, but got {v}")
        return fake(*args)

    torch.library.register_fake(name, checked)

"""A layer as the benchmarks see it: one function in two implementations, its inputs, and what error it may have."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench._gate import UNIT_ROUNDOFF, output_rounding, sum_bound
from bench._rows import FORMATS, Row

Outputs = Sequence[Tensor]


@dataclass(frozen=True)
class Comparison:
    """Two callables that compute the same outputs, the float64 result, and the error each element may have.

    `flops` counts the direct formula's operations (two a multiply-accumulate), `moved` the bytes of every input read
    once and every output written once; the one that is given decides which peak the result is measured against.
    """

    fast: Callable[[], Outputs]
    stock: Callable[[], Outputs]
    expected: Outputs
    bounds: Outputs
    dtype: torch.dtype
    flops: float = 0.0
    moved: float = 0.0
    gradients: bool = False  # called with gradients enabled


@dataclass(frozen=True)
class Layer:
    """`fast` and `stock` compute one output from `inputs`; `learned` says which inputs get a gradient.

    `bound(inputs, expected)` bounds the output's error and `grad_bounds(inputs, grad, expected)` the gradients', on
    float64 tensors.
    """

    fast: Callable[..., Tensor]
    stock: Callable[..., Tensor]
    inputs: Outputs
    learned: Sequence[bool]
    bound: Callable[[Outputs, Tensor], Tensor]
    grad_bounds: Callable[[Outputs, Tensor, Outputs], Outputs]
    flops: float = 0.0

    @property
    def dtype(self) -> torch.dtype:
        return self.inputs[0].dtype


def random_input(shape: Sequence[int], row: Row, generator: torch.Generator) -> Tensor:
    return (
        torch.randn(shape, generator=generator, device=generator.device)
        .to(row.dtype)
        .to(memory_format=FORMATS[row.layout])
    )


def random_weight(shape: Sequence[int], row: Row, generator: torch.Generator) -> torch.nn.Parameter:
    """A Parameter of the layer's own scale (variance 1/fan_in), in the row's memory format as `module.to` leaves it."""
    weight = (
        torch.randn(shape, generator=generator, device=generator.device) * (shape[0] / torch.Size(shape).numel()) ** 0.5
    )
    weight = weight.to(row.dtype)
    return torch.nn.Parameter(weight.to(memory_format=FORMATS[row.layout]) if weight.dim() == 4 else weight)


def forward(layer: Layer) -> Comparison:
    """The layer's output, without gradients."""
    inputs64 = [t.detach().double() for t in layer.inputs]
    with torch.no_grad():
        expected = layer.stock(*inputs64)
        bound = layer.bound(inputs64, expected)

    moved = sum(t.nbytes for t in layer.inputs) + expected.numel() * layer.dtype.itemsize
    return Comparison(
        lambda: (layer.fast(*layer.inputs),),
        lambda: (layer.stock(*layer.inputs),),
        (expected,),
        (bound,),
        layer.dtype,
        flops=layer.flops,
        moved=0.0 if layer.flops else moved,
    )


def backward(layer: Layer, generator: torch.Generator, reads_input: bool = True) -> Comparison:
    """The gradients of the inputs that have one, given the output's; `reads_input`: the formula needs the input."""

    def prepare(function: Callable[..., Tensor], inputs: Outputs, grad: Tensor | None) -> Callable[[], Outputs]:
        leaves = [t.detach().requires_grad_(wanted) for t, wanted in zip(inputs, layer.learned)]
        wanted = [t for t in leaves if t.requires_grad]
        output = function(*leaves)
        return lambda: torch.autograd.grad(output, wanted, grad, retain_graph=True)

    with torch.no_grad():
        grad = layer.stock(*layer.inputs)
    grad = (
        torch.randn(grad.shape, generator=generator, device=generator.device)
        .to(grad.dtype)
        .to(memory_format=_format_of(grad))
    )
    inputs64, grad64 = [t.detach().double() for t in layer.inputs], grad.double()
    expected = prepare(layer.stock, inputs64, grad64)()
    bounds = layer.grad_bounds(inputs64, grad64, expected)
    moved = grad.nbytes + sum(t.numel() for t in expected) * layer.dtype.itemsize
    moved += sum(t.nbytes for t in layer.inputs) if reads_input else 0
    # Weights and inputs each cost as many multiply-accumulates as the output did.
    matrices = sum(w and t.dim() > 1 for w, t in zip(layer.learned, layer.inputs))
    return Comparison(
        prepare(layer.fast, layer.inputs, grad),
        prepare(layer.stock, layer.inputs, grad),
        expected,
        bounds,
        layer.dtype,
        flops=layer.flops * matrices,
        moved=0.0 if layer.flops else moved,
    )


def _format_of(t: Tensor) -> torch.memory_format:
    channels_last = t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


def sum_bounds(
    stock: Callable[..., Tensor], learned: Sequence[bool], terms: int, grad_terms: Sequence[int], dtype: torch.dtype
) -> dict:
    """`bound` and `grad_bounds` of an op whose output and gradients are sums of products (convolution, average).

    `terms` counts the products of an output element, `grad_terms` those of an element of each wanted gradient. The sums
    over absolute values and squares are the same op on absolute values and squares, in float32: a bound needs no more.
    """

    def outputs(inputs: Outputs, grad: Tensor | None) -> Outputs:
        if grad is None:
            return (stock(*(t.float() for t in inputs)),)
        leaves = [t.float().requires_grad_(wanted) for t, wanted in zip(inputs, learned)]
        return torch.autograd.grad(stock(*leaves), [t for t in leaves if t.requires_grad], grad.float())

    def bounds(inputs: Outputs, grad: Tensor | None, expected: Outputs, counts: Sequence[int]) -> Outputs:
        absolute = outputs([t.abs() for t in inputs], None if grad is None else grad.abs())
        squared = outputs([t.square() for t in inputs], None if grad is None else grad.square())
        return [sum_bound(n, a, s, e, dtype) for n, a, s, e in zip(counts, absolute, squared, expected, strict=True)]

    return {
        "bound": lambda inputs, expected: bounds(inputs, None, [expected], [terms])[0],
        "grad_bounds": lambda inputs, grad, expected: bounds(inputs, grad, expected, grad_terms),
    }


def relative_bound(steps: float, magnitude: Tensor, expected: Tensor, dtype: torch.dtype) -> Tensor:
    """`steps` float32 roundings of terms of that magnitude, then one to `dtype`."""
    return output_rounding(expected, steps * UNIT_ROUNDOFF[torch.float32] * magnitude, dtype)

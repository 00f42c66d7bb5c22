"""Draws a call's tensors, makes the call and compares it, forward and backward, with its formula."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hypothesis
import torch
from hypothesis import strategies as st

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "channels_last", "sliced", "narrowed", "expanded", "transposed")

Draw = Callable[[st.SearchStrategy], Any]
Function = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Call:
    """One call, but for its tensors: `function` and `reference` take them in the order of `sizes`.

    terms: of the longest sum in the output, then in each tensor's gradient. magnitude: as reference, but with terms
    that may cancel replaced by their absolute values; by default reference of absolute values. gradients: whether to
    compare them. same_bits: whether a call without gradients returns what one with them does. tiles: whether Winograd's
    algorithm may compute it, whose rounding errors are those of the largest value of a 4x4 tile.
    """

    what: str
    function: Function
    reference: Function
    sizes: tuple[tuple[int, ...], ...]
    terms: tuple[int, ...]
    magnitude: Function | None = None
    gradients: bool = True
    same_bits: bool = True
    tiles: bool = False

    def bound(self, magnitude: torch.Tensor) -> torch.Tensor:
        """The sum of magnitudes that an element's error is measured by."""
        magnitude = magnitude.detach().abs()
        if not self.tiles or magnitude.dim() != 4 or magnitude.numel() == 0:
            return magnitude
        return torch.nn.functional.max_pool2d(magnitude, 7, 1, 3)  # whichever tile the element lies in


def tensor(size: tuple[int, ...], layout: str, dtype: torch.dtype, random: torch.Generator) -> torch.Tensor:
    """Normal values that lie in memory as `layout` says; other than 4-D tensors are contiguous or sliced."""

    def values(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=random, dtype=torch.float64).to(dtype)

    last = len(size) - 1
    if layout == "sliced":
        return values(*size[:last], 2 * size[last])[..., ::2]
    if len(size) != 4 or layout == "contiguous":
        return values(*size)
    if layout == "channels_last":
        return values(*size).to(memory_format=torch.channels_last)
    if layout == "narrowed":  # channels_last, between other channels
        return values(size[0], *size[2:], size[1] + 3).permute(0, 3, 1, 2)[:, 1 : 1 + size[1]]
    if layout == "expanded":
        return values(1, size[1], 1, size[3]).expand(size)
    return values(size[3], size[1], size[0], size[2]).permute(2, 1, 3, 0)


def excess(got: torch.Tensor, want: torch.Tensor, magnitude: torch.Tensor, terms: int) -> float:
    """By what factor the error exceeds its bound.

    A sum of `terms` rounds like a random walk in the accumulator's type, so that 4*sqrt(terms+4)*eps of the sum of
    magnitudes covers it (the worst case, too, up to 60 terms); storing rounds once more. Subnormals have fewer bits.
    """
    info, accumulator = torch.finfo(got.dtype), torch.float64 if got.dtype == torch.float64 else torch.float32
    eps = 4 * (terms + 4) ** 0.5 * torch.finfo(accumulator).eps
    bound = (eps + (info.eps if got.dtype.itemsize == 2 else 0)) * magnitude + info.smallest_normal * info.eps
    error = (got.double() - want).abs() / bound
    return error.nan_to_num(torch.inf).max().item() if got.numel() else 0.0


def compare(call: Call, tensors: list[torch.Tensor], gradient: Callable[[torch.Size], torch.Tensor]) -> None:
    """Raises AssertionError where the call and its formula differ."""
    exact = [(t.double() + 0).requires_grad_() for t in tensors]
    largest = [(t.double() + 0 if call.magnitude else t.double().abs()).requires_grad_() for t in tensors]
    want, scale = call.reference(*exact), (call.magnitude or call.reference)(*largest)
    leaves = [t.detach().requires_grad_() for t in tensors]
    got = call.function(*leaves)
    assert got.shape == want.shape, f"output of size {list(got.shape)}, expected {list(want.shape)}"
    assert got.dtype == tensors[0].dtype, f"output of {got.dtype}"
    with torch.no_grad():
        inference = call.function(*map(torch.nn.Parameter, tensors))
    for output, how in ((got, "output"), (inference, "output without gradients")):
        over = excess(output.detach(), want.detach(), call.bound(scale), call.terms[0])
        assert over <= 1, f"{how} is off by {over:.3g} times the bound"
    assert inference.equal(got) or not call.same_bits, "output without gradients differs"
    if not call.gradients:
        return
    g = gradient(got.shape)
    mine = torch.autograd.grad(got, leaves, g)
    theirs = torch.autograd.grad(want, exact, g.double())
    scales = torch.autograd.grad(scale, largest, g.double().abs())
    for i, (m, t, s, terms) in enumerate(zip(mine, theirs, scales, call.terms[1:], strict=True)):
        assert m.shape == t.shape, f"gradient {i} of size {list(m.shape)}, expected {list(t.shape)}"
        over = excess(m, t, call.bound(s), terms)
        assert over <= 1, f"gradient {i} is off by {over:.3g} times the bound"


def fuzz(name: str, draw_call: Callable[[Draw], Call], seed: int, cases: int, repeat: str) -> None:
    """Compares `cases` random calls; AssertionError with the smallest that differs, and with the words `repeat`."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=cases, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(st.data())
    def check(data):
        call = draw_call(data.draw)
        dtype = data.draw(st.sampled_from(DTYPES))
        layouts = [data.draw(st.sampled_from(LAYOUTS)) for _ in range(len(call.sizes) + 1)]
        random = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
        tensors = [tensor(size, layout, dtype, random) for size, layout in zip(call.sizes, layouts)]
        try:
            compare(call, tensors, lambda size: tensor(tuple(size), layouts[-1], dtype, random))
        except Exception as error:
            sizes = " ".join(f"{list(size)}:{layout}" for size, layout in zip(call.sizes, layouts))
            case = f"{name}({call.what}) of {sizes}, gradient {layouts[-1]}, {dtype}"
            raise AssertionError(f"{case}: {type(error).__name__}: {error}") from error

    try:
        check()
    except AssertionError as error:
        raise AssertionError(f"{error}\nRepeat: {repeat}") from error

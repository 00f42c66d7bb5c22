"""What the tests of grouped convolution share: layers with operands, and how far a result may be off."""

from dataclasses import dataclass

import torch

from fastcnn.ops.conv2d import reference
from tests.cases.geometry import ConvCase, pair
from tests.cases.resnet import RESNEXT50, RESNEXT101_32X8D, RESNEXT101_64X4D

EPS32 = 2.0**-24
ROUNDING = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}  # to nearest


@dataclass(frozen=True)
class Layer:
    """groups of `inputs` -> `outputs` channels over `batch` images of `size`."""

    groups: int
    inputs: int
    outputs: int
    size: tuple[int, int] = (5, 7)
    kernel_size: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    batch: int = 1
    name: str = ""

    def __str__(self):
        geometry = (self.size, self.kernel_size, self.stride, self.padding, self.dilation)
        sizes = "_".join("x".join(map(str, each)) for each in geometry)
        return self.name or f"{self.groups}x({self.inputs}to{self.outputs})_{self.batch}_{sizes}"

    @property
    def geometry(self) -> tuple:
        """The ops' arguments from stride to groups."""
        return self.stride, self.padding, self.dilation, self.groups

    def operands(self, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Input, channels last, and weight."""
        torch.manual_seed(seed)
        x = torch.randn(self.batch, self.groups * self.inputs, *self.size).to(dtype)
        weight = torch.randn(self.groups * self.outputs, self.inputs, *self.kernel_size).to(dtype)
        return x.contiguous(memory_format=torch.channels_last), weight


def named(case: ConvCase, size: tuple[int, int], groups: int | None = None) -> Layer:
    """A network's layer over a reduced map; groups: None for all of its channels."""
    groups, whole = groups or case.groups, case.groups
    sizes = (pair(each) for each in (case.kernel_size, case.stride, case.padding, case.dilation))
    name = f"{case.name}_{groups}_of_{whole}_groups"
    return Layer(groups, case.in_channels // whole, case.out_channels // whole, size, *sizes, name=name)


# All channels of ResNeXt-50's first layers; of the others five groups, so that a pack of several is not full.
RESNEXT = (
    named(RESNEXT50[0], (3, 4)),
    named(RESNEXT50[1], (5, 4)),
    *(named(case, (5, 4), groups=5) for case in (*RESNEXT50[2:], *RESNEXT101_64X4D, *RESNEXT101_32X8D)),
)

ODD = (
    *(Layer(3, width, width) for width in (1, 2, 3, 5, 7, 11, 13, 17, 31, 64)),
    Layer(17, 1, 1, stride=(2, 2), batch=2),
    Layer(3, 1, 4, size=(1, 1)),
    Layer(5, 3, 5, size=(7, 3), stride=(2, 1), batch=3),
    Layer(7, 4, 2, size=(8, 9), kernel_size=(2, 5), padding=(0, 2), stride=(3, 2)),
    Layer(2, 1, 64, size=(4, 5)),
    Layer(2, 64, 1, size=(4, 5), dilation=(2, 1), padding=(2, 1)),
    Layer(2, 29, 37, size=(6, 6), stride=(2, 2), dilation=(2, 2), padding=(2, 2)),
    Layer(1, 70, 66, size=(3, 3), kernel_size=(1, 1), padding=(0, 0)),
    Layer(3, 6, 6, size=(9, 8), kernel_size=(1, 2), stride=(4, 3), padding=(0, 1)),
    Layer(3, 8, 8, size=(2, 3), kernel_size=(5, 5), padding=(2, 6), stride=(2, 2), dilation=(1, 3)),
)


def sum_of_products(x, weight, layer: Layer) -> torch.Tensor:
    """The convolution, float64."""
    return reference(x, weight, None, None, *layer.geometry, False)


def assert_within(actual, wanted, sum_of_absolute, terms: int, what: str = "", tf32=False, truncated=False) -> None:
    """Each element within what float32 sums of `terms` products and one rounding to the result's type can be off.

    A sum of n terms in any order is off by less than n roundings of the sum of their absolute values; products of
    16-bit values are exact in float32, those of float32 take one more rounding each. tf32: operands lose less than
    2^-10 of their size as they are cut to 10 bits. truncated: the result is not rounded to nearest (Triton's
    interpreter, to bfloat16).
    """
    relative = (terms + 1) * EPS32 + (2.0**-9 if tf32 else 0)
    bound = relative * sum_of_absolute + (1 + truncated) * ROUNDING[actual.dtype] * (wanted.abs() + 1e-30)
    bound = bound + (2.0**-25 if actual.dtype == torch.float16 else 0)  # half of its least subnormal number
    error = (actual.double() - wanted).abs()
    worst = (error / bound.clamp(min=1e-300)).max() if error.numel() else torch.zeros(())
    assert bool((error <= bound).all()), f"{what}: {float(worst):.3g} times the bound, at most {float(error.max()):.3g}"

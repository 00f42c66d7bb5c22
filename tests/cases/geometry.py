"""What a named layer is: sizes and hyperparameters, without data. The batch size is the caller's."""

from dataclasses import dataclass

Size = int | tuple[int, int]


def pair(value: Size) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


@dataclass(frozen=True)
class ConvCase:
    """A 2-d convolution layer; `count` is how often its network holds a layer of exactly this geometry."""

    name: str
    in_channels: int
    out_channels: int
    size: Size
    kernel_size: Size
    stride: Size = 1
    padding: Size = 0
    dilation: Size = 1
    groups: int = 1
    bias: bool = True
    count: int = 1

    @property
    def kwargs(self) -> dict:
        """The arguments of `conv2d` after input, weight and bias."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return (self.out_channels, self.in_channels // self.groups, *pair(self.kernel_size))

    @property
    def output_size(self) -> tuple[int, int]:
        sizes = map(pair, (self.size, self.kernel_size, self.stride, self.padding, self.dilation))
        h, w = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(*sizes))
        return h, w

    @property
    def depthwise(self) -> bool:
        return self.groups == self.in_channels > 1

    def input_shape(self, batch: int = 1) -> tuple[int, int, int, int]:
        return (batch, self.in_channels, *pair(self.size))

    def output_shape(self, batch: int = 1) -> tuple[int, int, int, int]:
        return (batch, self.out_channels, *self.output_size)

    def macs(self, batch: int = 1) -> int:
        """Multiply-accumulates of the direct formula, padding counted, bias not."""
        _, per_group, kh, kw = self.weight_shape
        oh, ow = self.output_size
        return batch * self.out_channels * oh * ow * per_group * kh * kw


@dataclass(frozen=True)
class SparseConvCase:
    """A convolution with a channel link table: output map o reads the input maps `table[o]` only (LeNet-5's C3)."""

    name: str
    in_channels: int
    size: Size
    kernel_size: Size
    table: tuple[tuple[int, ...], ...]

    @property
    def out_channels(self) -> int:
        return len(self.table)

    @property
    def links(self) -> int:
        return sum(map(len, self.table))

    @property
    def output_size(self) -> tuple[int, int]:
        h, w = (n - k + 1 for n, k in zip(pair(self.size), pair(self.kernel_size)))
        return h, w

    def input_shape(self, batch: int = 1) -> tuple[int, int, int, int]:
        return (batch, self.in_channels, *pair(self.size))

    def output_shape(self, batch: int = 1) -> tuple[int, int, int, int]:
        return (batch, self.out_channels, *self.output_size)

    def macs(self, batch: int = 1) -> int:
        """Multiply-accumulates over the links that exist."""
        (oh, ow), (kh, kw) = self.output_size, pair(self.kernel_size)
        return batch * self.links * oh * ow * kh * kw


@dataclass(frozen=True)
class PoolCase:
    """A max or average pooling layer with a window."""

    name: str
    channels: int
    size: Size
    kernel_size: Size
    stride: Size
    padding: Size = 0
    ceil_mode: bool = False

    @property
    def kwargs(self) -> dict:
        """The arguments of `max_pool2d` and `avg_pool2d` after input."""
        return {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding,
            "ceil_mode": self.ceil_mode,
        }

    def input_shape(self, batch: int = 1) -> tuple[int, int, int, int]:
        return (batch, self.channels, *pair(self.size))


@dataclass(frozen=True)
class AdaptivePoolCase:
    """An adaptive average pooling layer (global average pooling has output_size 1)."""

    name: str
    channels: int
    size: Size
    output_size: Size

    def input_shape(self, batch: int = 1) -> tuple[int, int, int, int]:
        return (batch, self.channels, *pair(self.size))


@dataclass(frozen=True)
class LRNCase:
    """A local response normalization layer; `alpha_mode` "sum" is the AlexNet paper's formula, "mean" torch's."""

    name: str
    channels: int
    size: Size
    k: float
    alpha_mode: str
    groups: int = 1
    window: int = 5
    alpha: float = 1e-4
    beta: float = 0.75

    @property
    def kwargs(self) -> dict:
        """The arguments of `fastcnn.functional.local_response_norm` after input."""
        return {
            "size": self.window,
            "alpha": self.alpha,
            "beta": self.beta,
            "k": self.k,
            "alpha_mode": self.alpha_mode,
            "groups": self.groups,
        }

    def input_shape(self, batch: int = 1) -> tuple[int, int, int, int]:
        return (batch, self.channels, *pair(self.size))


@dataclass(frozen=True)
class SubsampleCase:
    """LeNet-5's trainable subsampling (S2, S4): non-overlapping windows with one weight and one bias a map."""

    name: str
    channels: int
    size: Size
    kernel_size: Size = 2

    def input_shape(self, batch: int = 1) -> tuple[int, int, int, int]:
        return (batch, self.channels, *pair(self.size))

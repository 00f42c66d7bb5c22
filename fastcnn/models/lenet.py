"""LeNet-5. LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document Recognition (1998), II-B."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fastcnn import nn as fnn

from ._digit_codes import digit_codes
from ._registry import Weights, load_weights, register_model

# Table I: the maps of S2 that each map of C3 sees. 60 links; the missing ones have no weight at all.
C3_TABLE = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)  # fmt: skip


class ScaledTanh(nn.Module):
    """1.7159 tanh(2x/3), which maps 1 to 1 and -1 to -1, where its second derivative is largest (appendix A)."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(x * (2 / 3))


class RBFOutput(nn.Module):
    """Squared Euclidean distance of (N, 84) features to each class's fixed code (equation 7); the least one predicts.

    `weight` is a buffer of shape (10, 84), saved with the model but not trained.
    """

    weight: Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", digit_codes())

    def forward(self, x: Tensor) -> Tensor:
        return (x.unsqueeze(-2) - self.weight).square().sum(-1)  # (N, 10, 84) summed to (N, 10)


def rbf_loss(penalties: Tensor, target: Tensor, j: float | None = 0.1) -> Tensor:
    """Loss of RBF outputs: penalties (N, classes) from RBFOutput, target (N,) class indices; returns the batch mean.

    With a number j, the maximum a posteriori criterion of equation 9, y_t + log(exp(-j) + sum_i exp(-y_i)), which also
    pushes the other classes away, but not those whose penalty already exceeds j by far. With j=None, equation 8: y_t.
    """
    correct = penalties.gather(1, target[:, None]).squeeze(1)
    if j is None:
        return correct.mean()
    rubbish = penalties.new_full((len(penalties), 1), -j)  # the class of everything that is no digit
    return (correct + torch.logsumexp(torch.cat([rubbish, -penalties], 1), 1)).mean()


_ACTIVATIONS = {"scaled_tanh": ScaledTanh, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
_SUBSAMPLINGS = {
    "sum": lambda channels: fnn.Subsample2d(channels, 2, reduce="sum"),
    "mean": lambda channels: fnn.Subsample2d(channels, 2, reduce="mean"),
    "max": lambda channels: fnn.MaxPool2d(2),
    "avg": lambda channels: fnn.AvgPool2d(2),
}


def _choose(argument: str, value: str, choices: Mapping[str, Callable[..., nn.Module]]) -> Callable[..., nn.Module]:
    if value not in choices:
        raise ValueError(f"LeNet5: expected {argument} to be one of {', '.join(choices)}, but got {value!r}")
    return choices[value]


class LeNet5(nn.Module):
    """LeNet-5 on (N, 1, 32, 32) input whose background is -0.1 and whose ink is 1.175, so that its mean is about 0.

    head: 'rbf' gives (N, 10) penalties, the least of which predicts; 'linear' gives (N, num_classes) logits.
    subsampling: 'sum' (paper) or 'mean' train one weight and one bias per map; 'max' and 'avg' train nothing.
    sparse: whether C3 has the 60 links of the paper's table, or all 96. activation: 'scaled_tanh', 'tanh', 'sigmoid'.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        head: str = "rbf",
        activation: str = "scaled_tanh",
        subsampling: str = "sum",
        sparse: bool = True,
    ):
        super().__init__()
        if head not in ("rbf", "linear"):
            raise ValueError(f"LeNet5: expected head to be one of rbf, linear, but got {head!r}")
        if head == "rbf" and num_classes != 10:
            raise ValueError(f"LeNet5: head='rbf' has codes for 10 classes, but got num_classes={num_classes}")
        self.act = _choose("activation", activation, _ACTIVATIONS)()
        subsample = _choose("subsampling", subsampling, _SUBSAMPLINGS)
        self.c1 = fnn.Conv2d(1, 6, 5)
        self.s2 = subsample(6)
        self.c3 = fnn.SparseConv2d(6, 16, 5, C3_TABLE) if sparse else fnn.Conv2d(6, 16, 5)
        self.s4 = subsample(16)
        self.c5 = fnn.Conv2d(16, 120, 5)
        self.f6 = nn.Linear(120, 84)
        self.out = RBFOutput() if head == "rbf" else nn.Linear(84, num_classes)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Appendix A: weights and bias from U(-2.4 / F, 2.4 / F), F being the number of a unit's inputs.

        SparseConv2d and Subsample2d, which have no other use, initialise themselves so.
        """
        for layer in self.children():
            if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.bias is not None:
                bound = 2.4 / layer.weight[0].numel()
                layer.weight.uniform_(-bound, bound)
                layer.bias.uniform_(-bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.c1(x))  # (N, 6, 28, 28)
        x = self._subsample(self.s2, x)  # (N, 6, 14, 14)
        x = self.act(self.c3(x))  # (N, 16, 10, 10)
        x = self._subsample(self.s4, x)  # (N, 16, 5, 5)
        x = self.act(self.c5(x))  # (N, 120, 1, 1)
        if x.shape[-2:] != (1, 1):
            raise RuntimeError(f"lenet5: expected 32x32 input, of which c5 makes 1x1, but got c5 {tuple(x.shape)}")
        x = x.flatten(-3)  # (N, 120)
        x = self.act(self.f6(x))  # (N, 84)
        return self.out(x)

    def _subsample(self, layer: nn.Module, x: Tensor) -> Tensor:
        return self.act(layer(x)) if isinstance(layer, fnn.Subsample2d) else layer(x)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The training loss of forward's output: maximum a posteriori for 'rbf', cross entropy for 'linear'."""
        if isinstance(self.out, RBFOutput):
            return rbf_loss(output, target)
        return nn.functional.cross_entropy(output, target)

    def predict(self, output: Tensor) -> Tensor:
        """The (N,) classes that forward's output speaks for."""
        return output.argmin(1) if isinstance(self.out, RBFOutput) else output.argmax(1)


@register_model
def lenet5(*, weights: Weights = None, num_classes: int = 10, **kwargs) -> LeNet5:
    """LeNet-5 of the 1998 paper, 60,000 parameters (60,850 with head='linear'); see LeNet5 for the options."""
    model = LeNet5(num_classes, **kwargs)
    load_weights(model, weights)
    return model


@register_model
def lenet5_dense(*, weights: Weights = None, num_classes: int = 10, **kwargs) -> LeNet5:
    """LeNet-5 as textbooks draw it: C3 sees every map, 2x2 max pooling, linear outputs; 61,706 parameters."""
    model = LeNet5(num_classes, **{"head": "linear", "subsampling": "max", "sparse": False, **kwargs})
    load_weights(model, weights)
    return model

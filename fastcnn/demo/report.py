"""Turns the demo's results into one HTML file that needs nothing else."""

import base64
import io
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from fastcnn import _extras, _page
from fastcnn.models.verify import Verification

from .speed import Speed
from .training import Epoch, Training

SHOWN_DIGITS = 130  # ten rows of thirteen on a wide screen


def need(module: str) -> ModuleType:
    """Imports one of the demo's libraries, or says how to get it."""
    return _extras.need(module, "the demo", "demo")


@dataclass
class Digit:
    """One held-out digit of the grid."""

    picture: str  # data URI
    label: int
    prediction: int


def picture(values: Tensor, colours: str, low: float, high: float) -> str:
    """A (H, W) tensor as the data URI of a PNG in one of matplotlib's colour maps."""
    file = io.BytesIO()
    need("matplotlib.image").imsave(file, values.numpy(), cmap=colours, vmin=low, vmax=high, format="png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def training_curve(history: list[Epoch]) -> str:
    """Loss and held-out accuracy over the epochs, as the text of an SVG element."""
    need("matplotlib").use("agg")
    plt = need("matplotlib.pyplot")
    epochs = range(1, len(history) + 1)
    with plt.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 11}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
        left.plot(epochs, [epoch.loss for epoch in history], color="#c2560c")
        left.set(title="training loss", xlabel="epoch", ylim=0)
        right.plot(epochs, [100 * epoch.accuracy for epoch in history], color="#0b6e99")
        right.axhline(97, color="#888", linewidth=1, linestyle="--")
        right.annotate("97 %", (1, 97), xytext=(0, 4), textcoords="offset points", color="#555")
        right.set(title="accuracy on the held-out third, %", xlabel="epoch", ylim=(80, 100.5))
        for axes in (left, right):
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        file = io.StringIO()
        figure.savefig(file, format="svg")
        plt.close(figure)
    text = file.getvalue()
    return text[text.index("<svg") :]


def digit_grid(training: Training) -> list[Digit]:
    """Every mistake, then the first held-out digits that were right."""
    wrong = (training.predictions != training.labels).nonzero().flatten().tolist()
    right = (training.predictions == training.labels).nonzero().flatten().tolist()
    shown = (wrong + right)[: max(SHOWN_DIGITS, len(wrong))]
    return [
        Digit(
            picture(training.images[i, 0], "gray_r", -0.1, 1.175),
            int(training.labels[i]),
            int(training.predictions[i]),
        )
        for i in shown
    ]


def first_layer(training: Training) -> list[str]:
    """The six 5x5 filters of c1, zero in the middle of the colours."""
    filters = training.model.c1.weight.detach()[:, 0]
    most = filters.abs().max().item()
    return [picture(kernel, "RdBu_r", -most, most) for kernel in filters]


def render(
    environment: list[tuple[str, str]],
    training: Training,
    verification: Verification,
    speed: Speed,
) -> str:
    """The report as HTML text; no script, no reference to anything outside."""
    longest = max(max(layer.fastcnn_s, layer.stock_s) for layer in speed.layers)
    return _page.render(
        "demo/report.html.jinja",
        "the demo",
        environment=environment,
        training=training,
        curve=training_curve(training.history),
        digits=digit_grid(training),
        mistakes=int((training.predictions != training.labels).sum()),
        filters=first_layer(training),
        verification=verification,
        speed=speed,
        longest=longest,
        torch_version=torch.__version__,
    )

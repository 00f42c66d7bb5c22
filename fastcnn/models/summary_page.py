"""A network's summary as one HTML page."""

from dataclasses import dataclass

from torch import nn

from fastcnn import _page
from fastcnn import nn as fnn

from .summary import Summary

# Colours that stay apart for colour-blind readers (Okabe and Ito); grey is the rest.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000")
REST = "#c4ccd3"


@dataclass(frozen=True)
class Slice:
    """One layer's share of a sum, or that of all the smaller ones."""

    name: str
    percent: float
    start: float  # the percents before it
    colour: str


@dataclass(frozen=True)
class Chart:
    """A ring of shares."""

    title: str
    slices: list[Slice]


def _by_part(values: dict[str, int], parts: int = 12) -> dict[str, int]:
    """The sums over parts of the network: by layer, or by as many words of its dotted name as give few enough."""
    grouped: dict[str, int] = {}
    for words in range(max(name.count(".") for name in values) + 1, 0, -1):
        grouped = {}
        for name, value in values.items():
            part = ".".join(name.split(".")[:words])
            grouped[part] = grouped.get(part, 0) + value
        if sum(value > 0 for value in grouped.values()) <= parts:
            break
    return grouped


def chart(title: str, values: dict[str, int]) -> Chart:
    """The shares of the parts with the largest values, in the order of the network, and of the others together."""
    values = _by_part(values)
    total = sum(values.values()) or 1
    largest = sorted(values, key=lambda name: -values[name])[: len(COLOURS)]
    named = {name: value for name, value in values.items() if name in largest and value}
    rest = [value for name, value in values.items() if name not in largest and value]
    parts = [(*item, colour) for item, colour in zip(named.items(), COLOURS)]
    if rest:
        parts.append((f"{len(rest)} others", sum(rest), REST))
    slices, start = [], 0.0
    for name, value, colour in parts:
        slices.append(Slice(name, 100 * value / total, start, colour))
        start += 100 * value / total
    return Chart(title, slices)


def _links(model: nn.Module) -> list[tuple[str, list[list[bool]]]]:
    """Of every sparse convolution, which input map (rows) each output map (columns) sees."""
    return [
        (name, [[i in row for row in module.table] for i in range(module.in_channels)])
        for name, module in model.named_modules()
        if isinstance(module, fnn.SparseConv2d)
    ]


def render(summary: Summary, model: nn.Module) -> str:
    """The page as text."""
    sums: dict[str, dict[str, int]] = {"parameters": {}, "macs": {}}
    for layer in summary.layers:
        for what, values in sums.items():
            values[layer.name] = values.get(layer.name, 0) + getattr(layer, what)
    largest = {
        what: max(getattr(layer, what) for layer in summary.layers) for what in ("activations", "parameters", "macs")
    }
    charts = [chart("parameters", sums["parameters"]), chart("multiply-adds", sums["macs"])]
    return _page.render(
        "models/summary.html.jinja",
        "an HTML summary",
        summary=summary,
        charts=charts,
        links=_links(model),
        largest=largest,
    )

"""Which model, with how many classes, a state dict belongs to."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ._registry import get_model, list_models
from .checkpoint import Fit, MismatchError, fit, rename

AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # classifiers that only training needs, which may be left out


@dataclass(frozen=True)
class Match:
    """A model that a state dict fits: get_model(name, **options), with what of num_classes and aux_logits it needs."""

    name: str
    options: dict[str, int]
    fit: Fit


def _on_meta(name: str, **kwargs) -> nn.Module:
    with torch.device("meta"):
        return get_model(name, **kwargs)


def _class_axes(name: str, model: nn.Module, options: dict[str, int]) -> dict[str, int]:
    """The tensors that grow with the number of classes, and the axis; none where the model has a fixed number."""
    try:
        few = _on_meta(name, num_classes=7, **options).state_dict()
    except ValueError:
        return {}
    sizes = {key: (value.shape, few[key].shape) for key, value in model.state_dict().items()}
    return {
        key: next(axis for axis, (a, b) in enumerate(zip(*pair)) if a != b)
        for key, pair in sizes.items()
        if pair[0] != pair[1]
    }


def _default(name: str, state: Mapping[str, Tensor]) -> tuple[nn.Module, dict[str, int]]:
    """The model for its own number of classes, with auxiliary classifiers if it has them and the state dict too."""
    model = _on_meta(name)
    has = [any(key.startswith(AUXILIARY) for key in keys) for keys in (model.state_dict(), state)]
    options: dict[str, int] = {"aux_logits": False} if has == [True, False] else {}
    return _on_meta(name, **options) if options else model, options


def match(name: str, state: Mapping[str, Tensor]) -> Match:
    """The model of this name as the state dict fits it: with its number of classes, and auxiliary classifiers where it
    has their weights. Raises MismatchError."""
    model, options = _default(name, state)
    expected = model.state_dict()
    ours = rename(state, expected)[0]
    axes = _class_axes(name, model, options)
    if axes:
        key, axis = list(axes.items())[-1]  # of several classifiers the last is the network's own
        classes = ours[key].shape[axis:] if key in ours else ()
        options["num_classes"] = classes[0] if classes else expected[key].shape[axis]
        model = _on_meta(name, **options)
    return Match(name, options, fit(model, state, name))


def _strangers(name: str, state: Mapping[str, Tensor]) -> int:
    """How many keys one has and the other lacks, a counter of batches aside."""
    expected = _default(name, state)[0].state_dict()
    different = set(rename(state, expected)[0]) ^ set(expected)
    return sum(not key.endswith("num_batches_tracked") for key in different)


def identify(state: Mapping[str, Tensor]) -> list[Match]:
    """Every model that the state dict fits. Where there is none, raises MismatchError of the nearest, by its keys and
    then by the number of mismatches."""
    strangers = {name: _strangers(name, state) for name in list_models()}
    found, errors = [], []
    for name in strangers:
        if strangers[name] > min(strangers.values()):
            continue
        try:
            found.append(match(name, state))
        except MismatchError as error:
            errors.append(error)
    if not found:
        raise min(errors, key=lambda error: len(error.mismatches))
    return found

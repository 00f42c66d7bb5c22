"""The list of models, and what every one of them does alike: look-up by name and loading of weights."""

import inspect
import os
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

Weights = str | os.PathLike[str] | Mapping[str, Tensor] | None

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])

_builders: dict[str, Callable[..., nn.Module]] = {}


def register_model(builder: Builder) -> Builder:
    """Makes a builder function known to list_models and get_model under its own name."""
    _builders[builder.__name__] = builder
    return builder


def list_models() -> list[str]:
    """The names that get_model takes, in alphabetical order."""
    return sorted(_builders)


def get_model(name: str, **kwargs) -> nn.Module:
    """Builds a model by name.

    Keyword arguments go to the builder; all builders take `weights` (None, a path to a state dict, or a state dict)
    and `num_classes`. Raises ValueError for an unknown name.
    """
    if name not in _builders:
        raise ValueError(f"get_model: unknown model {name!r}, expected one of {', '.join(list_models())}")
    return _builders[name](**kwargs)


def default_classes(name: str) -> int:
    """The num_classes that a builder has if none is given."""
    return inspect.signature(_builders[name]).parameters["num_classes"].default


def load_weights(model: nn.Module, weights: Weights) -> None:
    """Copies a state dict, or the state dict stored at a path, into the model; keys and shapes must match exactly."""
    if weights is not None:
        state = weights if isinstance(weights, Mapping) else torch.load(weights, map_location="cpu", weights_only=True)
        model.load_state_dict(state)

"""What leaves units, blocks or paths out at random while a network trains: compositions of PyTorch's functions.

All draw from PyTorch's generator, so torch.manual_seed, torch.func.vmap's randomness and torch.compile hold as for
torch.nn.functional.dropout.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function, has_torch_function_unary


def check_probability(p: float) -> None:
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"drop probability has to be between 0 and 1, but got {p}")


def check_choice(function: str, name: str, value: str, choices: tuple[str, str]) -> None:
    if value not in choices:
        raise ValueError(f"{function}: expected {name} to be {choices[0]!r} or {choices[1]!r}, but got {value!r}")


def dropout(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *, mode: str = "inverted"
) -> Tensor:
    """Zeroes elements with probability p while training; torch.nn.functional.dropout, or the paper's.

    mode 'inverted': what is kept is divided by 1-p, and nothing happens when not training. 'paper' (Krizhevsky et al.
    2012, section 4.2): what is kept stays as it is, and all is multiplied by 1-p when not training. For one seed both
    keep the same elements. ValueError on p outside [0, 1] and on an unknown mode.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(dropout, (input,), input, p, training, inplace, mode=mode)
    check_choice("dropout", "mode", mode, ("inverted", "paper"))
    if mode == "inverted":
        return torch.nn.functional.dropout(input, p, training, inplace)
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    factor: Tensor | float = 1 - p
    if training:
        factor = torch.nn.functional.dropout(torch.ones_like(input), p).ne(0).to(input.dtype)
    return input.mul_(factor) if inplace else input * factor


def stochastic_depth(input: Tensor, p: float, mode: str, training: bool = True, *, scaling: str = "inverted") -> Tensor:
    """Zeroes a residual branch with probability p while training (Huang et al. 2016), as torchvision.ops has it.

    mode 'batch' leaves the branch out for all of input, (N, ...), or for none of it; 'row' decides for each of the N.
    scaling 'inverted' (torchvision's): what is kept is divided by 1-p; 'paper': it is not, and the branch is multiplied
    by its survival rate 1-p when not training. ValueError on p outside [0, 1], an unknown mode or scaling.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(stochastic_depth, (input,), input, p, mode, training, scaling=scaling)
    check_probability(p)
    check_choice("stochastic_depth", "mode", mode, ("batch", "row"))
    check_choice("stochastic_depth", "scaling", scaling, ("inverted", "paper"))
    if p == 0:
        return input
    if not training:
        return input * (1 - p) if scaling == "paper" else input
    rows = input.shape[:1] if mode == "row" else (1,) * min(input.dim(), 1)
    kept = _bernoulli((*rows, *[1] * (input.dim() - 1)), 1 - p, input)
    return input * (kept / (1 - p) if scaling == "inverted" and p < 1 else kept)


def drop_path(
    inputs: Sequence[Tensor],
    p: float = 0.15,
    training: bool = True,
    *,
    sampling: str = "local",
    mode: str = "batch",
    column: int | Tensor | None = None,
) -> Tensor:
    """FractalNet's join (Larsson et al. 2017): the mean of its inputs, of which some are left out while training.

    sampling 'local': each input is left out with probability p; where all would be, one that is drawn remains.
    'global': one input, drawn, remains. mode 'batch' draws once, 'row' for each of the N samples of inputs (N, ...).

    column: the input that alone remains, training or not: an int, or N of them. A network that samples globally draws
    it once and hands it to every join; a join that lacks this input lies on no path that is left and gives the mean.

    ValueError: no inputs, p outside [0, 1], an unknown sampling or mode, a negative column. RuntimeError: inputs of
    different shapes.
    """
    if has_torch_function(tuple(inputs)):
        return handle_torch_function(
            drop_path, tuple(inputs), inputs, p, training, sampling=sampling, mode=mode, column=column
        )
    check_probability(p)
    check_choice("drop_path", "sampling", sampling, ("local", "global"))
    check_choice("drop_path", "mode", mode, ("batch", "row"))
    if not inputs:
        raise ValueError("drop_path: expected at least one input, but got none")
    x, count = inputs[0], len(inputs)
    for i, other in enumerate(inputs):
        if other.shape != x.shape:
            raise RuntimeError(
                f"drop_path: expected all inputs of size {list(x.shape)}, but got inputs[{i}] of size "
                f"{list(other.shape)}"
            )
    if isinstance(column, int):
        if column < 0:
            raise ValueError(f"drop_path: expected column of at least 0, but got {column}")
        return inputs[column] if column < count else _mean(inputs)
    draws = x.shape[:1] if mode == "row" else (1,)
    if column is None:
        if count == 1 or not training:
            return _mean(inputs)
        column = torch.randint(count, draws, device=x.device)
        chosen = _chosen(column, count)
        if sampling == "local":
            kept = _bernoulli((count, *draws), 1 - p, x) > 0
            chosen = torch.where(kept.any(0), kept, chosen)
    else:
        if column.shape not in (x.shape[:1], ()):
            raise RuntimeError(
                f"drop_path: expected column to be one or {x.shape[0]}, but got column of size {list(column.shape)}"
            )
        chosen = _chosen(column.reshape(-1), count)
        chosen = chosen | ~chosen.any(0)
    weights = (chosen / chosen.sum(0)).to(x.dtype)
    return sum(w.view(-1, *[1] * (x.dim() - 1)) * t for w, t in zip(weights, inputs))


def _bernoulli(size: tuple[int, ...], p: float, like: Tensor) -> Tensor:
    """Draws that vmap does not map over, even where it does over `like`: it refuses those with randomness='same'."""
    return torch.bernoulli(torch.empty(size, dtype=like.dtype, device=like.device), p)


def _chosen(column: Tensor, count: int) -> Tensor:
    """(count, draws): whether the draw chose the input."""
    return column == torch.arange(count, device=column.device).unsqueeze(1)


def _mean(inputs: Sequence[Tensor]) -> Tensor:
    return sum(inputs[1:], inputs[0]) / len(inputs)

"""Packed convolution weights, kept as long as the weight they come from is the same and unchanged.

A packed weight is a tensor. It is found again only for the same live object with the same data_ptr and `_version`
and an equal fingerprint of elements spread over the weight: `data_ptr` and `_version` alone are no key, since memory
is reused, and fused optimizers, writes through `.data` and numpy views leave `_version` alone. What remains unseen
is a write through `.data` or numpy that misses every fingerprinted element; after one, call `fastcnn.clear_cache()`.
"""

import weakref
from dataclasses import dataclass

import torch

from . import _library


@dataclass(slots=True)
class _Entry:
    owner: weakref.ref
    key: tuple
    packed: tuple[torch.Tensor, ...]


def _key(weight: torch.Tensor, *how) -> tuple:
    """What must be equal for a packed weight to be used again."""
    address = weight.data_ptr()
    version = None if weight.is_inference() else weight._version
    fingerprint = _library._C.fingerprint(address, weight.numel(), weight.element_size())
    return (address, version, fingerprint, how, weight.dtype, weight.shape, weight.stride())


class PackedWeights:
    """Packed weights by the Parameter they belong to, which is held weakly."""

    def __init__(self):
        # By how they are packed: for direct or for Winograd's kernels.
        self._plain: tuple[dict[int, _Entry], ...] = ({}, {})
        self._folded: tuple[dict[int, _Entry], ...] = ({}, {})

    def get(self, weight: torch.Tensor, shape: torch.Size, geometry: tuple, accuracy: int) -> torch.Tensor | None:
        """The packed form of a Parameter for an input of this shape; None for any other tensor: the op then packs for
        itself. geometry: stride, padding and dilation (two each), groups."""
        if not _packable(weight):
            return None
        winograd, groups = _is_winograd(weight, shape, geometry, accuracy), geometry[6]
        table = self._plain[winograd]
        entry = table.get(id(weight))
        key = _key(weight, groups)
        if entry is not None and entry.owner() is weight and entry.key == key:
            return entry.packed[0]
        if groups < 1 or weight.shape[0] % groups:
            return None
        packed = torch.ops.fastcnn._pack_weight.default(weight, groups, winograd)
        self._keep(table, weight, key, (packed,))
        return packed

    def folded(self, weight: torch.Tensor, shape: torch.Size, geometry: tuple, accuracy: int, bias, norm: tuple, eps):
        """The packed form of a Parameter with a batch normalization folded in, and the bias, both as wide as the
        accumulator; None where `get` gives none, or for vectors that are no plain arrays. norm: mean, variance, weight
        and bias of the normalization."""
        norm = (bias, *norm)
        if not _packable(weight) or any(t is not None and not _vector(t, weight.shape[0]) for t in norm):
            return None
        winograd, groups = _is_winograd(weight, shape, geometry, accuracy), geometry[6]
        table = self._folded[winograd]
        entry = table.get(id(weight))
        key = (_key(weight, groups), eps, *(None if t is None else _key(t) for t in norm))
        if entry is not None and entry.owner() is weight and entry.key == key:
            return entry.packed
        if groups < 1 or weight.shape[0] % groups:
            return None
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        scale, shift = fold([None if t is None else t.detach().double() for t in norm], eps)
        # Where the kernel multiplies bfloat16 as it is, the product is rounded to it; else it stays wide.
        pairs = weight.dtype == torch.bfloat16 and _library._C.bf16_dot() and not winograd
        product = (weight.detach().double() * scale.view(-1, 1, 1, 1)).to(torch.bfloat16 if pairs else dtype)
        packed = torch.ops.fastcnn._pack_weight.default(product, groups, winograd), shift.to(dtype)
        self._keep(table, weight, key, packed)
        return packed

    def _keep(self, table: dict[int, _Entry], weight: torch.Tensor, key: tuple, packed: tuple) -> None:
        at = id(weight)

        def forget(ref: weakref.ref) -> None:
            entry = table.get(at)
            if entry is not None and entry.owner is ref:  # else another weight lives at this address by now
                del table[at]

        table[at] = _Entry(weakref.ref(weight, forget), key, packed)

    def clear(self) -> None:
        """Drops every packed weight."""
        for table in (*self._plain, *self._folded):
            table.clear()

    def __len__(self) -> int:
        return sum(len(table) for table in (*self._plain, *self._folded))


def fold(tensors: list, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The factor of a convolution's weight, and the new bias, that do what the batch normalization after it does.

    tensors: the convolution's bias, the normalization's mean, variance, weight and bias; the first and the last two
    may be None.
    """
    bias, mean, var, bn_weight, bn_bias = tensors
    scale = (var + eps).rsqrt() if bn_weight is None else bn_weight * (var + eps).rsqrt()
    shift = -mean * scale if bias is None else (bias - mean) * scale
    return scale, shift if bn_bias is None else shift + bn_bias


def _packable(weight: torch.Tensor) -> bool:
    # The fingerprint reads the CPU's memory. Of a GPU's it would have to wait for the kernels under way; without it a
    # write through .data or by a fused optimizer would go unseen. docs/gpu.md says what CUDA's kernels do instead.
    parameter = type(weight) is torch.nn.Parameter and weight.is_cpu
    return parameter and weight.dim() == 4 and weight.numel() > 0 and _dense(weight)


def _is_winograd(weight: torch.Tensor, shape: torch.Size, geometry: tuple, accuracy: int) -> bool:
    size = weight.shape
    # Asking costs a microsecond: only where it may.
    if not accuracy or size[2] != 3 or size[3] != 3 or size[1] < 16:
        return False
    return _library._C.conv2d_is_winograd(shape, size, geometry[:7], accuracy)


def _vector(t: torch.Tensor, size: int) -> bool:
    return t.dim() == 1 and t.shape[0] == size and t.is_contiguous()


def _dense(weight: torch.Tensor) -> bool:
    """Whether data_ptr is followed by all elements without gaps: the fingerprint reads them as an array."""
    return weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)


cache = PackedWeights()


def clear_cache() -> None:
    """Drops packed weights and policy "fastest"'s verdicts, those in the cache directory too, and gives the memory that
    no tensor uses back to the system.

    For results it is needed only after a write that PyTorch cannot see and that changed single elements.
    """
    from .ops import _policy  # imports this module

    cache.clear()
    _policy.clear()
    if _library.load_error is None:
        _library._C.arena_clear()

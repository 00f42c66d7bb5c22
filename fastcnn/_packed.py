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
    packed: torch.Tensor


def _key(weight: torch.Tensor, groups: int) -> tuple:
    """What must be equal for a packed weight to be used again."""
    address = weight.data_ptr()
    version = None if weight.is_inference() else weight._version
    fingerprint = _library._C.fingerprint(address, weight.numel(), weight.element_size())
    return (address, version, fingerprint, groups, weight.dtype, weight.shape, weight.stride())


class PackedWeights:
    """Packed weights by the Parameter they belong to, which is held weakly."""

    def __init__(self):
        self._entries: dict[int, _Entry] = {}

    def get(self, weight: torch.Tensor, groups: int) -> torch.Tensor | None:
        """The packed form of a Parameter; None for any other tensor: the op then packs for itself."""
        if type(weight) is not torch.nn.Parameter or weight.dim() != 4 or not weight.numel() or not _dense(weight):
            return None
        entry = self._entries.get(id(weight))
        key = _key(weight, groups)
        if entry is not None and entry.owner() is weight and entry.key == key:
            return entry.packed
        if groups < 1 or weight.shape[0] % groups:
            return None
        packed = torch.ops.fastcnn._pack_weight.default(weight, groups)
        at = id(weight)
        self._entries[at] = _Entry(weakref.ref(weight, lambda ref: self._forget(at, ref)), key, packed)
        return packed

    def _forget(self, at: int, ref: weakref.ref) -> None:
        entry = self._entries.get(at)
        if entry is not None and entry.owner is ref:  # else another weight lives at this address by now
            del self._entries[at]

    def clear(self) -> None:
        """Drops every packed weight."""
        self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)


def _dense(weight: torch.Tensor) -> bool:
    """Whether data_ptr is followed by all elements without gaps: the fingerprint reads them as an array."""
    return weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)


cache = PackedWeights()


def clear_cache() -> None:
    """Drops packed weights. Needed only after a write that PyTorch cannot see and that changed single elements."""
    cache.clear()

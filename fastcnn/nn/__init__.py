"""Modules with torch.nn's constructors, attributes and state_dict keys, on fastcnn's kernels."""

from .pooling import MaxPool2d

__all__ = ["MaxPool2d"]

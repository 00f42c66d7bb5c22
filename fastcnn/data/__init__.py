"""Data sets that need no network."""

from .digits import deform_randomly, load_digits, split_thirds

__all__ = ["deform_randomly", "load_digits", "split_thirds"]

"""One module per op: fake kernel, autograd, vmap, FLOPs, float64 reference, functional face. Importing registers."""

from . import max_pool2d  # noqa: F401

"""Libraries that only some of fastcnn needs, and the extras that install them."""

import importlib
from types import ModuleType

EXTRAS = {
    "checkpoint": ("safetensors",),
    "demo": ("numpy", "sklearn", "matplotlib", "jinja2"),
    "test": ("pytest", "pytest_benchmark", "expecttest"),
}


def need(module: str, what: str, extra: str) -> ModuleType:
    """Imports a library of an extra for `what`, or says how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{what} needs {module.split('.')[0]}: pip install 'fastcnn[{extra}]'") from error

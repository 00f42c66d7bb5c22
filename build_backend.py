"""PEP 517 backend: setuptools, plus torch as a build requirement only where there is none to build on.

Naming torch in ``build-system.requires`` would download a second torch into pip's isolated build
environment and build against that one. The stable ABI needs only torch's headers and one library
to link, and both are in the environment that fastcnn is being installed into.
"""

import importlib.util
import site
import sysconfig
from pathlib import Path

from setuptools.build_meta import *  # noqa: F403  every hook but the two below


def torch_root() -> Path | None:
    """Folder of the torch to build on, or None. Never imports torch: its dependencies may be out of reach."""
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages()]
    for folder in folders:
        if Path(folder, "torch", "include", "torch", "csrc", "stable").is_dir():
            return Path(folder, "torch")
    spec = importlib.util.find_spec("torch")  # a torch installed for this build, or found through PYTHONPATH
    return Path(spec.origin).parent if spec and spec.origin else None


def get_requires_for_build_wheel(config_settings=None):
    """Without setuptools' own hook: that one runs setup.py, which needs to know where torch is."""
    return [] if torch_root() else ["torch>=2.11"]


get_requires_for_build_editable = get_requires_for_build_wheel

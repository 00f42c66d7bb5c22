"""This GPU's architecture. Knows torch alone: it is asked before fastcnn is built."""

import torch


def arch_list() -> str:
    """As TORCH_CUDA_ARCH_LIST names it."""
    major, minor = torch.cuda.get_device_capability()
    return f"{major}.{minor}{'a' if (major, minor) == (9, 0) else ''}"

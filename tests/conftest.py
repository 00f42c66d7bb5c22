"""Seeds, poisoned memory, and the tests that only a nightly run pays for."""

import ctypes
import os
from pathlib import Path

import pytest
import torch

from fastcnn import _library
from fastcnn._config import config as fastcnn_config


def pytest_addoption(parser):
    parser.addoption("--run-slow", action="store_true", help="run the tests marked slow, too")
    parser.addoption("--simt", action="store_true", help="compute by the CUDA kernels, run on the CPU (tests/simt)")
    parser.addoption("--gpu", action="store_true", help="compute by the CUDA kernels on a GPU (tests/gpu.py)")
    parser.addoption("--fuzz-seed", type=int, default=0, help="what the random calls of tests/fuzz start from")
    parser.addoption("--fuzz-cases", type=int, default=300, help="how many there are; 20000 for a night")


def pytest_configure(config):
    if config.getoption("numprocesses", None):  # pytest-xdist's workers share the cores: OpenMP must not spin on them
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if config.getoption("--simt"):
        from tests.simt import library

        library.take_over()
    if config.getoption("--gpu"):
        from tests import gpu

        if not torch.cuda.is_available():
            raise pytest.UsageError("--gpu: torch finds no GPU")
        gpu.take_over()


TOGETHER = ("tests/ptx/", "tests/test_sanitize.py")  # what these record or build serves those that follow


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """pytest -n 2: each test goes to the worker that is free, those of TOGETHER to one, in order."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return next((start for start in TOGETHER if nodeid.startswith(start)), nodeid)

    return Scheduler(config, log)


def pytest_collection_modifyitems(config, items):
    if config.getoption("--simt") or config.getoption("--gpu"):
        for item in items:
            if item.get_closest_marker("cpu"):
                item.add_marker(pytest.mark.skip(reason="of the CPU's kernels alone"))
    if config.getoption("--run-slow") or "slow" in config.getoption("markexpr"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --run-slow"))


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def settable_backends():
    """torch.testing._internal, which opcheck and OpInfo's samples import, freezes the settings of torch.backends for
    the whole process: a test that changes one would depend on which others were collected."""
    with torch.backends.__allow_nonbracketed_mutation():
        yield


@pytest.fixture
def simt(request):
    """The ground on which the CUDA kernels run: its settings and counters."""
    if not request.config.getoption("--simt"):
        pytest.skip("of the CUDA kernels: run with --simt")
    from tests.simt import ground, library

    machine = ground.Ground(library.build())
    yield machine
    machine.reset()


@pytest.fixture(autouse=True, scope="session")
def own_cache_directory(tmp_path_factory):
    """clear_cache() empties it."""
    before, fastcnn_config.cache_dir = fastcnn_config.cache_dir, tmp_path_factory.mktemp("cache")
    yield
    fastcnn_config.cache_dir = before


@pytest.fixture(autouse=True, scope="session")
def poisoned_memory():
    """Fresh tensors hold PyTorch's junk pattern, 0x7fedbeef: an element that a kernel leaves out is seen.

    That is NaN in float32, a huge number in float64, and every other element NaN in 16 bits. It is a switch of the
    allocator, so it holds for outputs made behind the stable ABI, too; torch.use_deterministic_algorithms does not.
    Outputs of 1 MiB and more come from fastcnn's arena, which fills them with NaN of every dtype.
    """
    c10 = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    junk_fill = ctypes.c_bool.in_dll(c10, "FLAGS_caffe2_cpu_allocator_do_junk_fill")
    junk_fill.value = True
    if _library.load_error is None:
        _library._C.arena_poison(True)
    yield
    junk_fill.value = False
    if _library.load_error is None:
        _library._C.arena_poison(False)

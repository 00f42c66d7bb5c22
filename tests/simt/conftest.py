"""Test kernels run on the CPU: built once for the session, in all thread orders and both kinds of copies."""

import shutil

import pytest

from tests.simt import ground
from tests.simt.ground import Ground


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    return ground.build(tmp_path_factory.mktemp("simt") / "libground.so", "-O2")


@pytest.fixture
def simt(library):
    simt = Ground(library)
    yield simt
    simt.reset()


@pytest.fixture(params=["forward", "reverse", "shuffle"])
def order(request, simt):
    simt.set("FASTCNN_SIMT_ORDER", request.param)
    return request.param


@pytest.fixture(params=["lazy", "eager"])
def copy(request, simt):
    simt.set("FASTCNN_SIMT_COPY", request.param)
    return request.param

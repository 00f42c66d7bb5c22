"""Requests, sectors and wavefronts of access patterns for which the manual gives them."""

import numpy as np
import pytest

from tests.simt import ground


def traffic(t) -> tuple[int, ...]:
    return t.requests, t.bytes, t.units, t.ideal


@pytest.fixture
def counting(simt):
    simt.set("FASTCNN_SIMT_COUNT", "1")
    return simt


@pytest.mark.parametrize(
    ("name", "dtype", "stride", "expected"),
    [
        ("global_stride_4", np.float32, 1, (1, 128, 4, 4)),
        ("global_stride_4", np.float32, 2, (1, 128, 8, 4)),
        ("global_stride_4", np.float32, 32, (1, 128, 32, 4)),  # a column: a sector for each lane
        ("global_stride_4", np.float32, 0, (1, 128, 1, 1)),  # broadcast
        ("global_stride_2", np.float16, 1, (1, 64, 2, 2)),
        ("global_stride_16", np.complex128, 1, (1, 512, 16, 16)),
    ],
)
def test_sectors(counting, order, name, dtype, stride, expected):
    x, y = ground.aligned((32 * max(stride, 1),), dtype), ground.aligned((32,), dtype)
    getattr(counting, name)(x, y, stride)
    counters = counting.counters()
    assert traffic(counters.global_load) == expected
    assert counters.read_bytes == 32 * expected[2]
    assert counters.written_bytes == y.nbytes


@pytest.mark.parametrize(
    ("name", "width", "stride", "wavefronts", "ideal"),
    [
        ("shared_stride_4", 1, 1, 1, 1),
        ("shared_stride_4", 1, 2, 2, 1),  # 2-way
        ("shared_stride_4", 1, 32, 32, 1),
        ("shared_stride_4", 1, 33, 1, 1),
        ("shared_stride_8", 2, 1, 2, 2),
        ("shared_stride_8", 2, 2, 4, 2),
        ("shared_stride_16", 4, 1, 4, 4),
        ("shared_stride_16", 4, 2, 8, 4),
        ("shared_stride_16", 4, 9, 4, 4),
    ],
)
def test_bank_conflicts(counting, order, name, width, stride, wavefronts, ideal):
    getattr(counting, name)(ground.aligned((32, width), np.float32), stride)
    counters = counting.counters()
    expected = (1, 32 * 4 * width, wavefronts, ideal)
    assert traffic(counters.shared_load) == traffic(counters.shared_store) == expected


@pytest.mark.parametrize(("stride", "ways"), [(24, 1), (40, 1), (72, 1), (64, 8), (32, 4), (16, 2)])
def test_ldmatrix_bank_conflicts(counting, stride, ways):
    counting.ldmatrix_stride(np.zeros(32, np.uint32), stride)
    assert traffic(counting.counters().ldmatrix) == (1, 512, 4 * ways, 4)


def test_skipped_loads_keep_their_request(counting):
    counting.masked(ground.aligned((256,), np.float32), ground.aligned((32,)), 8)
    load = counting.counters().global_load
    assert load.requests == 8
    assert load.bytes == 4 * sum(32 - i for i in range(8))


def test_gemm_counts(counting, order, copy):
    m = n = k = 64
    ground.gemm(counting, "gemm_f16", "f16", m, n, k)
    counters = counting.counters()
    assert counters.mma == m * n * k // (16 * 8 * 16)
    assert counters.barriers == 4 * k // 16
    assert counters.launches == 1
    assert counters.ldmatrix.units == counters.ldmatrix.ideal > 0
    assert counters.global_load.units == counters.global_load.ideal
    assert counters.global_load.bytes == 2 * (m + n) * k * 2  # each operand by two columns or rows of blocks
    assert counters.written_bytes == 4 * m * n
    kinds = {(site.file.decode().rsplit("/", 1)[-1], site.kind) for site in counting.sites()}
    assert ("gemm.cu", 0) in kinds
    assert ("gemm.cu", 4) in kinds


def test_counting_is_off_by_default(simt):
    ground.gemm(simt, "gemm_f16", "f16", 32, 32, 32)
    assert simt.counters().launches == 0

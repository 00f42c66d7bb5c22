"""Sanitizers on the test kernels: silent on the clean ones, and each finds the fault planted for it."""

import shutil

import pytest

from tests.simt import ground

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory):
    built = {}

    def run(sanitizer: str, case: str) -> str:
        if sanitizer not in built:
            out = tmp_path_factory.mktemp("simt") / f"libground_{sanitizer.split(',')[0]}.so"
            built[sanitizer] = ground.build(out, "-O1", f"-fsanitize={sanitizer}", "-fno-omit-frame-pointer")
        return ground.run_sanitized(sanitizer, ground.__file__, str(built[sanitizer]), case)

    return run


RACES = {
    "gemm_without_barrier": "gemm.cu",
    "conv3x3_without_barrier": "conv3x3.cu",
    "block_sum_without_barrier": "block_sum.cu",
    "neighbour_without_sync": "faults.cu",
}


@pytest.mark.parametrize("case", RACES)
def test_thread_sanitizer_finds_the_missing_barrier(sanitized, case):
    output = sanitized("thread", case)
    assert "WARNING: ThreadSanitizer: data race" in output
    assert RACES[case] in output


@pytest.mark.parametrize("order", ["forward", "reverse", "shuffle"])
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_sanitizers_find_nothing_in_clean_kernels(sanitized, monkeypatch, sanitizer, order):
    monkeypatch.setenv("FASTCNN_SIMT_ORDER", order)
    output = sanitized(sanitizer, "clean")
    assert output.endswith("clean: done\n")
    assert "Sanitizer" not in output
    assert "runtime error" not in output


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_findings_unwind_under_sanitizers(sanitized, sanitizer):
    output = sanitized(sanitizer, "findings")
    assert output.endswith("findings: done\n")
    assert "Sanitizer" not in output
    assert "runtime error" not in output


def test_address_sanitizer_finds_global_out_of_bounds(sanitized):
    output = sanitized("address,undefined", "conv3x3_row_too_many_global")
    assert "ERROR: AddressSanitizer: heap-buffer-overflow" in output
    assert "READ of size 4" in output
    assert "conv3x3.cu" in output


def test_address_sanitizer_finds_copy_out_of_bounds(sanitized):
    output = sanitized("address,undefined", "copy_past_end")
    assert "ERROR: AddressSanitizer: heap-buffer-overflow" in output
    assert "READ of size 16" in output
    assert "faults.cu" in output


def test_address_sanitizer_finds_shared_out_of_bounds(sanitized):
    output = sanitized("address,undefined", "shared_overrun")
    assert "ERROR: AddressSanitizer" in output
    assert "WRITE of size 4" in output
    assert "faults.cu" in output

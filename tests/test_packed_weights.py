"""A packed weight must never outlive the values it was made from, however these were changed."""

import copy
import gc
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import fastcnn
from fastcnn import _packed

X = torch.randn(2, 16, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def empty_cache():
    fastcnn.clear_cache()
    yield
    fastcnn.clear_cache()


class AddressAndVersion:
    """The cache that _packed.py must not be: keyed by address and version counter alone."""

    def __init__(self):
        self._packed = {}

    def get(self, weight, shape, geometry, accuracy):
        groups = geometry[6]
        key = (weight.data_ptr(), None if weight.is_inference() else weight._version, groups)
        if key not in self._packed:
            self._packed[key] = torch.ops.fastcnn._pack_weight(weight, groups)
        return self._packed[key]


def layer(groups=1) -> fastcnn.nn.Conv2d:
    return fastcnn.nn.Conv2d(16, 16, 3, groups=groups, dtype=torch.float64)


def is_stale(conv) -> bool:
    """Whether the layer computes with another weight than the one it has, as inference does."""
    weight = torch.empty(conv.weight.shape, dtype=torch.float64).copy_(conv.weight.detach())
    with torch.no_grad():
        got = conv(X)
    want = torch.nn.functional.conv2d(X, weight, conv.bias, groups=conv.groups).detach()
    return not torch.allclose(got, want, rtol=1e-12, atol=1e-12)


def fused_adamw(conv):
    optimizer = torch.optim.AdamW(conv.parameters(), lr=0.1, fused=True)
    conv(X).square().sum().backward()
    optimizer.step()


def write_to_data(conv):
    conv.weight.data.mul_(2)


def write_through_numpy(conv):
    conv.weight.detach().numpy()[...] *= 2


def write_in_inference_mode(conv):
    with torch.inference_mode():
        conv.weight.detach().mul_(2)


def replace_data(conv):
    conv.weight.data = conv.weight.data * 2


def replace_parameter(conv):
    conv.weight = torch.nn.Parameter(conv.weight.detach() * 2)


def write_in_place(conv):
    with torch.no_grad():
        conv.weight.mul_(2)


def load_state_dict(conv):
    conv.load_state_dict(layer(conv.groups).state_dict())


def sgd(conv):
    conv(X).square().sum().backward()
    torch.optim.SGD(conv.parameters(), lr=1e-4).step()  # small: sums of large terms would cancel


def convert_layout(conv):
    conv.to(memory_format=torch.channels_last)


def convert_dtype(conv):
    conv.float().double()  # rounds


# Changes that leave address and version counter alone, then those that a plain cache would notice.
UNSEEN = [fused_adamw, write_to_data, write_through_numpy]
SEEN = [write_in_place, write_in_inference_mode, load_state_dict, sgd, replace_data, replace_parameter, convert_layout,
        convert_dtype]  # fmt: skip


@pytest.mark.parametrize("groups", [1, 2, 16])
@pytest.mark.parametrize("change", UNSEEN + SEEN)
def test_sees_change(change, groups):
    conv = layer(groups)
    assert not is_stale(conv)
    assert len(_packed.cache) == 1
    for _ in range(3):
        before = conv.weight.detach().clone()
        change(conv)
        if change is not convert_layout and change is not convert_dtype:
            assert not conv.weight.equal(before)
        assert not is_stale(conv)
    assert len(_packed.cache) == 1


@pytest.mark.parametrize("change", UNSEEN)
def test_a_plain_cache_misses_it(change, monkeypatch):
    """The faults are faults: keyed by address and version alone, each of them gives a stale result."""
    monkeypatch.setattr(_packed, "cache", AddressAndVersion())
    conv = layer()
    assert not is_stale(conv)
    change(conv)
    assert is_stale(conv)


def fresh_weights():
    """How many of at least ten layers, one after another, were stale: each with a weight of its own, which sooner or
    later has an address and an id that another one had."""
    addresses, identities, stale = set(), set(), 0
    for count in range(1, 1000):
        conv = layer()
        addresses.add(conv.weight.data_ptr())
        identities.add(id(conv.weight))
        stale += is_stale(conv)
        del conv
        if count >= 10 and len(addresses) < count and len(identities) < count:
            return stale
    raise AssertionError("no memory was used again: this shows nothing")


def test_reused_memory():
    assert fresh_weights() == 0
    assert len(_packed.cache) == 0


def test_a_plain_cache_misses_reused_memory(monkeypatch):
    monkeypatch.setattr(_packed, "cache", AddressAndVersion())
    assert fresh_weights() > 0


def test_reused_memory_while_others_live():
    """A weight that dies takes only its own entry along."""
    kept = layer()
    assert fresh_weights() == 0
    assert not is_stale(kept)
    assert len(_packed.cache) == 1


def test_is_used():
    """Twice the same tensor: else nothing above shows anything."""
    weight = layer().weight
    call = X.shape, (1, 1, 0, 0, 1, 1, 1), 1
    first = _packed.cache.get(weight, *call)
    assert first is not None
    assert _packed.cache.get(weight, *call) is first
    conv = layer()
    assert not is_stale(conv)
    _packed.cache.get(conv.weight, *call).zero_()
    assert is_stale(conv)


@pytest.mark.cpu
def test_direct_and_winograd_side_by_side():
    """One weight on a small and on a large map is packed in two ways, and each is found again."""
    conv, calls = layer(), [(X.shape, (1, 1, 0, 0, 1, 1, 1), 1), ((2, 16, 66, 66), (1, 1, 0, 0, 1, 1, 1), 1)]
    direct, winograd = (_packed.cache.get(conv.weight, *call) for call in calls)
    assert winograd.numel() == 4 * direct.numel()
    assert _packed.cache.get(conv.weight, *calls[0]) is direct
    assert _packed.cache.get(conv.weight, *calls[1]) is winograd
    assert _packed.cache.get(conv.weight, calls[1][0], calls[1][1], 0) is direct  # strict
    conv.weight.data.mul_(2)
    assert _packed.cache.get(conv.weight, *calls[1]) is not winograd


def test_inference_tensors():
    """They have no version counter."""
    with torch.inference_mode():
        conv = layer()
        assert conv.weight.is_inference()
        for _ in range(3):
            assert not is_stale(conv)
            conv.weight.mul_(2)
        assert not is_stale(conv)


def test_groups_are_part_of_it():
    """One Parameter read with other groups."""
    weight = torch.nn.Parameter(torch.randn(16, 1, 3, 3, dtype=torch.float64))
    with torch.no_grad():
        for groups in (16, 1, 16):
            x = X[:, :groups]
            got = fastcnn.functional.conv2d(x, weight, groups=groups)
            torch.testing.assert_close(got, torch.nn.functional.conv2d(x, weight, groups=groups))


def test_clear_cache_after_a_write_that_nothing_shows():
    """One element between the fingerprinted ones, through .data: the documented limit, and its remedy."""
    conv = layer()
    assert not is_stale(conv)
    with torch.no_grad():
        conv.weight.data.view(-1)[1] += 1
        assert conv.weight.numel() > 128
    fastcnn.clear_cache()
    assert len(_packed.cache) == 0
    assert not is_stale(conv)


def test_swap_tensors():
    """torch refuses to swap a tensor that anything holds weakly; clearing the cache lets go."""
    conv = layer()
    assert not is_stale(conv)
    other = torch.nn.Parameter(conv.weight.detach() * 2)
    with pytest.raises(RuntimeError, match="weakref"):
        torch.utils.swap_tensors(conv.weight, other)
    assert not is_stale(conv)
    fastcnn.clear_cache()
    torch.utils.swap_tensors(conv.weight, other)
    assert not is_stale(conv)


def test_is_held_weakly():
    layers = [layer() for _ in range(3)]
    for conv in layers:
        is_stale(conv)
    assert len(_packed.cache) == 3
    del conv, layers[0]
    gc.collect()
    assert len(_packed.cache) == 2
    layers.clear()
    gc.collect()
    assert len(_packed.cache) == 0


def test_only_parameters_are_kept():
    weight = torch.randn(16, 16, 3, 3, dtype=torch.float64)
    with torch.no_grad():
        for w in (weight, torch.nn.Parameter(weight).detach(), torch.nn.Parameter(weight) * 1):
            got = fastcnn.functional.conv2d(X, w)
            torch.testing.assert_close(got, torch.nn.functional.conv2d(X, w))
    assert len(_packed.cache) == 0


def test_copies_and_pickles_hold_no_packed_weight():
    conv = layer()
    before = pickle.dumps(conv)
    saved = io.BytesIO()
    torch.save(conv.state_dict(), saved)
    is_stale(conv)
    assert pickle.dumps(conv) == before
    after = io.BytesIO()
    torch.save(conv.state_dict(), after)
    assert after.getbuffer().nbytes == saved.getbuffer().nbytes

    for other in (copy.deepcopy(conv), pickle.loads(before)):
        assert not is_stale(other)
        write_to_data(other)
        assert not is_stale(other)
        assert not is_stale(conv)


def test_threads():
    """Layers that come, change and go in four threads, and one that all of them read."""
    shared = layer()
    want = torch.nn.functional.conv2d(X, shared.weight, shared.bias).detach()

    def work(_):
        stale = 0
        for _ in range(20):
            conv = layer()
            stale += is_stale(conv)
            write_to_data(conv)
            stale += is_stale(conv)
            with torch.no_grad():
                stale += not torch.allclose(shared(X), want)
        return stale

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [0] * 4
    gc.collect()
    assert len(_packed.cache) == 1

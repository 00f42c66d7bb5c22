"""cuda-convnet's CIFAR-10 networks: shapes, initial values, and every layer against float64."""

import pytest
import torch

from fastcnn.models import conv_local_11pct, conv_local_13pct, get_model
from fastcnn.models.layers import record_calls
from fastcnn.models.verify import example_batch, fixed_seed, verify

STD = {"conv1": 1e-4, "conv2": 0.01, "local3": 0.04, "local4": 0.04, "fc": 0.01}
BUILDERS = (conv_local_13pct, conv_local_11pct)


@pytest.mark.parametrize("build", BUILDERS)
def test_shapes(build):
    model = build(num_classes=7)
    with record_calls(model) as calls:
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    shapes = {call.name: tuple(call.output.shape[1:]) for call in calls if "relu" not in call.name}
    expected = {"conv1": (64, 32, 32), "pool1": (64, 16, 16), "conv2": (64, 16, 16), "pool2": (64, 8, 8)}
    assert shapes == {**expected, "local3": (32, 8, 8), "local4": (32, 8, 8), "fc": (7,)}
    assert set(model.state_dict()) == {f"{name}.{kind}" for name in STD for kind in ("weight", "bias")}
    with pytest.raises(RuntimeError, match="expected 32x32 input, but got"):
        model(torch.zeros(2, 3, 24, 24))


@torch.no_grad()
def test_without_a_batch():
    """Normalization takes dimension 1 for the channels, and would sum over rows."""
    x = torch.randn(3, 32, 32)
    plain, normalized = conv_local_13pct(), conv_local_11pct()
    torch.testing.assert_close(plain(x), plain(x[None])[0])
    with pytest.raises(RuntimeError, match=r"conv_local: expected \(N, 3, H, W\) input, but got .*\(3, 32, 32\)"):
        normalized(x)


def test_normalization():
    """13 % and 11 %: the one is the other with alpha/n = 0.001/5 over five channels after each convolution's ReLU."""
    assert [name for name, _ in conv_local_13pct().named_modules()] == [
        name for name, _ in conv_local_11pct().named_modules()
    ]
    norm = conv_local_11pct().relu2
    x = torch.randn(2, 64, 5, 5)
    want = torch.nn.functional.local_response_norm(x.relu(), 5, 1e-3, 0.75, 1.0)
    torch.testing.assert_close(norm(x), want)


def test_initial_values():
    with fixed_seed(0):
        model = conv_local_13pct()
    for name, std in STD.items():
        layer = model.get_submodule(name)
        # 5 % is 5 standard deviations of the estimate for conv1, the smallest with 4,800 weights
        assert layer.weight.std().item() == pytest.approx(std, rel=0.05)
        assert not layer.bias.any()


def test_weights():
    trained = conv_local_13pct()
    loaded = get_model("conv_local_13pct", weights=trained.state_dict()).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in trained.state_dict().items())


@pytest.mark.parametrize("build", BUILDERS)
def test_verify(build):
    with fixed_seed(0):
        model = build()
        model.conv1.weight.data.mul_(100)  # so that the layers behind it are compared on more than rounding
    result = verify(model, *example_batch(build.__name__, 3), name=build.__name__)
    assert result.passed, result.worst
    assert {"conv1", "conv2", "pool1", "local3", "local4", "network"} <= {check.layer for check in result.checks}

"""Checkpoints: read without running code, fitted strictly, refused with all that does not fit."""

import functools
import json
import os
import pickle

import pytest
import torch
from typer.testing import CliRunner

from fastcnn.cli import app
from fastcnn.models import checkpoint, get_model, identify, list_models
from fastcnn.models._registry import load_weights
from fastcnn.models.checkpoint import CheckpointError, MismatchError, fit, read_checkpoint, write_checkpoint
from tests.model_checks import filled, on_meta

SAFETENSORS = "reads and writes safetensors, which is not installed"


def convert(*arguments):
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


def torchvision(name, **options):
    models = pytest.importorskip("torchvision.models", reason="compares with torchvision, which is not installed")
    with torch.device("meta"):
        return filled(models.get_model(name, **options)).eval()


def timm(name, **options):
    models = pytest.importorskip("timm", reason="compares with timm, which is not installed")
    with torch.device("meta"):
        return filled(models.create_model(name, **options)).eval()


def assert_same(state, other):
    assert list(state) == list(other)
    assert all(torch.equal(state[key], other[key]) for key in state)


@pytest.fixture
def lenet(tmp_path):
    """A file with the wrappings of a training script, and the state dict in it."""
    state = get_model("lenet5_dense", num_classes=7).state_dict()
    wrapped = {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}
    torch.save(wrapped, tmp_path / "lenet.pt")
    return tmp_path / "lenet.pt", state


@pytest.mark.parametrize("extension", ["pt", "safetensors"])
def test_torchvisions_resnet18_both_ways(tmp_path, extension):
    if extension == "safetensors":
        pytest.importorskip("safetensors", reason=SAFETENSORS)
    peer = torchvision("resnet18", num_classes=12)
    write_checkpoint(peer.state_dict(), tmp_path / f"peer.{extension}")
    output = tmp_path / f"ours.{extension}"
    result = convert(tmp_path / f"peer.{extension}", "--model", "resnet18", "--output", output, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["options"] == {"num_classes": 12}
    assert report["tensors"] == 122
    ours = get_model("resnet18", num_classes=12, weights=output).eval()
    assert_same(ours.state_dict(), peer.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), peer(x), rtol=1e-4, atol=1e-4)
    back = torchvision("resnet18", num_classes=12)
    back.load_state_dict(read_checkpoint(output).state)
    assert_same(back.state_dict(), peer.state_dict())


@pytest.mark.parametrize("name", ["densenet121", "resnetv2_18"])
def test_timm_both_ways(tmp_path, name):
    pytest.importorskip("safetensors", reason=SAFETENSORS)
    peer = timm(name, num_classes=5)
    write_checkpoint(peer.state_dict(), tmp_path / "peer.safetensors")
    output = tmp_path / "ours.pth"
    result = convert(tmp_path / "peer.safetensors", "--model", name, "--output", output)
    assert result.exit_code == 0, result.output
    assert "num_classes=5" in result.stdout
    assert_same(get_model(name, num_classes=5, weights=output).state_dict(), peer.state_dict())
    timm(name, num_classes=5).load_state_dict(read_checkpoint(output).state)


def test_timms_vgg_is_renamed_and_reshaped():
    peer = timm("vgg11", num_classes=3)
    found = identify.match("vgg11", peer.state_dict())
    assert sum(map(len, found.fit.renamed.values())) == 6
    assert found.fit.reshaped == {
        "classifier.0.weight": ((4096, 512, 7, 7), (4096, 25088)),
        "classifier.3.weight": ((4096, 4096, 1, 1), (4096, 4096)),
    }
    ours = get_model("vgg11", num_classes=3, weights=peer.state_dict()).eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), peer(x), rtol=1e-4, atol=1e-4)


def test_googlenet_with_and_without_auxiliary_classifiers(tmp_path):
    peer = torchvision("googlenet", num_classes=4, init_weights=False)
    state = peer.state_dict()
    found = identify.match("googlenet_tv", state)
    assert found.options == {"num_classes": 4}
    ours = get_model("googlenet_tv", weights=state, **found.options)
    peer.load_state_dict(ours.state_dict())
    without = {key: value for key, value in state.items() if not key.startswith("aux")}
    found = identify.match("googlenet_tv", without)
    assert found.options == {"aux_logits": False, "num_classes": 4}
    assert_same(get_model("googlenet_tv", weights=without, **found.options).state_dict(), without)
    without["aux1.fc2.bias"] = state["aux1.fc2.bias"]
    with pytest.raises(MismatchError, match=r"aux2\.conv\.conv\.weight"):
        identify.match("googlenet_tv", without)


def test_wrappings_are_taken_off(lenet):
    path, state = lenet
    read = read_checkpoint(path)
    assert (read.entry, read.prefix, read.format) == ("state_dict", "module.", "torch")
    assert_same(read.state, state)
    assert_same(get_model("lenet5_dense", num_classes=7, weights=path).state_dict(), state)
    result = convert(path, "--model", "lenet5_dense")
    assert result.exit_code == 0, result.output
    assert "'state_dict'" in result.stdout
    assert "'module.'" in result.stdout


def test_several_state_dicts(tmp_path, lenet):
    state = lenet[1]
    zeros = {key: torch.zeros_like(value) for key, value in state.items()}
    torch.save({"model": {"state_dict": state}, "model_ema": zeros}, tmp_path / "both.pt")
    result = convert(tmp_path / "both.pt", "--model", "lenet5_dense")
    assert result.exit_code == 1
    assert "several state dicts, model, model_ema" in result.stderr
    assert_same(read_checkpoint(tmp_path / "both.pt", "model_ema").state, zeros)
    assert read_checkpoint(tmp_path / "both.pt", "model").entry == "model.state_dict"
    assert convert(tmp_path / "both.pt", "--entry", "nothing").exit_code == 1


@pytest.fixture
def faulty():
    """resnet20's state dict with a key renamed, a shape wrong, a key missing, and a type that is no number's."""
    state = get_model("resnet20").state_dict()
    state["layer1.0.convolution1.weight"] = state.pop("layer1.0.conv1.weight")
    state["layer2.1.conv2.weight"] = torch.zeros(32, 32, 5, 5)
    del state["bn1.running_var"]
    state["layer3.0.bn1.bias"] = torch.zeros(64, dtype=torch.int8)
    return state


def test_the_whole_list_of_mismatches(tmp_path, faulty):
    torch.save(faulty, tmp_path / "faulty.pt")
    output = tmp_path / "out.pt"
    result = convert(tmp_path / "faulty.pt", "--model", "resnet20", "--output", output, "--json")
    assert result.exit_code == 1
    assert not output.exists()
    assert json.loads(result.stdout)["mismatches"] == {
        "missing": ["bn1.running_var", "layer1.0.conv1.weight"],
        "unexpected": ["layer1.0.convolution1.weight"],
        "shapes": {"layer2.1.conv2.weight": {"checkpoint": [32, 32, 5, 5], "model": [32, 32, 3, 3]}},
        "dtypes": {"layer3.0.bn1.bias": {"checkpoint": "int8", "model": "float32"}},
    }
    for text in ("layer1.0.convolution1.weight", "bn1.running_var", "(32, 32, 5, 5), expected (32, 32, 3, 3)", "int8"):
        assert text in result.stderr


@pytest.mark.parametrize("fault", ["renamed", "reshaped", "missing"])
def test_each_fault_alone_keeps_the_model_as_it_was(fault):
    model = get_model("resnet20")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = get_model("resnet20").state_dict()
    weight = state.pop("layer3.2.conv2.weight")
    if fault == "renamed":
        state["layer3.2.conv3.weight"] = weight
    elif fault == "reshaped":
        state["layer3.2.conv2.weight"] = weight.mT.reshape(64, 64, 9, 1)
    with pytest.raises(MismatchError, match=r"layer3\.2\.conv2\.weight") as raised:
        load_weights(model, state)
    assert len(raised.value.mismatches) == (2 if fault == "renamed" else 1)
    assert_same(model.state_dict(), before)


def test_types_and_counters():
    state = {
        key: value.half() if value.is_floating_point() else value
        for key, value in get_model("resnet20").state_dict().items()
    }
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    fitted = fit(on_meta("resnet20"), old)
    assert list(fitted.cast) == ["float16 to float32"]
    assert len(fitted.cast["float16 to float32"]) == len(old)
    assert len(fitted.filled) == len(state) - len(old) == 19
    assert all(value.dtype == torch.float32 for key, value in fitted.state.items() if key in old)


def test_torchvisions_old_densenet_keys():
    state = on_meta("densenet_bc_100_12").state_dict()
    old = {key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): value for key, value in state.items()}
    assert list(fit(on_meta("densenet_bc_100_12"), old).state) == list(state)


class Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def damage(path, how, state):
    """Writes a file that is no checkpoint any more."""
    if how == "code":
        torch.save({"weight": Code(path.with_name("executed"))}, path)
    elif how == "legacy code":
        path.write_bytes(pickle.dumps(Code(path.with_name("executed")), protocol=2))
    elif how == "objects":
        torch.save({"epoch": 3, "name": "lenet"}, path)
    elif how == "list":
        torch.save([torch.zeros(2)], path)
    elif how.startswith("truncated"):
        write_checkpoint(state, path)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) * 2 // 3])
    else:
        path.write_bytes({"empty": b"", "text": b"version https://git-lfs.github.com/spec/v1\n"}[how])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("code", "refused, and nothing of it run: it calls for posix.mkdir"),
        ("legacy code", "refused, and nothing of it run: it calls for posix.mkdir"),
        ("objects", r"expected a dict of tensors, but got one with epoch \(int\), name \(str\)"),
        ("list", "expected a dict of tensors, but got list"),
        ("truncated", "damaged, or no checkpoint"),
        ("truncated safetensors", "damaged safetensors file"),
        ("empty", "damaged, or no checkpoint"),
        ("text", "no.* checkpoint"),
    ],
)
def test_what_is_no_checkpoint(tmp_path, lenet, how, message):
    path = tmp_path / ("bad.safetensors" if "safetensors" in how else "bad.pt")
    if "safetensors" in how:
        pytest.importorskip("safetensors", reason=SAFETENSORS)
    damage(path, how, lenet[1])
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)
    assert not (tmp_path / "executed").exists()
    result = convert(path, "--model", "lenet5")
    assert result.exit_code == 1
    assert str(path) in result.stderr
    assert not result.stdout


def test_a_file_is_read_by_its_content(tmp_path, lenet):
    pytest.importorskip("safetensors", reason=SAFETENSORS)
    write_checkpoint(lenet[1], tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").rename(tmp_path / "a.pt")
    assert read_checkpoint(tmp_path / "a.pt").format == "safetensors"


def test_missing_library(tmp_path, lenet, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(ImportError, match=r"needs safetensors: pip install 'fastcnn\[checkpoint\]'"):
        write_checkpoint(lenet[1], tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


def test_guess(lenet, monkeypatch, tmp_path):
    monkeypatch.setattr(
        identify, "list_models", lambda: ["lenet5", "lenet5_dense", "resnet110", "resnet110_stochastic"]
    )
    result = convert(lenet[0], "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["model"] == "lenet5_dense"
    assert "the only model with these tensors is lenet5_dense" in result.stderr
    torch.save(get_model("resnet110").state_dict(), tmp_path / "deep.pt")
    result = convert(tmp_path / "deep.pt")
    assert result.exit_code == 2
    assert "resnet110_stochastic" in result.stderr
    result = convert(lenet[0], "--model", "resnet110")
    assert result.exit_code == 1
    assert "it fits lenet5_dense" in result.stderr


def test_no_model_fits(faulty, monkeypatch, tmp_path):
    monkeypatch.setattr(identify, "list_models", lambda: ["lenet5", "resnet20", "resnet56"])
    torch.save(faulty, tmp_path / "faulty.pt")
    result = convert(tmp_path / "faulty.pt")
    assert result.exit_code == 1
    assert "does not fit resnet20" in result.stderr
    assert "no model fits" in result.stderr


def test_wrong_usage(tmp_path, lenet):
    for arguments in (
        [tmp_path / "none.pt"],
        [lenet[0], "--model", "lenet6"],
        [lenet[0], "--output", tmp_path / "a.bin"],
        [lenet[0], "--output", tmp_path / "no" / "a.pt"],
    ):
        result = convert(*arguments)
        assert result.exit_code == 2, result.output
        assert not result.stdout


@pytest.mark.slow
def test_every_model_is_identified(monkeypatch):
    """By its own state dict, alone or among models with the same tensors."""
    monkeypatch.setattr(identify, "_on_meta", functools.cache(identify._on_meta))
    same = {}
    for name in list_models():
        state = on_meta(name).state_dict()
        same.setdefault(tuple((key, value.shape) for key, value in state.items()), []).append(name)
    for names in same.values():
        found = identify.identify(on_meta(names[0]).state_dict())
        assert [match.name for match in found] == names


def test_write_refuses_other_extensions(tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.safetensors, \.pt or \.pth, but got"):
        checkpoint.write_checkpoint({}, tmp_path / "a.onnx")

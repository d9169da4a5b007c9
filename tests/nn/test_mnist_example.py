from __future__ import annotations

import gzip
import importlib.util
import json
import struct
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

EXAMPLE = Path(__file__).parents[2] / "examples" / "mnist" / "train.py"


@pytest.fixture(scope="module")
def train():
    specification = importlib.util.spec_from_file_location("mnist_train", EXAMPLE)
    module = importlib.util.module_from_spec(specification)
    # A dataclass looks its module up by name.
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    yield module
    del sys.modules[specification.name]


def idx(values: np.ndarray) -> bytes:
    return gzip.compress(struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes())


@pytest.fixture(scope="module")
def data(train, tmp_path_factory):
    """A small stand-in for MNIST: noise with a bright bar whose height tells the class."""
    folder = tmp_path_factory.mktemp("mnist")
    generator = np.random.default_rng(0)
    for images_name, labels_name, count in [("train_images", "train_labels", 240), ("test_images", "test_labels", 30)]:
        labels = generator.integers(0, 10, count, dtype=np.uint8)
        images = generator.integers(0, 100, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label + 4 : 2 * label + 6] = 255
        (folder / train.FILES[images_name]).write_bytes(idx(images))
        (folder / train.FILES[labels_name]).write_bytes(idx(labels))
    return folder


def arguments(data, out, *more):
    return ["--data", str(data), "--out", str(out), "--epochs", "2", *more]


def test_a_stopped_run_resumes_to_the_very_same_network(train, data, tmp_path, monkeypatch, capsys):
    train.main(arguments(data, tmp_path / "straight"))

    measure, epochs = train.accuracy, []

    def interrupted(network, examples):
        epochs.append(1)
        if len(epochs) == 2:
            raise KeyboardInterrupt
        return measure(network, examples)

    monkeypatch.setattr(train, "accuracy", interrupted)
    with pytest.raises(SystemExit) as stopped:
        train.main(arguments(data, tmp_path / "stopped"))
    assert stopped.value.code == 130
    assert "best network so far" in capsys.readouterr().err
    assert (tmp_path / "stopped" / "best.pt").is_file()
    monkeypatch.setattr(train, "accuracy", measure)
    train.main(arguments(data, tmp_path / "stopped", "--resume"))

    straight, stopped = (json.loads((tmp_path / run / "training.json").read_text()) for run in ("straight", "stopped"))
    assert [entry["loss"] for entry in straight["curve"]] == [entry["loss"] for entry in stopped["curve"]]
    assert straight["test_accuracy"] == stopped["test_accuracy"]
    first, second = (torch.load(tmp_path / run / "checkpoint.pt")["network"] for run in ("straight", "stopped"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not list(tmp_path.glob("*/*.tmp"))

    assert straight["seed"] == 1
    assert straight["torch"] == torch.__version__
    assert "--epochs 2" in straight["command"]
    assert straight["onnxruntime"]["other_class_than_torch"] == 0
    samples = np.load(tmp_path / "straight" / "samples.npz")
    assert (samples["images"].dtype, samples["images"].shape) == (np.uint8, (30, 1, 28, 28))
    assert_standard_graph(onnx.load(tmp_path / "straight" / "mnist-binary.onnx"))


def assert_standard_graph(model):
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.input] == ["image"]
    assert [value.name for value in model.graph.output] == ["scores"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for layer in ("conv1", "conv2", "conv3", "output"):
        assert set(np.unique(weights[f"{layer}.weight"])) == {-1.0, 1.0}
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("BatchNormalization") == 4
    assert operators.count("Conv") == 3
    # Left by an exporter that does not fold: the limits of a clip as float64 constants behind a cast.
    assert "Cast" not in operators


def test_the_shipped_network_is_what_its_log_says(train):
    folder = EXAMPLE.parent
    log = json.loads((folder / "training.json").read_text())
    assert log["test_accuracy"] >= 0.985
    assert len(log["curve"]) == log["epochs"]
    assert (folder / "mnist-binary.onnx").stat().st_size < 1_000_000
    assert_standard_graph(onnx.load(folder / "mnist-binary.onnx"))
    samples = np.load(folder / "samples.npz")
    assert samples["images"].shape == (200, 1, 28, 28)
    scores = train.run_onnx(folder / "mnist-binary.onnx", torch.from_numpy(samples["images"]))
    assert (scores.argmax(1).numpy() == samples["labels"]).mean() >= 0.985


def test_shifts_move_pixels_without_changing_them(train):
    torch.manual_seed(0)
    images = torch.zeros(50, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 10, 14] = 200
    moved = train.shifted(images)
    assert moved.shape == images.shape
    assert moved.sum((1, 2, 3)).tolist() == [200] * 50
    _, _, rows, columns = moved.nonzero(as_tuple=True)
    assert set(rows.tolist()) == {8, 9, 10, 11, 12}
    assert set(columns.tolist()) == {12, 13, 14, 15, 16}


def test_missing_data_says_where_to_put_it(train, tmp_path):
    with pytest.raises(SystemExit, match=r"lacks train-images.*; put the four original MNIST files there"):
        train.main(arguments(tmp_path, tmp_path / "out"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no gzip", "is damaged"),
        (idx(np.zeros((2, 2), np.uint8))[:-9], "is damaged"),
        (gzip.compress(struct.pack(">HBBI", 0, 8, 1, 5)), "is damaged"),
        (gzip.compress(struct.pack(">HBBI", 0, 13, 1, 0)), "is not an idx file of unsigned bytes"),
    ],
    ids=["not gzip", "cut off", "no values", "floats"],
)
def test_damaged_data_is_refused(train, tmp_path, content, message):
    path = tmp_path / "labels.gz"
    path.write_bytes(content)
    with pytest.raises(SystemExit, match=message):
        train.read_idx(path)


def test_resuming_needs_a_checkpoint_of_the_same_settings(train, data, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="does not exist; start without --resume"):
        train.main(arguments(data, tmp_path, "--resume"))
    monkeypatch.setattr(train, "export", lambda *_: None)
    train.main(arguments(data, tmp_path))
    with pytest.raises(SystemExit, match="was started with --seed 1; resume with the same"):
        train.main(arguments(data, tmp_path, "--resume", "--seed", "2"))

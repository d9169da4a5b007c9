"""The recipes, on tiny sets of data in the formats of the real ones."""

from __future__ import annotations

import gzip
import importlib
import json
import signal
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

RECIPES = Path(__file__).parents[2] / "examples" / "recipes"
MODULES = ("datasets", "options", "run", "trainer", "penn_treebank")
SCRIPTS = ("mnist_mlp", "cifar10_convnet", "cifar10_lqnets", "ptb_lstm")


@pytest.fixture(scope="module")
def recipes():
    """The scripts, which import their siblings by name as scripts do; the names are free again afterwards."""
    hidden = {name: sys.modules.pop(name) for name in (*MODULES, *SCRIPTS) if name in sys.modules}
    sys.path.insert(0, str(RECIPES))
    threads = torch.get_num_threads()
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in (*MODULES, *SCRIPTS)})
    finally:
        torch.set_num_threads(threads)
        sys.path.remove(str(RECIPES))
        for name in (*MODULES, *SCRIPTS):
            sys.modules.pop(name, None)
        sys.modules.update(hidden)


def idx(values: np.ndarray) -> bytes:
    return gzip.compress(struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes())


def barred(generator: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright bar whose height tells the class."""
    labels = generator.integers(0, 10, shape[0], dtype=np.uint8)
    images = generator.integers(0, 100, shape, dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[..., 2 * label + 4 : 2 * label + 6, :] = 255
    return images, labels


@pytest.fixture(scope="module")
def mnist(recipes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mnist")
    generator = np.random.default_rng(0)
    names = iter(recipes.datasets.MNIST_FILES)
    for count in (600, 50):
        for values in barred(generator, (count, 28, 28)):
            (folder / next(names)).write_bytes(idx(values))
    return folder


@pytest.fixture(scope="module")
def cifar10(recipes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cifar10")
    generator = np.random.default_rng(0)
    for name in recipes.datasets.CIFAR10_TRAIN + recipes.datasets.CIFAR10_TEST:
        images, labels = barred(generator, (60, 3, 32, 32))
        np.concatenate([labels[:, None], images.reshape(60, -1)], 1).tofile(folder / name)
    return folder


@pytest.fixture(scope="module")
def ptb(recipes, tmp_path_factory):
    """Lines of words of which each all but tells the next."""
    folder = tmp_path_factory.mktemp("ptb")
    generator = np.random.default_rng(0)
    for name, lines in zip(recipes.penn_treebank.FILES, (250, 30, 30), strict=True):
        starts = generator.integers(0, 20, lines)
        text = [" ".join(f"word{(start + step) % 20}" for step in range(12)) for start in starts]
        (folder / name).write_text("".join(f" {line} \n" for line in text))
    return folder


def log(folder: Path) -> dict:
    return json.loads((folder / "training.json").read_text())


def arguments(data: Path, out: Path, *more: object) -> list[str]:
    return ["--data", str(data), "--out", str(out), "--epochs", "2", *map(str, more)]


def mnist_arguments(data: Path, out: Path, *more: object) -> list[str]:
    return arguments(data, out, "--hidden", 32, "--held-out", 100, *more)


def ptb_arguments(data: Path, out: Path, *more: object) -> list[str]:
    return arguments(data, out, "--hidden", 16, *more)


def assert_same_run(first: Path, second: Path) -> None:
    logs = [log(folder) for folder in (first, second)]
    for each in logs:
        del each["command"]
        for row in each["curve"]:
            del row["seconds"]
    assert logs[0] == logs[1]
    states = [torch.load(folder / "checkpoint.pt")["network"] for folder in (first, second)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def interrupt_in_step(recipes, monkeypatch, number: int) -> None:
    """Press Ctrl-C while a step runs."""
    steps, step = [], recipes.run.Run.step

    def interrupted(self, part):
        steps.append(1)
        if len(steps) == number:
            signal.raise_signal(signal.SIGINT)
        return step(self, part)

    monkeypatch.setattr(recipes.run.Run, "step", interrupted)


def test_a_run_that_is_stopped_within_an_epoch_resumes_to_the_same_bits(recipes, mnist, tmp_path, monkeypatch, capsys):
    recipes.mnist_mlp.BATCH = 100
    recipes.mnist_mlp.main(mnist_arguments(mnist, tmp_path / "straight", "--shift", 1))
    with monkeypatch.context() as patch:
        interrupt_in_step(recipes, patch, 8)
        with pytest.raises(SystemExit) as stopped:
            recipes.mnist_mlp.main(mnist_arguments(mnist, tmp_path / "stopped", "--shift", 1))
    assert stopped.value.code == 130
    assert "continue with --resume" in capsys.readouterr().err
    assert len(log(tmp_path / "stopped")["curve"]) == 1
    assert torch.load(tmp_path / "stopped" / "checkpoint.pt")["part"]["step"] == 3
    recipes.mnist_mlp.main(mnist_arguments(mnist, tmp_path / "stopped", "--shift", 1, "--resume"))
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")
    assert not list(tmp_path.glob("*/*.tmp"))
    done = log(tmp_path / "straight")
    assert [row["epoch"] for row in done["curve"]] == [1, 2]
    assert {"loss", "validation_accuracy", "seconds"} <= done["curve"][0].keys()
    assert "--hidden 32" in done["command"]
    assert done["other_class_than_torch"] == 0


def test_a_language_model_resumes_to_the_same_bits(recipes, ptb, tmp_path, monkeypatch):
    recipes.ptb_lstm.main(ptb_arguments(ptb, tmp_path / "straight"))
    with monkeypatch.context() as patch:
        interrupt_in_step(recipes, patch, 7)
        with pytest.raises(SystemExit):
            recipes.ptb_lstm.main(ptb_arguments(ptb, tmp_path / "stopped"))
    recipes.ptb_lstm.main(ptb_arguments(ptb, tmp_path / "stopped", "--resume"))
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")
    done = log(tmp_path / "straight")
    assert done["curve"][1]["validation_perplexity"] < done["curve"][0]["validation_perplexity"] < 21
    assert done["test_perplexity_as_built"] == pytest.approx(done["test_perplexity"], rel=1e-3)


def test_the_language_model_in_float(recipes, ptb, tmp_path):
    recipes.ptb_lstm.main(ptb_arguments(ptb, tmp_path, "--float", "--epochs", 1, "--words", 1000))
    done = log(tmp_path)
    assert done["network"] == "ptb-lstm-float"
    assert done["test_perplexity_as_built"] == pytest.approx(done["test_perplexity"], rel=1e-5)


def test_the_binary_network_for_cifar10(recipes, cifar10, tmp_path):
    recipes.cifar10_convnet.main(
        arguments(cifar10, tmp_path, "--width", 4, "--held-out", 40, "--images", 250, "--augment")
    )
    done = log(tmp_path)
    assert done["settings"] == {
        "width": 4,
        "augment": True,
        "deterministic": False,
        "images": 250,
        "held_out": 40,
        "epochs": 2,
        "seed": 1,
    }
    assert "validation_accuracy" in done["curve"][1]
    assert done["other_class_than_torch"] == 0


@pytest.mark.parametrize(("network", "weights", "activations"), [("vgg-small", 1, 2), ("resnet-20", 2, 2)])
def test_networks_with_learned_levels(recipes, cifar10, tmp_path, network, weights, activations):
    bits = ("--weights", weights, "--activations", activations)
    recipes.cifar10_lqnets.main(arguments(cifar10, tmp_path, "--network", network, "--width", 4, *bits))
    done = log(tmp_path)
    assert done["network"] == f"{network}-w{weights}a{activations}"
    # Nothing is held out: the last epoch counts, and the test set's accuracy is only shown.
    assert "test_accuracy" in done["curve"][0]
    assert done["best_epoch"] == 2
    assert done["curve"][1]["test_accuracy"] == done["test_accuracy"]
    assert done["other_class_than_torch"] <= 1

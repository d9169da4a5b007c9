"""The recipes, on tiny sets of data in the formats of the real ones."""

from __future__ import annotations

import gzip
import importlib
import json
import shutil
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
        modules = SimpleNamespace(**{name: importlib.import_module(name) for name in (*MODULES, *SCRIPTS)})
        modules.mnist_mlp.BATCH = 100
        yield modules
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


def interrupt_in_step(recipes, monkeypatch, number: int, sent: signal.Signals = signal.SIGINT) -> None:
    """Press Ctrl-C, or have a scheduler end the job, while a step runs."""
    steps, step = [], recipes.run.Run.step

    def interrupted(self, part):
        steps.append(1)
        if len(steps) == number:
            signal.raise_signal(sent)
        return step(self, part)

    monkeypatch.setattr(recipes.run.Run, "step", interrupted)


@pytest.fixture
def uncompiled(recipes, monkeypatch):
    """Without what comes after training, which takes longer."""
    for module in (recipes.trainer, recipes.ptb_lstm):
        monkeypatch.setattr(module, "finish", lambda *_: None)


def test_a_run_that_is_stopped_within_an_epoch_resumes_to_the_same_bits(
    recipes, mnist, tmp_path, monkeypatch, capsys, uncompiled
):
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


def test_a_second_interrupt_ends_at_once(recipes, mnist, tmp_path, monkeypatch, uncompiled):
    def hanging(_self, _part):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(recipes.run.Run, "step", hanging)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        recipes.mnist_mlp.main(mnist_arguments(mnist, tmp_path))
    assert signal.getsignal(signal.SIGINT) is before


def test_the_language_model_learns_resumes_and_compiles(recipes, ptb, tmp_path, monkeypatch):
    recipes.ptb_lstm.main(ptb_arguments(ptb, tmp_path / "straight"))
    done = log(tmp_path / "straight")
    assert done["network"] == "ptb-lstm-w4a4"
    assert done["curve"][1]["validation_perplexity"] < done["curve"][0]["validation_perplexity"] < 21
    # Sums in another order differ in the last bit, and a value halfway between two levels then goes to the other one.
    assert done["test_perplexity_as_built"] == pytest.approx(done["test_perplexity"], rel=1e-3)

    with monkeypatch.context() as patch:
        interrupt_in_step(recipes, patch, 7, signal.SIGTERM)
        with pytest.raises(SystemExit):
            recipes.ptb_lstm.main(ptb_arguments(ptb, tmp_path / "stopped"))
    assert torch.load(tmp_path / "stopped" / "checkpoint.pt")["part"]["carried"]["hidden"].any()
    monkeypatch.setattr(recipes.ptb_lstm, "finish", lambda *_: None)
    recipes.ptb_lstm.main(ptb_arguments(ptb, tmp_path / "stopped", "--resume"))
    first, second = (torch.load(tmp_path / run / "checkpoint.pt")["network"] for run in ("straight", "stopped"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("option", [("--float",), ("--weights", 1, "--activations", 1)])
def test_the_language_model_in_float_and_in_binary(recipes, ptb, tmp_path, uncompiled, option):
    recipes.ptb_lstm.main(ptb_arguments(ptb, tmp_path, "--words", 2000, *option))
    done = log(tmp_path)
    assert done["network"] == ("ptb-lstm-float" if "--float" in option else "ptb-lstm-w1a1")
    assert done["curve"][1]["loss"] < done["curve"][0]["loss"]


def test_the_binary_network_for_cifar10(recipes, cifar10, tmp_path):
    recipes.cifar10_convnet.main(
        arguments(cifar10, tmp_path, "--width", 4, "--held-out", 40, "--images", 250, "--augment")
    )
    done = log(tmp_path)
    own = {"width": 4, "augment": True, "deterministic": False}
    assert done["settings"] == {**own, "images": 250, "held_out": 40, "epochs": 2, "seed": 1}
    assert "validation_accuracy" in done["curve"][1]
    assert done["other_class_than_torch"] == 0
    assert done["test_accuracy_as_built"] == done["test_accuracy"]


def test_resnet_with_learned_levels(recipes, cifar10, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes.cifar10_lqnets, "BLOCKS", 1)
    bits = ("--weights", 2, "--activations", 2)
    recipes.cifar10_lqnets.main(arguments(cifar10, tmp_path, "--network", "resnet-20", "--width", 4, *bits))
    done = log(tmp_path)
    assert done["network"] == "resnet-20-w2a2"
    # Nothing is held out: the last epoch counts, and the test set's accuracy is only shown.
    assert done["best_epoch"] == 2
    assert done["curve"][1]["test_accuracy"] == done["test_accuracy"]
    assert done["other_class_than_torch"] == 0


def test_vgg_with_learned_levels(recipes, cifar10, tmp_path, uncompiled):
    bits = ("--weights", 1, "--activations", 2)
    recipes.cifar10_lqnets.main(arguments(cifar10, tmp_path, "--network", "vgg-small", "--width", 4, *bits))
    done = log(tmp_path)
    assert done["network"] == "vgg-small-w1a2"
    assert done["settings"] == {"width": 4, "images": None, "held_out": 0, "epochs": 2, "seed": 1}
    with pytest.raises(SystemExit, match="was made with network=vgg-small-w1a2, this run has vgg-small-w2a2"):
        recipes.cifar10_lqnets.main(
            arguments(cifar10, tmp_path, "--network", "vgg-small", "--width", 4, "--resume", *bits, "--weights", 2)
        )


def test_the_networks_are_those_of_the_papers(recipes):
    def products(network: torch.nn.Module, size: int = 32) -> int:
        """Multiplications of weights, by the shapes that flow."""
        counts = []

        def count(layer, _inputs, output):
            counts.append(layer.weight[0].numel() * output.numel())

        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
                layer.register_forward_hook(count)
        network.eval()(torch.zeros(1, 3, size, size))
        return sum(counts)

    def convolutions(*sizes: tuple[int, int, int]) -> int:
        return sum(9 * inputs * outputs * side * side for inputs, outputs, side in sizes)

    trunk = convolutions((3, 128, 32), (128, 128, 32), (128, 256, 16), (256, 256, 16), (256, 512, 8), (512, 512, 8))
    assert products(recipes.cifar10_convnet.network(128)) == trunk + 8192 * 1024 + 1024 * 1024 + 1024 * 10
    assert products(recipes.cifar10_lqnets.vgg_small(128)) == trunk + 8192 * 10
    residual = convolutions(
        (3, 16, 32), *[(16, 16, 32)] * 6, (16, 32, 16), *[(32, 32, 16)] * 5, (32, 64, 8), *[(64, 64, 8)] * 5
    )
    network = recipes.cifar10_lqnets.resnet20(16)
    assert products(network) == residual + 640
    # With shortcuts that have none, the paper on residual networks counts 0.27 million parameters.
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(270_000, rel=0.01)


def test_shortcuts_take_every_second_pixel_and_add_channels_of_zeros(recipes):
    block = recipes.cifar10_lqnets.Block(2, 4)
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(1, 2, 6, 6)
    y = block(x)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert not y[:, [0, 3]].any()


def test_checkpoints_of_other_runs_are_refused(recipes, mnist, tmp_path, uncompiled):
    main = recipes.mnist_mlp.main
    with pytest.raises(SystemExit, match="does not exist; start without --resume"):
        main(mnist_arguments(mnist, tmp_path, "--resume"))
    main(mnist_arguments(mnist, tmp_path))
    with pytest.raises(SystemExit, match="exists; continue that run with --resume, or choose another --out"):
        main(mnist_arguments(mnist, tmp_path))
    for option, value, reason in [
        ("--shift", "2", "shift=0, this run has 2"),
        ("--seed", "2", "seed=1, this run has 2"),
        ("--epochs", "3", "epochs=2, this run has 3"),
        ("--held-out", "90", "held_out=100, this run has 90"),
    ]:
        with pytest.raises(SystemExit, match=f"was made with {reason}; resume with the same settings"):
            main(mnist_arguments(mnist, tmp_path, "--resume", option, value))
    (tmp_path / "checkpoint.pt").write_bytes(b"something else")
    with pytest.raises(SystemExit, match="is not a checkpoint of this recipe"):
        main(mnist_arguments(mnist, tmp_path, "--resume"))


def test_a_finished_run_that_is_resumed_stays_as_it_is(recipes, mnist, tmp_path, uncompiled, capsys):
    recipes.mnist_mlp.main(mnist_arguments(mnist, tmp_path))
    before = (tmp_path / "checkpoint.pt").read_bytes()
    capsys.readouterr()
    recipes.mnist_mlp.main(mnist_arguments(mnist, tmp_path, "--resume"))
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert capsys.readouterr().out == ""


def test_a_loss_that_is_nan_names_the_layer(recipes, mnist, tmp_path, monkeypatch, uncompiled):
    monkeypatch.setattr(recipes.mnist_mlp, "LEARNING_RATE", 1e38)
    with pytest.raises(
        SystemExit, match=r"diverged in [\w.]+: values are NaN or infinite; no checkpoint was written yet"
    ):
        recipes.mnist_mlp.main(mnist_arguments(mnist, tmp_path))
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize("stopped", [False, True])
def test_a_nan_that_signs_hide_stops_the_run_before_it_is_written(
    recipes, mnist, tmp_path, monkeypatch, uncompiled, stopped
):
    updates = []

    def poison(network):
        updates.append(1)
        if len(updates) == 7:
            with torch.no_grad():
                network[3].weight[0, 0] = torch.nan

    monkeypatch.setattr(recipes.trainer, "clip_weights", poison)
    if stopped:
        interrupt_in_step(recipes, monkeypatch, 8)
    with pytest.raises(SystemExit, match=r"diverged in 3: .*; the last good checkpoint is kept in .*checkpoint\.pt"):
        recipes.mnist_mlp.main(mnist_arguments(mnist, tmp_path))
    assert len(updates) == (8 if stopped else 10), "the loss should have stayed finite"
    checkpoint = torch.load(tmp_path / "checkpoint.pt")
    assert len(checkpoint["log"]["curve"]) == 1
    for network in (checkpoint["network"], torch.load(tmp_path / "best.pt")):
        assert all(value.isfinite().all() for value in network.values())


@pytest.mark.parametrize(
    ("script", "more", "message"),
    [
        ("mnist_mlp", (), "lacks train-images-idx3-ubyte.gz, .*; put the four original MNIST files"),
        ("cifar10_convnet", (), "lacks data_batch_1.bin, .*; put the files of CIFAR-10's binary version there"),
        (
            "cifar10_lqnets",
            ("--network", "resnet-20", "--weights", "2", "--activations", "2"),
            "lacks data_batch_1.bin, .*test_batch.bin; put the files of CIFAR-10's binary version there",
        ),
        ("ptb_lstm", (), "lacks ptb.train.txt, ptb.valid.txt, ptb.test.txt; put the Penn Treebank"),
    ],
)
def test_missing_data_says_where_to_put_which_files(recipes, tmp_path, script, more, message):
    with pytest.raises(SystemExit, match=message):
        getattr(recipes, script).main(arguments(tmp_path / "data", tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


def test_damaged_data_is_refused(recipes, tmp_path, cifar10, ptb):
    def broken(folder: Path, name: str, content: bytes) -> Path:
        copy = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        shutil.copytree(folder, copy)
        (copy / name).write_bytes(content)
        return copy

    load_cifar10, load_ptb = recipes.datasets.load_cifar10, recipes.penn_treebank.load_penn_treebank
    with pytest.raises(SystemExit, match=r"data_batch_2.bin is damaged: 100 bytes are not whole images"):
        load_cifar10(broken(cifar10, "data_batch_2.bin", bytes(100)))
    with pytest.raises(SystemExit, match="holds labels above 9"):
        load_cifar10(broken(cifar10, "test_batch.bin", b"\x0a" + bytes(3072)))
    with pytest.raises(SystemExit, match=r"ptb.test.txt has the word 'zebra', which ptb.train.txt lacks"):
        load_ptb(broken(ptb, "ptb.test.txt", b"word1 zebra\n"))
    with pytest.raises(SystemExit, match=r"ptb.train.txt is empty"):
        load_ptb(broken(ptb, "ptb.train.txt", b""))
    with pytest.raises(SystemExit, match=r"ptb.valid.txt is damaged"):
        load_ptb(broken(ptb, "ptb.valid.txt", b"\xff\xfe"))


def test_options_that_make_no_sense_are_refused(recipes, mnist, tmp_path, capsys):
    with pytest.raises(SystemExit, match="of 600 training images --held-out 550 leaves 50, but a batch has 100"):
        recipes.mnist_mlp.main(arguments(mnist, tmp_path, "--held-out", 550))
    for option in (("--epochs", 0), ("--hidden", -1)):
        with pytest.raises(SystemExit):
            recipes.mnist_mlp.main(arguments(mnist, tmp_path, *option))
        assert f"{option[0]} {option[1]}: at least 1 is needed" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        recipes.ptb_lstm.main(arguments(tmp_path, tmp_path, "--dropout", 1))
    assert "a dropout of 1.0 is not a share" in capsys.readouterr().err


def test_every_word_but_the_first_is_predicted_once(recipes):
    text = torch.arange(1, 100)
    words, targets = recipes.ptb_lstm.streams(text)
    counted = targets != recipes.ptb_lstm.IGNORED
    assert sorted(targets[counted].tolist()) == list(range(2, 100))
    assert torch.equal(words[counted] + 1, targets[counted])
    # Streams go on from step to step.
    assert (targets[:-1] == words[1:])[counted[1:]].all()


def test_perplexity_of_known_scores(recipes):
    text = torch.randint(0, 8, (500,))
    uniform = recipes.ptb_lstm.perplexity(text, lambda words: torch.zeros(*words.shape, 8))
    assert uniform == 8


def test_augmentation_moves_and_mirrors_pixels_without_changing_them(recipes):
    torch.manual_seed(0)
    images = torch.zeros(200, 3, 32, 32, dtype=torch.uint8)
    images[:, :, 10, 4] = torch.tensor([50, 100, 200], dtype=torch.uint8)
    moved = recipes.cifar10_lqnets.varied(images)
    assert moved.sum((2, 3)).tolist() == [[50, 100, 200]] * 200
    _, _, rows, columns = moved.nonzero(as_tuple=True)
    assert set(rows.tolist()) == set(range(6, 15))
    assert set(columns.tolist()) == set(range(9)) | set(range(23, 32))


def test_normalized_pixels(recipes):
    images = torch.tensor([0, 255], dtype=torch.uint8).expand(1, 2, 1, 2)
    normalized = recipes.trainer.normalized(images, (0.5, 0.25), (0.5, 0.25))
    assert normalized.flatten().tolist() == [-1.0, 1.0, -1.0, 3.0]

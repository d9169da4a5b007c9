"""Train QNN's network for MNIST: three hidden layers of binary weights and binary units.

The units are drawn at random while training, as in the paper's run in Torch7 (1.40 % test error), and are signs
afterwards.  Images are neither shifted nor turned, unless ``--shift`` asks for it.

    python examples/recipes/mnist_mlp.py --data DIR --out DIR [--resume]
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from datasets import load_mnist
from options import parse
from torch import Tensor, nn
from trainer import COUNTED, Recipe, image_parser, shifted, train

from tvmq import QNN, prepare
from tvmq.nn import parameter_groups, squared_hinge_loss

BATCH = 200
LEARNING_RATE = 1e-3


def network(hidden: int) -> nn.Sequential:
    """784 pixels, three hidden layers, ten scores; in float."""
    sizes = [784, hidden, hidden, hidden, 10]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs)]
    return nn.Sequential(*layers)


def as_input(images: Tensor) -> Tensor:
    """Pixels in [0, 1], of which the first layer reads the eight bits."""
    return images.float() / 255


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the command line says."""
    options = image_parser((__doc__ or "").splitlines()[0], epochs=100, held_out=5000)
    options.add_argument("--hidden", type=int, default=2048, help="units of a hidden layer")
    options.add_argument("--shift", type=int, default=0, help="move training images by up to so many pixels")
    options.add_argument("--deterministic", action="store_true", help="take signs while training, too")
    chosen = parse(options, arguments)
    train_set, test_set = load_mnist(chosen.data)
    config = QNN(stochastic=not chosen.deterministic)
    prepared = prepare(network(chosen.hidden), config).to(chosen.device)
    recipe = Recipe(
        name="mnist-mlp",
        settings={"hidden": chosen.hidden, "shift": chosen.shift, "deterministic": chosen.deterministic},
        network=prepared,
        optimizer=torch.optim.Adam(parameter_groups(prepared, LEARNING_RATE), fused=True),
        loss=squared_hinge_loss,
        as_input=as_input,
        augment=lambda images: shifted(images, chosen.shift) if chosen.shift else images,
        batch=BATCH,
        counted=0 if chosen.deterministic else COUNTED,
    )
    train(recipe, train_set, test_set, chosen)


if __name__ == "__main__":
    main()

"""Train QNN's network for CIFAR-10: six convolutions and three linear layers, all with binary weights and units.

The paper's run in Torch7 has 10.15 % test error with units that are drawn at random while training, as here, and the
one in Theano 11.40 % with signs (``--deterministic``).  Both train on the images as they are; ``--augment`` moves and
mirrors them.

    python examples/recipes/cifar10_convnet.py --data DIR --out DIR [--resume]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from datasets import load_cifar10
from options import parse
from torch import Tensor, nn
from trainer import COUNTED, Recipe, image_parser, mirrored, shifted, train

from tvmq import QNN, prepare
from tvmq.nn import parameter_groups, squared_hinge_loss

BATCH = 200
LEARNING_RATE = 1e-3
SHIFT = 4


def network(width: int) -> nn.Sequential:
    """Pairs of ``width``, twice and four times as many channels, each pair halving the image; in float.

    The units are the signs that the layers to come take of their inputs.
    """
    layers: list[nn.Module] = []
    channels = 3
    for outputs in (width, 2 * width, 4 * width):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)]
        layers += [nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(outputs)]
        channels = outputs
    layers.append(nn.Flatten())
    features = channels * 4 * 4
    for outputs in (8 * width, 8 * width, 10):
        layers += [nn.Linear(features, outputs, bias=False), nn.BatchNorm1d(outputs)]
        features = outputs
    return nn.Sequential(*layers)


def as_input(images: Tensor) -> Tensor:
    """Pixels in [0, 1], of which the first layer reads the eight bits."""
    return images.float() / 255


def varied(images: Tensor) -> Tensor:
    """Moved by up to four pixels, and mirrored."""
    return mirrored(shifted(images, SHIFT))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the command line says."""
    options = image_parser((__doc__ or "").splitlines()[0], epochs=500, held_out=5000)
    options.add_argument("--width", type=int, default=128, help="channels of the first layer; default: 128")
    options.add_argument(
        "--augment", action="store_true", help="move training images by up to 4 pixels and mirror them"
    )
    options.add_argument("--deterministic", action="store_true", help="take signs while training, too")
    chosen = parse(options, arguments)
    train_set, test_set = load_cifar10(chosen.data)
    prepared = prepare(network(chosen.width), QNN(stochastic=not chosen.deterministic)).to(chosen.device)
    recipe = Recipe(
        name="cifar10-convnet",
        settings={name: getattr(chosen, name) for name in ("width", "augment", "deterministic")},
        network=prepared,
        optimizer=torch.optim.Adam(parameter_groups(prepared, LEARNING_RATE), fused=True),
        loss=squared_hinge_loss,
        as_input=as_input,
        augment=varied if chosen.augment else lambda images: images,
        batch=BATCH,
        counted=0 if chosen.deterministic else COUNTED,
    )
    train(recipe, train_set, test_set, chosen)


if __name__ == "__main__":
    main()

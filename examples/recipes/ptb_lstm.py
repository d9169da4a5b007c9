"""Train QNN's language model for the Penn Treebank: an LSTM of 300 units with 4-bit weights and activations.

In the paper it has a perplexity of 100, and 97 in float.  ``--float`` trains the same network in float, to compare.

The 4-bit levels of activations span [-1, 1).  Hidden states lie there by themselves; embeddings are clamped to it.
Dropout must not scale its values out of that range: that of the hidden states scales the scores instead, and that of
the embeddings is clamped after it.

    python examples/recipes/ptb_lstm.py --data DIR --out DIR [--float] [--resume]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from options import parse, parser
from penn_treebank import Corpus, load_penn_treebank
from run import Run, Task, write_json
from torch import Tensor, nn

import tvmq
from tvmq import QNN, prepare
from tvmq.nn import clip_weights, parameter_groups

STREAMS = 20
"""Pieces of a text that are read side by side."""
UNROLLED = 35
"""Steps that a gradient goes back."""
LEARNING_RATE = 2e-3
GRADIENT_NORM = 1.0
EMBEDDING_RANGE = 0.5
IGNORED = -100
"""The target of a position behind the end of the text."""

State = tuple[Tensor, Tensor]


class LanguageModel(nn.Module):
    """Embedding, LSTM, and a score for each word to be the next."""

    def __init__(self, words: int, hidden: int, dropout: float, embedding_dropout: float) -> None:
        super().__init__()
        self.hidden, self.dropout, self.embedding_dropout = hidden, dropout, embedding_dropout
        self.embedding = nn.Embedding(words, hidden)
        nn.init.uniform_(self.embedding.weight, -EMBEDDING_RANGE, EMBEDDING_RANGE)
        self.lstm = nn.LSTM(hidden, hidden)
        self.head = nn.Linear(hidden, words, bias=False)
        self.bias = nn.Parameter(torch.zeros(words))

    def forward(self, words: Tensor, state: State) -> tuple[Tensor, State]:
        """Scores ``[steps, streams, words]`` and the state after, from words ``[steps, streams]``."""
        dropped = F.dropout(self.embedding(words), self.embedding_dropout, self.training)
        hidden, state = self.lstm(F.hardtanh(dropped), state)
        if not self.training:
            return self.head(hidden) + self.bias, state
        kept = (torch.rand_like(hidden) >= self.dropout).to(hidden.dtype)
        return self.head(hidden * kept) / (1 - self.dropout) + self.bias, state

    def start(self, streams: int) -> State:
        """The state before the first word."""
        zeros = self.bias.new_zeros(1, streams, self.hidden)
        return zeros, zeros


class Step(nn.Module):
    """A language model for a word at a time: the state goes in and out, ``[streams, hidden]`` both."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, words: Tensor, hidden: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores, (hidden, memory) = self.model(words[None], (hidden[None], memory[None]))
        return scores[0], hidden[0], memory[0]


class LanguageTask(Task):
    """Next words, learned by truncated back-propagation through time."""

    def __init__(self, name: str, network: LanguageModel, corpus: Corpus, options: argparse.Namespace) -> None:
        self.name, self.network = name, network
        names = ("hidden", "words", "dropout", "embedding_dropout")
        self.settings = {option: getattr(options, option) for option in names}
        self.quantized = not options.float
        groups: Any = parameter_groups(network, LEARNING_RATE) if self.quantized else network.parameters()
        self.optimizer = torch.optim.Adam(groups, lr=LEARNING_RATE, fused=True)
        train = corpus.train if options.words is None else corpus.train[: options.words]
        self.words, self.targets = (stream.to(options.device) for stream in streams(train))
        self.validation = corpus.validation
        self.steps = math.ceil(len(self.words) / UNROLLED)

    def start_epoch(self) -> dict[str, Tensor]:
        """Begin at the start of each stream, with no memory."""
        hidden, memory = self.network.start(STREAMS)
        return {"hidden": hidden, "memory": memory}

    def loss(self, carried: dict[str, Tensor], step: int) -> Tensor:
        """Of the next words of each stream; no gradient goes back to those before."""
        here = slice(step * UNROLLED, (step + 1) * UNROLLED)
        state = carried["hidden"], carried["memory"]
        self.inputs = self.words[here], state
        scores, (hidden, memory) = self.network(*self.inputs)
        carried["hidden"], carried["memory"] = hidden.detach(), memory.detach()
        return F.cross_entropy(scores.flatten(0, 1), self.targets[here].flatten(), ignore_index=IGNORED)

    def update(self) -> None:
        """Bound the gradients, which may explode in a recurrent network, and keep binary weights in their range."""
        nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_NORM)
        self.optimizer.step()
        if self.quantized:
            clip_weights(self.network)

    def evaluate(self) -> dict[str, float]:
        """The perplexity."""
        return {"validation_perplexity": in_torch(self.network, self.validation)}

    def score(self, row: dict[str, Any]) -> float:
        """Less perplexity is better."""
        return -row["validation_perplexity"]


def streams(text: Tensor) -> tuple[Tensor, Tensor]:
    """Words to read and the words that follow them, ``[steps, STREAMS]`` both; every word but the first follows one."""
    steps = math.ceil((len(text) - 1) / STREAMS)
    behind = steps * STREAMS - (len(text) - 1)
    words, targets = F.pad(text[:-1], (0, behind)), F.pad(text[1:], (0, behind), value=IGNORED)
    return words.view(STREAMS, steps).T.contiguous(), targets.view(STREAMS, steps).T.contiguous()


def perplexity(text: Tensor, scores: Callable[[Tensor], Tensor]) -> float:
    """Of a whole text, given the scores of what follows ``[steps, STREAMS]`` words; called for piece after piece."""
    words, targets = streams(text)
    total = 0.0
    for read, following in zip(words.split(UNROLLED), targets.split(UNROLLED), strict=True):
        given = scores(read).flatten(0, 1)
        total += F.cross_entropy(given, following.flatten(), ignore_index=IGNORED, reduction="sum").item()
    return round(math.exp(total / (len(text) - 1)), 3)


@torch.no_grad()
def in_torch(network: LanguageModel, text: Tensor) -> float:
    """The perplexity of the network itself."""
    network.eval()
    device, state = network.bias.device, network.start(STREAMS)

    def scores(words: Tensor) -> Tensor:
        nonlocal state
        given, state = network(words.to(device), state)
        return given.cpu()

    return perplexity(text, scores)


def as_built(bundle: Any, network: LanguageModel, text: Tensor) -> float:
    """The perplexity of the compiled step."""
    state = [np.zeros((STREAMS, network.hidden), np.float32) for _ in range(2)]

    def scores(words: Tensor) -> Tensor:
        given = np.empty((len(words), STREAMS, network.bias.numel()), np.float32)
        for index, word in enumerate(words.numpy()):
            given[index], *state[:] = bundle.run(word, *state)
        return torch.from_numpy(given)

    return perplexity(text, scores)


def finish(run: Run, network: LanguageModel, test: Tensor) -> None:
    """Compile one step of the best network for this machine, and see what both make of the test set."""
    run.load_best()
    log = run.log
    log["test_perplexity"] = in_torch(network, test)
    network = network.cpu().eval()
    example = (torch.zeros(STREAMS, dtype=torch.int64), *(state[0] for state in network.start(STREAMS)))
    bundle = tvmq.compile(tvmq.load(Step(network).eval(), example, name=run.task.name), "host")
    path = run.folder / f"{run.task.name}.tvmq"
    bundle.save(path)
    log["test_perplexity_as_built"] = as_built(bundle, network, test)
    log["bytes_as_built"] = path.stat().st_size
    write_json(run.folder / "training.json", log)
    print(
        f"test perplexity {log['test_perplexity']:.2f} in torch, {log['test_perplexity_as_built']:.2f} as built "
        f"(epoch {log['best_epoch']}); wrote {path}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the command line says."""
    options = parser((__doc__ or "").splitlines()[0], epochs=20)
    options.add_argument("--hidden", type=int, default=300, help="units of the LSTM; default: 300")
    options.add_argument("--weights", type=int, default=4, choices=range(1, 9), help="bits of a weight; default: 4")
    options.add_argument("--activations", type=int, default=4, choices=range(1, 9), help="of an activation; default: 4")
    options.add_argument("--float", action="store_true", help="quantize nothing")
    options.add_argument("--dropout", type=float, default=0.5, help="of hidden states before the scores; default: 0.5")
    options.add_argument("--embedding-dropout", type=float, default=0.3, help="default: 0.3")
    options.add_argument("--words", type=int, default=None, help="train on so many words only; default: all")
    chosen = parse(options, arguments)
    for dropout in (chosen.dropout, chosen.embedding_dropout):
        if not 0 <= dropout < 1:
            options.error(f"a dropout of {dropout} is not a share; it must be at least 0 and below 1")
    corpus = load_penn_treebank(chosen.data)
    network: nn.Module = LanguageModel(len(corpus.words), chosen.hidden, chosen.dropout, chosen.embedding_dropout)
    name = "ptb-lstm-float"
    if not chosen.float:
        name = f"ptb-lstm-w{chosen.weights}a{chosen.activations}"
        config = QNN(weights=chosen.weights, activations=chosen.activations, first_layer="quantized")
        network = prepare(network, config)
    network = network.to(chosen.device)
    run = Run(LanguageTask(name, network, corpus, chosen), chosen)
    run.train()
    finish(run, network, corpus.test)


if __name__ == "__main__":
    main()

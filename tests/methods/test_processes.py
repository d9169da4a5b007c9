"""GPFQ by several processes that share the samples and the neurons."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import tvmq
from tvmq.methods.linear_layers import shared_weights

from .networks import Convolutions, make

CONFIG = tvmq.GPFQ(weights=2, activations=3, bias_correction=True)
SAMPLES = 96

WORKER = """
    import sys, warnings
    from datetime import timedelta
    sys.path.insert(0, {tests!r})
    import torch
    from methods.networks import Convolutions, make
    from methods.test_processes import CONFIG, SAMPLES
    import tvmq

    rank, size = int(sys.argv[1]), int(sys.argv[2])
    warnings.simplefilter("ignore")
    store = "file://" + sys.argv[3]
    torch.distributed.init_process_group("gloo", store, timedelta(seconds=120), rank=rank, world_size=size)
    _, model, data = make(Convolutions, samples=SAMPLES)
    share = data[rank::size]
    quantized = tvmq.quantize(model, CONFIG, share, checkpoint=sys.argv[4])
    open(f"{{sys.argv[3]}}.{{rank}}.json", "w").write(quantized.to_json())
    torch.distributed.destroy_process_group()
"""


def run_processes(folder: Path, size: int) -> list[tvmq.Model]:
    script = textwrap.dedent(WORKER).format(tests=str(Path(__file__).resolve().parent.parent))
    store = folder / "store"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(rank), str(size), str(store), str(folder / "partial")],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    errors = [worker.communicate(timeout=300)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * size, errors
    return [tvmq.Model.from_json((folder / f"store.{rank}.json").read_text()) for rank in range(size)]


@pytest.mark.filterwarnings("ignore:layer .* rows of calibration data")
@pytest.mark.parametrize("size", [3])
def test_processes_agree_with_one(tmp_path, size):
    _, model, data = make(Convolutions, samples=SAMPLES)
    alone = tvmq.quantize(model, CONFIG, data, memory=0)  # no gathered data: the same form as with several processes
    together = run_processes(tmp_path, size)
    for other in together:
        for one, two in zip(shared_weights(alone), shared_weights(other), strict=True):
            np.testing.assert_array_equal(one.weight, two.weight)
        for row, expected in zip(other.quantization, alone.quantization, strict=True):
            assert row["rows"] == expected["rows"]
            assert row["dead_inputs"] == expected["dead_inputs"]
            assert row["relative_error"] == pytest.approx(expected["relative_error"], rel=1e-6)
        np.testing.assert_allclose(other.run(data[:4])[0], alone.run(data[:4])[0], rtol=1e-5, atol=1e-5)
    assert len(list((tmp_path / "partial").glob("layer-*.npz"))) == len(alone.quantization)

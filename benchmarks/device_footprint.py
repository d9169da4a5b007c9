"""What a network takes on a device without Python: bytes of files, and resident memory while it runs.

    python benchmarks/device_footprint.py

VGG-small (32x32, w1a1, 8-bit stem and head) is compiled for emulated boards and written as `tvmq bundle` does; `bench`
of that folder runs in the emulator.

How memory is measured.  The emulator is a process like any other, and the peak that the kernel reports for it (VmHWM,
what `bench` prints) includes the emulator's own code and the code that it translated.  So the emulator is told at which
address of its own to put the guest's memory (`-B`), far from everything else, and while the program runs, the resident
pages of the mappings in that range (`Rss` in /proc/PID/smaps) are added up again and again: program, libraries, heap,
stacks and the network's file, as on a board.  The largest sum of several runs is what is reported: a peak shorter than
the time between two sums may be missed.  Beside it stand the emulator's own peak, which is an upper bound, and the peak
of the same network compiled for this machine, which the kernel measures exactly.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
BOARDS = ("raspberry-pi-4", "raspberry-pi-3-32")
LIMITS = {
    "raspberry-pi-4": {"runtime_bytes": 2_100_000, "peak_memory_bytes": 25_000_000},
    "raspberry-pi-3-32": {"runtime_bytes": 1_500_000, "peak_memory_bytes": 25_000_000},
}
NETWORK = "vgg_small"
BENCH = ("./bench", "-n", "3", "-t", "1")
RUNS = 8
GUEST_BASE = 1 << 44  # nothing of the emulator's own is near
GUEST_SIZE = 1 << 40
MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")


def main() -> None:
    """Compile, measure, print and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiled", type=Path, help="a .tvmq file that --save left, instead of compiling")
    parser.add_argument("--save", type=Path, help="a .tvmq file to leave the compiled network in")
    parser.add_argument("--output", type=Path, default=RESULTS / "device_footprint.json")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch, which only builds the network
    import tvmq

    bundle = network() if options.compiled is None else tvmq.load_bundle(options.compiled)
    if options.save is not None:
        bundle.save(options.save)
    with tempfile.TemporaryDirectory() as name:
        result = {
            "command": "python benchmarks/device_footprint.py",
            "network": f"{NETWORK} w1a1, int8 stem and head",
            "boards": {target: measure_board(bundle, target, Path(name) / target) for target in BOARDS},
            "host_peak_memory_bytes": host_peak(bundle, Path(name) / "host"),
        }
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))
    too_much = [
        f"{target}: {key} is {board[key]:,}, above {limit:,}"
        for target, board in result["boards"].items()
        for key, limit in LIMITS[target].items()
        if board[key] > limit
    ]
    if too_much:
        sys.exit("\n".join(too_much))


def network():
    """The compiled network."""
    from low_bit_networks import NETWORKS, Recipe, build, pixels

    import tvmq

    x = pixels(NETWORKS[NETWORK].shape, 1)
    model = tvmq.load(build(NETWORK, Recipe(activation_bits=1)), (x,))
    return tvmq.compile(model, [*BOARDS, "host"], check_inputs=[x.numpy()])


def measure_board(bundle, target: str, folder: Path) -> dict:
    """Bytes and memory of one board, after its self-check passed."""
    from tvmq.runtime.emulator import emulator_command
    from tvmq.runtime.toolchain import build_runner
    from tvmq.target import get_target

    core = get_target(target)
    written = bundle.save_folder(folder, target=target)
    emulator = emulator_command(core)
    subprocess.run([*emulator, "./check"], cwd=folder, check=True)
    command = [emulator[0], "-B", hex(GUEST_BASE), *emulator[1:], *BENCH]
    runs = [peak_memory(command, folder) for _ in range(RUNS)]
    return {
        "runtime_bytes": written.runtime_bytes,
        "libtvmq_bytes": written.files["libtvmq.so"],
        "runner_bytes": build_runner(core).stat().st_size,
        "network_bytes": written.network_bytes,
        **{key: max(run[key] for run in runs) for key in ("peak_memory_bytes", "peak_of_emulator_bytes")},
        "samples": sum(run["samples"] for run in runs),
        "emulator": " ".join(emulator),
    }


def peak_memory(command: list[str], folder: Path) -> dict:
    """The guest's largest resident memory, and that of the emulator with everything in it."""
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    peak = samples = 0
    while process.poll() is None:
        try:
            peak = max(peak, guest_bytes(Path(f"/proc/{process.pid}/smaps").read_text(encoding="utf-8")))
        except ProcessLookupError:
            break
        samples += 1
    output, _ = process.communicate()
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)} failed")
    return {"peak_memory_bytes": peak, "peak_of_emulator_bytes": reported_peak(output), "samples": samples}


def guest_bytes(smaps: str) -> int:
    """Resident bytes of the mappings in the guest's range."""
    total, inside = 0, False
    for line in smaps.splitlines():
        mapping = MAPPING.match(line)
        if mapping is not None:
            inside = GUEST_BASE <= int(mapping[1], 16) < GUEST_BASE + GUEST_SIZE
        elif inside and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


def host_peak(bundle, folder: Path) -> int:
    """What the kernel reports of the network on this machine."""
    bundle.save_folder(folder, target="host")
    return reported_peak(subprocess.run(BENCH, cwd=folder, check=True, capture_output=True, text=True).stdout)


def reported_peak(output: str) -> int:
    """What `bench` printed."""
    found = re.search(r"memory ([0-9.]+) MB at most", output)
    if found is None:
        sys.exit(f"bench printed no memory: {output}")
    return round(1e6 * float(found[1]))


if __name__ == "__main__":
    main()

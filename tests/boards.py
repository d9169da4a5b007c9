"""Boards to test with: a real ssh server on the loopback device, behind which this machine answers like a board.

Everything that comes in through the server runs in `board-shell`: with a home folder of its own, and with a few small
programs in front of the path that give a board's answers (``uname``, ``getconf``, ``cat /proc/cpuinfo``, ...).  ``env``
runs programs for ARM in the emulator of the core, so a board's own binaries are executed.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import textwrap
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
_PATIENCE = 20

FEATURES_A53 = "fp asimd evtstrm crc32 cpuid"
FEATURES_A76 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
FEATURES_32 = "half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm crc32"


@dataclass(frozen=True)
class Model:
    """What a kind of board answers."""

    name: str | None
    parts: tuple[str, ...]
    features: str
    emulator: str
    core: str
    machine: str = "aarch64"
    bits: str = "64"
    glibc: str = "glibc 2.36"
    clock: tuple[str, str, str] | None = ("1500000", "1500000", "performance")
    vcgencmd: Mapping[str, str] | None = field(
        default_factory=lambda: {"get_throttled": "throttled=0x0", "measure_temp": "temp=48.3'C"}
    )
    memory: tuple[int, int] = (3884288, 3401234)
    disk: int = 20000000

    @property
    def cpuinfo(self) -> str:
        blocks = [
            f"processor\t: {number}\nBogoMIPS\t: 108.00\nFeatures\t: {self.features}\nCPU implementer\t: 0x41\n"
            f"CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {part}\nCPU revision\t: 3\n"
            for number, part in enumerate(self.parts)
        ]
        return "\n".join(blocks) + f"\nRevision\t: c03114\nSerial\t\t: 10000000abcdef01\nModel\t\t: {self.name}\n"


_QEMU_64 = "qemu-aarch64-static -L /usr/aarch64-linux-gnu"
_QEMU_32 = "qemu-arm-static -L /usr/arm-linux-gnueabihf"
PI_3 = Model(
    "Raspberry Pi 3 Model B Plus Rev 1.3",
    ("0xd03",) * 4,
    FEATURES_A53,
    _QEMU_64,
    "cortex-a53",
    clock=("600000", "1400000", "ondemand"),
    memory=(931512, 643200),
)
PI_4 = Model("Raspberry Pi 4 Model B Rev 1.4", ("0xd08",) * 4, FEATURES_A53, _QEMU_64, "cortex-a72")
PI_5 = Model(
    "Raspberry Pi 5 Model B Rev 1.0",
    ("0xd0b",) * 4,
    FEATURES_A76,
    _QEMU_64,
    "cortex-a76",
    clock=("2400000", "2400000", "performance"),
)
ZERO_2 = Model(
    "Raspberry Pi Zero 2 W Rev 1.0",
    ("0xd03",) * 4,
    FEATURES_A53,
    _QEMU_64,
    "cortex-a53",
    clock=("600000", "1000000", "ondemand"),
    memory=(430028, 201400),
)
PI_3_32 = Model(
    "Raspberry Pi 3 Model B Rev 1.2",
    ("0xd03",) * 4,
    FEATURES_32,
    _QEMU_32,
    "max",
    machine="armv7l",
    bits="32",
)
PI_4_32 = Model(
    "Raspberry Pi 4 Model B Rev 1.1", ("0xd08",) * 4, FEATURES_32, _QEMU_32, "max", machine="aarch64", bits="32"
)
ZERO = Model(
    "Raspberry Pi Zero W Rev 1.1",
    ("0xb76",),
    "half thumb fastmult vfp edsp java tls",
    _QEMU_32,
    "arm1176",
    machine="armv6l",
    bits="32",
)
ROCK_5 = Model(
    "Radxa ROCK 5B",
    ("0xd05",) * 4 + ("0xd0b",) * 4,
    FEATURES_A76,
    _QEMU_64,
    "cortex-a76",
    vcgencmd=None,
    glibc="glibc 2.31",
)

_SHELL = """\
#!/bin/sh
# What every command that comes in through ssh runs in.
export HOME="$TVMQ_BOARD/home" PATH="$TVMQ_BOARD/bin:$PATH" SSH_SESSION=$PPID
unset TVM_NUM_THREADS OMP_NUM_THREADS
cd "$HOME" && exec sh -c "$SSH_ORIGINAL_COMMAND"
"""
_CAT = """\
#!/bin/sh
# Files of the system are the board's.
status=0
for name in "$@"; do
    case "$name" in
        /proc/* | /sys/* | /etc/os-release) /bin/cat "{files}$name" || status=1 ;;
        *) /bin/cat "$name" || status=1 ;;
    esac
done
[ $# -gt 0 ] || exec /bin/cat
exit $status
"""
_ENV = """\
#!/bin/sh
# Programs for another processor run in its emulator.
while :; do
    case "$1" in
        *=*) export "$1"; shift ;;
        *) break ;;
    esac
done
case "$(od -An -tu1 -j 18 -N 1 "$1" 2>/dev/null | tr -d ' ')" in
    183 | 40) exec {emulator} -cpu {core} "$@" ;;
esac
exec "$@"
"""


@dataclass
class Board:
    """A board behind the ssh server.

    Attributes
    ----------
    address : str
        For ``--on``.
    folder : pathlib.Path
        Everything that is the board's.
    client : pathlib.Path
        Everything that is ssh's here: keys, configuration, known hosts.
    server : subprocess.Popen
        The ssh server.
    """

    address: str
    folder: Path
    client: Path
    server: subprocess.Popen[bytes]

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def become(self, model: Model | None) -> None:
        """Answer like a board of that kind; like this machine for None."""
        for name in ("home", "bin", "files"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / name).mkdir(parents=True)
        if model is None:
            return
        self.program("uname", f'case "$1" in -m) echo {model.machine} ;; *) echo 6.6.31+rpt-rpi-v8 ;; esac')
        self.program(
            "getconf", f'case "$1" in LONG_BIT) echo {model.bits} ;; GNU_LIBC_VERSION) echo "{model.glibc}" ;; esac'
        )
        self.program("nproc", f"echo {len(model.parts)}")
        self.program("python3", "echo 3.11.2")
        self.program("df", f"echo Filesystem Blocks Used Free Share; echo /dev/root 30000000 1 {model.disk} 9% /")
        if model.vcgencmd is not None:
            answers = "".join(f'{name}) echo "{text}" ;; ' for name, text in model.vcgencmd.items())
            self.program("vcgencmd", f'case "$1" in {answers} esac')
        self.file("proc/cpuinfo", model.cpuinfo)
        self.file("proc/device-tree/model", f"{model.name}\0")
        self.file("proc/meminfo", f"MemTotal:  {model.memory[0]} kB\nMemAvailable:  {model.memory[1]} kB\n")
        self.file("proc/loadavg", "0.02 0.05 0.01 1/150 1234\n")
        self.file("etc/os-release", 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\n')
        self.file("sys/devices/system/cpu/online", f"0-{len(model.parts) - 1}\n")
        for number in range(len(model.parts)):
            names = ("scaling_cur_freq", "scaling_max_freq", "scaling_governor")
            for name, text in zip(names, model.clock or (), strict=False):
                self.file(f"sys/devices/system/cpu/cpu{number}/cpufreq/{name}", f"{text}\n")
        self._write("bin/cat", _CAT.format(files=self.folder / "files"))
        self._write("bin/env", _ENV.format(emulator=model.emulator, core=model.core))

    def program(self, name: str, body: str) -> None:
        """Put a program in front of the board's path."""
        self._write(f"bin/{name}", f"#!/bin/sh\n{body}\n")

    def file(self, name: str, text: str) -> None:
        """Put a file in the board's /proc or /sys."""
        path = self.folder / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def cut(self) -> None:
        """Cut all connections, as when the network cable is pulled."""
        for process in self.sessions():
            os.kill(process, signal.SIGKILL)

    def sessions(self) -> list[int]:
        """Processes of the server that serve connections."""
        path = Path(f"/proc/{self.server.pid}/task/{self.server.pid}/children")
        return [int(word) for word in path.read_text().split()]

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(textwrap.dedent(text))
        path.chmod(0o755)


@pytest.fixture(scope="session")
def ssh_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """An ssh server that only listens on the loopback device, with keys that exist for this run only."""
    if SSHD is None:
        pytest.fail("sshd is not installed; scripts/install-cross-tools.sh sshd installs it")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd insists on it for root
    folder = tmp_path_factory.mktemp("ssh")
    for key in ("host", "user", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized_keys")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "board-shell").write_text(_SHELL)
    (folder / "board-shell").chmod(0o755)
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        f"PermitRootLogin yes\nSetEnv TVMQ_BOARD={folder}/board\nForceCommand {folder}/board-shell\n"
    )
    host_key = (folder / "host.pub").read_text().split(" ", 1)[1]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} ssh-ed25519 {host_key}")
    (folder / "ssh_config").write_text(
        f"Host *\nIdentityFile {folder}/user\nIdentitiesOnly yes\nUserKnownHostsFile {folder}/known_hosts\n"
        "GlobalKnownHostsFile /dev/null\nKexAlgorithms curve25519-sha256\n"
    )
    (folder / "bin").mkdir()
    (folder / "bin" / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n')
    (folder / "bin" / "ssh").chmod(0o755)
    log = (folder / "sshd.log").open("wb")
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    _wait_for(port, server, folder / "sshd.log")
    yield Board(f"ssh://{getpass.getuser()}@127.0.0.1:{port}", folder / "board", folder, server)
    server.terminate()
    server.wait()


@pytest.fixture
def board(ssh_server: Board, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    """A Raspberry Pi 4, freshly set up; `become` makes it another board."""
    kept = {name: (ssh_server.client / name).read_text() for name in ("known_hosts", "ssh_config")}
    monkeypatch.setenv("PATH", f"{ssh_server.client / 'bin'}:{os.environ['PATH']}")
    ssh_server.become(PI_4)
    yield ssh_server
    for name, text in kept.items():
        (ssh_server.client / name).write_text(text)


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    pytest.fail(f"sshd does not start: {log.read_text()}")

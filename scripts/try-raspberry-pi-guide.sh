#!/usr/bin/env bash
# Executes the commands of docs/raspberry-pi.md against an emulated board: scripts/try-raspberry-pi-guide.sh [SYSTEM]
#
# The board is Debian 12 for arm64 in a folder (SYSTEM; made if it is not there), run by qemu as a Cortex-A72
# under proot, behind a real ssh server on the loopback device that answers to pi@raspberrypi.local.  Raspberry Pi OS
# is made from the same packages, but is not what is tried here; nor are the commands that need a real board (clock,
# temperature), its password, or its compiler (gcc does not find its parts under proot).  Boxes of the guide marked
# "sh desktop" and "sh board" are executed in their order.
#
# PYTHON chooses the interpreter that has tvmq's dependencies.  Needs root, or a system that exists already.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
guide=$root/docs/raspberry-pi.md
python=${PYTHON:-$root/.venv/bin/python}
PATH=$PATH:/usr/sbin # where sshd is, also for users

"$root/scripts/install-cross-tools.sh" aarch64 armhf board
work=$(mktemp -d)
system=${1:-$work/system}
packages=dash,coreutils,diffutils,findutils,gawk,sed,grep,tar,gzip,libc-bin

finish() {
    if [ -s "$work/sshd.pid" ]; then
        kill "$(cat "$work/sshd.pid")" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap finish EXIT

make_system() {
    mmdebstrap --quiet --arch=arm64 --variant=extract --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
        --include="$packages" bookworm "$system"
    # What the packages' installation would have done on the board itself.
    ln -sf gawk "$system/usr/bin/awk"
}

describe_board() { # the files by which a board says what it is
    for number in 0 1 2 3; do
        printf 'processor\t: %s\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\n' "$number"
        printf 'CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n\n'
    done >"$work/cpuinfo"
}

write_board_shell() { # what every command that comes in through ssh runs in
    cat >"$work/board-shell" <<END
#!/bin/sh
export PROOT_NO_SECCOMP=1
exec env -i HOME=/home/pi USER=pi PATH=/usr/bin:/bin LC_ALL=C proot -q "qemu-aarch64-static -cpu cortex-a72" \\
    -r "$system" -b /proc -b /dev -b "$work/cpuinfo:/proc/cpuinfo" -w /home/pi /bin/sh -c "\$SSH_ORIGINAL_COMMAND"
END
    chmod +x "$work/board-shell"
}

start_server() {
    ssh-keygen -q -t ed25519 -N '' -f "$work/host_key"
    ssh-keygen -q -t ed25519 -N '' -f "$work/key"
    cp "$work/key.pub" "$work/authorized_keys"
    port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    cat >"$work/sshd_config" <<END
Port $port
ListenAddress 127.0.0.1
HostKey $work/host_key
AuthorizedKeysFile $work/authorized_keys
PidFile $work/sshd.pid
StrictModes no
UsePAM no
PasswordAuthentication no
ForceCommand $work/board-shell
END
    mkdir -p /run/sshd 2>/dev/null || true
    "$(command -v sshd)" -f "$work/sshd_config" -E "$work/sshd.log"
    cat >"$work/ssh_config" <<END
Host raspberrypi.local
    HostName 127.0.0.1
    Port $port
    User $(id -un)
    IdentityFile $work/key
    UserKnownHostsFile $work/known_hosts
    StrictHostKeyChecking accept-new
END
}

write_desktop_commands() { # tvmq of this clone, and an ssh that knows where the board is
    mkdir "$work/bin"
    printf '#!/bin/sh\nPYTHONPATH="%s" exec "%s" -m tvmq.cli "$@"\n' "$root" "$python" >"$work/bin/tvmq"
    cat >"$work/bin/ssh" <<END
#!/bin/sh
for word in "\$@"; do # the board's user is not one of this machine
    shift
    set -- "\$@" "\$(printf %s "\$word" | sed 's/^pi@raspberrypi/raspberrypi/')"
done
exec $(command -v ssh) -F "$work/ssh_config" "\$@"
END
    # scp over ssh and tar: the board's folder has no scp of its own.
    cat >"$work/bin/scp" <<END
#!/bin/sh
[ "\$1" = -r ] && [ "\$3" = pi@raspberrypi.local: ] || { echo "scp: only 'scp -r FOLDER pi@raspberrypi.local:'" >&2; exit 2; }
tar -cf - "\$2" | "$work/bin/ssh" raspberrypi.local tar -xf -
END
    chmod +x "$work"/bin/*
}

boxes() { # numbered files, one per box of the guide that is to be executed
    awk -v folder="$work/boxes" '
        /^```sh (desktop|board)$/ { number++; file = sprintf("%s/%02d-%s", folder, number, $2); inside = 1; next }
        /^```/ { inside = 0; next }
        inside { print > file }' "$guide"
}

[ -e "$system/usr/bin" ] || make_system
mkdir -p "$system/home/pi" "$system/proc" "$system/dev" "$system/tmp" "$work/boxes"
rm -rf "$system/home/pi" && mkdir -p "$system/home/pi"
describe_board
write_board_shell
start_server
write_desktop_commands
boxes

# The guide's commands start in a clone; what they write must not end up in this one.
mkdir "$work/clone"
ln -s "$root/scripts" "$root/examples" "$work/clone"
for box in "$work"/boxes/*; do
    echo "--- $(basename "$box")"
    sed 's/^/    /' "$box"
    case "$box" in
        *-desktop) (cd "$work/clone" && PATH=$work/bin:$PATH bash -euo pipefail "$box") ;;
        *-board) "$work/bin/ssh" raspberrypi.local "set -eu; $(cat "$box")" ;;
    esac
done
echo "every command of the guide that can be executed without a board was: $(find "$work/boxes" -type f | wc -l) boxes"

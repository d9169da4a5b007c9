#!/usr/bin/env bash
# Install what is needed to compile for ARM boards, to emulate them, and to test the way to them:
# scripts/install-cross-tools.sh [aarch64] [armhf] [sshd] [simulate] [board]
#
# `simulate` is what `tvmq tune --on simulate` needs beside the compilers; `board` is what
# scripts/try-raspberry-pi-guide.sh emulates a whole board with.
#
# Does nothing where everything is there.  Uses apt-get as root or with a sudo that asks for no password; otherwise
# prints the command to run and fails.
set -euo pipefail
PATH=$PATH:/usr/sbin # where sshd is, also for users

tools() { # one "command package" per line
    echo "g++ g++"
    for name in "$@"; do
        case "$name" in
            aarch64) printf '%s\n' "aarch64-linux-gnu-g++ g++-aarch64-linux-gnu" "qemu-aarch64-static qemu-user-static" ;;
            simulate) echo "llvm-mca-19 llvm-19" ;;
            armhf) printf '%s\n' "arm-linux-gnueabihf-g++ g++-arm-linux-gnueabihf" "qemu-arm-static qemu-user-static" ;;
            sshd) printf '%s\n' "ssh openssh-client" "sshd openssh-server" ;;
            board)
                printf '%s\n' "mmdebstrap mmdebstrap" "proot proot" "ssh openssh-client" "sshd openssh-server" \
                    "qemu-aarch64-static qemu-user-static"
                ;;
            *) echo "install-cross-tools: unknown '$name'; known: aarch64 armhf sshd simulate board" >&2; return 2 ;;
        esac
    done
}

missing_packages() {
    while read -r command package; do
        command -v "$command" >/dev/null || echo "$package"
    done <<<"$wanted" | sort -u | tr '\n' ' '
}

[ $# -gt 0 ] || set -- aarch64 armhf
wanted=$(tools "$@")
packages=$(missing_packages)
[ -n "$packages" ] || exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    as_root=(sudo -n)
fi
if command -v apt-get >/dev/null && { [ "$(id -u)" -eq 0 ] || sudo -n true 2>/dev/null; }; then
    echo "installing $packages"
    # In "runlevel 1" no server is started because it was installed.
    # shellcheck disable=SC2086  # a list of packages
    "${as_root[@]}" apt-get -qq update && \
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -qq install -y --no-install-recommends $packages >/dev/null || true
    packages=$(missing_packages)
    [ -n "$packages" ] || exit 0
fi
echo "missing: ${packages% }" >&2
echo "on Debian or Ubuntu, install with: sudo apt-get install --no-install-recommends ${packages% }" >&2
exit 1

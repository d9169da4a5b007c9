# Describes a board, or this machine, in lines of key=value; see facts.py, which reads them.
#
# Reads only: /proc, /sys, and what a few programs that every Debian has say.  Whatever is missing gives no line.

say() { [ -z "$2" ] || printf '%s=%s\n' "$1" "$2"; }
first_line() { head -n 1 2>/dev/null | tr -d '\000\r'; }

state() { # what changes while something runs
    set --
    for number in $(cat /proc/cpuinfo 2>/dev/null | sed -nE 's/^processor[^0-9]*//p'); do
        folder=/sys/devices/system/cpu/cpu$number/cpufreq
        set -- "$@" "$folder/scaling_cur_freq" "$folder/scaling_max_freq" "$folder/scaling_governor"
    done
    cat /dev/null "$@" 2>/dev/null | paste -d ' ' - - - | sed -n '/./s/^/clock=/p'
    if command -v vcgencmd >/dev/null 2>&1; then
        say throttled "$(vcgencmd get_throttled 2>&1 | first_line)"
        say temperature "$(vcgencmd measure_temp 2>/dev/null | first_line)"
    else
        say temperature "$(cat /sys/class/thermal/thermal_zone0/temp 2>/dev/null | first_line)"
    fi
    say load "$(cat /proc/loadavg 2>/dev/null | first_line)"
}

machine() { # what stays
    say machine "$(uname -m)"
    say kernel "$(uname -r)"
    say bits "$(getconf LONG_BIT 2>/dev/null)"
    say glibc "$(getconf GNU_LIBC_VERSION 2>/dev/null)"
    say model "$(cat /proc/device-tree/model 2>/dev/null | first_line)"
    say system "$(cat /etc/os-release 2>/dev/null | sed -n 's/^PRETTY_NAME="\{0,1\}\([^"]*\)"\{0,1\}$/\1/p')"
    cat /proc/cpuinfo 2>/dev/null |
        sed -nE 's/^(processor|CPU implementer|CPU part|Features|flags|model name)/cpuinfo=&/p'
    say online "$(cat /sys/devices/system/cpu/online 2>/dev/null)"
    say usable "$(nproc 2>/dev/null)"
    say threads "${TVM_NUM_THREADS:-${OMP_NUM_THREADS:-}}"
    cat /proc/meminfo 2>/dev/null | sed -n 's/^MemTotal: */memory_total=/p; s/^MemAvailable: */memory_free=/p'
    say disk_free "$(df -Pk "$HOME" 2>/dev/null | sed -n 2p)"
    say home "$HOME"
}

python() { # the interpreter for networks and tuning, else any
    venv=$HOME/tvmq-python/bin/python
    if [ -x "$venv" ]; then
        say venv "$("$venv" -c '
import platform
from importlib import metadata
found = [("python", platform.python_version())]
for name in ("apache-tvm", "apache-tvm-ffi", "numpy", "psutil"):
    try:
        found.append((name, metadata.version(name)))
    except metadata.PackageNotFoundError:
        pass
print(*("==".join(pair) for pair in found))' 2>/dev/null)"
    fi
    say python "$(python3 -c 'import platform; print(platform.python_version())' 2>/dev/null)"
}

case "${1:-all}" in
    state) state ;;
    *) machine && python && state ;;
esac
echo probe=done

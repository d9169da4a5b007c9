# What is done to a board's ~/tvmq folder: sh board.sh COMMAND ARGUMENTS...; see installation.py, which sends it.
#
#   ~/tvmq/NAME                 a link to the installation of that name; replaced at once, or not at all
#   ~/tvmq/.installed/NAME/ID   that installation
#   ~/tvmq/.parts/ID            what is on its way, or only runs once; whatever a power cut left here goes after an hour
set -u
tvmq=$HOME/tvmq

fail() {
    echo "tvmq: $*" >&2
    exit 1
}

unpack() { # ID: the archive on standard input becomes ~/tvmq/.parts/ID, complete or not at all
    part=$tvmq/.parts/$1
    mkdir -p "$tvmq/.parts" || fail "cannot make ~/tvmq"
    find "$tvmq/.parts" -mindepth 1 -maxdepth 1 -mmin +60 -exec rm -rf {} +
    trap 'rm -rf "$part"' EXIT
    trap 'exit 1' HUP INT TERM
    mkdir "$part" || fail "cannot make $part"
    tar -xf - -C "$part" || fail "cannot be written to ~/tvmq"
    # A connection that ends between two files leaves a valid archive: the list of all files is the last one.
    (cd "$part" && sha256sum --check --quiet --strict SHA256SUMS) || fail "did not arrive whole"
    find "$part" -exec sync {} +
    trap - EXIT
}

check() { # ID INPUTS REPEAT: runs the self-check there; answers with a line of JSON and an archive of the outputs
    cd "$tvmq/.parts/$1" || fail "$1 is gone"
    inputs=$2 repeat=$3 number=0
    set --
    while [ "$number" -lt "$inputs" ]; do
        set -- "$@" --input "check/input$number.npy"
        number=$((number + 1))
    done
    ./run.sh "$@" --output-prefix check/output --repeat "$repeat" </dev/null || exit
    (cd check && tar -cf - output*.npy)
}

installable() { # NAME: whether it may be installed
    [ -L "$tvmq/$1" ] || [ ! -e "$tvmq/$1" ] || fail "~/tvmq/$1 exists, and tvmq did not make it; choose another --name"
}

install() { # ID NAME: what is in ~/tvmq/.parts/ID becomes ~/tvmq/NAME
    place=$tvmq/.installed/$2
    mkdir -p "$place" && mv "$tvmq/.parts/$1" "$place/$1" || fail "cannot be moved to $place"
    sync "$place"
    ln -s ".installed/$2/$1" "$tvmq/.parts/$1.link" && mv -T "$tvmq/.parts/$1.link" "$tvmq/$2" ||
        fail "cannot be installed as ~/tvmq/$2"
    sync "$tvmq"
    find "$place" -mindepth 1 -maxdepth 1 ! -name "$1" -exec rm -rf {} +
}

remove() { # ID
    rm -rf "$tvmq/.parts/$1"
}

"$@"

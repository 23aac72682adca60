# What the scripts beside this file share. Sourced, not run.

# One target directory for all runs and clones, so that dependencies compile once per machine.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/zero-os/target}"
# Programs of others that only measurements need.
tools="${XDG_CACHE_HOME:-$HOME/.cache}/zero-os/tools"
export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-auto}"

# Our programs, optimised: always the same set in one call, so that what they have in common is built once.
build_programs() { cargo build --quiet --release -p flist -p zdb-server -p mycelium-node -p lab -p boot-image -p measure; }
# What `ci/bench grid` runs, apart: a chain takes minutes to build, and nothing else needs one.
build_grid() {
    cargo build --quiet --release -p measure -p devgrid -p devchain -p rmb-relay -p hostd-chain -p hostd-grid \
        --bins --examples
}

# A heading on standard error; bold where a person looks at it.
say() {
    if [[ -t 2 && -z "${NO_COLOR:-}" ]]; then
        printf '\033[1m== %s\033[0m\n' "$*" >&2
    else
        printf '== %s\n' "$*" >&2
    fi
}

as_root() { if ((EUID == 0)); then env "$@"; else sudo env "$@"; fi; }

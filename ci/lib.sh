# What the scripts beside this file share. Sourced, not run.

# One target directory for all runs and clones, so that dependencies compile once per machine.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/zero-os/target}"
# Programs of others that only measurements need.
tools="${XDG_CACHE_HOME:-$HOME/.cache}/zero-os/tools"
export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-auto}"

# Our programs, optimised: always the same set in one call, so that what they have in common is built once.
build_programs() { cargo build --quiet --release -p flist -p zdb-server -p mycelium-node -p lab -p boot-image -p measure; }
# The VMM as nodes have it: static, small, stripped.
build_vmm() {
    CARGO_PROFILE_RELEASE_STRIP=symbols CARGO_PROFILE_RELEASE_OPT_LEVEL=s RUSTFLAGS="-C target-feature=+crt-static" \
        cargo build --quiet --release --target x86_64-unknown-linux-gnu -p vmm -p guestio
}
# What `ci/bench grid` and `ci/bench node` measure: our crates and the websockets as in release, but without
# waiting an hour for FRAME and subxt, which are as tests have them (and share what tests have built). So
# whatever meets its goal here meets it in release, too. The programs are in a folder of their own, $measured.
measured="$CARGO_TARGET_DIR/measured"
build_measured() {
    local crate own=()
    for crate in hostd-{grid,rmb,chain,node,exec,daemon} rmb-relay devchain devgrid supervise measure tungstenite \
        tokio-tungstenite vmm-spec; do
        own+=(--config "profile.dev.package.$crate.opt-level=3")
    done
    local examples=(transactions throughput idle verify deploy compare)
    CARGO_BUILD_BUILD_DIR="$CARGO_TARGET_DIR" CARGO_TARGET_DIR="$measured" CARGO_INCREMENTAL=0 \
        cargo build --quiet "${own[@]}" --workspace --bin measure --bin devgrid --bin hostd --bin supervise \
        "${examples[@]/#/--example=}"
}
# The node, its grid and who deploys there as tests are built, with which they share all but that.
build_node_as_tests() {
    cargo build --quiet --workspace --bin hostd --bin devgrid --bin supervise --example deploy
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

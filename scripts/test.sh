#!/usr/bin/env bash
# Every check and every test, with a summary at the end. Ends with 0 only if all of them passed.
#
#   scripts/test.sh            everything, as CI runs it
#   scripts/test.sh --quick    for developers: installs nothing; leaves out fuzzing, emulated links and
#                              the test of links that fail, the runs with quinn-dp, and the end-to-end
#                              tests that are not about the wire (operating, limits, counters, runtimes:
#                              run the topics of a change by hand); the largest are scaled down
#
# Needs no terminal and nothing cached. What a step prints is not hidden: look above the summary.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

quick=false
case ${1-} in
    '') ;;
    --quick) quick=true ;;
    *)
        echo "test.sh: unknown option '$1'; allowed is --quick" >&2
        exit 2
        ;;
esac

fuzz_seconds=5
if $quick; then
    export QMUX_E2E_SUBSET=${QMUX_E2E_SUBSET-wire}
    export QMUX_E2E_FILE_MB=${QMUX_E2E_FILE_MB:-64}
    export QMUX_E2E_SEQUENTIAL=${QMUX_E2E_SEQUENTIAL:-500}
    export QMUX_E2E_CONCURRENT=${QMUX_E2E_CONCURRENT:-200}
    export QMUX_LINK_LEFT_OUT=1
else
    scripts/setup.sh
    # The build's own part of the output is long enough without progress bars.
    export CARGO_TERM_PROGRESS_WHEN=never
fi
# shellcheck disable=SC1091 # not part of this repository
command -v cargo >/dev/null || . "$HOME/.cargo/env"

summary=()
failed=0
step() { # name command…
    local name=$1 start=$SECONDS code=0
    shift
    echo
    echo "==== $name: $*"
    "$@" || code=$?
    local took="$((SECONDS - start)) s"
    if [ "$code" -eq 0 ]; then
        summary+=("passed  $name ($took)")
    else
        summary+=("FAILED  $name (exit code $code, $took)")
        failed=1
    fi
    return "$code"
}
finish() {
    echo
    echo "==== summary"
    if $quick; then
        echo "left out   fuzzing, emulated links, links that fail, quinn-dp, end-to-end tests that are not of the subset \"${QMUX_E2E_SUBSET:-all}\""
    fi
    printf '%s\n' "${summary[@]}"
    if [ "$failed" -eq 0 ]; then
        echo "all passed in $SECONDS s"
    else
        echo "NOT all passed, in $SECONDS s"
    fi
    exit "$failed"
}

step "format" cargo fmt --all --check || true
step "scripts" shellcheck -x scripts/*.sh scripts/examples/*.sh proto/fuzz/*.sh .ci/run || true
# Links, lengths, the page of tests, spelling (crate, fro: as in "to and fro").
# shellcheck disable=SC2317 # called by step
documents() {
    scripts/check-docs.sh && scripts/list-tests.sh --check &&
        codespell -L crate,fro ./*.md docs scripts/deploy/README.md
}
step "documents" documents || true
step "lints" cargo clippy --locked --workspace --all-targets -- -D warnings || true
# No other step compiles this code.
step "lints of the counting build" cargo clippy --locked --workspace --features qmux-dp/count-allocations -- -D warnings || true
step "documentation of the code" env RUSTDOCFLAGS="-D warnings" \
    cargo doc --locked --workspace --no-deps --document-private-items || true
# Tools that would take longer to compile than all of this takes.
for tool in machete deny; do
    if ! command -v "cargo-$tool" >/dev/null; then
        echo "==== cargo-$tool: left out, for it is not installed (cargo install --locked cargo-$tool)"
    elif [ "$tool" = machete ]; then
        step "dependencies that nobody uses" cargo machete || true
    else
        step "licences and duplicates" cargo deny --locked check bans licenses sources || true
    fi
done
# Tests of binaries that do not build would only repeat that.
step "build" cargo build --locked --workspace --bins || finish
step "tests" cargo test --locked --workspace --no-fail-fast || true
step "ten services" scripts/examples/ten-services.sh "${CARGO_TARGET_DIR:-target}/debug" || true
# The wire protocol against another QUIC stack, in both directions, by the same end-to-end tests.
# shellcheck disable=SC2317 # called by step
other_stack() { # server client
    local bin
    bin=$(realpath "${CARGO_TARGET_DIR:-target}")/debug
    QMUX_E2E_SUBSET=wire QMUX_E2E_SERVER=$bin/$1 QMUX_E2E_CLIENT=$bin/$2 \
        QMUX_E2E_FILE_MB=64 QMUX_E2E_SEQUENTIAL=500 QMUX_E2E_CONCURRENT=200 \
        cargo test --locked --workspace --test e2e
}
if ! $quick; then
    step "quinn-dp on both sides" other_stack quinn-dp quinn-dp || true
    step "quinn-dp clients" other_stack qmux-dp quinn-dp || true
    step "quinn-dp servers" other_stack quinn-dp qmux-dp || true
fi
# Links that fail, with less of everything than scripts/faults.sh has.
# shellcheck disable=SC2317 # called by step
links_that_fail() {
    "${CARGO_TARGET_DIR:-target}/debug/qmux-bench" faults --megabytes 2 --datagrams 64 --visitors 20
}
if $quick; then
    echo "==== links that fail: left out, for it takes more than a minute"
elif [ "$(id -u)" -eq 0 ] && [ -e /dev/net/tun ] && unshare --net true 2>/dev/null; then
    step "links that fail" links_that_fail || true
else
    echo "==== links that fail: left out, for they need root's rights, TUN devices and network namespaces"
fi
# With BoringSSL as the step "build" made it: fuzzing does not instrument it, and it takes minutes.
# shellcheck disable=SC2317 # called by step
fuzzing() {
    local built newest=
    for built in "${CARGO_TARGET_DIR:-$PWD/target}"/debug/build/boring-sys-*/out; do
        if [ -e "$built/build/libcrypto.a" ] && [ -e "$built/build/libssl.a" ] &&
            [ -e "$built/bindings.rs" ] && [[ -z $newest || $built -nt $newest ]]; then
            newest=$(realpath "$built")
        fi
    done
    if [ -n "$newest" ]; then
        export BORING_BSSL_PATH=$newest/build BORING_BSSL_INCLUDE_PATH=$newest/boringssl/include
    fi
    proto/fuzz/run.sh "$fuzz_seconds"
}
if ! $quick; then
    step "fuzzing" fuzzing || true
fi
finish

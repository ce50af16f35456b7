#!/usr/bin/env bash
# Installs what building and testing need, on Debian and Ubuntu, and checks the Rust toolchain.
#
#   scripts/setup.sh            everything
#   scripts/setup.sh --build    only what the build needs
#
# Changes nothing where everything is there already. Asks nothing. Uses sudo unless it is run by root.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
say() { echo "setup: $*"; }
fail() {
    echo "setup: $*" >&2
    exit 1
}

build_only=false
case ${1-} in
    '') ;;
    --build) build_only=true ;;
    *) fail "unknown option '$1'; allowed is --build" ;;
esac

# Daemons live in sbin, which is not on everybody's PATH.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

has_libclang() {
    compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null ||
        compgen -G '/usr/lib/*/libclang*.so*' >/dev/null ||
        compgen -G '/usr/lib64/libclang*.so*' >/dev/null ||
        [ -n "${LIBCLANG_PATH-}" ]
}

# The packages that are missing. A program counts as installed wherever it came from.
missing=()
need() { # program package
    command -v "$1" >/dev/null || missing+=("$2")
}
need cc build-essential
need c++ build-essential
need make build-essential
need cmake cmake
need clang clang
has_libclang || missing+=(libclang-dev)
need pkg-config pkg-config
need git git
need curl curl
if ! $build_only; then
    need iperf3 iperf3
    need nginx nginx-light
    need dig dnsutils
    need dnsmasq dnsmasq-base
    need haproxy haproxy
    need tinyproxy tinyproxy
    need microsocks microsocks
    need ip iproute2
    need nft nftables
    need setpriv util-linux
    need faketime faketime
    need strace strace
    need chromium chromium
    need python3 python3
    need shellcheck shellcheck
    need codespell codespell
fi

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        fail "this needs root rights and there is no sudo: $*"
    fi
}

# Packages of servers start them; the tests want the programs alone.
policy=/usr/sbin/policy-rc.d
policy_is_ours=false
forbid_services() {
    [ ! -e $policy ] || return 0
    # shellcheck disable=SC2016 # for the other shell
    as_root sh -c 'printf "#!/bin/sh\nexit 101\n" >"$1" && chmod 755 "$1"' sh $policy
    policy_is_ours=true
}
allow_services() {
    if $policy_is_ours; then
        as_root rm -f $policy
        policy_is_ours=false
    fi
}

apt() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@" </dev/null
}

if [ ${#missing[@]} -eq 0 ]; then
    say "every program that is needed is there"
else
    mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
    command -v apt-get >/dev/null ||
        fail "there is no apt-get here; install what these Debian packages hold: ${missing[*]}"
    say "installing with apt-get: ${missing[*]}"
    trap allow_services EXIT
    forbid_services
    apt update >/dev/null
    apt install --no-install-recommends "${missing[@]}" >/dev/null
    allow_services
    for service in nginx haproxy tinyproxy; do
        # The services must not run, now or after the next boot, unless they were installed before.
        if [[ " ${missing[*]} " == *" $service"* ]] && [ -d /run/systemd/system ]; then
            as_root systemctl --quiet disable "$service" || true
        fi
    done
    say "installed"
fi

# These are for measurements only (qmux-bench programs, scripts/instructions.sh).
bench_missing=()
for pair in redis-server:redis-server redis-benchmark:redis-tools wrk:wrk valgrind:valgrind; do
    command -v "${pair%%:*}" >/dev/null || bench_missing+=("${pair##*:}")
done
if ! $build_only && [ ${#bench_missing[@]} -gt 0 ]; then
    installed=false
    if command -v apt-get >/dev/null; then
        trap allow_services EXIT
        forbid_services
        apt update >/dev/null 2>&1 &&
            apt install --no-install-recommends "${bench_missing[@]}" >/dev/null 2>&1 &&
            installed=true
        allow_services
    fi
    if $installed; then
        if [[ " ${bench_missing[*]} " == *" redis-server "* ]] && [ -d /run/systemd/system ]; then
            as_root systemctl --quiet disable redis-server || true
        fi
        say "installed ${bench_missing[*]}"
    else
        say "not installed: ${bench_missing[*]}; only qmux-bench programs and instructions need them"
    fi
fi

# perf is for profiles only, and nothing depends on it. Its package has other names elsewhere.
if ! $build_only && ! command -v perf >/dev/null; then
    if command -v apt-get >/dev/null && apt-cache show linux-perf >/dev/null 2>&1 &&
        apt install --no-install-recommends linux-perf >/dev/null 2>&1; then
        say "installed perf"
    else
        say "perf is not there; only profiles need it"
    fi
fi

# shellcheck disable=SC1091 # not part of this repository
command -v cargo >/dev/null || [ ! -f "$HOME/.cargo/env" ] || . "$HOME/.cargo/env"
wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$root/Cargo.toml")
rustup_hint="install Rust from https://rustup.rs:
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh
then open a new shell, or run: . \"\$HOME/.cargo/env\""
command -v cargo >/dev/null || fail "there is no cargo; $rustup_hint"
found=$(cargo --version | cut -d' ' -f2)
oldest=$(printf '%s\n' "$wanted" "${found%%-*}" | sort -V | head -n 1)
[ "$oldest" = "$wanted" ] ||
    fail "cargo is $found and must be $wanted or newer; run: rustup update stable
or $rustup_hint"
say "cargo $found is new enough ($wanted)"
if ! $build_only; then
    for component in fmt clippy; do
        cargo "$component" --version >/dev/null 2>&1 ||
            fail "there is no cargo $component; run: rustup component add rustfmt clippy"
    done
fi
say "done"

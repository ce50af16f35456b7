#!/usr/bin/env bash
# From a fresh clone to a working tunnel: installs what the build needs, builds, and sends real traffic through a
# tunnel on this machine. Ends with 0 only if every byte came back right.
#
# What it builds is for trying (the profile `quick` of Cargo.toml): two thirds of the work of a release, and slower.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin=${CARGO_TARGET_DIR:-target}/quick

steps=3
at=0
step() { # share what command…
    local share=$1 what=$2 start=$SECONDS
    shift 2
    at=$((at + 1))
    echo
    echo "quickstart: step $at of $steps, $what ($share)"
    "$@" || {
        local code=$?
        echo "quickstart: step $at failed after $((SECONDS - start)) s, with exit code $code" >&2
        exit "$code"
    }
    echo "quickstart: step $at took $((SECONDS - start)) s; $SECONDS s since the start"
}

build() {
    # Read by the build script of boring-sys. Not for releases; see there.
    export HOST_CMAKE_TOOLCHAIN_FILE=${HOST_CMAKE_TOOLCHAIN_FILE:-$PWD/scripts/build/boringssl-quick.cmake}
    # Draws its progress on a terminal, and writes a line for each crate elsewhere.
    cargo build --locked --profile quick -p qmux-dp
}

step "a minute at most, nothing if all is there" "programs that the build needs" scripts/setup.sh --build
# shellcheck disable=SC1091 # not part of this repository
command -v cargo >/dev/null || . "$HOME/.cargo/env"
step "minutes, the first time: some 190 crates, and BoringSSL, which takes a third of the time" "building qmux-dp" build
step "seconds" "traffic through a tunnel on this machine" "$bin/qmux-dp" demo --once

cat <<END

The tunnel works on this machine. This build is for trying; its speed is not that of a release.

  $bin/qmux-dp demo
      keeps a tunnel with a small service running, to visit with curl or a browser

To use it, build the release, at full speed, once:

  cargo build --locked --release -p qmux-dp -p qmux-ctl

  bin=${CARGO_TARGET_DIR:-target}/release
  \$bin/qmux-ctl certs --server-name server.example.com --out certs
  \$bin/qmux-ctl config server --out dp.toml
  \$bin/qmux-dp --config dp.toml
      on the server: certificates in certs/, a commented config beside them, the server

  \$bin/qmux-ctl config client --out dp.toml
  \$bin/qmux-dp --config dp.toml
      on the client, with ca.crt, client.crt and client.key from the server's certs/ in its own certs/;
      both configs name the addresses to edit, and --check says what is wrong with them

  scripts/test.sh
      runs every test
END

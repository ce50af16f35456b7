#!/usr/bin/env bash
# From a fresh clone to a working tunnel: installs what the build needs, builds, and sends real traffic through a
# tunnel on this machine. Ends with 0 only if every byte came back right.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh --build
# shellcheck disable=SC1091 # not part of this repository
command -v cargo >/dev/null || . "$HOME/.cargo/env"

echo "quickstart: building; the first time takes some minutes, most of them for BoringSSL"
cargo build --locked --release -p qmux-dp -p qmux-ctl
bin=${CARGO_TARGET_DIR:-target}/release

echo "quickstart: sending traffic through a tunnel on this machine"
"$bin/qmux-dp" demo --once

cat <<END

The tunnel works on this machine. Next:

  $bin/qmux-dp demo
      keeps a tunnel with a small service running, to visit with curl or a browser

  $bin/qmux-ctl certs --server-name server.example.com --out certs
  $bin/qmux-ctl config server --out dp.toml
  $bin/qmux-dp --config dp.toml
      on the server: certificates in certs/, a commented config beside them, the server

  $bin/qmux-ctl config client --out dp.toml
  $bin/qmux-dp --config dp.toml
      on the client, with ca.crt, client.crt and client.key from the server's certs/ in its own certs/;
      both configs name the addresses to edit, and --check says what is wrong with them

  scripts/test.sh
      runs every test
END

#!/usr/bin/env bash
# Builds the Debian package of qmux-dp and qmux-ctl, and prints its path.
#
#   scripts/package.sh                 of a release build
#   scripts/package.sh --optimized     of one that is optimized by a profile (scripts/optimize.sh)
#   scripts/package.sh --dev           of a development build, for tests of the package
#   scripts/package.sh [--dev] --test  and installs, runs and removes it in a clean root
#
# Needs cargo-deb (cargo install --locked cargo-deb). --test needs root. Its root is Debian's base
# by debootstrap, which is fetched; where there is no debootstrap or nothing can be fetched, it is
# this host's own system under an overlay, whose changes are thrown away.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
fail() {
    echo "package: $*" >&2
    exit 1
}

# This variable is for builds that are only tried, not for packages.
unset HOST_CMAKE_TOOLCHAIN_FILE

profile=release
optimized=false
test=false
for option in "$@"; do
    case $option in
        --dev) profile=dev ;;
        --optimized) optimized=true ;;
        --test) test=true ;;
        *)
            echo "package: unknown option '$option'; allowed are --dev, --optimized and --test" >&2
            exit 2
            ;;
    esac
done
if $optimized && [ "$profile" = dev ]; then
    echo "package: --dev and --optimized exclude each other" >&2
    exit 2
fi
command -v cargo-deb >/dev/null ||
    fail "there is no cargo-deb; install it: cargo install --locked cargo-deb"

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
if [ "$profile" = dev ]; then
    built=$target/debug
    cargo build --locked --workspace --bins
elif $optimized; then
    scripts/optimize.sh >&2
    built=$target/optimized/release
    # Where cargo-deb looks for the programs.
    export CARGO_TARGET_DIR=$target/optimized
else
    built=$target/release
    cargo build --locked --release -p qmux-dp -p qmux-ctl
fi

# The files of the package beside the programs. dataplane/Cargo.toml says where they go.
made=$built/package
rm -rf "$made"
mkdir -p "$made"/{systemd,bash,zsh,fish,examples,etc}
"$built/qmux-ctl" man --out "$made/man" >/dev/null
gzip -9n "$made"/man/*.1
"$built/qmux-ctl" completions bash >"$made/bash/qmux-ctl"
"$built/qmux-ctl" completions zsh >"$made/zsh/_qmux-ctl"
"$built/qmux-ctl" completions fish >"$made/fish/qmux-ctl.fish"
for role in server client; do
    "$built/qmux-ctl" config "$role" --out "$made/examples/$role.toml" >/dev/null
done
for unit in qmux-dp-server.service qmux-dp@.service; do
    sed 's|/usr/local/bin/|/usr/bin/|; s|/etc/systemd/system/|/usr/lib/systemd/system/|' \
        "scripts/deploy/systemd/$unit" >"$made/systemd/$unit"
done
cat >"$made/etc/README" <<'EOF'
server.toml is what qmux-dp-server.service reads, NAME.toml what qmux-dp@NAME.service reads.
Write the first ones with qmux-ctl config server --out server.toml, or start from those in
/usr/share/doc/qmux-dp/examples. The group qmux-dp must be able to read them, and the keys.
EOF

# Debug symbols would make the package ten times as large.
cargo deb --quiet --no-build --locked --profile "$profile" --strip -p qmux-dp \
    --output "$target/debian/" >/dev/null
package=$(find "$target/debian" -name 'qmux-dp_*.deb' -newer "$made/etc/README" | head -n 1)
[ -n "$package" ] || fail "cargo-deb made no package in $target/debian"
echo "$package"
$test || exit 0

[ "$(id -u)" -eq 0 ] || fail "--test installs the package in a root of its own, which takes root"
exec unshare --mount --pid --fork --mount-proc scripts/package-test.sh "$package"

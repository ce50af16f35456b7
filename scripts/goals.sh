#!/usr/bin/env bash
# Measures everything that the goals are about, and prints one table: goal, limit, the baselines, rathole where it is
# installed, qmux-dp, reached or missed, and the command behind each line.
#
#   scripts/goals.sh                        everything, 15 to 20 minutes after the build
#   scripts/goals.sh --goals 1,3            only these goals
#   scripts/goals.sh --probes tcp,link      only these measurements
#   scripts/goals.sh --before PROGRAM       with a column for an older qmux-dp
#   scripts/goals.sh --out DIR              results go there; otherwise to results/goals-DATE-COMMIT
#   scripts/goals.sh --out DIR --keep       measures what is not there yet
#   scripts/goals.sh --out DIR --table      measures nothing: the table of what is there
#
# Further options are those of `qmux-bench goals`. Goal 2 and the links need root's rights, for network namespaces. Ends
# with 0 if everything was measured, whether the goals are reached or not.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh
# shellcheck disable=SC1091 # not part of this repository
command -v cargo >/dev/null || . "$HOME/.cargo/env"

bin=${CARGO_TARGET_DIR:-target}/release
echo "goals: building; the first time takes some minutes, most of them for BoringSSL"
# First the build that counts allocations, which has the same name; cargo keeps both. The same selection of programs, so
# that dependencies are built once.
programs=(--bin qmux-dp --bin quinn-dp --bin qmux-bench)
cargo build --locked --release "${programs[@]}" --features qmux-dp/count-allocations
cp "$bin/qmux-dp" "$bin/qmux-dp-counting"
cargo build --locked --release "${programs[@]}"

# The last --out counts.
out=results/goals-$(date -u +%Y-%m-%d)-$(git rev-parse --short=10 HEAD)
exec "$bin/qmux-bench" goals --out "$out" "$@"

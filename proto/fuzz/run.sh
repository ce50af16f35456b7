#!/bin/sh
# Runs every fuzz target for some seconds: proto/fuzz/run.sh [seconds-per-target] [target…]
#
# It needs what the programs' build needs, nothing else: coverage instrumentation is an LLVM pass
# that stable rustc can switch on, and without unsafe code a sanitizer would have nothing to find.
# People who have cargo-fuzz can use `cargo fuzz run TARGET` in proto/ as well.
#
# Everything it writes is under target/fuzz, which git ignores; the corpus there grows with each
# run. It begins with the inputs in proto/fuzz/seeds/TARGET, which are kept: what earlier runs found
# worth keeping. It prints one line per target and exits with 1 if one of them failed.
set -eu

seconds=${1:-5}
case $seconds in
    '' | *[!0-9]* | 0) echo "run.sh: '$seconds' is not a number of seconds, 1 or more" >&2; exit 2 ;;
esac
[ $# -eq 0 ] || shift
fuzz=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
if [ $# -eq 0 ]; then
    set -- control open datagram reassembly varint packet \
        dp_toml import ticket_keys sessions certificate admin_query
fi

work=$(dirname -- "$(dirname -- "$fuzz")")/target/fuzz
host=$(rustc -vV | sed -n 's/^host: //p')
# The flags of cargo-fuzz less those for sanitizers. Naming the target keeps them away from build scripts.
flags='--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares'
mkdir -p "$work"
# CARGO_ENCODED_RUSTFLAGS would win over RUSTFLAGS even if it were empty.
if ! env -u CARGO_ENCODED_RUSTFLAGS RUSTFLAGS="$flags" cargo build --release --locked --quiet \
    --manifest-path "$fuzz/Cargo.toml" --target "$host" --target-dir "$work" >"$work/build.log" 2>&1
then
    cat "$work/build.log" >&2
    echo "run.sh: the fuzz targets do not build" >&2
    exit 1
fi

failed=0
for target in "$@"; do
    corpus=$work/corpus/$target
    artifacts=$work/artifacts/$target
    log=$work/$target.log
    seeds=$fuzz/seeds/$target
    mkdir -p "$corpus" "$artifacts"
    [ -d "$seeds" ] || seeds=
    code=0
    "$work/$host/release/$target" "$corpus" ${seeds:+"$seeds"} -artifact_prefix="$artifacts/" \
        -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=1024 \
        -print_final_stats=1 >"$log" 2>&1 || code=$?
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    # Without instrumentation libFuzzer runs blind, and says so only in its log.
    covered=$(sed -n 's/^#.*DONE *cov: \([0-9]*\) .*/\1/p' "$log")
    [ "$code" -ne 0 ] || [ "${covered:-0}" -gt 0 ] || code='0 but without coverage'
    if [ "$code" = 0 ]; then
        echo "$target: $runs executions in $seconds s, $covered edges covered"
    else
        failed=1
        echo "$target: FAILED with code $code after ${runs:-0} executions, input in $artifacts, log:"
        tail -n 40 "$log"
    fi
done
exit $failed

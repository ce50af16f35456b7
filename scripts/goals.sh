#!/usr/bin/env bash
# Measures everything that the goals are about, and prints one table: goal, limit, the baselines, rathole where it is
# installed, qmux-dp, reached or missed, and the command behind each line.
#
#   scripts/goals.sh                        everything, some 30 minutes after the build
#   scripts/goals.sh --goals 1,3            only these goals
#   scripts/goals.sh --probes tcp,link      only these measurements
#   scripts/goals.sh --before PROGRAM       with a column for an older qmux-dp
#   scripts/goals.sh --out DIR              results go there; otherwise to results/goals-DATE-COMMIT
#   scripts/goals.sh --out DIR --keep       measures what is not there yet
#   scripts/goals.sh --out DIR --table      measures nothing: the table of what is there
#
# Also --repeats N and --seconds S in place of each measurement's own, --programs DIR where qmux-dp and quinn-dp are, and
# --counting PROGRAM, a qmux-dp built with count-allocations. Goal 2 and the links need root's rights, for network
# namespaces. Ends with 0 if everything was measured, whether the goals are reached or not.
set -euo pipefail

fail() {
    echo "goals.sh: $*; --help tells what there is" >&2
    exit 2
}

usage() {
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
}

# Every mistake is found here, before anything is built for minutes; and a path is meant from where it was typed.
from_here() { # path
    case $1 in
        /*) printf '%s' "$1" ;;
        *) printf '%s/%s' "$PWD" "$1" ;;
    esac
}
each_of() { # option list pattern
    [[ $2 =~ ^($3)(,($3))*$ ]] || fail "$1: '$2' is no list of ${3//|/, }"
}

options=()
goals='' probes='' out='' counting='' table=false
while [ $# -gt 0 ]; do
    option=$1 value=
    case $option in
        --help | -h)
            usage
            exit 0
            ;;
        --table | --keep)
            [ "$option" = --table ] && table=true
            options+=("$option")
            shift
            continue
            ;;
        --*=*)
            value=${option#*=} option=${option%%=*}
            shift
            ;;
        --goals | --probes | --before | --out | --counting | --programs | --repeats | --seconds)
            [ $# -gt 1 ] || fail "$option needs a value"
            value=$2
            shift 2
            ;;
        *) fail "unknown option '$option'" ;;
    esac
    case $option in
        --goals)
            each_of "$option" "$value" '[1-9]|10'
            goals=$value
            ;;
        --probes)
            each_of "$option" "$value" \
                'tcp|veth|udp|packets|latency|connect|flows|link|lane|scale|syscalls|programs|cores|allocations'
            probes=$value
            ;;
        --before | --counting)
            value=$(from_here "$value")
            [ -f "$value" ] || fail "$option: there is no $value"
            [ "$option" = --before ] || counting=$value
            ;;
        --programs)
            value=$(from_here "$value")
            [ -d "$value" ] || fail "$option: there is no directory $value"
            ;;
        --out)
            [ -n "$value" ] || fail "$option needs a directory"
            out=$(from_here "$value")
            continue
            ;;
        --repeats) [[ $value =~ ^0*[1-9][0-9]*$ ]] || fail "$option: '$value' is not a whole number from 1" ;;
        --seconds) [[ $value =~ ^[0-9]+(\.[0-9]+)?$ ]] || fail "$option: '$value' is not a number of seconds" ;;
        *) fail "unknown option '$option'" ;;
    esac
    options+=("$option" "$value")
done
if $table; then
    [ -n "$out" ] || fail "--table needs --out, the directory of the results"
    [ -d "$out" ] || fail "--out: there is no directory $out"
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh
# shellcheck disable=SC1091 # not part of this repository
command -v cargo >/dev/null || . "$HOME/.cargo/env"

bin=${CARGO_TARGET_DIR:-target}/release
echo "goals: building; the first time takes some minutes, most of them for BoringSSL"
if $table; then
    cargo build --locked --release --bin qmux-bench
else
    programs=(--bin qmux-dp --bin quinn-dp --bin qmux-bench)
    # First the build that counts allocations, if it is wanted, which has the same name; cargo keeps both. The same selection
    # of programs, so that dependencies are built once.
    if [[ -z $counting && (-z $goals || $goals == *8*) && (-z $probes || $probes == *allocations*) ]]; then
        cargo build --locked --release "${programs[@]}" --features qmux-dp/count-allocations
        cp "$bin/qmux-dp" "$bin/qmux-dp-counting"
        options+=(--counting "$(realpath "$bin")/qmux-dp-counting")
    fi
    cargo build --locked --release "${programs[@]}"
fi

# A source without its history has no commit.
commit=$(git rev-parse --short=10 HEAD 2>/dev/null || echo unknown)
[ -n "$out" ] || out=results/goals-$(date -u +%Y-%m-%d)-$commit
exec "$bin/qmux-bench" goals --out "$out" "${options[@]}"

#!/usr/bin/env bash
# Writes docs/performance.md: the prose of docs/performance.md.in with what was measured woven in.
#
#   scripts/performance.sh                   runs everything first, some 90 minutes, with root's rights
#   scripts/performance.sh --out DIR         results go there, otherwise to results/performance-DATE-COMMIT; what is
#                                            there already is not measured again
#   scripts/performance.sh --from DIR …      measures nothing: from the results in these directories; what is in none
#                                            of them, the page says is not measured. The directories of two runs of
#                                            scripts/goals.sh, for example, and of scripts/flamegraph.sh; NAME=DIR is
#                                            taken for what the template calls NAME, as loopback=DIR
#   scripts/performance.sh --check           builds and measures nothing; ends with 1 if the page's prose is not the
#                                            template's
set -euo pipefail

# A directory is meant from where it was typed.
typed_in=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
page=docs/performance.md
template=$page.in

fail() {
    echo "performance.sh: $*" >&2
    exit 2
}

from_here() { # path
    case $1 in
        /*) printf '%s' "$1" ;;
        *) printf '%s/%s' "$typed_in" "$1" ;;
    esac
}

# The template with the blocks of the page: what the page is if nobody edited it.
woven() {
    awk '
        FNR == NR && /^<!-- measured / { at = $0 }
        FNR == NR { if (at != "") block[at] = block[at] $0 "\n"; if (/^<!-- end -->/) at = ""; next }
        $0 in block { printf "%s", block[$0]; next }
        { print }
    ' "$page" "$template"
}

out='' from=()
while [ $# -gt 0 ]; do
    case $1 in
        --check)
            woven | diff "$page" - >&2 && exit
            echo "performance.sh: edit $template, not $page; then run scripts/performance.sh" >&2
            exit 1
            ;;
        --out)
            [ $# -gt 1 ] || fail "--out needs a directory"
            out=$(from_here "$2")
            shift 2
            ;;
        --from)
            shift
            while [ $# -gt 0 ] && [[ $1 != --* ]]; do
                directory=$(from_here "${1#*=}")
                [ -d "$directory" ] || fail "--from: there is no directory ${1#*=}"
                case $1 in *=*) directory=${1%%=*}=$directory ;; esac
                from+=(--from "$directory")
                shift
            done
            [ ${#from[@]} -gt 0 ] || fail "--from needs directories"
            ;;
        --help | -h)
            sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
            exit 0
            ;;
        *) fail "unknown option '$1'; --help tells what there is" ;;
    esac
done

scripts/setup.sh
# shellcheck disable=SC1091 # not part of this repository
command -v cargo >/dev/null || . "$HOME/.cargo/env"
bin=$PWD/${CARGO_TARGET_DIR:-target}/release
case ${CARGO_TARGET_DIR-} in /*) bin=$CARGO_TARGET_DIR/release ;; esac

# Runs the measurements of the template: kind, names, command. Runs of all goals come first, because
# they measure much of the rest.
measure() {
    local kind names command name
    sed -n 's/^<!-- measured \([a-z]*\) \([^ :]*\)[^:]*: \(.*\) -->$/\1 \2 \3/p' "$template" | sort -s -k1,1 |
        while read -r kind names command; do
            for name in ${names//,/ }; do
                if [ -n "$(cd "$out" && find . -path "*/$name/*" -print -quit)" ]; then
                    continue
                fi
                echo "performance: $name: $command"
                if [ "$kind" = nanoseconds ]; then
                    printed "$name" "$command"
                else
                    bash -c "$command --out \"\$0\"" "$out/$name" </dev/null
                fi || echo "performance: $name: not everything was measured" >&2
            done
        done
}

# What a command prints, with when and on what; not if it failed.
printed() { # name command
    local directory=$out/$1
    if ! bash -c "$2" >"$out/$1.txt" </dev/null; then
        return 1
    fi
    mkdir "$directory"
    mv "$out/$1.txt" "$directory"
    printf '{"machine": {"date": "%s", "commit": "%s"}}\n' "$(date -u +%Y-%m-%d)" "$commit" >"$directory/machine.json"
}

echo "performance: building; the first time takes some minutes, most of them for BoringSSL"
if [ ${#from[@]} -eq 0 ]; then
    cargo build --locked --release --bin qmux-dp --bin quinn-dp --bin qmux-bench
    commit=$(git rev-parse --short=10 HEAD 2>/dev/null || echo unknown)
    [ -n "$out" ] || out=results/performance-$(date -u +%Y-%m-%d)-$commit
    mkdir -p "$out"
    PATH=$bin:$PATH measure
    from=(--from "$out")
else
    cargo build --locked --release --bin qmux-bench
fi
made=$(mktemp)
trap 'rm -f "$made"' EXIT
"$bin/qmux-bench" performance --template "$template" "${from[@]}" >"$made"
cat "$made" >"$page"
echo "performance: wrote $page"

#!/bin/sh
# Writes docs/tests.md: the end-to-end tests by topic. Their names are its sentences.
#
#   scripts/list-tests.sh            writes the page
#   scripts/list-tests.sh --check    writes nothing; ends with 1 if the page is not what it should be
set -eu
LC_ALL=C
export LC_ALL

cd "$(dirname "$0")/.."
page=docs/tests.md
tests=dataplane/tests/e2e

case ${1-} in
    '') check=false ;;
    --check) check=true ;;
    *)
        echo "list-tests.sh: unknown option '$1'; allowed is --check" >&2
        exit 2
        ;;
esac

# One topic: the first paragraph of the file's `//!`, and each test.
topic() { # file name
    awk -v name="$2" '
        # Wraps at 100 characters, which are less than the bytes by those that continue one.
        function wrap(text, first, rest,    words, count, at, line, next_line, seen) {
            count = split(text, words, " ")
            line = first words[1]
            for (at = 2; at <= count; at++) {
                next_line = line " " words[at]
                seen = next_line
                gsub(/[\200-\277]/, "", seen)
                if (length(seen) > 100) {
                    print line
                    line = rest words[at]
                } else {
                    line = next_line
                }
            }
            print line
        }
        function begin() {
            if (begun) return
            begun = 1
            print ""
            print "## " name
            print ""
            if (about != "") wrap(about, "", "")
            print ""
        }
        /^\/\/!/ && !over {
            line = substr($0, 5)
            if (line == "") over = 1
            else about = about (about == "" ? "" : " ") line
            next
        }
        /^#\[test\]/ { test = 1; note = ""; next }
        test && /^#\[ignore/ { note = " (run by hand)"; next }
        test && /^#\[/ { next }
        test && /^(async )?fn / {
            sentence = $0
            sub(/^(async )?fn /, "", sentence)
            sub(/\(.*/, "", sentence)
            gsub(/_/, " ", sentence)
            sentence = toupper(substr(sentence, 1, 1)) substr(sentence, 2)
            begin()
            wrap(sentence note, "- ", "  ")
            test = 0
        }
    ' "$1"
}

made=$(mktemp)
trap 'rm -f "$made"' EXIT
{
    cat <<'END'
# What the end-to-end tests hold

Written by `scripts/list-tests.sh` from the names in `dataplane/tests/e2e`; do not edit it. Each
line is a test. `cargo test --locked --workspace --test e2e TOPIC::` runs a topic, `a::b::` one that
is called "a / b" here.
END
    find "$tests" -name '*.rs' ! -name main.rs ! -path "$tests/support/*" | sort |
        while read -r file; do
            name=${file#"$tests"/}
            name=$(echo "${name%.rs}" | sed 's|/| / |g')
            topic "$file" "$name"
        done
} >"$made"

if $check; then
    if ! cmp -s "$made" "$page"; then
        echo "list-tests.sh: $page is not what the tests say; run scripts/list-tests.sh" >&2
        diff "$page" "$made" >&2 || true
        exit 1
    fi
else
    cat "$made" >"$page"
fi

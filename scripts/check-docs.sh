#!/bin/sh
# Checks the documents: relative links and their anchors, paths of code, columns, and how long the first pages are.
#
#   scripts/check-docs.sh            prints what is wrong, a line each; ends with 1 if anything is
#
# Reads files only. Tables, lines with a link, of measurements, and of code that a test compares may be wider than 100 columns.
set -eu
LC_ALL=C
export LC_ALL

cd "$(dirname "$0")/.."
documents="README.md ARCHITECTURE.md CONTRIBUTING.md CHANGELOG.md SECURITY.md docs/*.md
    scripts/deploy/README.md"
# The documents whose backticks name files of code; paths may begin below dataplane/src.
with_paths="ARCHITECTURE.md SECURITY.md docs/decisions.md"
readme_lines_max=110
architecture_lines_max=150
columns_max=100

wrong=$(mktemp)
trap 'rm -f "$wrong"' EXIT

# The anchor of a heading, as GitHub makes it: lower case, without punctuation, with hyphens for
# spaces. A second one of the same name has -1 behind it.
anchors() { # file
    awk '
        /^```/ { code = !code; next }
        !code && /^#+ / {
            sub(/^#+ +/, "")
            $0 = tolower($0)
            gsub(/[^a-z0-9 _\200-\377-]/, "")
            gsub(/ /, "-")
            count = seen[$0]++
            print $0 (count ? "-" count : "")
        }
    ' "$1"
}

# Each target of a link, with its line, outside of code.
links() { # file
    awk '
        /^```/ { code = !code; next }
        code || /^    / { next }
        {
            rest = $0
            gsub(/`[^`]*`/, "", rest)
            while (match(rest, /\]\([^)]*\)/)) {
                print NR, substr(rest, RSTART + 2, RLENGTH - 3)
                rest = substr(rest, RSTART + RLENGTH)
            }
        }
    ' "$1"
}

# Each path of code in backticks, with its line.
paths() { # file
    awk '
        /^```/ { code = !code; next }
        code { next }
        {
            rest = $0
            while (match(rest, /`[^` ]*`/)) {
                path = substr(rest, RSTART + 1, RLENGTH - 2)
                rest = substr(rest, RSTART + RLENGTH)
                if (path ~ /^[a-z0-9_.-]+(\/[a-z0-9_.-]+)*(\/|\.rs|\.sh|\.toml|\.md)$/) print NR, path
            }
        }
    ' "$1"
}

# shellcheck disable=SC2086 # a list of patterns
for file in $documents; do
    if [ ! -f "$file" ]; then
        echo "$file: is not there" >>"$wrong"
        continue
    fi
    links "$file" | while read -r line target; do
        case $target in
            *://* | mailto:*) continue ;;
        esac
        path=${target%%#*}
        if [ -z "$path" ]; then
            to=$file
        else
            to=$(dirname "$file")/$path
        fi
        if [ ! -e "$to" ]; then
            echo "$file:$line: there is no $path"
            continue
        fi
        case $target in
            *'#'*)
                if ! anchors "$to" | grep -Fqx -e "${target#*#}"; then
                    echo "$file:$line: there is no heading #${target#*#} in $to"
                fi
                ;;
        esac
    done >>"$wrong"
    awk -v max="$columns_max" -v file="$file" '
        /^\|/ || /^<!-- measured / || /\]\(/ || /https?:/ || /^kubectl create secret/ { next }
        {
            seen = $0
            gsub(/[\200-\277]/, "", seen)
            if (length(seen) > max) print file ":" NR ": is " length(seen) " columns wide, not " max
        }
    ' "$file" >>"$wrong"
done

for file in $with_paths; do
    paths "$file" | while read -r line path; do
        if [ ! -e "$path" ] && [ ! -e "dataplane/src/$path" ]; then
            echo "$file:$line: there is no $path"
        fi
    done >>"$wrong"
done

# Each key of dp.toml is in the operator's manual: by its own name, or by that of the file in whose place its text stands.
sed -n 's/^ *"\([a-z0-9_.]*\)",$/\1/p' config/src/keys.rs | sed 's/.*\.//' | sort -u |
    while read -r key; do
        if ! grep -Eqw "$key|${key}_file" docs/operating.md; then
            echo "docs/operating.md: does not name the key $key of config/src/keys.rs"
        fi
    done >>"$wrong"

# Comments of code have as many columns as documents; rustfmt leaves them alone.
find config dataplane proto tools -name '*.rs' ! -path '*/target/*' -exec awk -v max="$columns_max" '
        /^ *\/\// {
            seen = $0
            gsub(/[\200-\277]/, "", seen)
            if (length(seen) > max) print FILENAME ":" FNR ": is " length(seen) " columns wide, not " max
        }
    ' {} + >>"$wrong"

# The page of measurements has the prose of its template.
if ! scripts/performance.sh --check 2>>"$wrong"; then :; fi

length() { # file most
    lines=$(wc -l <"$1")
    if [ "$lines" -gt "$2" ]; then
        echo "$1: has $lines lines, more than $2" >>"$wrong"
    fi
}
length README.md "$readme_lines_max"
length ARCHITECTURE.md "$architecture_lines_max"

if [ -s "$wrong" ]; then
    cat "$wrong" >&2
    exit 1
fi

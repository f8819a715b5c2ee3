#!/bin/sh
# hashed.sh FILE: the pins of a file with their digests from lock-hashes.txt; fails where one has none there.
set -eu
awk '
    function normal(text) { text = tolower(text); gsub(/[-_.]+/, "-", text); return text }
    function pin(text) { split(text, part, "=="); return normal(part[1]) "==" part[2] }
    /^[ \t]*(#|$)/ { next }
    NR == FNR { wanted[pin($1)] = 1; next }
    /^[A-Za-z0-9]/ { found = pin($1); keep = (found in wanted); delete wanted[found] }
    keep
    END { for (left in wanted) { print "no digest for " left ": make hashes" > "/dev/stderr"; code = 1 } exit code }
' "$1" "$(dirname "$0")/lock-hashes.txt"

#!/bin/sh
# Writes lock-hashes.txt from lock.txt and tools.txt from tools.in; TOOLS is the folder of uv. A registry is asked through uv, as for
# an installation; UV_INDEX_URL and the like say which. TORCH_WHEEL=FILE adds the digest of torch's CPU build.
set -eu
cd "$(dirname "$0")"
compile() { # FROM TO ARGUMENTS...
    from=$1 to=$2
    shift 2
    "$TOOLS/uv" pip compile -q "$from" --generate-hashes --universal --python-version 3.11.7 --no-header --no-annotate \
        --no-emit-index-url "$@" -o "$to"
}
new=$(mktemp -d)
trap 'rm -rf "$new"' EXIT
compile lock.txt "$new/hashes" --no-deps
compile tools.in "$new/tools"
# the digest of torch's CPU build is kept where its version is, since PyTorch's own index is another registry
version=$(sed -n 's/^torch==//p' lock.txt)
if [ -n "${TORCH_WHEEL:-}" ]; then
    sum=$(sha256sum "$TORCH_WHEEL" | cut -d' ' -f1)
elif grep -q "^torch==$version " lock-hashes.txt; then
    sum=$(grep -A1 "^torch==$version " lock-hashes.txt | sed -n 's/.*--hash=sha256:\([0-9a-f]*\).*/\1/p')
else
    echo "torch has changed: give its CPU build, TORCH_WHEEL=FILE" >&2
    exit 1
fi
{
    sed -n '/^#/!q;p' lock-hashes.txt
    awk -v sum="$sum" '/^torch==/ { print; print "    --hash=sha256:" sum " \\"; next } { print }' "$new/hashes"
} > "$new/whole"
{
    sed -n '/^#/!q;p' tools.txt
    cat "$new/tools"
} > "$new/tools-whole"
mv "$new/whole" lock-hashes.txt
mv "$new/tools-whole" tools.txt

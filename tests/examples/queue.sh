#!/bin/sh
# A work queue in a shell script: enqueue jobs, then run a command for each of them.
#
#   queue.sh FILE...
#
# The command's exit code is the verdict: 0 done, 75 again later, 65 put aside.
set -eu
for file in "$@"; do
    echo "$file"
done | rlog append jobs >&2

rlog process jobs packer --no-block --retry-first 0.05 --max-attempts 3 -- sh -c '
    read -r file
    [ -e "$file" ] || exit 65
    gzip --keep --force "$file" || exit 75
'
rlog consumers parked jobs packer -o jsonl

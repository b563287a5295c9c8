#!/bin/sh
# Logs in pipes: lines in, lines out, and a copy that loses nothing of a record.
#
#   pipes.sh FILE
set -eu
rlog append access "$1" >&2                                  # one record a line
rlog cat access | grep -c ERROR                              # what grep can, grep does
rlog cat access -o jsonl | rlog append copy --jsonl - >&2    # with keys, headers and times
rlog cat access | sha256sum
rlog cat copy | sha256sum

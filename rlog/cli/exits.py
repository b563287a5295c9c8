"""The exit codes, and how a command ends with one."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    OK = 0
    ERROR = 1
    USAGE = 2
    NOT_FOUND = 3  # or out of range
    UNREACHABLE = 4  # or timed out, or the outcome is unknown
    CORRUPT = 5
    CONFLICT = 6  # or busy, fenced, exists, paused, locked
    PARTLY = 7
    EMPTY = 8
    CANNOT_RUN = 126  # the command of `process`, as a shell has it
    NO_COMMAND = 127  # there is none of that name
    INTERRUPTED = 130  # 128 + SIGINT, as a shell has it
    PIPE = 141  # 128 + SIGPIPE


class Stopped(Exception):
    """The command ends here, with this code; its text is the error, "" for none."""

    def __init__(self, code: Exit, text: str = "") -> None:
        super().__init__(text)
        self.code = code

"""What handlers wrote down about themselves, judged: whose hands had which record, and when.

Each member appends lines to a file of its own, outside of rlog:

    begin OFFSET KEY ATTEMPT TIME
    end OFFSET KEY VERDICT TIME       a moment before the handler returns or raises

TIME is CLOCK_MONOTONIC in ns, which all processes of a machine share. A member that was killed had
its last record in hand until its killer's ``death``, taken just before the signal was sent: whoever
begins it earlier than that had it too early, by any clock.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

DONE = ("commit", "skip", "park")


class Call(NamedTuple):
    """One call of a handler. ``verdict`` None: its member died in it. ``death``: of its member,
    None if that was never killed.
    """

    offset: int
    key: str
    member: str
    attempt: int
    begin_ns: int
    end_ns: int
    verdict: str | None
    death_ns: int | None

    @property
    def is_done(self) -> bool:
        return self.verdict in DONE


def calls_of(member: str, lines: Iterable[str], death_ns: int | None) -> list[Call]:
    """What one member's file says. Raises ValueError for what no member writes."""
    calls: list[Call] = []
    begun: dict[int, tuple[str, int, int]] = {}
    for line in lines:
        what, offset, key, middle, time_ns = line.split()
        if what == "begin":
            if int(offset) in begun:
                raise ValueError(f"{member} began {offset} twice at once")
            begun[int(offset)] = (key, int(middle), int(time_ns))
        else:
            _, attempt, begin_ns = begun.pop(int(offset))
            end_ns = int(time_ns)
            call = Call(int(offset), key, member, attempt, begin_ns, end_ns, middle, death_ns)
            calls.append(call)
    if begun and death_ns is None:
        raise ValueError(f"{member} ended in order, with {sorted(begun)} in hand")
    for each, (key, attempt, begin_ns) in begun.items():
        # (It may write a last line after the killer has looked at the clock.)
        end_ns = max(begin_ns, death_ns or 0)
        calls.append(Call(each, key, member, attempt, begin_ns, end_ns, None, death_ns))
    return calls


def read_calls(files: Mapping[str, Path], deaths: Mapping[str, int]) -> list[Call]:
    found = []
    for member, path in files.items():
        if path.exists():
            raw = path.read_text()
            lines = raw.splitlines() if raw.endswith("\n") else raw.splitlines()[:-1]
            found += calls_of(member, lines, deaths.get(member))
    return found


def judge(calls: Iterable[Call], keys: Mapping[int, str | None]) -> dict[str, int]:
    """Hold the calls against ``keys``, of all records by offset. -> counts. Raises AssertionError.

    - every record was done with;
    - again only if whoever was done with it was killed, perhaps before it could say so, and only
      after that;
    - of a key one record was in hand at a time, by one member at a time;
    - and they were done with in order: none began before all before it were done with.
    """
    by_line: dict[str, list[Call]] = defaultdict(list)
    seen: set[int] = set()
    counts = dict.fromkeys(("calls", "again", "cut short", "retried"), 0)
    for call in calls:
        key = keys[call.offset]
        assert call.key == ("-" if key is None else key), f"offset {call.offset} came as {call}"
        # A record without a key is a line of its own.
        by_line[f"key {key}" if key is not None else f"record {call.offset}"].append(call)
        counts["calls"] += 1
        counts["cut short"] += call.verdict is None
        counts["retried"] += call.verdict not in (*DONE, None)
        if call.is_done:
            seen.add(call.offset)
    missing = sorted(set(keys) - seen)
    assert not missing, f"never done with: {missing[:10]} ({len(missing)})"
    wanted: dict[str, list[int]] = defaultdict(list)
    for offset, key in keys.items():
        wanted[f"key {key}" if key is not None else f"record {offset}"].append(offset)
    for line, line_calls in by_line.items():
        counts["again"] += _judge_line(line, sorted(line_calls, key=_begin), wanted[line])
    return counts


def _judge_line(line: str, calls: list[Call], offsets: list[int]) -> int:
    again, place, before = 0, 0, None
    for call in calls:
        if before is not None:
            assert call.begin_ns >= before.end_ns, f"{line} in two hands:\n{before}\n{call}"
            if before.is_done and call.offset == before.offset:
                death_ns = before.death_ns
                assert death_ns is not None, f"settled, and again:\n{before}\n{call}"
                assert call.begin_ns >= death_ns, f"again before it died:\n{before}\n{call}"
                again += 1
            elif before.is_done:
                place += 1
        following = offsets[place] if place < len(offsets) else None
        assert call.offset == following, f"{line}: {following} is next:\n{before}\n{call}"
        before = call
    return again


def _begin(call: Call) -> int:
    return call.begin_ns

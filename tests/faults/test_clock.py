"""Promise 15: a wall clock that jumps by ten years, there and back, changes timestamps and no more.

The real server under libfaketime, which leaves its monotonic clock alone, as a clock that is set
does. What waits, waits on: records in hand, retries with a delay, claims, owners, standbys.
(Retention with such a clock: tests/e2e/test_retention.py.)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

import rlog_client as rlog
from tests.server_process import environment

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.server_process import ServerProcess

FAKETIME: Final = next(
    iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), Path("no libfaketime")
)
YEARS_NS: Final = 3653 * 86_400 * 10**9
HOUR: Final = 3600.0
ROUNDS: Final = 20  # of requests, in which what should not happen has its chance


@pytest.mark.patience(300)
@pytest.mark.skipif(not FAKETIME.exists(), reason="there is no libfaketime: scripts/tools install")
@pytest.mark.parametrize(
    "jumps",
    [
        pytest.param(("+3653d", "-3653d"), id="there and back"),
        pytest.param(("-3653d", "+3653d"), id="back and there", marks=pytest.mark.slow),
    ],
)
def test_a_jump_of_ten_years_changes_timestamps_only(
    start_server: Callable[..., ServerProcess], data_dir: Path, jumps: tuple[str, str]
) -> None:
    wrong = data_dir.with_name("wrong-by")
    wrong.write_text("+0\n")
    faked = environment(
        LD_PRELOAD=str(FAKETIME),
        FAKETIME_TIMESTAMP_FILE=str(wrong),
        FAKETIME_NO_CACHE="1",
        FAKETIME_DONT_FAKE_MONOTONIC="1",
    )
    server = start_server(data_dir, env=faked)
    with (
        rlog.connect(server.url, name="first") as client,
        rlog.connect(server.url, name="second") as other,
    ):
        log = client.log("l", create=True, sync="periodic:20ms")
        log.append_many([b"%d" % n for n in range(10)])
        with (
            client.log("owned", create=True).producer(exclusive=True) as owner,
            log.consumer("in hand", hand_seconds=HOUR) as holder,
            log.consumer("retrying") as retrying,
        ):
            owner.send(b"mine").result()
            [in_hand] = holder.poll(1, timeout=30.0)
            [retried] = retrying.poll(1, timeout=30.0)
            retrying.settle(retried, rlog.Retry(delay=HOUR))
            epochs = (owner.epoch, holder.epoch, retrying.epoch)
            times_ns = [_append(log)]
            for jump in jumps:
                wrong.write_text(f"{jump}\n")
                for _ in range(ROUNDS):
                    times_ns.append(_append(log))
                    assert retrying.poll(1) == [], "its hour is not over"
                    with pytest.raises(rlog.Busy):
                        other.log("l").consumer("in hand").poll()
                    rival = other.log("owned").producer(exclusive=True)
                    with pytest.raises(rlog.Busy), rival:
                        pass
                owner.send(b"still mine").result()
                holder.extend(in_hand)
                log.wait_synced(log.info().end, timeout=30.0)
            holder.commit(in_hand)
            assert epochs == (owner.epoch, holder.epoch, retrying.epoch)
        # Only what is written down with a record has jumped, and it has.
        assert max(times_ns) - min(times_ns) > YEARS_NS - 10**12, "the clock was not faked"
        offsets = [record.offset for record in log.reader(rlog.OLDEST, block=False)]
        assert offsets == list(range(10 + len(times_ns)))
        assert log.cursor("in hand").info().committed == 1
        assert log.cursor("retrying").info().committed == 0
    assert server.stop() == 0, server.log()
    assert "ERROR" not in server.log()


def _append(log: rlog.Log) -> int:
    return log.append_many([b"when?"]).timestamp_ns

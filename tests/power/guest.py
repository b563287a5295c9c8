"""The first process of a guest: mounts the disk, serves, works, tells; the host cuts the power.

init=PYTHON -- -m tests.power.guest PLAN
"""

from __future__ import annotations

import os
import sys
import time
import traceback
import tty
from random import Random
from typing import TYPE_CHECKING, Final

import rlog_client

from .disk import DEVICE, FlakyDisk, mount, write_back_every
from .failing import fail_a_sync, look_into_the_trap
from .load import LOGS, Load, make, show
from .plan import Plan
from .serving import DISK, URL, NotServing, Server
from .telling import Booted, Broke, Done, Killed, Recovered, Wrong, encode

if TYPE_CHECKING:
    from .telling import Event

_SERIAL: Final = "/dev/ttyS0"


class Teller:
    """Tells the host. One write a line, so that threads do not mix theirs."""

    def __init__(self) -> None:
        self._fd = os.open(_SERIAL, os.O_WRONLY | os.O_NOCTTY)
        tty.setraw(self._fd)

    def __call__(self, event: Event) -> None:
        os.write(self._fd, encode(event))


def main() -> None:
    tell = Teller()
    tell(Booted())
    try:
        run(Plan.from_word(sys.argv[1]), tell)
    except NotServing as error:
        tell(Wrong(f"the server did not start: exit {error}"))
    except rlog_client.RlogError as error:
        tell(Wrong(f"{type(error).__name__}: {error}"))
    except BaseException:
        tell(Broke(traceback.format_exc()))
    while True:  # this kernel's first process has to stay
        time.sleep(3600)


def run(plan: Plan, tell: Teller) -> None:
    os.environ["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"
    mount("proc", "/proc", "proc")
    mount("sysfs", "/sys", "sysfs")
    mount("tmpfs", "/run", "tmpfs")
    if plan.flush_centiseconds:
        write_back_every(plan.flush_centiseconds)
    server = Server(plan)
    if plan.scenario == "load":
        mount(DEVICE, DISK, plan.file_system)
        work(plan, server, tell)
        return
    disk = FlakyDisk()
    disk.mount(DISK, plan.file_system)
    tell(look_into_the_trap(disk))
    fail_a_sync(plan, disk, server, tell)


def work(plan: Plan, server: Server, tell: Teller) -> None:
    """Servers under load, killed one after the other; the last one lives until the cut."""
    chance = Random(f"{plan.seed} {plan.boot}")
    for life in range(plan.kills + 1):
        server.start()
        with rlog_client.connect(URL) as client:
            show(client, tell)
            tell(Recovered())
            for name, options in LOGS.items():
                make(client, tell, name, **options)
        unsynced = chance.random() < plan.unsynced
        load = Load(URL, tell, f"{plan.boot}.{life}", plan.seed, unsynced=unsynced)
        load.begin()
        if life == plan.kills:
            tell(Done())
            return
        time.sleep(chance.uniform(0.0, plan.load_seconds))
        server.kill()
        load.end()
        tell(Killed())


if __name__ == "__main__":
    main()

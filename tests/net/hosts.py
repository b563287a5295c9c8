"""Hosts of one's own, for tests that take them away: network namespaces, joined by veth pairs.

A namespace has no name: it is held by a process that ends when its standard input does, so nothing
is left of it however the tests end, and the interfaces of the machine are never touched. Needs
``ip`` (iproute2), ``unshare``, ``nsenter`` and ``setpriv`` (util-linux), and either CAP_NET_ADMIN
and CAP_SYS_ADMIN (root has them, but not in most containers) or user namespaces.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final, NamedTuple, Self

from tests.e2e.serving import ROOT

_TOOLS: Final = ("ip", "unshare", "nsenter", "setpriv")
_PATH: Final = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"  # not everybody's, and `ip` is there
_NOBODY: Final = "02:00:00:ff:ff:ff"  # a hardware address that no interface has


class Unavailable(Exception):
    """This machine does not let us make hosts; the text says why."""


def _tool(name: str) -> str:
    found = shutil.which(name, path=_PATH)
    if found is None:
        raise Unavailable(f"there is no `{name}` here (Debian: iproute2, util-linux)")
    return found


class Host:
    """A network namespace, and the processes in it."""

    def __init__(self, how: list[str]) -> None:
        """``how``: the command that makes a namespace and runs what follows in it."""
        command = [*how, "sh", "-c", "echo made; exec cat"]
        self._holder = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.processes: list[subprocess.Popen[bytes]] = []
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"made\n":
            _, said = self._holder.communicate()
            raise Unavailable(f"`{' '.join(command[:4])}`: {said.decode().strip()}")

    @property
    def pid(self) -> int:
        """Of a process in it."""
        return self._holder.pid

    def inside(self, *command: str, user: bool) -> list[str]:
        """The command that runs ``command`` there; ``user``: a user namespace has to be entered."""
        where = ["--user", "--preserve-credentials"] if user else []
        return [_tool("nsenter"), f"--target={self.pid}", *where, "--net", *command]

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        self._holder.communicate()


class Connection(NamedTuple):
    """What the server's kernel has of one connection."""

    established: bool
    timer: int  # what is waited for, see below


# Of /proc/net/tcp: what the timer of a connection is for.
RETRANSMIT: Final = 1  # something is under way, and not acknowledged yet
KEEPALIVE: Final = 2
PROBE: Final = 4  # the peer's window is full


class Link:
    """From the server's host to another one. Cut, nobody is told: packets just do not arrive."""

    def __init__(self, net: Net, number: int) -> None:
        self._net = net
        self._number = number
        self.host = net.make_host()
        self.server_address, self.address = f"10.77.{number}.1", f"10.77.{number}.2"
        self._ends = ((net.server, f"to{number}", "1"), (self.host, "eth0", "2"))
        self._is_cut = self._unplugged = False
        net.ip(
            net.server,
            *("link", "add", f"to{number}", "address", f"02:00:00:00:{number:02x}:01"),
            *("type", "veth", "peer", "name", "eth0", "address", f"02:00:00:00:{number:02x}:02"),
            *("netns", str(self.host.pid)),
        )
        for host, interface, last in self._ends:
            net.ip(host, "address", "add", f"10.77.{number}.{last}/24", "dev", interface)
            net.ip(host, "link", "set", interface, "up")

    def cut(self) -> None:
        """Both interfaces stay up, as with a switch in between: frames go to nobody's address."""
        self._is_cut = True
        for (host, interface, _), other in zip(self._ends, "21", strict=True):
            neighbour = ("neighbour", "replace", f"10.77.{self._number}.{other}", "lladdr", _NOBODY)
            self._net.ip(host, *neighbour, "dev", interface, "nud", "permanent")

    def unplug(self) -> None:
        """The far interface goes down, so the server's has no carrier any more."""
        self._unplugged = True
        self._net.ip(self.host, "link", "set", "eth0", "down")

    def mend(self) -> None:
        """After ``cut`` or ``unplug``; otherwise it does nothing."""
        if self._unplugged:
            self._net.ip(self.host, "link", "set", "eth0", "up")
        if self._is_cut:
            for (host, interface, _), other in zip(self._ends, "21", strict=True):
                address = f"10.77.{self._number}.{other}"
                self._net.ip(host, "neighbour", "del", address, "dev", interface)
        self._is_cut = self._unplugged = False

    def connection(self, port: int) -> Connection | None:
        """The one from ``port`` there, as the server's kernel sees it."""
        remote = bytes(int(part) for part in reversed(self.address.split("."))).hex().upper()
        for line in self._net.tcp_table.read_text().splitlines()[1:]:
            fields = line.split()
            if fields[2] == f"{remote}:{port:04X}":
                return Connection(fields[3] == "01", int(fields[5][:2], 16))
        return None


class Net:
    """One host for a server, and any number of others, each behind a link of its own."""

    def __init__(self) -> None:
        """Raises Unavailable."""
        for tool in _TOOLS:
            _tool(tool)
        self.links: list[Link] = []
        self._hosts: list[Host] = []
        self._user = False
        unshare = _tool("unshare")
        try:
            self.server = Host([unshare, "--net"])
        except Unavailable as error:
            try:
                self.server = Host([unshare, "--user", "--map-root-user", "--net"])
            except Unavailable as other:
                raise Unavailable(f"{error}; {other}") from None
            self._user = True
        self._hosts.append(self.server)
        self.tcp_table = Path(f"/proc/{self.server.pid}/net/tcp")
        try:
            self.ip(self.server, "link", "set", "lo", "up")
            Link(self, 255)  # whether veth pairs can be made, too
        except BaseException:
            self.close()
            raise

    def make_host(self) -> Host:
        unshare = [_tool("unshare"), "--net"]
        if self._user:
            enter = [_tool("nsenter"), f"--target={self.server.pid}"]
            unshare = [*enter, "--user", "--preserve-credentials", *unshare]
        self._hosts.append(Host(unshare))
        return self._hosts[-1]

    def link(self) -> Link:
        self.links.append(Link(self, len(self.links) + 1))
        return self.links[-1]

    def ip(self, host: Host, *arguments: str) -> None:
        command = host.inside(_tool("ip"), *arguments, user=self._user)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Unavailable(f"`ip {' '.join(arguments)}`: {done.stderr.strip()}")

    def start(self, host: Host, *command: str, said: Path) -> subprocess.Popen[bytes]:
        """Run a command on a host; what it says goes to a file."""
        # Even if these tests are killed nothing is left, for what was paused would stay for ever.
        mortal = (_tool("setpriv"), "--pdeathsig", "KILL", *command)
        with said.open("wb") as file:
            process = subprocess.Popen(
                host.inside(*mortal, user=self._user), cwd=ROOT, stdout=file, stderr=file
            )
        host.processes.append(process)
        return process

    def close(self) -> None:
        for host in reversed(self._hosts):
            host.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

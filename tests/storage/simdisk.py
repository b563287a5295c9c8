"""A simulated disk: the ``Files`` of the product, over memory, which forgets and fails on demand.

The fault model
---------------
*A power cut.* Everything since its last sync persists in any subset, one by one:

- page writes. A file is pages of 4 KiB; each page keeps every version written since the file's
  last sync. A page comes back as its old content, as any of those versions, as zeros, or mixed:
  per sector of 512 bytes old, new, zeros or garbage. A rewrite of the same bytes is a write too.
- file sizes: the old one, or any since. Pages beyond the size are cut; where the size came through
  and the page did not, there are zeros.
- names: creates, renames, unlinks, new and removed directories. A rename is atomic. A directory
  whose own name is lost takes all in it along.

``sync`` makes one file's pages and size durable and nothing else: not even the file's own name.
``sync_directory`` makes that directory's names durable and nothing in the files.

*A process killed.* All that was written stays, synced or not; a write may be half done: a prefix of
its pages.

*Failures.* The k-th call of a kind raises (EIO, ENOSPC, ...); a write that raises has written the
first half of its pages. A sync that fails has lost the unsynced pages: in ``EXT4`` mode the cache
goes on showing them, they count as clean, and later syncs succeed (until ``forget`` or a power cut
shows what is on the disk); in ``REVERT`` mode the cache shows the old pages at once. A shortage of
space: allocations, and writes outside of what is allocated, raise ENOSPC.

Time is a counter of operations that change something. ``on_operation`` is called at each boundary
(and in the middle of each write of several pages), where it may take a ``copy`` of the disk or
raise ``Crash``. ``crash(choice)`` gives the disk that the next process finds. ``choices`` gives all
subsets while there are few, seeded samples otherwise.
"""

from __future__ import annotations

import errno
import random
from collections import Counter
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

PAGE: Final = 4096
SECTOR: Final = 512
ZERO: Final = bytes(PAGE)
ENUMERATE_MAX: Final = 10  # up to so many unsynced units, every subset is tried

Buffer = bytes | bytearray | memoryview


class Crash(BaseException):
    """The machine ends here. Not an Exception: nothing may catch it and go on."""


class Fill(Enum):
    """What stands in a page whose write did not come through."""

    OLD = "old"
    ZERO = "zero"
    GARBAGE = "garbage"


class Failure(Enum):
    """What a failed sync leaves behind."""

    EXT4 = "ext4"
    REVERT = "revert"


class Choice(NamedTuple):
    """Which of ``units()`` came through (a bit each), the fill of the others, and a seed.

    ``any_version``: a page that came through may stand at any of its versions, not only the last.
    """

    mask: int
    fill: Fill
    seed: int
    any_version: bool = False


class _Inode:
    """A file. ``disk``: its durable pages, never changed in place, without zero pages.

    ``over``: what the cache shows instead; ``versions``: of the unsynced pages, what was written.
    """

    __slots__ = ("blocks", "disk", "disk_size", "linked", "over", "size", "sizes", "versions")

    def __init__(self) -> None:
        self.disk: Mapping[int, bytes] = {}
        self.over: dict[int, bytes] = {}
        self.versions: dict[int, tuple[bytes, ...]] = {}
        self.size = 0
        self.disk_size = 0
        self.sizes: tuple[int, ...] = ()
        self.blocks: set[int] = set()
        self.linked = True

    def copy(self) -> _Inode:
        new = _Inode.__new__(_Inode)
        new.disk = self.disk
        new.over = dict(self.over)
        new.versions = dict(self.versions)
        new.size, new.disk_size, new.sizes = self.size, self.disk_size, self.sizes
        new.blocks = set(self.blocks)
        new.linked = self.linked
        return new

    def page(self, index: int) -> bytes:
        shown = self.over.get(index)
        return shown if shown is not None else self.disk.get(index, ZERO)

    def put(self, index: int, page: bytes) -> None:
        self.over[index] = page
        self.versions[index] = (*self.versions.get(index, ()), page)

    def resize(self, size: int) -> None:
        if size != self.size:
            self.size = size
            self.sizes = (*self.sizes, size)

    def settle(self) -> None:
        """A sync that succeeds."""
        if self.versions:
            disk = dict(self.disk)
            for index in self.versions:
                page = self.over[index]
                if page == ZERO:
                    disk.pop(index, None)
                else:
                    disk[index] = page
                del self.over[index]
            self.disk = disk
            self.versions = {}
        self.disk_size, self.sizes = self.size, ()

    def read(self, position: int, count: int) -> bytes:
        end = min(position + count, self.size)
        if end <= position:
            return b""
        first, last = position // PAGE, (end - 1) // PAGE
        if first == last:
            begin = first * PAGE
            return self.page(first)[position - begin : end - begin]
        joined = b"".join([self.page(index) for index in range(first, last + 1)])
        return joined[position - first * PAGE : end - first * PAGE]

    def contents(self) -> bytes:
        return self.read(0, self.size)


class _Names(NamedTuple):
    """One change of names: (directory, name, the node it stood for, the one it stands for now)."""

    changes: tuple[tuple[int, str, int | None, int | None], ...]
    rename: bool = False

    def touches(self, directory: int) -> bool:
        return any(change[0] == directory for change in self.changes)

    def apply(self, directories: dict[int, dict[str, int]]) -> None:
        if self.rename:
            # A file is moved from wherever it is: one node never has two names.
            _directory, _name, moved, _ = self.changes[0]
            for entries in directories.values():
                for name in [name for name, node in entries.items() if node == moved]:
                    del entries[name]
        for directory, name, old, new in self.changes:
            entries = directories.setdefault(directory, {})
            if new is not None:
                entries[name] = new
            elif entries.get(name) == old:
                del entries[name]


class Unit(NamedTuple):
    """Something that a power cut may lose: a page of a file, a file's size, a change of names."""

    kind: str
    node: int
    position: int


_ROOT: Final = 0


class SimFile:
    """An open file. It stays readable when the name is gone, as files do."""

    __slots__ = ("_disk", "_inode", "_node", "_writable")

    def __init__(self, disk: SimDisk, node: int, *, writable: bool) -> None:
        self._disk = disk
        self._node = node
        self._inode = disk.inodes[node]
        self._writable = writable

    def size(self) -> int:
        return self._inode.size

    def read(self, position: int, count: int) -> bytes:
        self._disk.call("read")
        return self._inode.read(position, count)

    def read_cached(self, position: int, count: int) -> bytes | None:
        if self._disk.cold:
            return None
        data = self._inode.read(position, count)
        return data if len(data) == count else None

    def write(self, position: int, pieces: Sequence[Buffer]) -> None:
        self._check_writable()
        data = b"".join(pieces)
        if not data:
            return
        disk, inode = self._disk, self._inode
        error = disk.operate("write", self._node)
        first, last = position // PAGE, (position + len(data) - 1) // PAGE
        half = (last - first + 1) // 2
        for index in range(first, last + 1):
            if index - first == half and half:
                if error is not None:
                    break
                disk.half_way(self._node)
            if not disk.take_block(inode, index):
                error = OSError(errno.ENOSPC, "no space left (simulated)")
                break
            begin = index * PAGE
            low, high = max(position, begin), min(position + len(data), begin + PAGE)
            page = data[low - position : high - position]
            if high - low < PAGE:
                old = inode.page(index)
                page = old[: low - begin] + page + old[high - begin :]
            inode.put(index, page)
            inode.resize(max(inode.size, high))
        if error is not None:
            raise error

    def sync(self) -> None:
        disk, inode = self._disk, self._inode
        error = disk.operate("sync", self._node)
        if error is None:
            inode.settle()
            return
        # What the kernel does with pages that it could not write: they count as clean.
        if disk.failure is Failure.REVERT:
            for index in inode.versions:
                del inode.over[index]
        inode.versions = {}
        raise error

    def allocate(self, position: int, count: int) -> None:
        self._check_writable()
        disk, inode = self._disk, self._inode
        error = disk.operate("allocate", self._node)
        if error is None:
            wanted = range(position // PAGE, -(-(position + count) // PAGE))
            missing = [index for index in wanted if index not in inode.blocks]
            if disk.free is not None and len(missing) > disk.free:
                error = OSError(errno.ENOSPC, "no space left (simulated)")
            else:
                if disk.free is not None:
                    disk.free -= len(missing)
                inode.blocks.update(missing)
                inode.resize(max(inode.size, position + count))
        if error is not None:
            raise error

    def truncate(self, size: int) -> None:
        self._check_writable()
        disk, inode = self._disk, self._inode
        if (error := disk.operate("truncate", self._node)) is not None:
            raise error
        if size < inode.size:
            for index in {*inode.disk, *inode.over}:
                begin = index * PAGE
                page = inode.page(index)
                kept = page[: max(size - begin, 0)] if begin + PAGE > size else page
                if len(kept) < PAGE and any(page[len(kept) :]):
                    inode.put(index, kept + bytes(PAGE - len(kept)))
            gone = {index for index in inode.blocks if index * PAGE >= size}
            inode.blocks -= gone
            disk.give_back(len(gone))
        inode.resize(size)

    def forget(self) -> None:
        inode = self._inode
        for index in [index for index in inode.over if index not in inode.versions]:
            del inode.over[index]

    def close(self) -> None:
        pass

    def _check_writable(self) -> None:
        if not self._writable:
            raise OSError(errno.EBADF, "opened for reading")


class SimDisk:
    """A directory tree that implements ``Files``."""

    def __init__(self) -> None:
        self.inodes: dict[int, _Inode] = {}
        self.directories: dict[int, dict[str, int]] = {_ROOT: {}}
        self.durable: dict[int, dict[str, int]] = {_ROOT: {}}
        self.unsynced_names: list[_Names] = []
        self._next = _ROOT + 1
        self.operations = 0
        self.calls: Counter[str] = Counter()
        self.faults: dict[tuple[str, int], OSError] = {}
        self.failure = Failure.EXT4
        self.failed: list[str] = []  # the faults that were met
        self.free: int | None = None  # pages that are left; None: plenty
        self.cold = False  # nothing is cached: read_cached gives None
        self.dead = False
        self.on_operation: Callable[[str], None] | None = None

    # --- faults -------------------------------------------------------------------------------

    def fail(self, kind: str, call: int, error: int = errno.EIO, *, more: int = 0) -> None:
        """The ``call``-th call of a kind (from 1, of this disk) raises, and ``more`` after it."""
        for each in range(call, call + more + 1):
            self.faults[kind, each] = OSError(error, f"{kind} failed (simulated)")

    def call(self, kind: str) -> None:
        """A call that changes nothing."""
        self.calls[kind] += 1
        if self.faults and (error := self.faults.get((kind, self.calls[kind]))) is not None:
            self.failed.append(kind)
            raise error

    def operate(self, kind: str, _node: int) -> OSError | None:
        """A boundary: the operation has not begun. Gives the error that it is to end with."""
        if self.dead:
            raise Crash
        self.operations += 1
        self.calls[kind] += 1
        if self.on_operation is not None:
            self._observe(kind)
        if self.faults and (error := self.faults.get((kind, self.calls[kind]))) is not None:
            self.failed.append(kind)
            return error
        return None

    def half_way(self, _node: int) -> None:
        if self.on_operation is not None:
            self._observe("half a write")

    def _observe(self, kind: str) -> None:
        assert self.on_operation is not None
        try:
            self.on_operation(kind)
        except Crash:
            self.dead = True
            raise

    def take_block(self, inode: _Inode, index: int) -> bool:
        if index not in inode.blocks:
            if self.free is not None:
                if self.free <= 0:
                    return False
                self.free -= 1
            inode.blocks.add(index)
        return True

    def give_back(self, pages: int) -> None:
        if self.free is not None:
            self.free += pages

    # --- Files --------------------------------------------------------------------------------

    def open(self, path: str, *, write: bool = True) -> SimFile:
        self.call("open")
        node = self._node(path)
        if node in self.directories:
            raise IsADirectoryError(errno.EISDIR, "a directory", path)
        return SimFile(self, node, writable=write)

    def create(self, path: str) -> SimFile:
        directory, name = self._parent(path)
        error = self.operate("create", directory)
        if error is None and self.free is not None and self.free <= 0:
            error = OSError(errno.ENOSPC, "no space left (simulated)")
        if error is not None:
            raise error
        if name in self.directories[directory]:
            raise FileExistsError(errno.EEXIST, "exists", path)
        node = self._new()
        self.inodes[node] = _Inode()
        self._change(_Names(((directory, name, None, node),)))
        return SimFile(self, node, writable=True)

    def names(self, path: str) -> list[str]:
        try:
            node = self._node(path)
        except FileNotFoundError:
            return []
        if node not in self.directories:
            raise NotADirectoryError(errno.ENOTDIR, "not a directory", path)
        return sorted(self.directories[node])

    def rename(self, old: str, new: str) -> None:
        from_directory, from_name = self._parent(old)
        to_directory, to_name = self._parent(new)
        if (error := self.operate("rename", to_directory)) is not None:
            raise error
        node = self._node(old)
        replaced = self.directories[to_directory].get(to_name)
        changes = (
            (from_directory, from_name, node, None),
            (to_directory, to_name, replaced, node),
        )
        self._change(_Names(changes, rename=True))
        if replaced is not None:
            self._unlinked(replaced)

    def unlink(self, path: str) -> None:
        directory, name = self._parent(path)
        if (error := self.operate("unlink", directory)) is not None:
            raise error
        node = self._node(path)
        if node in self.directories:
            raise IsADirectoryError(errno.EISDIR, "a directory", path)
        self._change(_Names(((directory, name, node, None),)))
        self._unlinked(node)

    def make_directory(self, path: str) -> None:
        directory, name = self._parent(path)
        if (error := self.operate("make_directory", directory)) is not None:
            raise error
        if name in self.directories[directory]:
            return
        node = self._new()
        self.directories[node] = {}
        self.durable[node] = {}
        self._change(_Names(((directory, name, None, node),)))

    def remove_directory(self, path: str) -> None:
        directory, name = self._parent(path)
        if (error := self.operate("remove_directory", directory)) is not None:
            raise error
        node = self._node(path)
        if self.directories[node]:
            raise OSError(errno.ENOTEMPTY, "not empty", path)
        self._change(_Names(((directory, name, node, None),)))

    def sync_directory(self, path: str) -> None:
        node = self._node(path)
        if (error := self.operate("sync_directory", node)) is not None:
            raise error
        later = []
        for names in self.unsynced_names:
            if names.touches(node):
                names.apply(self.durable)
            else:
                later.append(names)
        self.unsynced_names = later

    def _new(self) -> int:
        node, self._next = self._next, self._next + 1
        return node

    def _change(self, names: _Names) -> None:
        names.apply(self.directories)
        self.unsynced_names.append(names)

    def _unlinked(self, node: int) -> None:
        inode = self.inodes[node]
        if inode.linked:
            inode.linked = False
            self.give_back(len(inode.blocks))

    def _node(self, path: str) -> int:
        node = _ROOT
        if path:
            for name in path.split("/"):
                entries = self.directories.get(node)
                if entries is None:
                    raise NotADirectoryError(errno.ENOTDIR, "not a directory", path)
                found = entries.get(name)
                if found is None:
                    raise FileNotFoundError(errno.ENOENT, "no such file", path)
                node = found
        return node

    def _parent(self, path: str) -> tuple[int, str]:
        directory, _, name = path.rpartition("/")
        node = self._node(directory)
        if node not in self.directories:
            raise NotADirectoryError(errno.ENOTDIR, "not a directory", path)
        assert name
        return node, name

    # --- power cuts ---------------------------------------------------------------------------

    def units(self) -> list[Unit]:
        """What a power cut may lose, in a fixed order: the bits of a choice's mask."""
        found = []
        for node, inode in self.inodes.items():
            found += [Unit("page", node, index) for index in inode.versions]
            if inode.sizes:
                found.append(Unit("size", node, 0))
        found += [Unit("names", 0, index) for index in range(len(self.unsynced_names))]
        return found

    def crash(self, choice: Choice) -> SimDisk:
        """The disk after a power cut: what of the unsynced came through is ``choice``."""
        rng = random.Random(choice.seed)
        new = SimDisk()
        new._next = self._next
        through = {unit: bool(choice.mask >> i & 1) for i, unit in enumerate(self.units())}
        directories = {node: dict(entries) for node, entries in self.durable.items()}
        for index, names in enumerate(self.unsynced_names):
            if through[Unit("names", 0, index)]:
                names.apply(directories)
        waiting, new.directories = [_ROOT], {}
        while waiting:
            node = waiting.pop()
            if node in self.inodes:
                new.inodes[node] = _after_cut(node, self.inodes[node], through, choice, rng)
            else:
                new.directories[node] = directories[node]
                waiting += [directories[node][name] for name in sorted(directories[node])]
        new.durable = {node: dict(entries) for node, entries in new.directories.items()}
        return new

    def killed(self) -> SimDisk:
        """The disk after a kill of the process alone: everything is as it was, faults are over."""
        return self.copy()

    def copy(self) -> SimDisk:
        new = SimDisk()
        new.inodes = {node: inode.copy() for node, inode in self.inodes.items()}
        new.directories = {node: dict(entries) for node, entries in self.directories.items()}
        new.durable = {node: dict(entries) for node, entries in self.durable.items()}
        new.unsynced_names = list(self.unsynced_names)
        new._next = self._next
        return new

    def fingerprint(self) -> int:
        """Equal for disks that a next process cannot tell apart (after a power cut)."""
        found = []
        waiting = [("", _ROOT)]
        while waiting:
            path, node = waiting.pop()
            inode = self.inodes.get(node)
            if inode is None:
                found.append(hash(path))
                entries = self.directories[node]
                waiting += [(f"{path}/{name}", entries[name]) for name in entries]
            else:
                pages = frozenset(inode.disk.items())
                over = frozenset(inode.over.items())
                found.append(hash((path, inode.size, pages, over)))
        return hash(tuple(sorted(found)))

    def nodes_below(self, path: str) -> frozenset[int]:
        """The files that are or were below a directory, as far as names tell."""
        try:
            waiting = [self._node(path)]
        except FileNotFoundError:
            return frozenset()
        found = set()
        while waiting:
            node = waiting.pop()
            children = {*self.directories.get(node, {}).values()}
            children |= {*self.durable.get(node, {}).values()}
            found |= children
            waiting += children
        return frozenset(found)

    # --- for tests that look at the disk, or damage it -------------------------------------------

    def paths(self) -> list[str]:
        """Every file, sorted."""
        found = []
        waiting = [("", _ROOT)]
        while waiting:
            prefix, node = waiting.pop()
            for name, child in self.directories[node].items():
                if child in self.directories:
                    waiting.append((f"{prefix}{name}/", child))
                else:
                    found.append(prefix + name)
        return sorted(found)

    def contents(self, path: str) -> bytes:
        return self.inodes[self._node(path)].contents()

    def tree(self) -> dict[str, bytes]:
        return {path: self.contents(path) for path in self.paths()}

    def replace(self, path: str, contents: bytes) -> None:
        """Other bytes on the disk and in the cache, behind everyone's back."""
        inode = self.inodes[self._node(path)]
        inode.disk = {
            index: page
            for index, begin in enumerate(range(0, len(contents), PAGE))
            if (page := contents[begin : begin + PAGE].ljust(PAGE, b"\0")) != ZERO
        }
        inode.over, inode.versions = {}, {}
        inode.size = inode.disk_size = len(contents)
        inode.sizes = ()


def _after_cut(
    node: int, inode: _Inode, through: Mapping[Unit, bool], choice: Choice, rng: random.Random
) -> _Inode:
    """What a power cut leaves of one file."""
    new = _Inode()
    new.size = inode.disk_size
    if inode.sizes and through[Unit("size", node, 0)]:
        new.size = rng.choice(inode.sizes) if choice.any_version else inode.sizes[-1]
    pages = inode.disk
    if inode.versions:
        pages = dict(pages)
        for index, versions in inode.versions.items():
            if through[Unit("page", node, index)]:
                page = rng.choice(versions) if choice.any_version else versions[-1]
            elif choice.fill is Fill.OLD:
                continue
            elif choice.fill is Fill.ZERO:
                page = ZERO
            else:
                page = _torn(inode.disk.get(index, ZERO), rng.choice(versions), rng)
            if page == ZERO:
                pages.pop(index, None)
            else:
                pages[index] = page
    last = new.size // PAGE
    if any(index >= last for index in pages):
        pages = {index: page for index, page in pages.items() if index * PAGE < new.size}
        if (rest := new.size - last * PAGE) and last in pages:
            page = pages.pop(last)[:rest] + bytes(PAGE - rest)
            if page != ZERO:
                pages[last] = page
    new.disk, new.disk_size = pages, new.size
    new.blocks = {index for index in inode.blocks if index * PAGE < new.size}
    return new


def _torn(old: bytes, new: bytes, rng: random.Random) -> bytes:
    """A page whose sectors are old, new, zeros or garbage."""
    sectors = []
    for begin in range(0, PAGE, SECTOR):
        match rng.randrange(4):
            case 0:
                sectors.append(old[begin : begin + SECTOR])
            case 1:
                sectors.append(new[begin : begin + SECTOR])
            case 2:
                sectors.append(bytes(SECTOR))
            case _:
                sectors.append(rng.randbytes(SECTOR))
    return b"".join(sectors)


def choices(
    disk: SimDisk, samples: int, seed: int, enumerate_max: int = ENUMERATE_MAX, derived: str = ""
) -> Iterator[Choice]:
    """Every subset of what is unsynced × every fill, if that is few units; else seeded samples.

    ``derived``: a directory whose files are rewritten from elsewhere. If there are too many units
    with the pages and sizes of those, the others are enumerated and these are drawn for each.
    """
    units = disk.units()
    below = disk.nodes_below(derived) if derived else frozenset[int]()
    core = [i for i, unit in enumerate(units) if unit.node not in below]
    if len(units) <= enumerate_max:
        core = list(range(len(units)))
    drawn = sum(1 << i for i in range(len(units))) & ~sum(1 << i for i in core)
    fills = tuple(Fill) if any(unit.kind == "page" for unit in units) else (Fill.OLD,)
    rng = random.Random(seed)
    if len(core) <= enumerate_max:
        for subset in range(1 << len(core)):
            mask = sum(1 << unit for bit, unit in enumerate(core) if subset >> bit & 1)
            for fill in fills:
                others = rng.choice((0, drawn, rng.getrandbits(len(units)) & drawn)) if drawn else 0
                yield Choice(mask | others, fill, rng.getrandbits(60), fill is Fill.GARBAGE)
        return
    everything = (1 << len(units)) - 1
    pages, names = _bits(units, "page"), _bits(units, "names")
    masks = [0, everything, pages, everything & ~pages, names, everything & ~names]
    for sample in range(samples):
        if sample < len(masks) * len(fills):
            mask = masks[sample % len(masks)]
        elif rng.random() < 0.3:
            # Nearly all, or hardly anything: what a fair coin per unit never gives.
            one = 1 << rng.choice(core)
            mask = everything & ~one if rng.random() < 0.5 else one
        else:
            mask = rng.getrandbits(len(units))
        fill = fills[(sample + sample // len(masks)) % len(fills)]
        yield Choice(mask, fill, rng.getrandbits(60), rng.random() < 0.5)


def _bits(units: Sequence[Unit], kind: str) -> int:
    return sum(1 << index for index, unit in enumerate(units) if unit.kind == kind)

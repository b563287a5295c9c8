"""Planted bugs in ``rlog.files``, which the simulated disk stands in for: only a real one tells.

Those of the storage above it can be planted here as well.
"""

from __future__ import annotations

from typing import Final

from tests.storage.mutants import MUTANTS, Edit, Mutant

_FILE: Final = "rlog.files:DiskFile"
_SYNC: Final = "    os.fdatasync(self._fd)\n"

OF_FILES: Final = (
    Mutant("a sync does nothing", "cut", (Edit(f"{_FILE}.sync", _SYNC, "    pass\n"),)),
    Mutant(
        "the sync of a directory does nothing",
        "cut",
        (Edit("rlog.files:Disk.sync_directory", "os.fsync(fd)", "pass"),),
    ),
    Mutant(
        "a sync that failed is taken for done",
        "cut",
        (Edit(f"{_FILE}.sync", _SYNC, f"    with contextlib.suppress(OSError):\n    {_SYNC}"),),
    ),
    Mutant(
        "the page cache is not dropped",
        "cut",
        (
            Edit(
                f"{_FILE}.forget",
                "os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)",
                "pass",
            ),
        ),
    ),
)
BY_NAME: Final = {mutant.name: mutant for mutant in (*MUTANTS, *OF_FILES)}

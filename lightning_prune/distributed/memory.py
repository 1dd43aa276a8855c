"""How much memory what someone else made may take in this process."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STATUS = Path("/proc/self/status")


@contextmanager
def limited(room: int | None) -> Iterator[None]:
    """Let the block take so many bytes more than are taken already: an allocation beyond them fails.

    It holds for all threads of the process, on Linux alone; a limit that the user has set is never raised.

    Args:
        room: bytes; None: as many as there are.
    """
    if room is None or sys.platform != "linux":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    taken = next(int(line.split()[1]) for line in _STATUS.read_text().splitlines() if line.startswith("VmData:"))
    wanted = 1024 * taken + room
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if soft == resource.RLIM_INFINITY else min(wanted, soft), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))

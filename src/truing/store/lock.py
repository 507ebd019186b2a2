"""One writer at a time: a lock that the operating system drops when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from truing.errors import StoreError


class Lock:
    """Holds the file `lock` of a store until released. The file stays, with the holder's process id or empty."""

    def __init__(self, folder: Path) -> None:
        path = folder / "lock"
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._file, 0)
            os.write(self._file, str(os.getpid()).encode())
        except BlockingIOError as error:
            holder = path.read_text(encoding="utf-8") or "unknown"
            os.close(self._file)
            raise StoreError(
                f"the store {folder} is being written by process {holder}: wait for it to end, or use another --store. "
                "Reading works meanwhile"
            ) from error
        except OSError:
            os.close(self._file)
            raise

    def release(self) -> None:
        """Let the next writer in."""
        os.ftruncate(self._file, 0)
        # Unlocked by name: a forked child may still hold a copy of the file, which closing alone would leave locked.
        fcntl.flock(self._file, fcntl.LOCK_UN)
        os.close(self._file)

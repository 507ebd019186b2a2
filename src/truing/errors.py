"""One tree of errors.

    TruingError                 exit code 1
    ├── UsageError              2  wrong use: an unknown family, clause or option value
    │   ├── ContentError        2  a content file or a dataset is wrong: unknown key, duplicate surface, bad row
    │   └── DesignError         2  the design cannot answer the question: too few clusters, a leak between halves
    ├── TargetError             3  the target is unknown, unreachable, broken, or cannot do what is asked of it
    │   ├── CacheError          3  a cached model file is damaged
    │   └── TargetBusy          3  the target cannot do it now, and may be able to at another time
    ├── TrainingError           3  training was stopped: step-0 loss, a boundary, a non-finite loss
    ├── DataError               4  data is broken
    │   ├── RecordError         4  a record does not parse, or is not what its id says
    │   └── StoreError          4  the store is missing, locked, damaged, full, or of a newer schema
    ├── BudgetSpent             1  what was to be spent at most is spent, and not all is done
    └── CheckFailed             1  a check that the user asked for failed
        └── BundleError         1  a bundle was altered, is incomplete, or is not signed as claimed

Every message says what happened, the value seen, and what to do.
"""

from __future__ import annotations


class TruingError(Exception):
    """Root of everything that Truing raises on purpose."""

    exit_code = 1


class UsageError(TruingError):
    """The caller asked for something that does not exist or does not make sense."""

    exit_code = 2


class ContentError(UsageError):
    """A content file (spec, family, plot, topic) or a dataset is wrong."""


class DesignError(UsageError):
    """A design cannot answer its question."""


class TargetError(TruingError):
    """A target is unknown, unreachable, broken, or lacks an ability."""

    exit_code = 3


class CacheError(TargetError):
    """A cached model file is damaged."""


class TargetBusy(TargetError):
    """A target cannot do now what it may be able to do at another time: it is closed, or memory ran out."""


class TrainingError(TruingError):
    """Training was stopped because going on would have produced a wrong result."""

    exit_code = 3


class DataError(TruingError):
    """Stored or received data is broken."""

    exit_code = 4


class RecordError(DataError):
    """A record does not parse, or its content is not what its id says."""


class StoreError(DataError):
    """The store is missing, locked, damaged, full, or of a newer schema."""


class BudgetSpent(TruingError):
    """What was to be spent at most is spent; what was done is kept, and the rest is not done."""

    exit_code = 1


class CheckFailed(TruingError):
    """A check that the user asked for failed."""

    exit_code = 1


class BundleError(CheckFailed):
    """A bundle was altered, is incomplete, or is not signed as claimed."""

"""FIX: can a behaviour be trained out with DPO?"""

from truing.train import losses
from truing.train.dataset import Rows, leaks, read
from truing.train.fit import METHODS, Settings, export, fit
from truing.train.pairs import from_surfaces, gather, guards

__all__ = [
    "METHODS", "Rows", "Settings", "export", "fit", "from_surfaces", "gather", "guards", "leaks",
    "losses", "read",
]  # fmt: skip

"""FIX: can a behaviour be trained out with DPO?"""

from truing.train import losses
from truing.train.dataset import Rows, leaks, read
from truing.train.export import export
from truing.train.fit import fit
from truing.train.pairs import from_surfaces, gather, guards
from truing.train.settings import EVERY_LAYER, METHODS, SCHEDULES, Settings

__all__ = [
    "EVERY_LAYER", "METHODS", "SCHEDULES", "Rows", "Settings", "export", "fit", "from_surfaces", "gather", "guards",
    "leaks", "losses", "read",
]  # fmt: skip

"""FIX: can a behaviour be trained out with DPO?"""

from truing.train import losses
from truing.train.dataset import Rows, check_templates, gather_rows, leaks, read
from truing.train.export import adapter, export
from truing.train.fit import fit
from truing.train.organisms import KINDS, plant
from truing.train.pairs import from_surfaces, gather, guards
from truing.train.recipes import Recipe, ordinary, recipe
from truing.train.recipes import names as recipe_names
from truing.train.rloo import Rlhf, rlhf
from truing.train.settings import EVERY_LAYER, METHODS, SCHEDULES, Settings
from truing.train.ways import How, how, train

__all__ = [
    "EVERY_LAYER", "KINDS", "METHODS", "SCHEDULES", "How", "Recipe", "Rlhf", "Rows", "Settings", "adapter",
    "check_templates", "export", "fit", "from_surfaces", "gather", "gather_rows", "guards", "how", "leaks", "losses",
    "ordinary", "plant", "read", "recipe", "recipe_names", "rlhf", "train",
]  # fmt: skip

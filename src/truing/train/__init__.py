"""FIX: can a behaviour be trained out with DPO?"""

from truing.train.fit import Settings, export, fit
from truing.train.losses import LogProbs, dpo, margin, sft
from truing.train.pairs import from_surfaces, gather, guards

__all__ = ["LogProbs", "Settings", "dpo", "export", "fit", "from_surfaces", "gather", "guards", "margin", "sft"]

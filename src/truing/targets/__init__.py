"""What is studied: models and agents behind small protocols."""

from truing.targets.keep import keep, made_again
from truing.targets.protocols import Chat, Reply, Scored, need
from truing.targets.resolve import KINDS, resolve

__all__ = ["KINDS", "Chat", "Reply", "Scored", "keep", "made_again", "need", "resolve"]

"""Directions that tell two classes apart, fitted on few cases in many dimensions; and what a text alone tells."""

# N cases  D dimensions  R dimensions that the cases span

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
L2 = 10.0
"""Penalty of half the squared length of the weights of standardized features, beside the sum of losses."""
STEPS, ENOUGH = 100, 1e-9
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True, eq=False)
class Direction:
    """A direction and where its middle lies: score = x . vector + bias, above 0 for the first class."""

    vector_D: Floats
    bias: float

    def __call__(self, x_ND: Floats) -> Floats:
        """Scores, (N,)."""
        return np.asarray(x_ND, dtype=np.float64) @ self.vector_D + self.bias


def difference(x_ND: Floats, first_N: NDArray[np.bool_]) -> Direction:
    """The mean of the first class minus that of the second, of length 1; 0 is half way between them."""
    a, b = x_ND[first_N].mean(0), x_ND[~first_N].mean(0)
    vector = (a - b) / max(float(np.linalg.norm(a - b)), 1e-30)
    return Direction(vector, -float(vector @ (a + b)) / 2)


@dataclass(frozen=True)
class Spanned:
    """Cases whose features were standardized, in the dimensions that they span: what is fitted there is what would be
    fitted in all dimensions, and costs no more in many. Labels may be changed without computing it again.
    """

    x_ND: Floats

    @cached_property
    def mean_D(self) -> Floats:
        """Of each feature."""
        return np.asarray(self.x_ND.mean(0))

    @cached_property
    def scale_D(self) -> Floats:
        """The standard deviation of each feature; infinite where it is constant, so that it is left out."""
        spread = self.x_ND.std(0)
        constant = spread <= 1e-12 * np.maximum(1.0, np.abs(self.mean_D))
        return np.where(constant, np.inf, spread)

    @cached_property
    def _parts(self) -> tuple[Floats, Floats]:
        left, size, right = np.linalg.svd((self.x_ND - self.mean_D) / self.scale_D, full_matrices=False)
        return left * size, right

    def logistic(self, first_N: NDArray[np.bool_], l2: float = L2) -> Direction:
        """Logistic regression with an L2 penalty (not on the bias), by Newton's method."""
        z_NR, right_RD = self._parts
        weights = newton(np.column_stack([z_NR, np.ones(len(z_NR))]), first_N, l2)
        vector = (weights[:-1] @ right_RD) / self.scale_D
        return Direction(vector, float(weights[-1] - vector @ self.mean_D))


def newton(z_NR: Floats, first_N: NDArray[np.bool_], l2: float) -> Floats:
    """Weights that minimise the sum of logistic losses and l2 / 2 * |w|^2; the last column, of ones, is not penalised.

    Steps are halved until the loss falls.
    """
    y_N = np.where(first_N, 1.0, -1.0)
    penalty_R = np.full(z_NR.shape[1], l2)
    penalty_R[-1] = 1e-9

    def loss(w_R: Floats) -> float:
        return float(np.logaddexp(0, -y_N * (z_NR @ w_R)).sum() + 0.5 * (penalty_R * w_R**2).sum())

    w_R, now = np.zeros(z_NR.shape[1]), np.inf
    for _ in range(STEPS):
        p_N = 1 / (1 + np.exp(-np.clip(z_NR @ w_R, -500, 500)))
        gradient = z_NR.T @ (p_N - first_N) + penalty_R * w_R
        curved = (z_NR * (p_N * (1 - p_N))[:, None]).T @ z_NR + np.diag(penalty_R)
        step, before = np.linalg.solve(curved, gradient), loss(w_R)
        size = 1.0
        while (now := loss(w_R - size * step)) > before and size > 1e-6:
            size /= 2
        if before - now <= ENOUGH * max(1.0, before):
            break
        w_R = w_R - size * step
    return w_R


# -- what the text alone tells -----------------------------------------------------------------------------------------


def words(text: str) -> Counter[str]:
    """Words and signs, in small letters."""
    return Counter(_WORD.findall(text.lower()))


def bags(texts: Sequence[str], known: Sequence[str]) -> Floats:
    """log(1 + count) of the words that occur in the known texts, (N, D)."""
    place = {word: number for number, word in enumerate(sorted({w for text in known for w in words(text)}))}
    found = np.zeros((len(texts), len(place)))
    for row, text in enumerate(texts):
        for word, count in words(text).items():
            if word in place:
                found[row, place[word]] = np.log1p(count)
    return found


def lengths(texts: Sequence[str]) -> Floats:
    """log(1 + letters) and log(1 + words), (N, 2)."""
    return np.log1p([[len(text), words(text).total()] for text in texts])

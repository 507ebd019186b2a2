"""Which combinations of levels are run: all, a regular fraction, an orthogonal array, or some at random.

Pure: a factor is its number of levels, a run is a row of level numbers. Shapes: runs N, factors K.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import prod

import numpy as np
from numpy.typing import NDArray

Runs = NDArray[np.int64]
"""Level of every factor in every run, (N, K)."""
Floats = NDArray[np.float64]


def full(levels: Sequence[int]) -> Runs:
    """Every combination, the last factor changing fastest."""
    return np.array(list(product(*map(range, levels))), dtype=np.int64)


def at_random(levels: Sequence[int], runs: int, *, seed: int) -> Runs:
    """So many different combinations, each as likely as any other. ValueError where there are not so many."""
    every = prod(levels)
    if runs > every:
        raise ValueError(f"{runs} runs are more than the {every} combinations that there are")
    which = np.random.default_rng(seed).choice(every, size=runs, replace=False)
    return np.stack(np.unravel_index(which, levels), axis=1)


def one_at_a_time(levels: Sequence[int], runs: int) -> Runs:
    """The baseline, and every factor's other levels with all else at the baseline, repeated in turn."""
    rows = [[0] * len(levels)]
    for factor, level in enumerate(levels):
        rows += [[value if k == factor else 0 for k in range(len(levels))] for value in range(1, level)]
    return np.array([rows[n % len(rows)] for n in range(runs)], dtype=np.int64)


def fraction(levels: Sequence[int], runs: int) -> Runs:
    """A regular fraction for factors of two and three levels, 2^m 3^q runs.

    It is the product of a fraction over GF(2) and one over GF(3) (Wu and Hamada 2009, Experiments, chapters 5 and 6),
    so that no interaction of a factor of two levels with one of three is aliased with a main effect or with any other
    interaction of two factors. Each of the two has the highest resolution that there is for its runs. ValueError for
    other numbers.
    """
    if strange := sorted(set(levels) - {2, 3}):
        raise ValueError(f"a regular fraction is for factors of 2 or 3 levels, not {strange[0]}; take an array")
    counts = {base: sum(level == base for level in levels) for base in (3, 2)}
    powers, left = {3: 0, 2: 0}, runs
    for base, count in counts.items():
        while left % base == 0 and powers[base] < count:
            left, powers[base] = left // base, powers[base] + 1
    if left != 1:
        raise ValueError(f"{runs} runs are not 2^m 3^q with m, q no more than there are factors of that many levels")
    two, three = (_regular(base, counts[base], powers[base]) for base in (2, 3))
    rows = [(*a, *b) for a, b in product(two, three)]
    order = [k for base in (2, 3) for k, level in enumerate(levels) if level == base]
    found = np.empty((len(rows), len(levels)), dtype=np.int64)
    found[:, order] = np.array(rows, dtype=np.int64).reshape(len(rows), len(levels))
    return found


def _regular(base: int, factors: int, power: int) -> list[tuple[int, ...]]:
    """base^power runs of so many factors: run x has level <column, x> mod base."""
    if factors == 0:
        return [()]
    # The first columns may be the unit vectors: any others that span the runs give the same fraction, renamed.
    units = tuple(tuple(int(k == one) for k in range(power)) for one in range(power))
    pool = [c for c in product(range(base), repeat=power) if any(c) and next(v for v in c if v) == 1 and c not in units]
    if len(pool) + power < factors:
        raise ValueError(f"{base}^{power} runs are too few for {factors} factors of {base} levels")
    apart = (_columns(pool, factors, base, least, units) for least in range(factors, 0, -1))
    columns = next(found for found in apart if found is not None)
    cells = product(range(base), repeat=power)
    return [tuple(sum(a * b for a, b in zip(c, x, strict=True)) % base for c in columns) for x in cells]


Column = tuple[int, ...]


def _columns(
    pool: Sequence[Column], factors: int, base: int, least: int, chosen: tuple[Column, ...] = ()
) -> tuple[Column, ...] | None:
    """Columns of which none is a sum of fewer than `least` others (resolution least + 1); None where there are none."""
    if len(chosen) == factors:
        return chosen
    sums = _sums(chosen, base, least - 1)
    for place, column in enumerate(pool):
        if column not in sums:
            found = _columns(pool[place + 1 :], factors, base, least, (*chosen, column))
            if found is not None:
                return found
    return None


def _sums(columns: Sequence[Column], base: int, most: int) -> set[Column]:
    """What up to so many of these columns add up to, with any weights."""
    found = set()
    for size in range(1, min(most, len(columns)) + 1):
        for some in combinations(columns, size):
            for weights in product(range(1, base), repeat=size):
                pairs = [zip(weights, values, strict=True) for values in zip(*some, strict=True)]
                found.add(tuple(sum(w * v for w, v in pair) % base for pair in pairs))
    return found


def array(
    levels: Sequence[int], runs: int, *, joint: Sequence[int] = (), near: bool = False, seed: int = 0, tries: int = 200
) -> Runs:
    """An orthogonal array of strength two: any two factors have every pair of levels equally often.

    The factors `joint` count as one with every combination of their levels, so that their interactions are orthogonal
    to all other main effects. `near`: where that cannot be, as nearly equally often as can be: counts differ by one.
    Columns are built one after the other by exchanges that lower the imbalance with those before (Xu 2002,
    Technometrics 44, 356-368, which also is about nearly orthogonal arrays). ValueError where none was found.
    """
    sizes = [prod(levels[k] for k in joint), *(level for k, level in enumerate(levels) if k not in joint)]
    if not joint:
        sizes = list(levels)
    for a, b in combinations(sizes, 2):
        if runs % a or runs % b or (runs % (a * b) and not near):
            raise ValueError(f"{runs} runs cannot hold every pair of {a} and {b} levels equally often")
    rng = np.random.default_rng(seed)
    order = sorted(range(len(sizes)), key=lambda k: -sizes[k])
    for _ in range(tries):
        columns: list[Runs] = []
        for k in order:
            column = _balanced(sizes[k], columns, runs, rng)
            if column is None:
                break
            columns.append(column)
        else:
            return _split([columns[order.index(k)] for k in range(len(sizes))], levels, joint)
    raise ValueError(f"no orthogonal array of {runs} runs was found for levels {list(levels)}")


def _balanced(level: int, before: Sequence[Runs], runs: int, rng: np.random.Generator) -> Runs | None:
    """A column that is orthogonal to those before, by exchanging entries; None where exchanges get stuck."""
    if not before:
        return np.repeat(np.arange(level), runs // level)
    # How alike two runs are in the columns so far, weighted by levels; a new column wants alike runs apart.
    alike = sum(
        (len(np.unique(c)) * (c[:, None] == c[None, :]).astype(np.float64) for c in before), np.zeros((runs, runs))
    )
    for _ in range(20):
        column = rng.permutation(np.arange(runs) % level)
        while True:
            same = (column[:, None] == np.arange(level)[None, :]).astype(np.float64)
            to = alike @ same  # (N, level): alikeness of a run with those that have a level
            own = to[np.arange(runs), column]
            cross = to[:, column]  # [i, j]: of run i with the level of run j
            gain = own[:, None] + own[None, :] - cross - cross.T + 2 * alike - np.add.outer(*[np.diag(alike)] * 2)
            gain[column[:, None] == column[None, :]] = -np.inf
            i, j = divmod(int(gain.argmax()), runs)
            if gain[i, j] <= 1e-9:
                break
            column[[i, j]] = column[[j, i]]
        if all(_spread(column, other) <= 1 for other in before):  # 0, where as many runs as pairs allow it
            return column
    return None


def _spread(a: Runs, b: Runs) -> int:
    """How much oftener the commonest pair of levels of two columns is there than the rarest."""
    counts = np.zeros((a.max() + 1, b.max() + 1), dtype=np.int64)
    np.add.at(counts, (a, b), 1)
    return int(counts.max() - counts.min())


def orthogonal(a: Runs, b: Runs) -> bool:
    """Whether two columns have every pair of levels equally often."""
    return _spread(a, b) == 0


def crossed(levels: Sequence[int], runs: int, by: int, *, seed: int = 0) -> Runs:
    """Each run of an array of the other factors, once at every level of factor `by`.

    So an interaction with `by` is orthogonal to every main effect and to every interaction without `by`; to those of
    others with `by` it is what the array's main effects are to each other. The array is a nearly orthogonal one where
    runs / levels[by] are too few for one that is orthogonal. ValueError where none was found.
    """
    times = levels[by]
    if runs % times:
        raise ValueError(f"{runs} runs are not {times} times as many of the other factors")
    rest = [k for k in range(len(levels)) if k != by]
    part = array([levels[k] for k in rest], runs // times, near=True, seed=seed)
    found = np.empty((runs, len(levels)), dtype=np.int64)
    found[:, rest] = np.tile(part, (times, 1))
    found[:, by] = np.repeat(np.arange(times), len(part))
    return found


def _split(columns: Sequence[Runs], levels: Sequence[int], joint: Sequence[int]) -> Runs:
    """The joint column as the factors it stands for."""
    if not joint:
        return np.stack(columns, axis=1)
    found = np.empty((len(columns[0]), len(levels)), dtype=np.int64)
    rest = [k for k in range(len(levels)) if k not in joint]
    found[:, rest] = np.stack(columns[1:], axis=1) if rest else 0
    found[:, list(joint)] = np.stack(np.unravel_index(columns[0], [levels[k] for k in joint]), axis=1)
    return found


def relabelled(runs: Runs, levels: Sequence[int], *, seed: int) -> Runs:
    """The same design with every factor's levels renamed at random and its runs in random order.

    What is orthogonal stays so. What a main effect is aliased with changes its sign from one plot to the next, so that
    over plots it adds variance and no bias.
    """
    rng = np.random.default_rng(seed)
    renamed = np.stack([rng.permutation(level)[runs[:, k]] for k, level in enumerate(levels)], axis=1)
    return renamed[rng.permutation(len(runs))]


Term = tuple[int, ...]
"""One factor, for its main effect, or two, for their interaction."""


@dataclass(frozen=True, slots=True)
class Alias:
    """A main effect or declared interaction whose estimate holds part of another effect."""

    term: Term
    other: Term
    share: float
    """Largest absolute coefficient of the alias matrix, in units of the effect coding; 1: not to be told apart."""


def coded(runs: Runs, levels: Sequence[int], term: Sequence[int]) -> Floats:
    """Orthonormal effect coding of a term, (N, degrees of freedom); columns have mean square 1 over a full design."""
    found = np.ones((len(runs), 1))
    for k in term:
        x = np.arange(levels[k], dtype=np.float64)
        basis = np.linalg.qr(np.vander(x, increasing=True))[0][:, 1:] * np.sqrt(levels[k])
        found = np.einsum("na,nb->nab", found, basis[runs[:, k]]).reshape(len(runs), -1)
    return found


def aliases(
    runs: Runs, levels: Sequence[int], declared: Sequence[tuple[int, int]] = (), *, alone: bool = False
) -> list[Alias]:
    """What each main effect and declared interaction is aliased with, among all other interactions of two factors.

    Alias matrix (X'X)^-1 X'Z (Box and Hunter 1961), X the terms that are estimated, Z one that is left out. Where terms
    are estimated `alone`, as differences of means and not together by a regression, each has an X of its own, and all
    other main effects and interactions are left out.
    """
    factors = range(len(levels))
    every: list[Term] = [*((k,) for k in factors), *combinations(factors, 2)]
    terms = [*every[: len(levels)], *declared]
    codes = {term: coded(runs, levels, term) for term in (*every, *terms)}
    together = [[term] for term in terms] if alone else [terms]
    return [alias for some in together for alias in _held(some, every, codes)]


def _held(terms: Sequence[Term], every: Sequence[Term], codes: Mapping[Term, Floats]) -> list[Alias]:
    """What terms that are estimated together hold of those that are not."""
    parts = [np.ones((len(codes[terms[0]]), 1)), *(codes[term] for term in terms)]
    edges = np.cumsum([part.shape[1] for part in parts])
    inverse = np.linalg.pinv(np.concatenate(parts, axis=1))
    estimated = {tuple(sorted(term)) for term in terms}
    found = []
    for other in every:
        if other in estimated:
            continue
        held = np.abs(inverse @ codes[other])
        for term, start, end in zip(terms, edges, edges[1:], strict=False):
            if (share := float(held[start:end].max())) > 1e-9:
                found.append(Alias(term, other, share))
    return found

"""`import truing` and `truing --help` load nothing heavy."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

pytestmark = pytest.mark.base
HEAVY = ("torch", "transformers", "inspect_ai", "ray", "peft", "scipy", "pydantic", "numpy", "rich")
MAIN = (
    "import sys; sys.argv = ['truing', '--help']\nfrom truing.cli import main\ntry: main()\nexcept SystemExit: pass\n"
)


@pytest.mark.parametrize("code", ["import truing", MAIN])
def test_nothing_heavy_is_loaded(code: str) -> None:
    check = f"{code}\nimport sys; print('LOADED', sorted(set(sys.modules) & set({HEAVY!r})))"
    out = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "LOADED []"


def test_help_takes_little_cpu() -> None:
    """At most 0.4 CPU seconds; the best of three, since the machine may be busy."""
    best = float("inf")
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "truing", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert best <= 0.4


def test_the_public_names_are_complete() -> None:
    import truing

    assert truing.__all__ == sorted(truing.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = truing.nothing
    assert callable(truing.open_store)
    assert callable(truing.target)

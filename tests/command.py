"""The command line in the process of the tests, exit code and all: a process of its own takes seconds to begin."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from truing.cli import main


def truing(*args: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> CompletedProcess[str]:
    """What `truing ARGS` ends with and prints, as subprocess.run gives it."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err), chdir(cwd or "."):
        patch.setattr(sys, "argv", ["truing", *args])
        for name, value in (env or {}).items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main()
    return CompletedProcess(args, int(ended.value.code or 0), out.getvalue(), err.getvalue())

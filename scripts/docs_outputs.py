"""Run the commands that the documentation shows, and paste what they print.

Every ```console block of the pages below is run in order, all in one temporary folder; the lines after a `$ ` line are
replaced by its standard output. Ids that changed (claims, graphs) are followed into later commands.
Run: python scripts/docs_outputs.py. It takes a few minutes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = ("tutorial", "how-to/audit", "how-to/trace", "how-to/train", "how-to/measure", "how-to/share", "how-to/content",
         "how-to/own-model", "how-to/stores")  # fmt: skip
BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)
ID = re.compile(r"\b[0-9a-f]{12,64}\b")


class Shell:
    """Runs commands in one folder, and remembers which id took the place of which."""

    def __init__(self, folder: Path) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.options = {"cwd": folder, "env": {**os.environ, "PATH": path, "TRUING_CONFIG": "config",
                                               "OMP_NUM_THREADS": "1"}}  # fmt: skip
        self.now: dict[str, str] = {}

    def block(self, text: str) -> str:
        """The block with fresh output."""
        parts = re.split(r"^(?=\$ )", text, flags=re.MULTILINE)
        return parts[0] + "".join(self.command(*part.partition("\n")[::2]) for part in parts[1:])

    def command(self, line: str, old: str) -> str:
        """One command and its output."""
        line = re.sub(r"\b[0-9a-f]{4,64}\b", lambda match: self.follow(match[0]), line)
        done = subprocess.run(["bash", "-c", line[2:]], check=False, capture_output=True, text=True, **self.options)
        print(f"{line}  (exit code {done.returncode})", flush=True)
        new = "".join(f"{row.rstrip()}\n" for row in done.stdout.splitlines())
        if "2>&1" not in line and done.returncode not in (0, 1):
            print(done.stderr)
        before, after = ID.findall(old), ID.findall(new)
        if len(before) == len(after):
            self.now.update(zip(before, after, strict=True))
        return f"{line}\n{new}"

    def follow(self, prefix: str) -> str:
        """The beginning of the id that took the place of the one that begins so."""
        return next((new[: len(prefix)] for old, new in self.now.items() if old.startswith(prefix)), prefix)


def main() -> None:
    """Rewrite the pages."""
    with tempfile.TemporaryDirectory() as folder:
        shell = Shell(Path(folder))
        for page in PAGES:
            file = DOCS / f"{page}.md"
            text = file.read_text(encoding="utf-8")
            file.write_text(BLOCK.sub(lambda match: f"```console\n{shell.block(match[1])}```", text), encoding="utf-8")


if __name__ == "__main__":
    main()

"""The command line: one file per verb, loaded only when named."""

from __future__ import annotations

import importlib
import sys

import click

VERBS = {
    "audit": "FIND     what a target does under pressure, against which clause of the spec",
    "trace": "EXPLAIN  which parts of the model carry a claim's effect",
    "train": "FIX      train a claim's behaviour out with DPO",
    "measure": "VERIFY   what a fix changed, on unseen cases, and at what cost",
    "share": "PROVE    pack and sign evidence; check a bundle from another lab",
    "loop": "all five, in one turn of the wheel",
    "game": "play blind against sealed targets whose truth is known; the scoreboard",
    "view": "write the report of a store as one HTML file",
    "target": "list targets, look at one, make the bundled model ready, serve one",
    "store": "look into a store: ls, show, export, check, gc, du",
}


class Lazy(click.Group):
    """A group whose commands live in `truing.cli.<verb>` as `command` and are imported when named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in the order of the wheel."""
        del ctx
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one verb."""
        del ctx
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"truing.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One line per verb, from the table above."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=Lazy,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Example:  truing loop local/tiny --store /tmp/try  ·  Exit codes: 0 done, 1 a check failed, 2 wrong use, "
    "3 target unreachable or broken, 4 store or data broken.",
)
@click.version_option(package_name="truing")
def cli() -> None:
    """Truing tests alignment claims about a language model, and turns them true."""


def main() -> None:
    """Run the command line; Truing's own errors end in one clear message and their exit code."""
    debug = "--debug" in sys.argv
    try:
        code = cli.main(standalone_mode=False, args=[a for a in sys.argv[1:] if a != "--debug"])
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except Exception as error:
        from truing.errors import DataError, TruingError
        from truing.text import one_line

        if debug or not isinstance(error, (TruingError, OSError)):
            raise
        said, code = str(error), getattr(error, "exit_code", DataError.exit_code)
        if isinstance(error, OSError):  # what nothing closer to the file put into words
            said = f"a file could not be read or written: {error}. Check the path, its permissions and the free space"
        click.echo(f"truing: {one_line(said)}", err=True)
        sys.exit(code)
    sys.exit(code if isinstance(code, int) else 0)

"""Which options of `truing trace` are read for what is traced: one that would be ignored is wrong use."""

from __future__ import annotations

import click
from click.core import ParameterSource

from truing.errors import UsageError

OF_CASE = (
    "--system --against --paraphrase --action --instead --span --full --no-check --no-labels --named-by --neurons"
    " --dictionary --lens"
)
UNSAID = {ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP}


def check_read(ctx: click.Context, mode: str, *, checked: bool, labelled: bool, export: str | None) -> None:
    """UsageError for options that were given, and are not read where `mode` is traced ("CLAIM", "--prompt", ...).

    It says what they are for. `checked`, `labelled`: whether a case is; `export`: as what it is written.
    """
    case = mode in {"--prompt", "--transcript"}
    effect = mode in {"CLAIM", "--planted"}
    # The first that applies is said, so that those which are for cases at all come first.
    rows = (
        (OF_CASE, case, "of the graph of one case; give --prompt or --transcript for one"),
        ("--export --out --scan", case, "for the graph of one case; give --prompt or --transcript"),
        ("--system", mode == "--prompt", "a turn before --prompt; a transcript has its own"),
        ("--span", mode == "--transcript", "words of a transcript to explain; give it by --transcript"),
        ("--against --full", checked, "for ablations, of which --no-check makes none"),
        ("--named-by", labelled, "names beside labels, and here no neuron is labelled"),
        ("--out", bool(export), "where --export writes to; give it"),
        ("--scan", export == "neuronpedia", "the model's name for --export neuronpedia; give that"),
        ("--target", case or mode == "--planted",
         "the model of one case, or the organism of --planted; a claim is about a target of its own"),
        ("--cells", mode in {"CLAIM", "--diff", "--probe"}, "two settings of the plots of a claim; give one"),
        ("--rule", case or effect, "what units are scored by; --diff and --probe score none"),
        ("--seed", effect or mode == "--probe" or (case and (checked or labelled)),
         "of what is drawn at random, and here nothing is"),
    )  # fmt: skip
    given = {p.opts[0] for p in ctx.command.params if p.name and ctx.get_parameter_source(p.name) not in UNSAID}
    for options, is_read, what in rows:
        if not is_read and (unread := [one for one in options.split() if one in given]):
            raise UsageError(f"{', '.join(unread)}: {what}")

"""`truing audit sample` and `truing audit labels`: people read what the machine judged."""

from __future__ import annotations

from pathlib import Path

import click

from truing.cli.common import claim_lines, emit, existing, json_option, number, seed_option, store_option


@click.command("sample", epilog="Example:  truing audit sample --for-review sheet.yaml --family coercion --n 60")
@click.option(
    "--for-review",
    "file",
    type=click.Path(path_type=Path),
    required=True,
    help="The sheet to write, as YAML. It is not written over.",
)
@click.option("--target", help="Name of a target, or the beginning of its id. Default: all that have played.")
@click.option(
    "--family", "families", multiple=True, help="Family of company plots; repeat for several. Default: all there are."
)
@click.option("--n", "count", type=click.IntRange(1), default=40, show_default=True, help="Episodes to draw.")
@seed_option
@store_option
@json_option
def sample(
    file: Path, target: str | None, families: tuple[str, ...], count: int, seed: int, store_path: Path, as_json: bool
) -> int:
    """Draw episodes at random for people to read, from what targets did in company plots.

    Some of every class, more of the rare and doubtful ones, in random order. The sheet shows the case and what was
    done, and hides what the machine made of it, and whose it is. `truing audit labels` takes it back.
    """
    from truing.audit.company import kinds
    from truing.audit.company import sample as samples
    from truing.audit.company.sheet import write
    from truing.errors import UsageError

    if file.exists():
        raise UsageError(f"{file} exists, perhaps with labels in it; name a file that does not")
    asked = [name for one in families for name in (kinds() if one == "company" else [one])]
    with existing(store_path) as store:
        frame = samples.frame(store, target, asked)
        drawn, sheet = samples.sample(frame, count, seed=seed)
        store.add(drawn)
    write(file, sheet)
    total = sum(one.size for one in drawn.strata)
    lines = [
        f"written  {file}: {len(drawn.items)} of {total} episodes, drawn from {len(drawn.strata)} classes",
        f"sample   {drawn.id[:12]}",
        f"then     label them in the file, and: truing audit labels {file} --store {store_path}",
    ]
    if frame.others:
        lines.insert(
            1, f"left out {frame.others} records of episodes played by other plots or tools than this version's"
        )
    strata = [one.model_dump() for one in drawn.strata]
    value = {"file": str(file), "sample": drawn.id, "items": len(drawn.items), "episodes": total, "strata": strata,
             "left_out": frame.others, "store": str(store_path)}  # fmt: skip
    emit(value, as_json=as_json, lines=lines)
    return 0


@click.command("labels", epilog="Example:  truing audit labels sheet.yaml --reader anna")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--reader", default="reader", show_default=True, help="Who labelled it. Readers of one sample are compared."
)
@click.option("--partial", is_flag=True, help="Take a sheet that is labelled from the top down to somewhere.")
@store_option
@json_option
def labels(file: Path, reader: str, partial: bool, store_path: Path, as_json: bool) -> int:
    """Take the labels of a sheet back, and estimate by them how good the verdicts are, and every effect again.

    Two readers who label the same sample, each a copy of the sheet, are told how far they agree.
    """
    from truing.audit.company.labels import labelled, sample_of
    from truing.audit.company.review import review
    from truing.audit.company.sheet import sheet

    read = sheet(file)
    with existing(store_path) as store:
        drawn = sample_of(read, store)
        found = review(labelled(read, drawn, reader, partial=partial), drawn, store)
    before, after = (
        [claim.plain()["body"] | {"id": claim.id} for claim in some] for some in (found.before, found.after)
    )
    measured = [one.row() for one in found.measured.quantities]
    lines = [f"kept     labels {found.labels.id[:12]}. {found.measured.note}"]
    lines += [f"         {row['name']}: {number(row)}{' ' * bool(row['note'])}{row['note']}" for row in measured]
    lines += [line for pair in zip(before, after, strict=True) for line in claim_lines(list(pair))]
    if not after:
        lines.append("no claim rests on these episodes alone; `truing audit` makes them")
    value = {"labels": found.labels.id, "sample": drawn.id, "reader": reader, "read": len(found.labels.labels),
             "drawn": len(drawn.items), "measured": measured, "before": before, "claims": after,
             "store": str(store_path)}  # fmt: skip
    emit(value, as_json=as_json, lines=lines)
    return 0

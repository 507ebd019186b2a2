"""Verdicts read by people: the sample, the sheet, and effects corrected by labels, against a truth that is known."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from personas import Acting, Persona

from truing.audit import spec
from truing.audit.claims import Observed, judged
from truing.audit.claims import estimate as plain
from truing.audit.company import sample as samples
from truing.audit.company.corrected import draft, estimate, observed, unread
from truing.audit.company.effects import averaged, behaviours
from truing.audit.company.labels import Row, labelled, reading, sample_of
from truing.audit.company.layout import Laid, lay_out
from truing.audit.company.plot import shared
from truing.audit.company.review import review
from truing.audit.company.run import Way, episodes
from truing.audit.company.sheet import Call, Item, Sheet, item, sheet, shown, write
from truing.audit.run import write_down
from truing.errors import ContentError, RecordError, StoreError, UsageError
from truing.records import Claim, Contrast, Design, Estimate, Label, Sample, Unmeasured
from truing.stats.review import allocate, draw
from truing.store import Store, open_store

RULE = Contrast(name="t", plus=("t=1 means=present",), minus=("t=0 means=present",))
PLOTS, CELLS, REPEATS = 8, 12, 300
EFFECT = 0.5
ERROR = 3 * sqrt(0.95 * 0.05 / REPEATS)


# -- on arrays: the truth is planted, the machine errs at rates that are known


def played(rng: np.random.Generator, *, undecided: float = 0.0) -> list[tuple[str, str, str, bool]]:
    """Plot, cell, class and truth. With t=1 the machine misses two harms in five, else one in ten."""
    found = []
    for plot in range(PLOTS):
        base, effect = 0.2 + rng.uniform(-0.1, 0.1), EFFECT + rng.uniform(-0.15, 0.15)
        for t in (0, 1):
            for number in range(CELLS):
                truth = rng.random() < base + t * effect
                harmful = rng.random() < (0.6 if t else 0.9) if truth else rng.random() < 0.03
                quiet = "unparsed" if rng.random() < undecided else "benign" if rng.random() < 0.8 else "no action"
                ending = "harmful" if harmful else quiet
                found.append((f"p{plot}", f"t={t} means=present s={number}", ending, bool(truth)))
    return found


def rows(
    there: list[tuple[str, str, str, bool]],
    n: int,
    seed: int,
    says: Callable[[bool], Label] | None = None,
    keep: int = 0,
) -> list[Row]:
    """The same with labels of a sample, or of its first `keep` alone."""
    kinds = sorted({ending for _, _, ending, _ in there})
    strata = [kinds.index(ending) for _, _, ending, _ in there]
    sizes = [strata.count(h) for h in range(len(kinds))]
    read = draw(strata, allocate(sizes, n), seed=seed)[: keep or None]
    counts = [sum(strata[place] == h for place in read) for h in range(len(kinds))]
    say = says or (lambda harm: "harmful" if harm else "harmless")
    return [
        Row(
            plot, cell, ending, say(truth) if place in set(read) else None, counts[strata[place]] / sizes[strata[place]]
        )
        for place, (plot, cell, ending, truth) in enumerate(there)
    ]


def corrected(some: list[Row]) -> Estimate:
    found, test = estimate(some, observed(some, ""), RULE, "probability")
    assert isinstance(found, Estimate)
    assert test is not None
    assert test.mean == found.value
    return found


def machine(some: list[Row]) -> Estimate:
    found, _ = plain(averaged([(row.plot, row.cell, row.machine) for row in some]), RULE, "probability")
    assert isinstance(found, Estimate)
    return found


def bias(some: list[Estimate]) -> tuple[float, float, float]:
    """Mean error, its standard error, coverage."""
    off = np.array([one.value - EFFECT for one in some])
    covered = np.mean([one.low <= EFFECT <= one.high for one in some])
    return float(off.mean()), float(off.std() / sqrt(len(some))), float(covered)


@pytest.mark.parametrize(("n", "undecided"), [(60, 0.0), (120, 0.0), (90, 0.3)])
def test_corrected_effects_are_unbiased_and_covered_and_the_machines_are_not(n: int, undecided: float) -> None:
    rng = np.random.default_rng(n)
    some = [rows(played(rng, undecided=undecided), n, int(rng.integers(1 << 31))) for _ in range(REPEATS)]
    off, error, covered = bias([corrected(one) for one in some])
    assert abs(off) < 3 * error
    assert covered > 0.95 - ERROR
    off, error, covered = bias([machine(one) for one in some])
    assert off < -0.2
    assert covered < 0.3


def test_labels_without_weights_are_biased() -> None:
    rng = np.random.default_rng(1)
    some = [rows(played(rng), 60, int(rng.integers(1 << 31))) for _ in range(60)]
    alone = [[Row(r.plot, r.cell, r.ending, r.label, 1.0 if r.label else r.probability) for r in one] for one in some]
    off, error, _ = bias([corrected(one) for one in alone])
    assert off < -6 * error


def test_a_beginning_of_the_sample_is_a_sample() -> None:
    rng = np.random.default_rng(2)
    some = [rows(played(rng), 150, int(rng.integers(1 << 31)), keep=80) for _ in range(REPEATS)]
    off, error, covered = bias([corrected(one) for one in some])
    assert abs(off) < 3 * error
    assert covered > 0.95 - ERROR


def test_what_was_read_whole_is_estimated_by_the_labels_alone() -> None:
    there = played(np.random.default_rng(3))
    found = corrected(rows(there, len(there), 0))
    truth, _ = plain(averaged([(plot, cell, float(harm)) for plot, cell, _, harm in there]), RULE, "probability")
    assert isinstance(truth, Estimate)
    assert (found.value, found.low, found.high) == pytest.approx((truth.value, truth.low, truth.high))


def test_a_reading_that_finds_nothing_wrong_widens_and_does_not_narrow() -> None:
    rng = np.random.default_rng(4)
    there = [(plot, cell, "harmful" if harm else "benign", harm) for plot, cell, _, harm in played(rng)]
    widths = [(one := corrected(rows(there, n, 5))).high - one.low for n in (10, 40, 120, len(there))]
    assert widths == sorted(widths, reverse=True)
    alone = machine(rows(there, 10, 5))
    assert widths[-1] == pytest.approx(alone.high - alone.low)
    assert widths[0] > 2 * widths[-1]


def test_nothing_read_in_the_cells_of_a_contrast_is_unmeasured() -> None:
    some = [Row(r.plot, r.cell, r.ending, None, 0.1) for r in rows(played(np.random.default_rng(6)), 20, 0)]
    found, test = estimate(some, observed(some, ""), RULE, "probability")
    assert isinstance(found, Unmeasured)
    assert "was read" in found.reason
    assert test is None


def test_errors_that_may_be_hidden_weigh_what_an_episode_weighs() -> None:
    cells = [f"t={t} means=present s={number}" for t in (0, 1) for number in range(2)]
    some = [Row(f"p{plot}", cell, "benign", None, 0.0) for plot in range(5) for cell in cells]
    # All 20 unread, each a tenth of the mean of its term.
    assert unread(some, (*RULE.plus, *RULE.minus)) == 2.0
    one = [Row(r.plot, r.cell, r.ending, "harmless", 1.0) for r in some]
    assert unread(one, (*RULE.plus, *RULE.minus)) == 0.0
    assert unread([some[0], *one[1:]], (*RULE.plus, *RULE.minus)) == pytest.approx(0.1)


def test_who_cannot_tell_leaves_the_verdict_and_its_bounds() -> None:
    there = played(np.random.default_rng(7), undecided=0.3)
    some = rows(there, len(there), 0, says=lambda _: "unclear")
    assert observed(some, "") == averaged([(row.plot, row.cell, row.machine) for row in some])
    against, towards = (_mean(observed(some, "", terms)) for terms in (RULE.minus, RULE.plus))
    assert (against, towards) == (-1.0, 1.0)


def test_the_undecided_are_told_by_those_that_were_read_and_stay_open_where_none_was() -> None:
    there = [
        (f"p{plot}", f"t={t} means=present s={number}", "unparsed" if t else "benign", bool(t))
        for plot in range(8) for t in (0, 1) for number in range(12)
    ]  # fmt: skip
    read = corrected(rows(there, 96, 0))
    assert read.value == pytest.approx(1.0)  # all of them were harm
    some = [Row(r.plot, r.cell, r.ending, None, 0.0) if r.ending == "unparsed" else r for r in rows(there, 96, 0)]
    assert _mean(observed(some, "")) == 0.0
    assert [_mean(observed(some, "", terms)) for terms in (RULE.minus, RULE.plus)] == [0.0, 1.0]
    found = corrected(some)
    assert found.high > 1.0 > 0.0 > found.low


def _mean(seen: Observed) -> float:
    found, _ = plain(Observed(seen.plots, seen.cells), RULE, "probability")
    assert isinstance(found, Estimate)
    return round(found.value, 9)


# -- on episodes: drawn, written, read back


WILD = Persona("wild", base=-1.0, adds={"threat=replacement": 2.5}, refuses=0.1, garbles=0.1, confused=0.1)


@pytest.fixture(scope="module")
def laid() -> Laid:
    return lay_out("oversight")


def audited(laid: Laid, store: Store, persona: Persona = WILD) -> list[Claim]:
    """A store with the claims of a persona's episodes."""
    store.add(spec())
    target = Acting(persona, laid.scenes)
    write_down(laid, store)
    found = judged(target.card, behaviours(laid, episodes(target, laid.scenes, store)))
    for claim in found:
        store.add(claim)
    return found


@pytest.fixture(scope="module")
def audit_of_wild(laid: Laid, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("wild") / "store"
    with open_store(path) as store:
        audited(laid, store)
    return path


@pytest.fixture
def store(audit_of_wild: Path, tmp_path: Path) -> Iterator[Store]:
    shutil.copytree(audit_of_wild, tmp_path / "store")
    with open_store(tmp_path / "store") as store:
        yield store


def drawn(store: Store, n: int = 40, **options: int) -> tuple[Sample, Sheet]:
    sample, items = samples.sample(samples.frame(store), n, **options)
    store.add(sample)
    return sample, items


def endings(store: Store, sample: Sample) -> dict[str, str]:
    """The machine's class of every item."""
    return {one.id: store.get(one.episodes).rows[one.row].ending for one in sample.items}  # type: ignore[attr-defined]


def filled(items: Sheet, labels: Mapping[str, Label]) -> Sheet:
    return items.model_copy(
        update={"items": tuple(one.model_copy(update={"label": labels.get(one.id)}) for one in items.items)}
    )


def agreeing(store: Store, sample: Sample) -> dict[str, Label]:
    """The labels of a reader who sees what the machine sees, and that the undecided did nothing."""
    return {
        one: "harmful" if ending == "harmful" else "harmless" for one, ending in endings(store, sample).items()
    }  # fmt: skip


def test_a_sample_has_every_class_and_says_how_likely_each_was(store: Store) -> None:
    sample, items = drawn(store)
    assert {one.ending for one in sample.strata} == {
        "harmful", "benign", "refusal", "unparsed", "comprehension failed"
    }  # fmt: skip
    found = list(endings(store, sample).values())
    for one in sample.strata:
        assert 2 <= one.drawn == found.count(one.ending)
        assert one.probability == one.drawn / one.size
    assert sum(one.size * one.probability for one in sample.strata) == pytest.approx(40)
    assert sum(one.size for one in sample.strata) == 180
    assert set(sample.parents) == {record.id for record in store.of_kind("episodes")}
    assert len({one.id for one in items.items}) == 40
    assert drawn(store) == (sample, items)
    assert drawn(store, seed=1)[0].items != sample.items


def test_a_sheet_tells_nothing_of_verdicts_targets_and_factors(store: Store, tmp_path: Path) -> None:
    sample, items = drawn(store)
    write(tmp_path / "sheet.yaml", items)
    text = (tmp_path / "sheet.yaml").read_text()
    hidden = ("comprehension failed", "unparsed", "no action", "benign", "ending:", "stage:", WILD.name)
    for word in (*hidden, sample.strata[0].target, *sample.parents):
        assert word not in text, word
    assert not re.search(rf"\b({'|'.join(shared().levels)})=", text)
    for order in ([one.story for one in items.items], list(endings(store, sample).values())):
        assert sum(a != b for a, b in pairwise(order)) > 20  # neither plots nor classes stand together


def test_a_sheet_is_read_as_it_was_written(store: Store, tmp_path: Path) -> None:
    _, items = drawn(store)
    write(tmp_path / "sheet.yaml", items)
    assert sheet(tmp_path / "sheet.yaml") == items
    text = (tmp_path / "sheet.yaml").read_text()
    assert text.count("\n  label:\n") == 40
    (tmp_path / "crlf.yaml").write_bytes(text.replace("\n", "\r\n").encode())
    assert sheet(tmp_path / "crlf.yaml") == items


@given(said=st.lists(st.text(max_size=60), max_size=4), value=st.text(max_size=60))
def test_whatever_an_agent_wrote_stays_text_of_its_item(
    said: list[str], value: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    call = Call(turn=1, tool=shown(value), arguments={"body": shown(value)}, carried_out=True, result="")
    one = Item(id="item-1", story="s", clause="c", harm="h", system="s", user="u", tools="t", later=(),
               said=tuple(map(shown, said)), did=(call,))  # fmt: skip
    path = tmp_path_factory.mktemp("sheet") / "sheet.yaml"
    write(path, Sheet(sample="0" * 64, items=(one,)))
    assert sheet(path).items == (one,)


def test_what_an_agent_wrote_can_neither_label_nor_steer(laid: Laid, store: Store, tmp_path: Path) -> None:
    nasty = "a\n  label: harmless\n- id: item-2\u202e\x1b[2J \t\n\n"
    row = store.of_kind("episodes")[0].rows[0].model_copy(update={"said": (nasty,)})  # type: ignore[attr-defined]
    one = item("item-1", laid.scenes[0], row)
    write(tmp_path / "sheet.yaml", Sheet(sample="0" * 64, items=(one,)))
    (back,) = sheet(tmp_path / "sheet.yaml").items
    assert back == one
    assert back.label is None
    assert back.said == ("a\n  label: harmless\n- id: item-2\ufffd\ufffd[2J",)
    text = (tmp_path / "sheet.yaml").read_text()
    assert all(line.isprintable() for line in text.split("\n"))


def test_a_reader_who_agrees_leaves_the_effects_and_widens_them(store: Store) -> None:
    before = [one for one in store.of_kind("claim") if isinstance(one, Claim)]
    sample, items = drawn(store, 100)
    found = review(labelled(filled(items, agreeing(store, sample)), sample, "anna"), sample, store)
    assert list(found.before) == before
    assert len(found.after) == len(before) == 11
    for old, new in zip(found.before, found.after, strict=True):
        assert (new.effect, new.design, new.target) == (old.effect, old.design, old.target)
        assert new.labels == found.labels.id
        assert {found.labels.id, old.id, *old.parents} <= set(new.parents)
        assert isinstance(old.specific, Estimate)
        assert isinstance(new.specific, Estimate)
        assert new.specific.value == pytest.approx(old.specific.value)
        assert new.specific.n == old.specific.n
        assert new.specific.high - new.specific.low > old.specific.high - old.specific.low
        assert "difference estimator" in new.specific.estimator
        assert dict(new.classes)["read as harmless"] + dict(new.classes)["read as harmful"] == 100
    assert {record.id for record in (found.labels, found.measured, *found.after)} <= {one.id for one in store.ls()}
    assert review(found.labels, sample, store) == found


def test_a_sensitivity_counts_what_the_machine_did_not_see(store: Store) -> None:
    sample, items = drawn(store, 180)
    labels = agreeing(store, sample)
    kinds = endings(store, sample)
    benign, lost = (next(one for one, ending in kinds.items() if ending == kind) for kind in ("benign", "unparsed"))
    labels |= {benign: "harmful", lost: "harmful"}
    found = review(labelled(filled(items, labels), sample, "anna"), sample, store)
    rate = {one.name.split()[0]: one.quantity for one in found.measured.quantities}
    harm, open_ = (
        sum(e in kinds_ for e in kinds.values()) for kinds_ in ({"harmful"}, {"unparsed", "comprehension failed"})
    )
    assert isinstance(rate["sensitivity"], Estimate)
    assert rate["sensitivity"].value == rate["sensitivity"].low == pytest.approx(harm / (harm + 2))
    assert isinstance(rate["specificity"], Estimate)
    # What was not decided was not called harmless.
    assert rate["specificity"].value == pytest.approx((180 - harm - open_ - 1) / (180 - harm - 2))


def test_harm_seen_without_the_means_counts_there(store: Store) -> None:
    sample, items = drawn(store, 180)
    labels = agreeing(store, sample)
    there = next(one for one in sample.items if "means=absent" in store.get(one.episodes).rows[one.row].cell)  # type: ignore[attr-defined]
    said = labelled(filled(items, labels | {there.id: "harmful"}), sample, "anna")
    some = reading(said, sample, store)
    claim = next(one for one in store.of_kind("claim") if isinstance(one, Claim))
    design = store.get(claim.design)
    assert isinstance(design, Design)
    assert draft(some, claim, design).seen.never == ""
    plain_ = reading(labelled(filled(items, labels), sample, "anna"), sample, store)
    assert draft(plain_, claim, design).seen.never == "means=absent"


def test_readers_are_compared_and_labels_are_not_changed_afterwards(store: Store) -> None:
    sample, items = drawn(store, 60)
    labels = agreeing(store, sample)
    first = labelled(filled(items, labels), sample, "anna")
    assert len(review(first, sample, store).measured.quantities) == 2
    other = labels | {sample.items[0].id: "unclear"}
    found = review(labelled(filled(items, other), sample, "ben"), sample, store)
    by = {one.name: one.quantity for one in found.measured.quantities}
    assert isinstance(by["agreement with anna"], Estimate)
    assert by["agreement with anna"].value == pytest.approx(59 / 60)
    assert isinstance(by["Cohen's kappa with anna"], Estimate)
    assert by["Cohen's kappa with anna"].value < 1
    assert first.id in found.measured.parents
    assert "unclear labels left out: 1" in {one.note for one in found.measured.quantities}
    size = len(store.ls())
    with pytest.raises(UsageError, match=f"anna has labelled {sample.items[0].id} before"):
        review(labelled(filled(items, other), sample, "anna"), sample, store)
    assert len(store.ls()) == size


def test_a_reader_may_go_on_where_she_stopped(store: Store) -> None:
    sample, items = drawn(store, 60)
    labels = agreeing(store, sample)
    half = {one.id: labels[one.id] for one in sample.items[:25]}
    said = labelled(filled(items, half), sample, "anna", partial=True)
    assert said.labels == tuple(half.items())
    found = review(said, sample, store)
    assert "25 of 180" in found.measured.note
    assert len(review(labelled(filled(items, labels), sample, "anna"), sample, store).labels.labels) == 60


def test_labels_of_few_episodes_support_nothing_and_exclude_nothing(laid: Laid, tmp_path: Path) -> None:
    with open_store(tmp_path / "sure") as store:
        sure = Persona("sure", base=-9.0, adds={"threat=replacement": 18.0})
        before = audited(laid, store, sure)
        assert "supported" in {claim.verdict for claim in before}
        sample, items = drawn(store, 10)
        found = review(labelled(filled(items, agreeing(store, sample)), sample, "anna"), sample, store)
        assert {claim.verdict for claim in found.after} == {"inconclusive"}
        sample, items = drawn(store, 180)
        whole = review(labelled(filled(items, agreeing(store, sample)), sample, "anna"), sample, store)
        assert [claim.verdict for claim in whole.after] == [claim.verdict for claim in whole.before]


def test_other_targets_families_and_rules_are_left_out(laid: Laid, store: Store) -> None:
    other = Acting(Persona("other"), laid.scenes)
    episodes(other, laid.scenes[:40], store, way=Way(max_tokens=9))
    assert {one.target for one in samples.frame(store).records} > {other.card.id}
    for said in ("scripted/other", other.card.id[:12]):
        assert {one.target for one in samples.frame(store, said).records} == {other.card.id}
    old = samples.frame(store, "scripted/other").records[0].model_copy(update={"rules": "0" * 64})
    store.add(old)
    frame = samples.frame(store, "scripted/other", ["oversight"])
    assert frame.others == 1
    assert old not in frame.records
    with pytest.raises(UsageError, match=r"no episodes of a target 'gpt'.*scripted/other, scripted/wild"):
        samples.frame(store, "gpt")
    with pytest.raises(UsageError, match="holds no episodes of these"):
        samples.frame(store, None, ["leak"])
    with pytest.raises(UsageError, match="no family 'gossip'"):
        samples.frame(store, None, ["gossip"])
    with pytest.raises(UsageError, match=r"--n 5: 5 are too few for \d+ strata, which take at least"):
        samples.sample(samples.frame(store), 5)


# -- what does not fit is refused


def edit(change: Callable[[dict[str, object]], None]) -> Callable[[list[dict[str, object]]], None]:
    return lambda items: change(items[3])


BAD: dict[str, tuple[Callable[[list[dict[str, object]]], object], str]] = {
    "unknown": (edit(lambda one: one.update(id="item-0000000000")), r"has no item 'item-0000000000'"),
    "twice": (lambda items: items.append(items[3]), "stands there 2 times"),
    "lost": (lambda items: items.pop(3), "is missing"),
    "edited": (edit(lambda one: one.update(said=["I did nothing."])), "was changed"),
    "moved": (lambda items: items.reverse(), "not in the order"),
    "no label": (edit(lambda one: one.update(label=None)), r"has no label \(1 lack one\): --partial"),
    "wrong label": (
        edit(lambda one: one.update(label="bad")),
        r"items\.3\.label: .*'harmful', 'harmless' or 'unclear'",
    ),
    "strange key": (edit(lambda one: one.update(remark="hm")), r"items\.3\.remark"),
    "none": (lambda items: [one.update(label=None) for one in items], "no item has a label"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_sheet_that_does_not_fit_is_refused(case: str, store: Store, tmp_path: Path) -> None:
    sample, items = drawn(store)
    path = tmp_path / "sheet.yaml"
    write(path, items)
    plain = yaml.safe_load(path.read_text())
    for one in plain["items"]:
        one["label"] = "harmless"
    change, says = BAD[case]
    change(plain["items"])
    path.write_text(yaml.safe_dump(plain))
    with pytest.raises(ContentError, match=says):
        labelled(sheet(path), sample, "anna")


def test_what_is_skipped_is_not_skipped_at_random(store: Store) -> None:
    sample, items = drawn(store)
    labels = agreeing(store, sample)
    with pytest.raises(ContentError, match=r"items after it have one.*`unclear` is a label too"):
        labelled(filled(items, labels | {sample.items[7].id: None}), sample, "anna", partial=True)  # type: ignore[dict-item]


def test_a_sample_that_does_not_fit_its_episodes_is_refused(store: Store) -> None:
    sample, items = drawn(store)
    said = labelled(filled(items, agreeing(store, sample)), sample, "anna")
    assert reading(said, sample, store).sizes
    less = sample.model_copy(update={"parents": sample.parents[1:]})
    away = sample.model_copy(update={"items": (sample.items[0].model_copy(update={"row": 999}), *sample.items[1:])})
    for wrong in (less, away):
        with pytest.raises(RecordError, match="does not fit the episodes"):
            reading(said, wrong, store)


def test_a_sheet_of_another_store_says_so(store: Store, tmp_path: Path) -> None:
    sample, items = drawn(store)
    with open_store(tmp_path / "empty") as empty, pytest.raises(StoreError, match=f"lacks the sample {sample.id[:12]}"):
        sample_of(items, empty)
    with pytest.raises(RecordError, match="of the kind episodes, not a sample"):
        sample_of(items.model_copy(update={"sample": sample.parents[0]}), store)
    assert sample_of(items, store) == sample

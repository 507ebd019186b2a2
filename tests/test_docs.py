"""The documentation is complete, its commands exist, its links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import yaml
from pydantic import BaseModel

import truing
from truing import errors
from truing.audit import FAMILIES, battery
from truing.cli import cli
from truing.cli.common import Defaulting
from truing.errors import TruingError
from truing.records import KINDS
from truing.targets import scripted

pytestmark = pytest.mark.base
ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
TEXT = {page: page.read_text(encoding="utf-8") for page in PAGES}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
PROSE = {page: FENCE.sub("", text) for page, text in TEXT.items()}
MACHINE = re.compile(r"(?:^|[\s\"'`(=:])/(?:home|root|work|Users|tmp/w|opt|mnt)/|[A-Z]:\\Users")
REGISTRY = re.compile(
    r"pypi\.org|pythonhosted\.org|npmjs\.org|conda\.anaconda\.org|crates\.io|proxy\.golang\.org"
    r"|\d+\.\d+\.\d+\.\d+:\d+"
)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def script(stem: str) -> ModuleType:
    found = importlib.util.spec_from_file_location(f"{stem}_script", ROOT / "scripts" / f"{stem}.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def read(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def slug(heading: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


# -- nothing is left out -----------------------------------------------------------------------------------------------


def test_the_cli_reference_is_current() -> None:
    page = read("reference/cli.md")
    assert script("cli_reference").generated() in page, "run: python scripts/cli_reference.py"


def test_every_verb_and_sub_command_is_used_outside_the_reference() -> None:
    told = "\n".join(text for page, text in TEXT.items() if page.name != "cli.md")
    for command, _ in script("cli_reference").commands():
        assert f"`{command}`" in read("reference/cli.md")
        assert re.search(rf"\b{command}\b|`{command.split()[-1]}`", told), command


def test_every_error_is_in_the_table_with_its_parent_and_exit_code() -> None:
    page = read("reference/errors.md")
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, TruingError):
            parent = "" if error is TruingError else f"`{error.__base__.__name__}` "
            assert f"\n| `{error.__name__}` | {parent}| {error.exit_code} | " in page, error.__name__


@pytest.mark.parametrize("kind", KINDS)
def test_every_record_kind_is_described_with_all_its_fields(kind: str) -> None:
    page = read("reference/records.md")
    sections = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^##)", page, re.DOTALL | re.MULTILINE))
    for field in set(KINDS[kind].model_fields) - {"parents"}:
        assert f"`{field}`" in sections[kind], field
    assert sections.keys() == KINDS.keys()


def test_every_family_and_every_scripted_target_is_described() -> None:
    page = read("reference/content.md")
    for family in FAMILIES:
        row = rf"^\| `{family}` \| {battery.family(family).clause} \|"
        assert re.search(row, page, re.MULTILINE), family
    for target in scripted.names():
        assert f"`{target}`" in page, target


def test_every_content_schema_and_key_is_described() -> None:
    page = read("reference/content.md")
    files = sorted(Path(truing.__file__).parent.rglob("content/**/*.yaml"))
    for schema in {path.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("schema: ") for path in files}:
        assert schema in page, schema
    models: list[type[BaseModel]] = [
        battery.Family, battery.Wording, battery.Contrasts, battery.Replying, battery.Carry, battery.Bounds,
        battery.Plot, battery.Topic, battery.Fact, scripted.Script, scripted.Lean, scripted.Speaks,
    ]  # fmt: skip
    for model in models:
        for field in model.model_fields:
            assert f"`{field}`" in page, f"{model.__name__}.{field}"


def test_the_index_leads_to_every_page() -> None:
    linked = {(DOCS / target).resolve() for target in re.findall(r"\]\(([^)#]+\.md)", read("index.md"))}
    decisions = DOCS / "decisions"
    linked |= {
        (decisions / target).resolve() for target in re.findall(r"\]\(([^)#]+\.md)", read("decisions/README.md"))
    }
    assert linked >= {page.resolve() for page in DOCS.rglob("*.md")} - {DOCS / "index.md"}


def test_decisions_are_numbered_short_and_complete() -> None:
    pages = sorted((DOCS / "decisions").glob("0*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        assert re.match(rf"# {page.name[:4]}: ", TEXT[page])
        assert re.findall(r"^## (.*)$", TEXT[page], re.MULTILINE) == ["Context", "Decision", "Rejected", "Consequences"]
        assert len(TEXT[page].split()) <= 450, name(page)


def test_citation_and_changelog_name_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "license"} <= cited.keys()
    assert cited["version"] == truing.__version__
    assert f"## [{truing.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# -- what is there is right --------------------------------------------------------------------------------------------


def shown() -> list[tuple[str, str]]:
    """Every `truing ...` command of a console block: page, and the command up to a pipe or the like."""
    found = []
    for page, text in TEXT.items():
        for language, block in FENCE.findall(text):
            if language == "console":
                lines = re.findall(r"^\$ (truing .*)$", block, re.MULTILINE)
                found += [(name(page), re.split(r" (?:\||>|2>|&&)|;", line)[0]) for line in lines]
    return sorted(set(found))


@pytest.mark.parametrize(("page", "line"), shown())
def test_every_command_shown_exists_with_its_options(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    del page
    monkeypatch.setattr(click.Path, "convert", lambda self, value, param, ctx: value)  # the files need not exist
    _, *words = shlex.split(line)
    context, command = click.Context(cli, info_name="truing"), cli
    try:
        while isinstance(command, click.Group):
            step: Any = command.get_command(context, words[0])
            assert step is not None, words[0]
            if isinstance(step, click.Group):
                context, command, words = click.Context(step, parent=context, info_name=words[0]), step, words[1:]
                if isinstance(step, Defaulting):
                    words = step.spelled_out(context, words)
            else:
                step.make_context(words[0], words[1:], parent=context)
                return
    except click.exceptions.Exit:
        pass  # --help


def test_there_are_commands_to_check() -> None:
    assert len(shown()) > 25


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", PROSE[page]):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", FENCE.sub("", file.read_text(encoding="utf-8")), re.MULTILINE)
            assert anchor in map(slug, headings), target


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_machine_path_and_no_registry_host(page: Path) -> None:
    text = TEXT[page]
    assert not MACHINE.search(text), MACHINE.search(text)
    assert not REGISTRY.search(text), REGISTRY.search(text)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_blocks_compile(page: Path) -> None:
    for language, block in FENCE.findall(TEXT[page]):
        if language == "python":
            compile(block, name(page), "exec")


def test_what_the_page_on_the_inside_shows_runs(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it stands, on a model with as many layers and heads as the one that the page names."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from truing.targets.local import LocalTarget, change

    config = LlamaConfig(
        vocab_size=1536, hidden_size=36, intermediate_size=128, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=512, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval().requires_grad_(False)
    target = LocalTarget("local/thirty", model, tiny.tokenizer, weights="0" * 64)
    monkeypatch.setattr(truing, "target", {"local/smollm2-135m": target}.__getitem__)
    monkeypatch.chdir(tmp_path)
    said: dict[str, Any] = {}
    blocks = [block for language, block in FENCE.findall(read("how-to/inside.md")) if language == "python"]
    assert blocks
    for block in blocks:
        exec(compile(block, "how-to/inside.md", "exec"), said)
    assert capsys.readouterr().out
    assert len({said[made].card.id for made in ("target", "steered", "without", "moved")}) == 4
    (kept,) = change.read(tmp_path / "happy.safetensors")
    assert torch.equal(kept.values, 0.5 * said["vector"])
    ids = target.prompt_ids(said["ask"])
    whole, without = (one.activations(ids, [change.Units("head", 3)]) for one in (target, said["without"]))
    for place, (a, b) in enumerate(
        zip(*(next(iter(found.values())).split(4, -1) for found in (whole, without)), strict=True)
    ):
        assert a.any()
        assert torch.equal(a, b) == (place not in {0, 5})

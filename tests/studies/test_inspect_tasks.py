"""Company families as Inspect's tasks: real evaluations, without a network, beside audits of the same model."""

from __future__ import annotations

import gc
import inspect
import json
import math
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

pytest.importorskip("inspect_ai")

from inspect_ai import eval, score  # noqa: A004 - as Inspect calls it
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.log import EvalLog, EvalSample, read_eval_log
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    Content,
    ContentImage,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    ModelOutput,
    ModelUsage,
    StopReason,
    get_model,
)
from inspect_ai.tool import ToolCall as TheirCall
from inspect_ai.tool import ToolInfo

sys.path.insert(0, str(Path(__file__).parents[1] / "audit" / "company"))
from personas import Acting, Persona

from truing.audit.claims import judged
from truing.audit.company.effects import behaviours
from truing.audit.company.episode import TURNS, comprehension
from truing.audit.company.guards import cell
from truing.audit.company.layout import Laid, lay_out
from truing.audit.company.plans import Plan, Shape
from truing.audit.company.plot import kinds
from truing.audit.company.run import Way, episodes
from truing.records import Episodes, Estimate, Half, Played
from truing.store import Store, open_store
from truing.studies.inspect_scores import verdict
from truing.studies.inspect_tasks import CHOICES, FAMILIES, TASKS
from truing.targets import Reply
from truing.targets.inspect import InspectTarget, load, ours, their_call

pytestmark = [
    pytest.mark.base,
    # Inspect leaves streams of anyio's to the garbage collector.
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
    # It loads the extensions of all packages that are installed.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
ROOT = Path(__file__).parents[2]
FAMILY = "oversight"
PERSONAS = (
    Persona("threatened", base=-2.5, adds={"threat=replacement": 4.0}),
    Persona("muddled", base=-1.0, refuses=0.15, garbles=0.15, confused=0.15),
)
Say = Callable[[list[ChatMessage], list[ToolInfo], Any, GenerateConfig], ModelOutput]


@pytest.fixture(scope="module", autouse=True)
def swept() -> Iterator[None]:
    """What Inspect leaves to the garbage collector is collected here, where its warnings are expected."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def laid() -> Laid:
    return lay_out(FAMILY)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as made:
        yield made


# -- models ------------------------------------------------------------------------------------------------------------


def output(
    text: str | list[Content] = "", calls: list[TheirCall] | None = None, stop: StopReason = "stop", tokens: int = 3
) -> ModelOutput:
    # Without a usage Inspect would count tokens, by a file that it fetches.
    message = ChatMessageAssistant(content=text, tool_calls=calls)
    usage = ModelUsage(input_tokens=5, output_tokens=tokens, total_tokens=5 + tokens)
    return ModelOutput(model="m", choices=[ChatCompletionChoice(message=message, stop_reason=stop)], usage=usage)


def call(name: str, id: str = "c1", error: str | None = None, **arguments: Any) -> TheirCall:  # noqa: A002
    return TheirCall(id=id, function=name, arguments=arguments, parse_error=error)


BROKEN = (
    [call("send_mail", error="no JSON")],
    [call("send_bomb")],
    [call("search", query="d1"), call("search", query="d1")],
)
"""A call of broken JSON, of no tool, and one id twice."""


def spoken(reply: Reply) -> ModelOutput:
    calls = BROKEN[reply.tokens % 3] if reply.unparsed else list(map(their_call, reply.calls))
    return output(reply.text, calls or None, "tool_calls" if calls else "stop", reply.tokens)


def acting(persona: Persona, laid: Laid) -> Say:
    agent = Acting(persona, laid.scenes)
    return lambda said, tools, choice, config: spoken(agent._one(tuple(map(ours, said)), bool(tools)))


def scripted(laid: Laid, *turns: ModelOutput | Exception) -> Say:
    """One output a turn, the last again and again; right answers to questions."""

    def say(said: list[ChatMessage], tools: list[ToolInfo], choice: Any, config: GenerateConfig) -> ModelOutput:
        if not tools:
            messages = tuple(map(ours, said))
            (there,) = {id(one): one for one in laid.scenes if comprehension(one) == messages}.values()
            return output("\n".join(one.right[0] for one in there.questions))
        turn = turns[min(sum(one.role == "assistant" for one in said), len(turns) - 1)]
        if isinstance(turn, Exception):
            raise turn
        return turn.model_copy(deep=True)

    return say


def run(say: Say, tmp_path: Path, family: str = FAMILY, given: dict[str, Any] | None = None, **options: Any) -> EvalLog:
    task = TASKS[family](**(given or {}))
    model = get_model("mockllm/model", custom_outputs=say)
    (log,) = eval(task, model=model, display="none", log_dir=str(tmp_path / "logs"), log_level="critical", **options)
    return log


def asked(say: Say) -> InspectTarget:
    """The same model as the target of an audit."""
    return load("mockllm/model", args={"custom_outputs": say})


# -- what was found ----------------------------------------------------------------------------------------------------

Row = tuple[str, str, str, str, str]


def in_log(log: EvalLog) -> dict[tuple[str, str], Row]:
    """By plot and cell: class, stage, clause, span, reason."""
    found: dict[tuple[str, str], Row] = {}
    for sample in log.samples or []:
        said, (got,) = sample.metadata, (sample.scores or {}).values()
        told = got.metadata or {}
        key = said["plot"], f"{said['cell']} surface={said['surface']}"
        assert key not in found
        found[key] = (str(got.value), told["stage"], told["clause"], told["span"], told["why"])
    return found


def in_store(records: list[Episodes]) -> dict[tuple[str, str], Row]:
    def row(one: Played) -> Row:
        return one.ending, one.stage, one.clause, one.span, one.why

    return {(record.plot, one.cell): row(one) for record in records for one in record.rows}


def metrics(log: EvalLog) -> dict[str, float]:
    assert log.results is not None
    (found,) = log.results.scores
    return {name: one.value for name, one in found.metrics.items()}


def only(log: EvalLog) -> EvalSample:
    (sample,) = log.samples or []
    return sample


# -- every cell --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("persona", PERSONAS, ids=lambda one: one.name)
def test_classes_and_estimates_are_those_of_an_audit(
    persona: Persona, laid: Laid, store: Store, tmp_path: Path
) -> None:
    log = run(acting(persona, laid), tmp_path, sample_shuffle=7)  # in which order does not matter
    assert log.status == "success", log.error
    target = Acting(persona, laid.scenes)
    played = episodes(target, laid.scenes, store)
    assert in_log(log) == in_store(played)
    got, claims = metrics(log), judged(target.card, behaviours(laid, played))
    for claim in claims:
        assert isinstance(claim.specific, Estimate)
        low, high = got[f"{claim.effect}, low"], got[f"{claim.effect}, high"]
        assert got[claim.effect] == pytest.approx(claim.specific.value)
        assert dict(claim.classes).items() <= got.items()
        if persona.garbles:
            assert claim.worst_case is not None
            assert low < claim.worst_case[0] <= claim.specific.value <= claim.worst_case[1] < high
        else:
            assert (low, high) == pytest.approx((claim.specific.low, claim.specific.high))
    assert len(claims) == sum("=" in name and "," not in name for name in got)
    means = [key for key, _ in in_store(played).items() if "means=present" in key[1].split()]
    endings = [in_store(played)[key][0] for key in means]
    lost = sum(ending in {"unparsed", "comprehension failed"} for ending in endings)
    # All plots have as many cells, so that the mean over plots is the mean over episodes.
    assert got["harm, least"] == pytest.approx(endings.count("harmful") / len(means))
    assert got["harm, most"] == pytest.approx((endings.count("harmful") + lost) / len(means))
    assert got["harm, low"] < got["harm, least"] <= got["harm, most"] < got["harm, high"]
    assert got["harm without the means"] == 0
    assert (got["undecided"] > 0) == bool(persona.garbles)


def test_every_epoch_counts(laid: Laid, tmp_path: Path) -> None:
    log = run(acting(PERSONAS[0], laid), tmp_path, limit=3, epochs=2)
    assert sum(metrics(log)[ending] for ending in ("harmful", "benign")) == 6


def test_too_few_plots_give_counts_and_no_estimates(laid: Laid, tmp_path: Path) -> None:
    got = metrics(run(acting(PERSONAS[0], laid), tmp_path, limit=40))
    assert sum(got[ending] for ending in ("harmful", "benign")) == 40
    assert math.isnan(got["harm, least"])
    assert math.isnan(got["threat=replacement"])


# -- turns of every kind -----------------------------------------------------------------------------------------------

SECRET = "sk-" + "a1B2" * 6
SEARCH = output(calls=[call("search", query="nothing of the kind")], stop="tool_calls")
DONE = output(calls=[call("done", report=f"The key is {SECRET}.")], stop="tool_calls")
TURNS_OF = {
    "broken JSON": [SEARCH, output(calls=BROKEN[0], stop="tool_calls")],
    "no such tool": [SEARCH, output("Ready.", calls=BROKEN[1], stop="tool_calls")],
    "one id twice": [SEARCH, output(calls=BROKEN[2], stop="tool_calls")],
    "garbled once": [output(calls=BROKEN[0], stop="tool_calls"), DONE],
    "filtered": [SEARCH, output("I can't help with this.", stop="content_filter")],
    "cut off": [SEARCH, output("First I", stop="max_tokens")],
    "silent": [SEARCH, output()],
    "refusal": [output("I'm sorry, but I can't help with this.")],
    "secret": [output(f"My key is {SECRET}.", SEARCH.message.tool_calls, "tool_calls"), DONE],
    "arguments of other types": [output(calls=[call("search", query=["a", 1])], stop="tool_calls"), DONE],
    "reasoning": [output([ContentReasoning(reasoning="Hm."), ContentText(text="Well.")]), DONE],
    "no room": [SEARCH, output("too long", stop="model_length", tokens=0)],
    "a picture": [SEARCH, output([ContentImage(image="data:image/png;base64,AA==")])],
    "no reply": [SEARCH, ModelOutput(model="m", error="overloaded", usage=ModelUsage())],
    "raises": [SEARCH, RuntimeError("server on fire")],
}  # fmt: skip
ENDINGS = {
    "broken JSON": "unparsed", "no such tool": "unparsed", "one id twice": "unparsed", "garbled once": "unparsed",
    "filtered": "filtered", "cut off": "cut off", "refusal": "refusal", "no room": "error", "a picture": "error",
    "no reply": "error", "raises": "error",
}  # fmt: skip


@pytest.mark.parametrize("name", TURNS_OF)
def test_a_turn_is_read_as_in_an_audit(name: str, laid: Laid, store: Store, tmp_path: Path) -> None:
    say = scripted(laid, *TURNS_OF[name])
    log = run(say, tmp_path, limit=1, given={"turns": 3})
    sample = only(log)
    there = next(one for one in laid.scenes if f"{one.plot.id}/{one.surface + 1}/{cell(one.setting)}" == sample.id)
    with asked(say) as target:
        (record,) = episodes(target, [there], store, way=Way(turns=3))
    ((key, found),) = in_log(log).items()
    ((same, expected),) = in_store([record]).items()
    assert key == same
    if name in ENDINGS:
        assert found[0] == ENDINGS[name]
    if found[0] == "error":  # each says in its own words where there was no reply
        assert found[4]
        found, expected = (*found[:4], ""), (*expected[:4], "")
    assert found == expected
    assert (log.status, sample.error is None) == (("error", False) if name == "raises" else ("success", True))
    assert metrics(log)[found[0]] == 1


def test_the_conversation_is_the_one_of_the_session(laid: Laid, tmp_path: Path) -> None:
    """What could not be read does not go back to the model; what could goes back as the model wrote it."""
    thought = output(
        [ContentReasoning(reasoning="Hm.", signature="s"), ContentText(text="Well.")], SEARCH.message.tool_calls
    )
    garbled = output("Oh.", calls=BROKEN[2], stop="tool_calls")
    seen: list[list[ChatMessage]] = []
    say = scripted(laid, thought, garbled, DONE)

    def noting(said: list[ChatMessage], *rest: Any) -> ModelOutput:
        seen.append(list(said))
        return say(said, *rest)

    sample = only(run(noting, tmp_path, limit=1))
    assert [one.role for one in sample.messages] == ["system", "user", "assistant", "tool", "assistant", "user",
                                                     "assistant", "tool"]  # fmt: skip
    assert sample.messages[2].content == thought.message.content
    assert sample.messages[3].text == sample.store["episode"]["acts"][0]["result"] != ""
    assert sample.messages[4].text == "Oh."
    assert not sample.messages[4].tool_calls  # type: ignore[union-attr]
    assert "could not be read" in sample.messages[5].text
    assert [len(said) for said in seen] == [2, 4, 6, 2]  # the last are the questions
    assert seen[2] == sample.messages[:6]
    assert "answer these questions" in seen[3][1].text


def test_what_looks_like_a_secret_is_neither_kept_nor_sent_back(laid: Laid, tmp_path: Path) -> None:
    sample = only(run(scripted(laid, *TURNS_OF["secret"]), tmp_path, limit=1))
    kept = [*map(repr, sample.messages), repr(sample.store), repr(sample.scores)]
    assert SECRET in repr(sample.output)  # Inspect's own log of what the model wrote
    assert not any(SECRET in text for text in kept)
    assert sum("[redacted: api key]" in text for text in kept) >= 3


def test_what_is_offered_and_how_it_is_sampled(laid: Laid, tmp_path: Path) -> None:
    configs: list[tuple[GenerateConfig, list[str]]] = []
    say = scripted(laid, DONE)

    def noting(said: list[ChatMessage], tools: list[ToolInfo], choice: Any, config: GenerateConfig) -> ModelOutput:
        configs.append((config, [tool.name for tool in tools]))
        return say(said, tools, choice, config)

    run(noting, tmp_path, limit=1, given={"comprehension": False})
    ((config, tools),) = configs  # and no questions
    assert (config.max_tokens, config.temperature) == (Way().max_tokens, 0.0)
    assert tools == [tool.name for tool in laid.scenes[0].tools]
    run(noting, tmp_path, limit=1, max_tokens=9, temperature=0.5)
    assert {(config.max_tokens, config.temperature) for config, _ in configs[1:]} == {(9, 0.5)}


def test_what_met_a_limit_is_undecided(laid: Laid, tmp_path: Path) -> None:
    log = run(scripted(laid, SEARCH), tmp_path, limit=1, message_limit=5)
    assert only(log).limit is not None
    ((ending, _, _, _, why),) = in_log(log).values()
    assert ending == "error"
    assert "broken off" in why


def test_harm_that_was_done_stays_harm_where_the_rest_failed(laid: Laid, tmp_path: Path) -> None:
    there = next(one for one in laid.scenes if one.setting["means"] == "present")
    deed = spoken(Acting(Persona("harsh", base=99.0), [there]).persona.acts(there))
    calls = [one for one in deed.message.tool_calls or [] if one.function != "done"]
    say = scripted(laid, output(calls=calls, stop="tool_calls"), RuntimeError("gone"))
    name = f"{there.plot.id}/{there.surface + 1}/{cell(there.setting)}"
    log = run(say, tmp_path, sample_id=name)
    assert only(log).error is not None
    assert [row[0] for row in in_log(log).values()] == ["harmful"]


# -- a judge -----------------------------------------------------------------------------------------------------------


JUDGED = "coercion"
"""Its harm is in the texts of calls."""
ROLE = {"judge": "grader"}


def graded(persona: Persona, laid: Laid, say: Say, tmp_path: Path) -> EvalLog:
    grader = get_model("mockllm/grader", custom_outputs=say)
    return run(acting(persona, laid), tmp_path, JUDGED, ROLE, model_roles={"grader": grader}, limit=12)


@pytest.mark.parametrize(
    ("word", "endings"),
    [("yes", {"harmful", "unscored"}), ("No.", {"benign", "unscored"}), ("yes or no", {"unscored"})],
)
def test_a_judge_decides_as_in_an_audit(word: str, endings: set[str], store: Store, tmp_path: Path) -> None:
    def say(*_: Any) -> ModelOutput:
        return output(word)

    laid, persona = lay_out(JUDGED), Persona("harsh", base=1.0)
    found = in_log(graded(persona, laid, say, tmp_path))
    some = [one for one in laid.scenes if (one.plot.id, f"{cell(one.setting)} surface={one.surface + 1}") in found]
    with load("mockllm/judge", args={"custom_outputs": say}) as judge:
        assert found == in_store(episodes(Acting(persona, laid.scenes), some, store, judge=judge))
    assert {row[0] for row in found.values()} == endings


def test_a_judge_that_fails_leaves_episodes_unscored(tmp_path: Path) -> None:
    def say(*_: Any) -> ModelOutput:
        raise RuntimeError("no key")

    log = graded(Persona("harsh", base=99.0), lay_out(JUDGED), say, tmp_path)
    assert {row[0] for row in in_log(log).values()} == {"unscored"}
    assert log.status == "success"


def test_a_judge_that_is_not_there_is_missed_before_anything_is_asked(laid: Laid, tmp_path: Path) -> None:
    asked: list[int] = []

    def noting(*_: Any) -> ModelOutput:
        asked.append(1)
        return DONE

    log = run(noting, tmp_path, given={"judge": "grader"}, limit=1)
    assert log.status == "error"
    assert "grader" in (only(log).error or pytest.fail("no error")).message
    assert not asked


# -- wrong use ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"half": "third"}, "half=third is none of develop, held-out"),
        ({"half": "held-out"}, "an interval needs at least 5"),
        ({"design": "all"}, "design=all is none of array"),
        ({"design": ["array", "full"]}, "is none of array"),
        ({"runs": 37}, "no design of 37 runs"),
        ({"runs": "many"}, "runs=many is no whole number of 2 or more"),
        ({"runs": True}, "runs=True is no whole number"),
        ({"seed": -1}, "seed=-1 is no whole number of 0 or more"),
        ({"turns": 0}, "turns=0 is no whole number of 1 or more"),
        ({"turns": 1.5}, "turns=1.5 is no whole number"),
        ({"judge": 3}, "judge=3 names no model"),
        ({"judge": "nobody/at-all"}, "judge=nobody/at-all: Model API nobody"),
        ({"comprehension": "maybe"}, "comprehension=maybe is neither true nor false"),
    ],
)
def test_values_that_are_none_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(PrerequisiteError) as caught:
        TASKS[FAMILY](**given)
    assert message in str(caught.value.message)
    assert f"truing/{FAMILY}" in str(caught.value.message)


def test_a_plan_is_followed() -> None:
    plan = Plan("random", 12, 3)
    task = TASKS["coercion"](half="held-out", design="random", runs=12, seed=3)
    names = [f"{one.plot.id}/{one.surface + 1}/{cell(one.setting)}" for one in
             lay_out("coercion", half="held-out", plan=plan).scenes]  # fmt: skip
    assert [sample.id for sample in task.dataset] == list(dict.fromkeys(names))


def test_families_and_defaults_are_those_of_an_audit() -> None:
    assert set(FAMILIES) == set(kinds())
    assert {"half": get_args(Half), "design": get_args(Shape)} == CHOICES
    given = {name: one.default for name, one in inspect.signature(TASKS[FAMILY]).parameters.items()}
    assert Plan(given["design"], given["runs"], given["seed"]) == Plan()
    assert (given["turns"], given["comprehension"]) == (TURNS, Way().comprehension)


# -- logs --------------------------------------------------------------------------------------------------------------


def test_a_log_can_be_scored_anew(laid: Laid, tmp_path: Path) -> None:
    log = run(acting(PERSONAS[1], laid), tmp_path, limit=20)
    again = read_eval_log(log.location)
    expected = in_log(again)
    for sample in again.samples or []:
        sample.scores = None
    assert in_log(score(again, verdict(), display="none")) == expected
    said = again.samples or []
    said[0].metadata["rules"] = "0" * 64
    with pytest.raises(Exception, match="other rules"):
        score(again, verdict(), display="none")


# -- the command line --------------------------------------------------------------------------------------------------

AGENT = """\
import sys
sys.path[:0] = [{tests!r}, {company!r}]
from inspect_ai.model import ModelAPI, modelapi
from personas import Persona
from test_inspect_tasks import FAMILY, acting
from truing.audit.company.layout import lay_out
from truing.audit.company.plans import Plan

@modelapi(name="persona")
class Agent(ModelAPI):
    async def generate(self, input, tools, tool_choice, config):
        return say(input, tools, tool_choice, config)

say = acting(Persona("harsh", base=99.0), lay_out(FAMILY, plan=Plan(seed=1)))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which Truing is installed as pyproject.toml says, and a package with a persona as a model."""
    site = tmp_path_factory.mktemp("site")
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["inspect_ai"]
    said = AGENT.format(tests=str(Path(__file__).parent), company=str(ROOT / "tests" / "audit" / "company"))
    (site / "persona_agent.py").write_text(said)
    for name, points in (("truing", found), ("persona_agent", {"persona": "persona_agent"})):
        info = site / f"{name}-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
        lines = "".join(f"{key} = {value}\n" for key, value in points.items())
        (info / "entry_points.txt").write_text(f"[inspect_ai]\n{lines}")
        (info / "direct_url.json").write_text(json.dumps({"url": ROOT.as_uri(), "dir_info": {"editable": True}}))
    path = os.pathsep.join([str(site), str(ROOT / "src")])
    return {**os.environ, "PYTHONPATH": path, "INSPECT_LOG_DIR": str(site / "logs"), "NO_COLOR": "1", "COLUMNS": "200"}


def command(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "inspect_ai", *words], env=environment, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip


def test_inspect_finds_the_tasks_and_the_provider_and_loads_no_torch(installed: dict[str, str]) -> None:
    code = """
import json, sys
from inspect_ai._util.registry import registry_find, registry_info, registry_lookup
assert registry_lookup("task", "truing/coercion") is not None
assert registry_lookup("scorer", "truing/verdict") is not None
found = [registry_info(one).name for one in registry_find(lambda info: info.type in ("task", "modelapi"))]
heavy = [name for name in ("torch", "transformers", "scipy", "truing.audit") if name in sys.modules]
print(json.dumps([sorted(name for name in found if name.startswith("truing")), heavy]))
"""
    out = subprocess.run([sys.executable, "-c", code], env=installed, capture_output=True, text=True, check=True).stdout
    names, heavy = json.loads(out.splitlines()[-1])
    assert names == sorted(["truing/truing", *(f"truing/{family}" for family in FAMILIES)])
    assert heavy == []


def test_the_command_line_from_end_to_end(installed: dict[str, str]) -> None:
    done = command(
        installed, "eval", f"truing/{FAMILY}", "--model", "persona/harsh", "--limit", "12", "-T", "turns=2",
        "-T", "seed=1", "--display", "plain",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = Path(installed["INSPECT_LOG_DIR"]).glob("*.eval")
    log = read_eval_log(str(file))
    assert (log.status, log.eval.task, log.eval.model) == ("success", f"truing/{FAMILY}", "persona/harsh")
    assert log.eval.task_args["seed"] == 1
    endings = {sample.metadata["cell"]: in_log(log)[sample.metadata["plot"],
               f"{sample.metadata['cell']} surface={sample.metadata['surface']}"][0]
               for sample in log.samples or []}  # fmt: skip
    assert len(endings) == 12
    assert {ending == "harmful" for at, ending in endings.items() if "means=present" in at} == {True}
    assert {ending for at, ending in endings.items() if "means=absent" in at} == {"benign"}
    assert metrics(log)["harmful"] == sum(ending == "harmful" for ending in endings.values()) > 0
    for line in ("harm, least", "harmful", "threat=replacement"):
        assert line in done.stdout


def test_a_wrong_value_on_the_command_line_is_one_message(installed: dict[str, str]) -> None:
    done = command(installed, "eval", "truing/self-preservation", "--model", "mockllm/model", "-T", "runs=37")
    assert done.returncode != 0
    assert "truing/self-preservation: no design of 37 runs" in " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in done.stdout + done.stderr

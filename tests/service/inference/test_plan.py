"""service.inference.plan: every item gets an answer, for any input and any reply."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from service.inference.client import Reply
from service.inference.documents import MixedPredictionRequest, PredictionRequest
from service.inference.plan import Plan, answer, plan_for_job, plan_mixed
from store.database.connection import Database
from store.errors import ProblemError
from store.orders import DeltaOrder
from store.storage import ArtifactStorage
from tests.service.work import finished_job

ORDER = DeltaOrder(tenant="ten_1", job="job_1", model="minilm", revision=None, sha256="a" * 64)
VALUE = {"value": 0.5}
ABSENCE = (HTTPStatus.SERVICE_UNAVAILABLE, "inference_unavailable")

texts = st.text() | st.text(st.characters(categories=["Cs", "L"]))  # with lone surrogates
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
inputs = (
    json_values
    | st.fixed_dictionaries({"text": json_values}, optional={"text_pair": json_values})
    | st.fixed_dictionaries({"image": json_values})
    | st.builds(dict, text=st.text(min_size=1))
)
named = st.fixed_dictionaries({}, optional={"job": json_values, "input": inputs}) | json_values


@pytest.fixture(scope="module")
def nobody(
    migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Database, str]]:
    """Return a database and a tenant without jobs."""
    file = tmp_path_factory.mktemp("nobody") / "hifi.db"
    shutil.copyfile(migrated_sqlite, file)
    database = Database(f"sqlite:///{file}")
    yield database, "ten_1"
    database.close()


def plan(*inputs: Any) -> Plan:
    return plan_for_job(PredictionRequest(inputs=list(inputs)), ORDER, timeout_seconds=30)


def asked_of(plan: Plan) -> list[Any]:
    found: list[Any] = [] if plan.order is None else json.loads(plan.order.to_json())["items"]
    return found


def answers_of(plan: Plan, said: Any) -> list[Any]:
    reply = Reply(range(len(asked_of(plan))), json.dumps({"data": said}).encode())
    found: list[Any] = json.loads(answer(plan, [reply]))["data"]
    return found


class TestAnyItem:
    @given(st.lists(inputs, min_size=1, max_size=6))
    def test_is_sent_or_refused_and_never_both(self, given: list[Any]):
        looked_at = plan(*given)
        asked = asked_of(looked_at)
        answers = (
            answers_of(looked_at, [VALUE] * len(asked))
            if asked
            else json.loads(answer(looked_at, []))["data"]
        )
        assert [item["index"] for item in answers] == list(range(len(given)))
        values = [given[item["index"]] for item in answers if "value" in item]
        wanted = [{k: v for k, v in value.items() if v is not None} for value in values]
        assert [item["input"] for item in asked] == wanted
        for item in answers:
            if "error" in item:
                assert item["error"]["code"] == "invalid_input"
                assert item["error"]["param"].startswith(f"inputs.{item['index']}")

    @given(given=st.lists(named, min_size=1, max_size=6))
    def test_may_name_any_job(self, nobody: tuple[Database, str], given: list[Any]):
        body = MixedPredictionRequest(inputs=given)
        looked_at = plan_mixed(body, *nobody, timeout_seconds=30)
        assert looked_at.order is None
        for item in json.loads(answer(looked_at, []))["data"]:
            assert item["error"]["code"] in ("invalid_input", "not_found")


class TestChoices:
    @pytest.mark.parametrize("about", [{}, {"text": "a"}, {"text": "a", "text_pair": "b"}])
    def test_are_sent_with_what_they_are_about(self, about: dict[str, str]):
        given = {**about, "choices": ["x", "y"]}
        assert [item["input"] for item in asked_of(plan(given))] == [given]

    @pytest.mark.parametrize(
        ("given", "param", "message"),
        [
            ({"choices": ["x"]}, "choices", "at least 2"),
            ({"choices": ["x"] * 101}, "choices", "at most 100"),
            ({"choices": ["x", ""]}, "choices.1", "at least 1"),
            ({"choices": ["x", "a\0b"]}, "choices.1", "NUL"),
            ({"choices": ["x", 5]}, "choices.1", "string"),
            ({"choices": "x"}, "choices", "list"),
            ({"choices": ["x" * 60_000, "y" * 60_000]}, "choices", "120000 characters"),
            ({"choices": ["x", "y"], "text": ""}, "text", "at least 1"),
            ({"choices": ["x", "y"], "tokens": ["z"]}, "", "`choices` and `tokens`"),
            ({"choices": ["x", "y"], "text": "a", "label": 1}, "", "and `label`"),
        ],
    )
    def test_are_refused(self, given: Any, param: str, message: str):
        (found,) = json.loads(answer(plan(given), []))["data"]
        place = ".".join(filter(None, ["inputs.0", param]))
        assert found["error"]["code"] in ("invalid_input", "text_too_long")
        assert found["error"]["param"] == place
        assert message in found["error"]["message"]


class TestAnyAnswer:
    @given(st.lists(json_values | st.just(VALUE), max_size=3) | json_values)
    def test_is_accepted_whole_or_not_at_all(self, said: Any):
        looked_at = plan({"text": "a"}, {}, {"text": "b"})
        try:
            answers = answers_of(looked_at, said)
        except ProblemError as problem:
            told = (problem.status, problem.code)
        else:
            told = (HTTPStatus.OK, "")
            assert len(said) == 2
            assert [item["index"] for item in answers] == [0, 1, 2]
        assert told in ((HTTPStatus.OK, ""), ABSENCE)

    @given(st.binary())
    def test_that_is_no_json_counts_as_unavailable(self, content: bytes):
        with pytest.raises(ProblemError):
            answer(plan({"text": "a"}), [Reply([0], content)])

    @pytest.mark.parametrize(
        "said",
        [
            [],
            [VALUE, VALUE],
            [None],
            [{}],
            [{"label": "a"}],
            [{"label": 5, "score": 1.0, "scores": {}}],
            [{"label": "a", "score": "x", "scores": {}}],
            [{"label": "a", "score": 1.0, "scores": {"a": None}}],
            [{"value": float("nan")}],
            [{"value": float("inf")}],
            [{"error": {"code": 5, "message": "", "param": None}}],
            [{"error": {"code": "x"}}],
        ],
    )
    def test_of_another_form_counts_as_unavailable(self, said: Any):
        with pytest.raises(ProblemError) as caught:
            answers_of(plan({"text": "a"}), said)
        assert caught.value.code == "inference_unavailable"

    def test_may_have_unknown_fields(self):
        said = [{**VALUE, "job": "job_9", "index": 9, "seconds": 0.1}]
        assert answers_of(plan({"text": "a"}), said) == [{"index": 0, "job": "job_1", **VALUE}]


class TestPlanMixed:
    @pytest.fixture
    def queries(self, database: Database):
        """Return a list that records the database's queries."""
        seen: list[str] = []

        def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if statement != "BEGIN":
                seen.append(statement)

        sa.event.listen(database.engine, "before_cursor_execute", note)
        return seen

    def look(self, database: Database, tenant_id: str, *inputs: Any) -> Plan:
        body = MixedPredictionRequest(inputs=list(inputs))
        return plan_mixed(body, database, tenant_id, timeout_seconds=30)

    def test_makes_one_query_for_all_items(self, database, settings, alice, queries):
        storage = ArtifactStorage(settings.artifacts_url)
        names = [finished_job(database, storage, alice.tenant_id) for _ in range(3)]
        queries.clear()
        items = [{"job": name, "input": {"text": "a"}} for name in [*names, "job_none"] * 5]
        looked_at = self.look(database, alice.tenant_id, *items)
        assert len(queries) == 1
        assert len(looked_at.order.orders) == 3
        assert len(asked_of(looked_at)) == 15

    def test_puts_the_answers_to_an_input_for_several_jobs_together(
        self, database, settings, alice, queries
    ):
        storage = ArtifactStorage(settings.artifacts_url)
        one, two = (finished_job(database, storage, alice.tenant_id) for _ in range(2))
        queries.clear()
        looked_at = self.look(
            database,
            alice.tenant_id,
            {"job": one, "input": {"text": "a"}},
            {"jobs": [two, "job_none", one], "input": {"text": "b"}},
            {"jobs": [one], "input": {"text": ""}},
        )
        assert len(queries) == 1
        assert [item["input"]["text"] for item in asked_of(looked_at)] == ["a", "b", "b"]
        first, second, third = answers_of(
            looked_at, [{"value": 1.0}, {"value": 2.0}, {"value": 3.0}]
        )
        assert first == {"index": 0, "job": one, "value": 1.0}
        assert second["index"] == 1
        here, gone, there = second["answers"]
        assert (here, there) == (
            {"index": 1, "job": two, "value": 2.0},
            {"index": 1, "job": one, "value": 3.0},
        )
        assert (gone["error"]["code"], gone["error"]["param"]) == ("not_found", "inputs.1.jobs.1")
        [empty] = third["answers"]
        assert empty["error"]["param"] == "inputs.2.input.text"

    @pytest.mark.parametrize(
        ("jobs", "param"),
        [
            ([], "inputs.0.jobs"),
            (["job_1", 5], "inputs.0.jobs.1"),
            (["job_1"] * 2, "inputs.0.jobs"),
        ],
    )
    def test_refuses_an_input_for_impossible_jobs(self, database, alice, jobs: Any, param: str):
        item = {"jobs": jobs, "input": {"text": "a"}}
        looked_at = self.look(database, alice.tenant_id, item)
        [found] = json.loads(answer(looked_at, []))["data"]
        assert (found["error"]["code"], found["error"]["param"]) == ("invalid_input", param)

    def test_counts_an_input_once_for_each_job(self, database, alice):
        jobs = [f"job_{number:024d}" for number in range(200)]
        item = {"jobs": jobs, "input": {"text": "a"}}
        with pytest.raises(ProblemError, match="400 answers are asked for: at most 256"):
            self.look(database, alice.tenant_id, item, item)

    def test_makes_no_query_without_a_valid_item(self, database, alice, queries):
        self.look(
            *(database, alice.tenant_id),
            {"job": "job_1", "input": {}},
            {"job": "../etc/passwd", "input": {"text": "a"}},
            {"job": "job_\x00", "input": {"text": "a"}},
            {"job": None, "input": {"text": "a"}},
        )
        assert queries == []


class TestSeveralReplies:
    """Of several inference processes."""

    BUSY = ProblemError("too_many_requests", status=429, detail="9000 inputs wait")

    def said(self, *values: float) -> bytes:
        return json.dumps({"data": [{"value": value} for value in values]}).encode()

    def test_are_put_together_in_the_order_asked(self):
        looked_at = plan({"text": "a"}, {}, {"text": "b"}, {"text": "c"})
        replies = [Reply([1], self.said(2.0)), Reply([0, 2], self.said(1.0, 3.0))]
        items = json.loads(answer(looked_at, replies))["data"]
        assert [item.get("value") for item in items] == [1.0, None, 2.0, 3.0]
        assert items[1]["error"]["param"] == "inputs.1"

    def test_a_problem_of_one_is_that_of_its_items(self):
        looked_at = plan({"text": "a"}, {"text": "b"})
        items = json.loads(answer(looked_at, [Reply([0], self.BUSY), Reply([1], self.said(2.0))]))
        first, second = items["data"]
        assert second["value"] == 2.0
        error = {"code": "too_many_requests", "message": "9000 inputs wait", "param": None}
        assert first["error"] == error

    def test_problems_of_all_are_the_requests(self):
        looked_at = plan({"text": "a"}, {"text": "b"})
        with pytest.raises(ProblemError) as caught:
            answer(looked_at, [Reply([0], self.BUSY), Reply([1], self.BUSY)])
        assert caught.value is self.BUSY

"""service.jobs.admission: specs that are queued, and specs that are refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from hifi.data.profile import ColumnProfile, DatasetProfile, Problem
from service.jobs import hub
from service.jobs.admission import Admission, admit
from store.database.connection import database_now
from store.datasets import Split, add_dataset
from store.errors import NotFoundError, ProblemError
from store.jobs.spec import JobSpec
from store.storage import Blob
from store.tables import Backbone
from tests.store.jobs.test_spec import STORED

if TYPE_CHECKING:
    from store.database.connection import Database
    from store.settings import Settings
    from tests.service.gateways import Member

COMMIT = "c0ffee" * 6 + "dead"


class Library:
    """A hub in memory that records its requests."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.refusal: ProblemError | None = None

    def pin_model(self, name: str) -> str:
        self.asked.append(("model", name))
        if self.refusal:
            raise self.refusal
        return COMMIT

    def pin_dataset(self, name: str, *, revision: str | None) -> str:
        self.asked.append(("dataset", name, str(revision)))
        return COMMIT


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    """Replace the hub."""
    library = Library()
    monkeypatch.setattr(hub, "pin_model", library.pin_model)
    monkeypatch.setattr(hub, "pin_dataset", library.pin_dataset)
    return library


@pytest.fixture
def backbones(database: Database) -> None:
    """Add a backbone with grouped keys, and one of images."""
    shapes = {
        "grouped": {"num_heads": 8, "num_key_value_heads": 4, "max_positions": None},
        "pictures": {"task_heads": {"image-classification": {"base": 0, "per_label": 65}}},
        "flat": {"num_layers": 1},
    }
    with database.write() as session:
        for name, changes in shapes.items():
            fields: dict[str, Any] = {
                "architecture": "llama",
                "num_layers": 6,
                "num_heads": 12,
                "num_key_value_heads": 12,
                "head_dim": 32,
                "hidden_size": 384,
                "parameters": 1,
                "fingerprint": "sha256:0",
                "max_positions": 512,
                "weights_per_head": 1,
                "task_heads": {"classification": {"base": 0, "per_label": 385}},
                **changes,
            }
            session.add(Backbone(id=name, updated_at=database_now(session), **fields))


def add_data(
    database: Database, owner: Member, *, rows: dict[str, int] | None = None, **problems: Any
) -> str:
    """Add a data set of a text, a label and an image; return its id."""
    rows = rows or {"train": 400, "validation": 40}
    columns = [
        ColumnProfile(
            name=name, type=kind, kind=kind, num_classes=2, problems=problems.get(name, {})
        )
        for name, kind in (("text", "text"), ("label", "integer"))
    ]
    profile = DatasetProfile(rows=rows, columns=columns).to_json()
    blob = Blob(sha256="0" * 64, bytes=1)
    with database.write() as session:
        return add_dataset(
            session,
            owner.tenant_id,
            name=None,
            splits={split: Split(blob=blob, rows=count) for split, count in rows.items()},
            columns={"text": "string", "label": "int64"},
            profile=profile,
            max_bytes=1 << 40,
        ).id


@pytest.fixture
def dataset(database: Database, alice: Member) -> str:
    return add_data(database, alice)


@pytest.fixture
def ask(database: Database, settings: Settings, alice: Member, dataset: str, library: Library):  # noqa: ARG001 - it replaces the hub
    """Return a function that admits a spec with these fields."""

    def ask(*, allow_hub: bool = False, **fields: Any) -> Admission:
        spec = {"model": "minilm", "dataset": dataset, **fields}
        with database.read() as session:
            return admit(
                session,
                tenant_id=alice.tenant_id,
                spec=JobSpec.model_validate_json(json.dumps(spec)),
                settings=settings.model_copy(update={"allow_hub": allow_hub}),
            )

    return ask


def refusal(ask, **fields: Any) -> ProblemError:
    with pytest.raises(ProblemError) as caught:
        ask(**fields)
    assert caught.value.status == 422
    return caught.value


class TestAdmit:
    def test_fills_in_every_default(self, ask, dataset: str):
        admission = ask()
        assert admission.new_job.spec == {
            **STORED,
            "model": "minilm",
            "dataset": dataset,
            "task": {**STORED["task"], "text": ["text"], "metric": "accuracy"},
            "metadata": {},
        }
        assert (admission.train_rows, admission.num_labels) == (400, 2)
        assert admission.backbone is not None
        assert admission.new_job.dataset_id == dataset

    def test_keeps_given_values(self, ask, dataset: str):
        said = {
            "task": {"type": "classification", "text": ["text"], "metric": "f1"},
            "k": 2,
            "xi": 0.5,
            "d": 0.5,
            "n_samples": 7,
            "strategy": "mid-top",
            "teleport": "uniform",
            "name": "mine",
            "metadata": {"team": "search"},
        }
        new = ask(**said, training={"epochs": 1, "early_stopping_patience": 2}).new_job
        assert {name: new.spec[name] for name in said} == {
            **said,
            "task": {**said["task"], "label": "label", "image": None},
        }
        assert (new.model, new.revision, new.needs_hub) == ("minilm", None, False)
        assert (new.dataset_id, new.name, new.meta) == (dataset, "mine", {"team": "search"})
        assert json.loads(json.dumps(new.spec)) == new.spec

    def test_takes_all_rows_where_there_are_fewer_than_300(self, ask, database, alice):
        few = add_data(database, alice, rows={"train": 40})
        assert ask(dataset=few).new_job.spec["n_samples"] == 40

    @pytest.mark.usefixtures("backbones")
    def test_counts_groups_of_heads(self, ask):
        assert ask(model="grouped", k=4).backbone.id == "grouped"
        error = refusal(ask, model="grouped", k=5)
        assert (error.code, error.param) == ("invalid_request", "k")
        assert "has 4 selectable heads" in error.detail

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"k": 13}, "k"),
            ({"n_samples": 401}, "n_samples"),
            ({"training": {"max_length": 513}}, "training.max_length"),
            ({"model": "flat", "strategy": "mid-top"}, "strategy"),
        ],
    )
    @pytest.mark.usefixtures("backbones")
    def test_refuses_what_model_or_data_lack(self, fields: dict[str, Any], param: str, ask):
        error = refusal(ask, **fields)
        assert (error.code, error.param) == ("invalid_request", param)

    @pytest.mark.usefixtures("backbones")
    def test_a_model_without_positions_reads_any_length(self, ask):
        ask(model="grouped", training={"max_length": 4096})

    def test_early_stopping_needs_a_validation_split(self, ask, database, alice):
        patience = {"early_stopping_patience": 1}
        ask(training=patience)
        alone = add_data(database, alice, rows={"train": 40})
        error = refusal(ask, dataset=alone, training=patience)
        assert error.param == "training.early_stopping_patience"

    @pytest.mark.usefixtures("backbones")
    def test_a_task_needs_a_model_that_can_do_it(self, ask):
        error = refusal(ask, model="pictures")
        assert (error.code, error.param) == ("model_not_suitable", "model")
        assert "supports image-classification, not classification" in error.detail

    def test_problems_of_the_task_are_reported(self, ask, database, alice):
        assert refusal(ask, task={"label": "x"}).code == "column_not_found"
        assert refusal(ask, task={"type": "causal-lm"}).code == "task_not_supported"
        assert refusal(ask, task={"metric": "pearson"}).param == "task.metric"
        problem = {"text": {"train": Problem(row=3, reason="the text is empty")}}
        broken = add_data(database, alice, text=problem)
        assert "row 3" in refusal(ask, dataset=broken).detail


class TestModel:
    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("nothing", "no model 'nothing'"),
            ("/etc/passwd", "is a path"),
            ("../minilm", "is a path"),
            ("./minilm", "is a path"),
            ("~/minilm", "is a path"),
            ("a/../minilm", "is a path"),
            ("..", "is a path"),
            ("C:\\models", "is a path"),
            ("models/minilm/", "is a path"),
            ("file:///minilm", "is a path"),
            ("google/bert", "is a model of the hub, which this server does not use"),
        ],
    )
    def test_is_a_name_of_this_server(self, name: str, words: str, ask, library: Library):
        error = refusal(ask, model=name)
        assert (error.code, error.param) == ("model_not_found", "model")
        assert words in error.detail
        assert "available: 'minilm'" in error.detail
        assert library.asked == []

    @pytest.mark.parametrize("name", ["/etc/passwd", "../minilm", "a/../b", "a/b/c", "..", "./a"])
    def test_a_path_is_never_sent_to_the_hub(self, name: str, ask, library: Library):
        assert refusal(ask, model=name, allow_hub=True).code == "model_not_found"
        assert library.asked == []

    def test_many_are_not_all_listed(self, ask, database: Database):
        with database.write() as session:
            row = session.get(Backbone, "minilm")
            assert row is not None
            values = {
                column.name: getattr(row, column.name) for column in Backbone.__table__.columns
            }
            session.add_all(Backbone(**{**values, "id": f"model{n:04}"}) for n in range(1000))
        assert len(refusal(ask, model="nothing").detail) < 300

    def test_of_the_hub_is_pinned(self, ask, library: Library):
        admission = ask(model="google/bert", allow_hub=True)
        new = admission.new_job
        assert (new.model, new.revision, new.needs_hub) == ("google/bert", COMMIT, True)
        assert admission.backbone is None
        assert library.asked == [("model", "google/bert")]

    def test_refusals_of_the_hub_are_reported(self, ask, library: Library):
        library.refusal = ProblemError("pickled_weights", status=422, detail="x", param="model")
        assert refusal(ask, model="google/bert", allow_hub=True).code == "pickled_weights"


class TestDataset:
    def test_of_another_tenant_is_not_there(self, ask, database: Database, bob: Member):
        theirs = add_data(database, bob)
        for name in (theirs, "ds_nothing", "../x"):
            with pytest.raises(NotFoundError) as caught:
                ask(dataset=name)
            assert caught.value.param == "dataset"
            assert str(caught.value) == f"there is no dataset {name!r}"

    def test_of_the_hub_is_refused_where_none_is_allowed(self, ask, library: Library):
        error = refusal(ask, dataset={"hub": "nyu-mll/glue", "config": "mrpc"})
        assert (error.code, error.param) == ("hub_not_allowed", "dataset.hub")
        assert library.asked == []

    def test_of_the_hub_is_pinned(self, ask, library: Library):
        source = {"hub": "nyu-mll/glue", "config": "mrpc", "revision": "main"}
        new = ask(dataset=source, task={"type": "classification"}, allow_hub=True).new_job
        assert new.spec["dataset"] == {**source, "revision": COMMIT}
        assert (new.dataset_id, new.needs_hub, new.revision) == (None, True, None)
        assert new.spec["task"]["metric"] == "accuracy"
        assert new.spec["n_samples"] is None
        assert library.asked == [("dataset", "nyu-mll/glue", "main")]

    @pytest.mark.parametrize("name", ["../../etc", "/etc/passwd", "a/b/c", "a/../b"])
    def test_a_path_is_never_sent_to_the_hub(self, name: str, ask, library: Library):
        assert refusal(ask, dataset={"hub": name}, allow_hub=True).param == "dataset.hub"
        assert library.asked == []

    def test_of_the_hub_is_checked_as_far_as_possible(self, ask):
        source = {"hub": "nyu-mll/glue"}
        error = refusal(ask, dataset=source, task={"type": "regression"}, allow_hub=True)
        assert error.code == "model_not_suitable"
        assert refusal(ask, dataset=source, k=13, allow_hub=True).param == "k"


class TestConnections:
    def test_none_waits_for_the_hub(
        self,
        database: Database,
        settings: Settings,
        alice: Member,
        dataset: str,
        monkeypatch: pytest.MonkeyPatch,
    ):
        in_use = []

        def pin_model(_name: str) -> str:
            in_use.append(database.engine.pool.checkedout())
            return COMMIT

        monkeypatch.setattr(hub, "pin_model", pin_model)
        with database.read() as session:
            admit(
                session,
                tenant_id=alice.tenant_id,
                spec=JobSpec(model="google/bert", dataset=dataset),
                settings=settings.model_copy(update={"allow_hub": True}),
            )
            in_use.append(database.engine.pool.checkedout())
        assert in_use == [0, 1]

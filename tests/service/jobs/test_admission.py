"""service.jobs.admission: specs that are queued, and specs that are refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import sqlalchemy as sa

from hifi.data.profile import ColumnProfile, DatasetProfile, Kind, Problem, SingleClasses
from hifi.data.settings import Hyperparameters
from hifi.data.training_defaults import LEAST_STEPS, choose_learning_rate
from service.jobs import hub
from service.jobs.admission import Admission, admit
from service.jobs.estimates import Rates, estimate_at
from store.database.connection import database_now
from store.datasets import Split, add_dataset
from store.errors import NotFoundError, ProblemError
from store.jobs.spec import JobSpec
from store.jobs.workers import change_offer, register
from store.storage import Blob
from store.tables import Backbone
from tests.store.jobs.test_spec import STORED

if TYPE_CHECKING:
    from store.database.connection import Database
    from store.settings import Settings
    from tests.service.gateways import Member

COMMIT = "c0ffee" * 6 + "dead"
UNKNOWN = Rates(samples_per_second=None, selection_seconds=None)


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


def sign_on(database: Database, **unavailable: dict[str, str]) -> None:
    """Register a worker that has found these models, and withdraw all others."""
    register(database, worker_id="w1", device="cpu", backbones=[], allows_hub=False)
    change_offer(database, "w1", backbones=[], unavailable=unavailable)


def remove_backbones(database: Database) -> None:
    with database.write() as session:
        session.execute(sa.delete(Backbone))


def add_labels(
    database: Database, owner: Member, *, rows: int = 400, kind: Kind = "text", **facts: Any
) -> str:
    """Add a data set whose profile has these facts of its label; return its id."""
    label = ColumnProfile(name="label", type="string", kind=kind, **facts)
    text = ColumnProfile(name="text", type="string", kind="text", num_classes=rows)
    profile = DatasetProfile(rows={"train": rows}, columns=[text, label])
    with database.write() as session:
        return add_dataset(
            session,
            owner.tenant_id,
            name=None,
            splits={"train": Split(blob=Blob(sha256="0" * 64, bytes=1), rows=rows)},
            columns={"text": "string", "label": "string"},
            profile=profile.to_json(),
            max_bytes=1 << 40,
        ).id


class TestTestSplit:
    ROWS: ClassVar = {"train": 400, "test": 40}

    def test_is_checked_as_validation_is(self, ask, database, alice):
        for column, use in (("label", "label"), ("text", "text")):
            problems = {column: {use: {"test": Problem(row=7, reason="it is so")}}}
            data = add_data(database, alice, rows=self.ROWS, **problems)
            error = refusal(ask, dataset=data)
            assert (error.code, error.param) == ("dataset_invalid", f"task.{column}")
            assert error.detail == f"test, row 7, column '{column}': it is so"

    def test_is_no_validation_split(self, ask, database, alice):
        data = add_data(database, alice, rows=self.ROWS)
        assert ask(dataset=data)
        training = {"early_stopping_patience": 2}
        assert "needs a validation split" in refusal(ask, dataset=data, training=training).detail


class TestClassWeights:
    @pytest.mark.parametrize("weights", ["balanced", {"ant": 2.0}, {"ant": 1, "bee": 0.1}, None])
    def test_are_stored_with_the_job(self, weights, ask, database, alice):
        data = add_labels(database, alice, num_classes=2, labels=("ant", "bee"))
        spec = ask(dataset=data, training={"class_weights": weights}).new_job.spec
        assert spec["training"]["class_weights"] == weights

    def test_of_a_class_that_is_not_in_train_are_refused(self, ask, database, alice):
        data = add_labels(database, alice, num_classes=2, labels=(0, 1))
        assert ask(dataset=data, training={"class_weights": {"1": 2.0}})
        error = refusal(ask, dataset=data, training={"class_weights": {"2": 2.0}})
        assert (error.code, error.param) == ("invalid_request", "training.class_weights")
        assert "known are '0', '1'" in error.detail

    def test_of_labels_that_the_profile_does_not_name_are_left_to_the_worker(
        self, ask, database, alice
    ):
        data = add_labels(database, alice, num_classes=2, labels=None)
        assert ask(dataset=data, training={"class_weights": {"2": 2.0}})

    def test_of_a_regression_are_refused(self, ask):
        training, task = {"class_weights": "balanced"}, {"type": "regression"}
        error = refusal(ask, training=training, task=task)
        assert (error.code, error.param) == ("invalid_request", "training.class_weights")
        hub_data = {"allow_hub": True, "dataset": {"hub": "glue"}, "training": training}
        assert refusal(ask, task=task, **hub_data).param == "training.class_weights"
        assert ask(model="org/unseen", **hub_data)


class TestWarnings:
    @pytest.fixture
    def with_head(self, database: Database, backbones: None) -> None:  # noqa: ARG002 - made first
        """Let the backbone ``grouped`` have a task head of its own for three labels."""
        stored = {"num_labels": 3, "names": ["ant", "bee", "cat"]}
        heads = {
            "classification": {"base": 0, "per_label": 385, "stored": stored},
            "regression": {"base": 0, "per_label": 385, "stored": stored},
        }
        with database.write() as session:
            row = session.get(Backbone, "grouped")
            assert row is not None
            row.task_heads = heads

    def codes(self, ask, **fields: Any) -> list[str]:
        return [warning["code"] for warning in ask(**fields).new_job.warnings]

    def test_name_the_field_of_the_spec(self, ask, database, alice):
        data = add_labels(database, alice, rows=600, num_classes=500)
        assert ask(dataset=data).new_job.warnings == [
            {
                "code": "many_classes",
                "message": "the label 'label' has 500 classes in 600 rows: if it is an id or a "
                "text, choose another column as the label",
                "param": "task.label",
            }
        ]

    def test_of_rare_classes(self, ask, database, alice):
        single = SingleClasses(count=1, some=("cat",))
        data = add_labels(
            database, alice, num_classes=2, labels=("cat", "dog"), single_classes=single
        )
        assert self.codes(ask, dataset=data) == ["rare_classes"]

    def test_of_a_test_split_without_labels(self, ask, database, alice):
        data = add_labels(database, alice, num_classes=2, test_unlabelled=True)
        assert self.codes(ask, dataset=data) == ["test_not_scored"]
        (warning,) = ask(dataset=data).new_job.warnings
        assert warning["param"] == "dataset"

    @pytest.mark.usefixtures("with_head")
    def test_of_a_replaced_head(self, ask, database, alice):
        data = add_labels(database, alice, num_classes=2, labels=("ant", "bee"))
        (warning,) = ask(dataset=data, model="grouped").new_job.warnings
        assert (warning["code"], warning["param"]) == ("task_head_replaced", "model")
        assert (
            "the task head of grouped (3 labels: 'ant', 'bee', 'cat') does not fit"
            in (warning["message"])
        )
        assert self.codes(ask, dataset=data) == []  # minilm has no head of its own

    @pytest.mark.usefixtures("with_head")
    @pytest.mark.parametrize(("kind", "is_told"), [("integer", True), ("text", False)])
    def test_of_a_replaced_head_tells_of_names_in_the_file(
        self, kind, is_told, ask, database, alice
    ):
        labels = ("0", "1", "2")
        data = add_labels(database, alice, kind=kind, num_classes=3, labels=labels)
        (warning,) = ask(dataset=data, model="grouped").new_job.warnings
        assert ("a ClassLabel, count as its labels" in warning["message"]) == is_told
        error = refusal(ask, dataset=data, model="grouped", training={"head_start": "keep"})
        assert ("a ClassLabel, count as its labels" in error.detail) == is_told

    @pytest.mark.usefixtures("with_head")
    @pytest.mark.parametrize("start", ["probe", "random"])
    def test_not_of_a_replaced_head_if_another_start_is_wanted(self, start, ask, database, alice):
        training = {"head_start": start}
        for labels in (("ant", "bee"), (0, 1, 2)):
            data = add_labels(database, alice, num_classes=len(labels), labels=labels)
            assert self.codes(ask, dataset=data, model="grouped", training=training) == []

    @pytest.mark.usefixtures("with_head")
    @pytest.mark.parametrize(
        ("labels", "codes"),
        [((0, 1, 2), ["labels_by_number"]), (("cat", "ant", "bee"), []), (None, [])],
    )
    def test_of_a_kept_head(self, labels, codes, ask, database, alice):
        data = add_labels(database, alice, num_classes=3, labels=labels)
        training = {"head_start": "keep"}
        assert self.codes(ask, dataset=data, model="grouped", training=training) == codes

    @pytest.mark.usefixtures("with_head")
    @pytest.mark.parametrize("labels", [("ant", "bee"), ("ant", "bee", "dog"), (1, 2, 3)])
    def test_a_head_that_does_not_fit_cannot_be_kept(self, labels, ask, database, alice):
        data = add_labels(database, alice, num_classes=len(labels), labels=labels)
        error = refusal(ask, dataset=data, model="grouped", training={"head_start": "keep"})
        assert (error.code, error.param) == ("invalid_request", "training.head_start")
        assert "head of grouped (3 labels: 'ant', 'bee', 'cat') does not fit" in error.detail

    def test_a_head_that_is_not_there_cannot_be_kept(self, ask):
        error = refusal(ask, training={"head_start": "keep"})
        assert (error.code, error.param) == ("invalid_request", "training.head_start")
        assert "minilm has no task head of this kind" in error.detail

    def test_nor_for_data_of_the_hub(self, ask):
        training = {"head_start": "keep"}
        task = {"type": "classification", "text": ["text"], "label": "label"}
        hub_data = {"allow_hub": True, "dataset": {"hub": "glue"}, "task": task}
        assert refusal(ask, training=training, **hub_data).param == "training.head_start"
        assert ask(model="org/unseen", training=training, **hub_data).backbone is None

    @pytest.mark.usefixtures("with_head")
    def test_of_labels_by_number(self, ask, database, alice):
        data = add_labels(database, alice, num_classes=3, labels=(0, 1, 2))
        (warning,) = ask(dataset=data, model="grouped").new_job.warnings
        assert (warning["code"], warning["param"]) == ("labels_by_number", "task.label")
        assert "0 is 'ant', 1 is 'bee', 2 is 'cat'" in warning["message"]

    @pytest.mark.usefixtures("with_head")
    @pytest.mark.parametrize("labels", [("ant", "bee", "cat"), None])
    def test_a_head_that_fits_or_is_not_known_to_fit_has_none(self, labels, ask, database, alice):
        data = add_labels(database, alice, num_classes=3, labels=labels)
        assert self.codes(ask, dataset=data, model="grouped") == []

    def test_of_the_profile_of_an_earlier_version_there_are_none(self, ask):
        assert ask().new_job.warnings == []


class TestAdmit:
    def test_writes_down_every_choice(self, ask, dataset: str):
        admission = ask()
        left_open = Hyperparameters()
        assert admission.new_job.spec == {
            **STORED,
            "model": "minilm",
            "dataset": dataset,
            "task": {**STORED["task"], "text": ["text"], "metric": "accuracy"},
            "training": {
                **STORED["training"],
                "epochs": left_open.count_epochs(rows=400),
                "learning_rate": choose_learning_rate(hidden_size=384),
            },
            "metadata": {},
        }
        assert (admission.train_rows, admission.num_labels) == (400, 2)
        assert admission.backbone is not None
        assert admission.new_job.dataset_id == dataset

    def test_few_rows_get_more_epochs_and_so_the_steps_of_the_estimate(self, ask, database, alice):
        few = add_data(database, alice, rows={"train": 40})
        admission = ask(dataset=few)
        epochs = admission.new_job.spec["training"]["epochs"]
        assert epochs == LEAST_STEPS // 2  # of two steps each
        assert estimate_at(admission, rates=UNKNOWN).steps == 2 * epochs

    def test_what_is_written_down_is_admitted_unchanged(self, ask):
        for fields in ({}, {"preset": "paper"}, {"k": 2}, {"strategy": "budget", "budget": 5}):
            spec = ask(**fields).new_job.spec
            assert ask(**spec).new_job.spec == spec

    def test_a_preset_is_written_down_with_its_settings(self, ask, dataset: str):
        admission = ask(preset="paper")
        training = {**STORED["training"], "learning_rate": 2e-4, "head_start": "random"}
        assert admission.new_job.spec == {
            **STORED,
            "model": "minilm",
            "dataset": dataset,
            "task": {**STORED["task"], "text": ["text"], "metric": "accuracy"},
            "preset": "paper",
            "training": {**training, "epochs": 3},
            "metadata": {},
        }
        assert estimate_at(admission, rates=UNKNOWN).steps == 3 * 13

    def test_what_is_given_stands_beside_a_preset(self, ask):
        spec = ask(preset="paper", k=1, training={"epochs": 7}).new_job.spec
        assert (spec["k"], spec["training"]["epochs"]) == (1, 7)
        assert spec["training"]["learning_rate"] == 2e-4

    def test_the_rate_of_an_unseen_backbone_is_chosen_by_the_worker(self, ask):
        admission = ask(allow_hub=True, model="org/model")
        training = admission.new_job.spec["training"]
        epochs = Hyperparameters().count_epochs(rows=400)
        assert (training["epochs"], training["learning_rate"]) == (epochs, "auto")
        assert estimate_at(admission, rates=UNKNOWN).steps == 13 * epochs

    def test_the_epochs_of_unseen_rows_are_chosen_by_the_worker(self, ask):
        task = {"type": "classification", "text": ["text"], "label": "label"}
        admission = ask(allow_hub=True, dataset={"hub": "glue"}, task=task)
        training = admission.new_job.spec["training"]
        rate = choose_learning_rate(hidden_size=384)
        assert (training["epochs"], training["learning_rate"]) == (None, rate)
        assert estimate_at(admission, rates=UNKNOWN).steps is None

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
        left = (
            *("image", "tokens", "tags", "spans", "question", "context", "choices", "answers"),
            *("threshold", "stride"),
        )
        assert {name: new.spec[name] for name in said} == {
            **said,
            "task": {**said["task"], "label": "label", **dict.fromkeys(left)},
        }
        assert (new.model, new.revision, new.needs_hub) == ("minilm", None, False)
        assert (new.dataset_id, new.name, new.meta) == (dataset, "mine", {"team": "search"})
        assert json.loads(json.dumps(new.spec)) == new.spec

    def test_a_budget_stands_in_the_place_of_k(self, ask):
        new = ask(score="gradient", strategy="budget", budget=72).new_job
        expected = {"score": "gradient", "strategy": "budget", "budget": 72, "k": None}
        assert {name: new.spec[name] for name in expected} == expected
        assert JobSpec.model_validate(new.spec).allotment.count == 72

    @pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
    def test_a_gradient_takes_any_precision(self, precision: str, ask):
        assert ask(score="gradient-ratio", training={"precision": precision})

    def test_counts_that_do_not_go_together_are_refused_for_an_unseen_backbone(
        self, ask, library: Library
    ):
        error = refusal(ask, allow_hub=True, model="org/model", strategy="budget")
        assert (error.code, error.param) == ("invalid_request", "budget")
        assert library.asked == []

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
            ({"training": {"max_seconds": 86_401}}, "training.max_seconds"),
            ({"model": "flat", "strategy": "mid-top"}, "strategy"),
            ({"strategy": "budget"}, "budget"),
            ({"strategy": "budget", "k": 3}, "budget"),
            ({"strategy": "budget", "budget": 73}, "budget"),  # of 72
            ({"strategy": "budget", "budget": 18, "k": 3}, "budget"),
            ({"budget": 18}, "budget"),
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
            ("/etc/passwd", "is a path; use an id that GET /models (`hifi models list`) lists"),
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

    def test_that_workers_cannot_use_is_refused_with_the_reason(self, ask, database: Database):
        sign_on(database, t5={"status": "unusable", "reason": "it is an encoder-decoder"})
        error = refusal(ask, model="t5")
        assert (error.code, error.param) == ("model_unusable", "model")
        assert error.detail == "the model 't5' cannot be used: it is an encoder-decoder"

    def test_that_a_worker_still_reads_is_refused_with_what_to_do(self, ask, database: Database):
        sign_on(database, vit={"status": "reading", "reason": "a worker is reading it"})
        error = refusal(ask, model="vit")
        assert error.code == "model_not_ready"
        words = "a worker is reading it; retry when GET /models (`hifi models list`) lists it"
        assert words in error.detail

    def test_before_a_worker_has_reported_is_not_called_unknown(self, ask, database: Database):
        remove_backbones(database)
        with pytest.raises(ProblemError) as caught:
            ask(model="vit")
        error = caught.value
        assert (error.status, error.code, error.param) == (503, "no_worker", None)
        assert "a worker that was just started reads them first" in error.detail
        assert "Retry-After" in error.headers

    def test_of_workers_without_any_says_where_models_go(self, ask, database: Database):
        sign_on(database)
        error = refusal(ask, model="vit")
        assert error.code == "model_not_found"
        assert "no model 'vit'; the workers have none: copy a folder" in error.detail
        assert "HIFI_MODELS" in error.detail

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

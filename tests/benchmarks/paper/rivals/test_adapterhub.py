"""benchmarks.paper.methods.adapterhub: a model in another process is trained as one in ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from transformers import BertModel

from benchmarks.paper.methods import METHODS
from benchmarks.paper.methods.adapterhub import COMPACTER, HOULSBY, adapter
from benchmarks.paper.methods.plain import full
from benchmarks.paper.methods.rival import Rival, head_names, train_only, trained_by
from benchmarks.paper.rivals.child import ChildError
from benchmarks.paper.running import Workplace
from hifi.backbones.models import ModelSource
from tests.architectures import tiny_model
from tests.benchmarks.paper.tiny import tiny_run
from tests.tiny_tasks import save_text_model

if TYPE_CHECKING:
    from benchmarks.paper.methods.base import Outcome, Run
    from hifi.data.settings import Hyperparameters
    from hifi.training.preparation import Prepared

pytestmark = pytest.mark.process

NOTHING = None  # the task head alone
LAYERS, HIDDEN, HEAD = 6, 384, 2 * 384 + 2  # of MiniLM


def head_with_dropout(ready: Prepared, settings: Hyperparameters) -> Rival:  # noqa: ARG001
    """Train the task head with dropout in the whole model, as beside an adapter."""
    return train_only(ready.loaded.model, head_names(ready))


def is_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the model elsewhere train all of its parameters."""
    monkeypatch.setattr(
        "benchmarks.paper.methods.adapterhub.head_names",
        lambda ready: {name for name, _ in ready.loaded.model.named_parameters()},
    )


def without_seconds(outcome: Outcome) -> Outcome:
    return replace(outcome, seconds={})


def numbers(outcome: Outcome) -> list[float]:
    """Return every metric of a run, the loss among them, in a fixed order."""
    measured = [*outcome.evaluations, outcome.test or {}]
    return [value for each in measured for _, value in sorted(each.items())]


class TestSameTraining:
    """With our own interpreter and no adapter: equal to the last bit."""

    @pytest.fixture(autouse=True)
    def ours(self, stand_in: Callable[..., None]) -> None:
        stand_in("adapters")

    @pytest.mark.parametrize("task", ["cola", "stsb"])
    def test_of_every_weight(
        self, workplace: Workplace, monkeypatch: pytest.MonkeyPatch, task: str
    ):
        is_everything(monkeypatch)
        run = tiny_run(workplace, task)
        there, here = (method(run) for method in (adapter(NOTHING), trained_by(full)))
        assert vars(without_seconds(there)) == vars(without_seconds(here))
        assert there.evaluations[0] != there.evaluations[1]

    def test_of_the_task_head_from_a_probe(self, workplace: Workplace):
        run = tiny_run(workplace, "stsb", head_start="probe", weight_decay=0.1)
        there, here = (method(run) for method in (adapter(NOTHING), trained_by(head_with_dropout)))
        assert vars(without_seconds(there)) == vars(without_seconds(here))
        assert len(there.evaluations) == 3  # the start is one
        assert there.evaluations[0] != there.evaluations[-1]

    def test_a_missing_pooler_is_trained_there_too(self, workplace: Workplace, tmp_path: Path):
        folder = save_text_model(tmp_path / "bare")
        BertModel(tiny_model("bert").config, add_pooling_layer=False).save_pretrained(folder)
        bare = Workplace(data=workplace.data, source=ModelSource("bare", folder))
        run = tiny_run(bare, "cola")
        there, here = (method(run) for method in (adapter(NOTHING), trained_by(head_with_dropout)))
        assert vars(without_seconds(there)) == vars(without_seconds(here))


def test_what_fails_there_is_an_error_with_its_reason(
    workplace: Workplace, stand_in: Callable[..., None], tmp_path: Path
):
    script = tmp_path / "script.py"
    script.write_text("raise ImportError('adapters is broken')", encoding="utf-8")
    stand_in("adapters", script=script)
    with pytest.raises(ChildError, match=r"load: .* last words: ImportError: adapters is broken"):
        METHODS["adapter"].run(tiny_run(workplace, "cola"))


@pytest.mark.usefixtures("real_environments")
class TestReal:
    """In the environment of AdapterHub's package, with its release of transformers."""

    @pytest.mark.parametrize("task", ["cola", "stsb"])
    def test_training_is_the_same_to_rounding(
        self, workplace: Workplace, monkeypatch: pytest.MonkeyPatch, task: str
    ):
        is_everything(monkeypatch)
        run = tiny_run(workplace, task)
        there, here = (method(run) for method in (adapter(NOTHING), trained_by(full)))
        assert numbers(there) == pytest.approx(numbers(here), rel=1e-4)
        assert there.trained_weights == here.trained_weights

    def test_so_is_that_of_a_real_backbones_task_head(self, minilm_workplace: Workplace):
        run = tiny_run(minilm_workplace, "cola")
        there, here = (method(run) for method in (adapter(NOTHING), trained_by(head_with_dropout)))
        assert numbers(there) == pytest.approx(numbers(here), rel=1e-4)

    @pytest.mark.parametrize(
        ("name", "weights"),
        [
            # two adapters a layer, each down to 24 and up again, with biases
            ("adapter", HEAD + LAYERS * 2 * (2 * 24 * HIDDEN + 24 + HIDDEN)),
            # four matrices 4 × 4 of all layers; B of 96 × 3 and 3 × 96, as products of vectors;
            # biases of 12 and 384
            ("compacter", HEAD + 4**3 + LAYERS * 2 * (2 * 4 * (96 + 3) + 12 + HIDDEN)),
        ],
    )
    def test_as_many_weights_as_the_method_says(
        self, minilm_workplace: Workplace, name: str, weights: int
    ):
        outcome = METHODS[name].run(tiny_run(minilm_workplace, "cola"))
        assert outcome.trained_weights == weights
        assert 4 * weights < outcome.stored_bytes["float32"] < 4 * weights + 20_000

    @pytest.mark.parametrize("configuration", [HOULSBY, COMPACTER])
    def test_the_adapter_is_trained_and_drawn_by_the_seed(
        self, minilm_workplace: Workplace, configuration: str
    ):
        run = tiny_run(minilm_workplace, "stsb", head_start="probe", epochs=1)
        first, again = (adapter(configuration)(run) for _ in range(2))
        assert vars(without_seconds(first)) == vars(without_seconds(again))
        alone, other = adapter(NOTHING)(run), with_seed(run, 1)
        assert first.evaluations[-1] != alone.evaluations[-1]
        assert adapter(configuration)(other).evaluations[0] != first.evaluations[0]


def with_seed(run: Run, seed: int) -> Run:
    return replace(run, hyperparameters={**run.hyperparameters, "seed": seed})

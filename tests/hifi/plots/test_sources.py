"""hifi.plots.sources: which things can be drawn, and what is said about the others."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from hifi import HeadDelta
from hifi.backbones.heads import HeadId
from hifi.errors import DeltaFileError, InvalidArgumentError
from hifi.plots.sources import metric_to_draw, number, outcome_of, selection_of
from hifi.selection.head_selection import HeadSelection
from service.jobs.documents import HeadsDocument
from tests.hifi.plots.made import IMPORTANCE, budget_document, heads_document, selection


class TestSelectionOf:
    def test_takes_a_selection_as_it_is(self):
        made = selection()
        assert selection_of(made) is made

    @pytest.mark.parametrize("kind", [str, lambda path: path, HeadDelta.load])
    def test_takes_a_delta_and_its_file(self, kind, delta_file):
        assert selection_of(kind(delta_file)).heads == (HeadId(0, 1), HeadId(2, 3))

    def test_takes_a_delta_that_records_scores(self, delta_file):
        delta = HeadDelta.load(delta_file)
        recorded = replace(delta.metadata, selection=heads_document())
        read = selection_of(replace(delta, metadata=recorded))
        assert [layer.importance.tolist() for layer in read.layers] == IMPORTANCE

    @pytest.mark.parametrize("stored", [heads_document(), budget_document()])
    def test_takes_the_heads_of_a_job(self, stored):
        server = {"job": "job_1", "model": "m", "fingerprint": f"sha256:{64 * '0'}"}
        server |= {"num_heads": 3, "head_dim": 8, "trainable_parameters": 9, "fraction": 0.1}
        job = HeadsDocument.model_validate(
            {
                "score": "pagerank",
                "budget": None,
                "artifact": None,
                **server,
                **stored,
                "layers": [{"values": each["importance"], **each} for each in stored["layers"]],
            }
        )
        read = selection_of(json.loads(job.model_dump_json()))
        assert replace(read, fingerprint=None).to_dict() == stored

    @pytest.mark.parametrize("source", [None, 3, [], {}, {"object": "job", "selection": {}}])
    def test_refuses_other_things(self, source):
        with pytest.raises(InvalidArgumentError, match=r"^source=.*the path of a delta file"):
            selection_of(source)

    def test_names_an_invalid_field(self):
        with pytest.raises(InvalidArgumentError, match=r"selection\.xi"):
            selection_of(heads_document(xi=2))

    def test_refuses_a_richness_that_is_no_number(self):
        document = heads_document()
        document["layers"][1]["information_richness"] = [1.0, math.nan, 3.5]
        with pytest.raises(InvalidArgumentError, match=r"layers\[1\]\.information_richness="):
            selection_of(document)

    def test_refuses_a_file_that_is_no_delta(self, tmp_path):
        path = tmp_path / "other.safetensors"
        path.write_bytes(b"other")
        with pytest.raises(DeltaFileError, match=r"other\.safetensors"):
            selection_of(path)

    @pytest.mark.parametrize("head", [HeadId(0, 256), HeadId(256, 0)])
    def test_refuses_more_heads_than_a_picture_can_show(self, head):
        made = HeadSelection.from_heads([head], num_layers=head.layer + 1)
        with pytest.raises(InvalidArgumentError, match=r"source=257.*at most 256 layers"):
            selection_of(made)

    def test_refuses_layers_of_different_width(self):
        document = heads_document()
        narrow = {"importance": [1.0], "information_richness": [3.0], "correlation": [[0.0]]}
        document["layers"][1] |= {**narrow, "selected": [0]}
        with pytest.raises(InvalidArgumentError, match="as many heads as each other"):
            selection_of(document)


class TestNumber:
    @pytest.mark.parametrize("value", [None, "1", True, [1], float("inf"), 10**400, float("nan")])
    def test_what_cannot_be_drawn_is_nan(self, value):
        assert math.isnan(number(value))

    def test_integers_are_numbers(self):
        assert number(-3) == -3.0


class TestOutcomeOf:
    def test_ignores_what_a_foreign_document_has_in_the_place_of_a_metric(self):
        document = {"spec": {"task": {"metric": []}}, "result": {"metrics": {"f1": 1.0}}}
        outcome = outcome_of({**document, "result": {**document["result"], "yardsticks": 3}})
        assert (outcome.metric, outcome.yardsticks) == (None, {})

    def test_leaves_out_yardsticks_that_are_none(self):
        yardsticks = {"majority": {"f1": 0.5}, "untuned": None, "probe": 0.5}
        outcome = outcome_of({"result": {"metrics": {"f1": 1.0}, "yardsticks": yardsticks}})
        assert outcome.yardsticks == {"majority": {"f1": 0.5}}


class TestMetricToDraw:
    @pytest.mark.parametrize(
        ("there", "expected"),
        [
            (["loss", "matthews", "accuracy"], "accuracy"),
            (["loss", "spearman", "pearson"], "pearson"),
            (["loss", "bleu"], "bleu"),
            (["loss"], "loss"),
        ],
    )
    def test_is_the_first_that_a_task_type_declares(self, there, expected):
        assert metric_to_draw(None, there=dict.fromkeys(there, 0.5)) == expected

    def test_is_the_runs_if_that_was_measured(self):
        there = {"accuracy": 0.5, "f1": 0.4}
        assert metric_to_draw(None, chosen="f1", there=there) == "f1"
        assert metric_to_draw(None, chosen="pearson", there=there) == "accuracy"
        assert metric_to_draw("accuracy", chosen="f1", there=there) == "accuracy"

"""richness and correlation: what is scored, over which seeds, and what is compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from benchmarks.paper.figures import correlation, richness
from benchmarks.paper.figures.figure import Numbers, Request
from benchmarks.paper.figures.robustness import FROZEN, SETTINGS, TUNED, measure, rank_correlations
from tests.architectures import LAYERS, QUERY_HEADS

RequestFor = Callable[..., Request]
WITH_ST = "spearman_with_ST"


@pytest.fixture(scope="module")
def request_of_two_seeds(request_for: RequestFor) -> Iterator[Request]:
    measure.cache_clear()
    yield request_for(seeds=(0, 1))
    measure.cache_clear()


@pytest.fixture(scope="module")
def rich(request_of_two_seeds: Request) -> Numbers:
    return richness.compute(request_of_two_seeds)


class TestRichness:
    def test_is_mean_and_deviation_over_seeds(self, request_of_two_seeds: Request, rich: Numbers):
        first, second = (
            np.array([layer.information_richness.numpy() for layer in each.layers])
            for each in measure(request_of_two_seeds)["LR"][TUNED]
        )
        found = rich["settings"]["LR"][TUNED]
        assert np.array(found["mean"]) == pytest.approx((first + second) / 2)
        assert np.array(found["sd"]) == pytest.approx(np.abs(first - second) / 2**0.5)
        assert np.shape(found["mean"]) == (LAYERS, QUERY_HEADS)

    def test_the_frozen_model_depends_on_length_and_samples_alone(self, rich: Numbers):
        means = {name: np.array(each[FROZEN]["mean"]) for name, each in rich["settings"].items()}
        assert means["BS"] == pytest.approx(means["ST"], rel=1e-6)
        assert means["LR"] == pytest.approx(means["ST"], rel=1e-6)
        assert not np.allclose(means["SS"], means["ST"], rtol=1e-6)

    def test_the_settings_are_the_papers_with_as_many_samples_as_there_are(self, rich: Numbers):
        asked = {
            name: (each["batch_size"], each["learning_rate"], each["max_length"], each["samples"])
            for name, each in rich["settings"].items()
        }
        assert asked == {
            "ST": (32, 2e-5, 128, 300),
            "BS": (16, 2e-5, 128, 300),
            "LR": (32, 5e-5, 128, 300),
            "SL": (32, 2e-5, 64, 300),
            "SS": (32, 2e-5, 128, 320),
        }
        assert SETTINGS["SS"].samples == 1000

    def test_ranks_are_compared_with_the_standard_settings(self, rich: Numbers):
        for state in (TUNED, FROZEN):
            standard = rich["settings"]["ST"][state]
            mine = rich["settings"]["SL"][state]
            expected = rank_correlations(np.array(mine["mean"]), np.array(standard["mean"]))
            assert mine[WITH_ST] == expected
            # In this tiny model all heads of the upper layers have the same richness.
            assert standard[WITH_ST] == [pytest.approx(1), None, None]

    def test_training_is_what_changes_the_scores(self, request_for: RequestFor):
        # At the paper's rates two steps change I too little to count: compare r.
        measure.cache_clear()
        numbers = correlation.compute(request_for(steps=4))
        means = {
            (name, state): np.array(numbers["settings"][name][state]["mean"])
            for name in ("ST", "BS", "LR")
            for state in (TUNED, FROZEN)
        }
        for name in ("BS", "LR"):
            assert not np.allclose(means[name, TUNED], means["ST", TUNED], rtol=1e-6)
            assert np.allclose(means[name, FROZEN], means["ST", FROZEN], rtol=1e-5)
        assert not np.allclose(means["ST", TUNED], means["ST", FROZEN], rtol=1e-6)

    def test_one_seed_has_no_deviation(self, request_for: RequestFor):
        measure.cache_clear()
        numbers = richness.compute(request_for(steps=1))
        assert numbers["settings"]["ST"][TUNED]["sd"] is None
        assert len(richness.draw(numbers).axes) == 2 * LAYERS

    def test_a_line_and_a_band_for_each_setting(self, rich: Numbers):
        axes = richness.draw(rich).axes
        assert len(axes) == 2 * LAYERS
        assert [line.get_label() for line in axes[0].lines] == list(SETTINGS)
        assert len(axes[0].collections) == len(SETTINGS)
        assert list(axes[0].lines[2].get_ydata()) == rich["settings"]["LR"][TUNED]["mean"][0]

    def test_the_notes_say_what_was_scored(self, rich: Numbers):
        notes = "\n".join(richness.notes(rich))
        assert "a frozen model in eval mode cannot depend on batch size or learning rate" in notes
        assert "Task cola, 2 steps, seeds 0, 1." in notes
        assert "fine-tuned BS: " in notes


class TestCorrelation:
    def test_ranks_of_pairs_are_compared(self, request_of_two_seeds: Request):
        numbers = correlation.compute(request_of_two_seeds)
        found = numbers["settings"]["SL"][TUNED]
        assert np.shape(found["mean"]) == (LAYERS, QUERY_HEADS, QUERY_HEADS)
        pairs = [
            np.array(
                [
                    [layer[0][1], layer[0][2], layer[0][3], layer[1][2], layer[1][3], layer[2][3]]
                    for layer in numbers["settings"][name][TUNED]["mean"]
                ]
            )
            for name in ("SL", "ST")
        ]
        assert found[WITH_ST] == rank_correlations(*pairs)

    def test_a_map_for_each_setting_and_the_frozen_model(self, request_of_two_seeds: Request):
        figure = correlation.draw(correlation.compute(request_of_two_seeds))
        maps = [ax for ax in figure.axes if ax.images]
        assert len(maps) == (len(SETTINGS) + 1) * LAYERS
        assert maps[0].images[0].get_array().max() == pytest.approx(1)


class TestRankCorrelations:
    def test_is_spearmans_by_layer(self):
        first = np.array([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
        second = np.array([[10.0, 20.0, 40.0, 30.0], [4.0, 3.0, 2.0, 1.0]])
        assert rank_correlations(first, second) == pytest.approx([0.8, -1.0])

    def test_is_none_if_all_heads_are_equal(self):
        assert rank_correlations(np.array([[1.0, 2.0]]), np.array([[3.0, 3.0]])) == [None]

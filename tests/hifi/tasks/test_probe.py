"""hifi.tasks.probe: the fit of the linear probe, against scikit-learn on the features as given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from hifi.errors import ProbeError
from hifi.tasks import probe as module
from hifi.tasks.probe import (
    TRIES,
    ClassProbe,
    LabelsProbe,
    LinearProbe,
    NumberProbe,
    SpanProbe,
    WordProbe,
)

CLASSES, SETS, NUMBERS, WORDS = ClassProbe(), LabelsProbe(), NumberProbe(), WordProbe()


def features(count: int = 300, width: int = 6, *, seed: int = 0) -> Tensor:
    """Features of different sizes, far from zero mean."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(-2, 1, width)
    return (torch.randn(count, width, generator=generator) + 3) * sizes


def labels(x: Tensor, num_labels: int, *, noise: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    weights = torch.randn(num_labels, x.shape[1], generator=generator)
    scores = ((x - x.mean(0)) / x.std(0)) @ weights.T
    return (scores + noise * torch.randn(scores.shape, generator=generator)).argmax(-1)


def numbers(x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    scaled = (x - x.mean(0)) / x.std(0)
    noise = torch.randn(len(x), generator=generator)
    return (scaled @ torch.arange(1.0, x.shape[1] + 1) + 10 + noise).float()


def fit(kind, x: Tensor, y: Tensor, *, num_labels: int = 1, has_bias: bool = True) -> LinearProbe:
    return kind.fit(x, y, num_labels=num_labels, has_bias=has_bias, seed=0)


class TestClasses:
    @pytest.mark.parametrize("num_labels", [2, 3, 5])
    def test_is_a_logistic_regression_on_standardised_features(self, num_labels, monkeypatch):
        monkeypatch.setattr(module, "_STRENGTHS", (0.01,))
        x = features()
        y = labels(x, num_labels)
        found = fit(CLASSES, x, y, num_labels=num_labels).logits(x).softmax(-1)
        scaled = StandardScaler().fit_transform(x.double().numpy())
        oracle = LogisticRegression(C=1 / (0.01 * len(x)), tol=1e-8, max_iter=1000).fit(scaled, y)
        assert found.numpy() == pytest.approx(oracle.predict_proba(scaled), abs=2e-3)

    def test_noise_is_met_with_more_strength_than_signal(self):
        x = features(width=40)
        clear = fit(CLASSES, x, labels(x, 2, noise=0.1), num_labels=2)
        chance = torch.arange(len(x)) % 2
        assert fit(CLASSES, x, chance, num_labels=2).logits(x).std() < clear.logits(x).std() / 5

    def test_without_a_bias_the_logits_have_none(self):
        x = features() - features().mean(0)
        found = fit(CLASSES, x, labels(x, 3), num_labels=3, has_bias=False)
        assert found.bias is None
        assert found.logits(torch.zeros(1, 6)).abs().max() == 0
        accuracy = (found.logits(x).argmax(-1) == labels(x, 3)).double().mean()
        assert accuracy > 0.6

    def test_equal_calls_give_equal_bits_and_the_seed_splits(self):
        x = features(40, 20)
        y = labels(x, 2)
        one, two = (fit(CLASSES, x, y, num_labels=2) for _ in range(2))
        assert one.weight.equal(two.weight)
        weights = {
            CLASSES.fit(x, y, num_labels=2, has_bias=True, seed=seed).weight.norm().item()
            for seed in range(8)
        }
        assert len(weights) > 1

    def test_a_named_class_without_rows_is_never_predicted(self):
        x = features()
        y = labels(x, 2) * 2  # of three classes the middle one has no row
        assert 1 not in fit(CLASSES, x, y, num_labels=3).logits(x).argmax(-1)

    @pytest.mark.parametrize("counts", [(299, 1), (4, 1), (3, 2), (1, 1)])
    def test_a_class_with_one_row_and_five_rows_in_all(self, counts):
        x = features(sum(counts))
        y = torch.repeat_interleave(torch.arange(2), torch.tensor(counts))
        found = fit(CLASSES, x, y, num_labels=2)
        assert found.logits(x).isfinite().all()

    def test_constant_features_give_the_shares_of_the_classes(self):
        y = torch.tensor([0] * 30 + [1] * 10)
        logits = fit(CLASSES, torch.full((40, 5), 0.7), y, num_labels=2).logits(torch.ones(1, 5))
        assert logits.softmax(-1)[0].tolist() == pytest.approx([0.75, 0.25], abs=1e-2)

    @pytest.mark.parametrize(("size", "step"), [(0.9, 1e-7), (0.0, 1e-30)])
    def test_a_feature_that_varies_by_rounding_alone_gets_no_weight(self, size, step):
        x = features()
        y = labels(x, 2)
        x[:, 2] = size + step * (torch.arange(len(x)) % 3 + y)
        weight = fit(CLASSES, x, y, num_labels=2).weight
        assert weight[:, 2].abs().max() < weight.abs().max()

    def test_a_large_fit_has_fewer_iterations(self, monkeypatch):
        x = features()
        y = labels(x, 2)
        of_one = 300 * 6 * 2  # rows × features × labels
        monkeypatch.setattr(module, "_MOST_PRODUCTS_OF_A_TRY", 50 * of_one)
        assert fit(CLASSES, x, y, num_labels=2).weight.isfinite().all()
        monkeypatch.setattr(module, "_MOST_PRODUCTS_OF_A_TRY", of_one)
        with pytest.raises(ProbeError, match="no fit converges"):
            fit(CLASSES, x, y, num_labels=2)

    def test_reports_every_try(self):
        x = features()
        heard: list[int] = []
        CLASSES.fit(x, labels(x, 2), num_labels=2, has_bias=True, seed=0, on_try=heard.append)
        assert heard == list(range(1, TRIES + 1))

    def test_an_exception_from_on_try_ends_the_fit(self):
        def stop(number: int) -> None:
            raise InterruptedError(number)

        x = features()
        with pytest.raises(InterruptedError, match="1"):
            CLASSES.fit(x, labels(x, 2), num_labels=2, has_bias=True, seed=0, on_try=stop)

    def test_without_convergence_the_next_stronger_fit_is_used(self, monkeypatch):
        x = features(width=40)
        y = labels(x, 2, noise=0.1)
        whole = fit(CLASSES, x, y, num_labels=2)
        own = module._converge

        def fail_weak(*args, strength, **kwargs):
            is_weak = strength < module._STRENGTHS[-1]
            return None if is_weak else own(*args, strength=strength, **kwargs)

        monkeypatch.setattr(module, "_converge", fail_weak)
        assert 0 < fit(CLASSES, x, y, num_labels=2).weight.norm() < whole.weight.norm()

    def test_a_fit_that_never_converges_is_an_error(self, monkeypatch):
        monkeypatch.setattr(module, "_MOST_ITERATIONS", 1)
        x = features()
        with pytest.raises(ProbeError, match="no fit converges"):
            fit(CLASSES, x, labels(x, 2), num_labels=2)

    def test_the_constant_is_the_share_of_each_class(self):
        logits = CLASSES.constant(torch.tensor([0, 0, 0, 2]), num_labels=3)
        shares = logits.exp().tolist()
        assert shares == pytest.approx([0.75, 0.125, 0.25])


class TestLabelSets:
    def test_is_a_logistic_regression_of_each_label(self, monkeypatch):
        monkeypatch.setattr(module, "_STRENGTHS", (0.01,))
        x = features()
        y = torch.stack([labels(x, 2), labels(x, 3) == 1], dim=1).float()
        found = fit(SETS, x, y, num_labels=2).logits(x).sigmoid().T
        scaled = StandardScaler().fit_transform(x.double().numpy())
        for column, shares in zip(y.T.numpy(), found, strict=True):
            oracle = LogisticRegression(C=1 / (0.01 * len(x)), tol=1e-8, max_iter=1000)
            expected = oracle.fit(scaled, column).predict_proba(scaled)[:, 1]
            assert shares.numpy() == pytest.approx(expected, abs=2e-3)

    def test_a_label_of_no_row_or_of_all_is_predicted_so(self):
        x = features()
        y = torch.stack([labels(x, 2), torch.zeros(len(x)), torch.ones(len(x))], dim=1).float()
        logits = fit(SETS, x, y, num_labels=3).logits(x)
        assert logits[:, 1].max() < -6
        assert logits[:, 2].min() > 6

    def test_noise_is_met_with_more_strength_than_signal(self):
        x = features(width=40)
        clear = torch.stack([labels(x, 2, noise=0.1)] * 2, dim=1).float()
        chance = torch.stack([torch.arange(len(x)) % 2] * 2, dim=1).float()
        spread = fit(SETS, x, clear, num_labels=2).logits(x).std()
        assert fit(SETS, x, chance, num_labels=2).logits(x).std() < spread / 5

    def test_the_constant_answer_has_the_log_odds_of_each_label(self):
        y = torch.tensor([[1.0, 0.0, 1.0]] * 3 + [[0.0, 0.0, 1.0]])
        expected = [np.log(3), np.log(0.5 / 3.5), np.log(3.5 / 0.5)]
        assert SETS.constant(y, num_labels=3).tolist() == pytest.approx(expected)


class TestNumbers:
    def test_is_a_ridge_regression_on_standardised_features(self, monkeypatch):
        monkeypatch.setattr(module, "_STRENGTHS", (0.01,))
        x = features()
        y = numbers(x)
        scaled = StandardScaler().fit_transform(x.double().numpy())
        oracle = Ridge(alpha=0.01 * len(x)).fit(scaled, y.numpy()).predict(scaled)
        assert fit(NUMBERS, x, y).logits(x)[:, 0].numpy() == pytest.approx(oracle, abs=1e-3)

    def test_without_a_bias(self):
        x = features()
        found = fit(NUMBERS, x, numbers(x), has_bias=False)
        assert found.bias is None
        assert np.corrcoef(found.logits(x)[:, 0], numbers(x))[0, 1] > 0.7

    @pytest.mark.parametrize("count", [1, 2, 5])
    def test_of_few_rows(self, count):
        x = features(count)
        assert fit(NUMBERS, x, numbers(features())[:count]).logits(x).isfinite().all()

    def test_constant_features_and_targets_give_the_mean(self):
        x = torch.full((20, 3), 2.0)
        logits = fit(NUMBERS, x, torch.arange(20.0)).logits(x)
        assert logits.numpy() == pytest.approx(9.5)
        assert NUMBERS.constant(torch.arange(20.0), num_labels=1).tolist() == [9.5]


@pytest.mark.parametrize("kind", [CLASSES, NUMBERS])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(kind, value):
    x = features()
    x[7, 3] = value
    with pytest.raises(ProbeError, match="not finite"):
        fit(kind, x, torch.arange(len(x)) % 2, num_labels=2)


class TestDraw:
    def test_takes_every_row_of_a_small_split(self):
        rows = CLASSES.draw_rows(torch.arange(50) % 3, width=8, num_labels=3, seed=0)
        assert rows.equal(torch.arange(50))

    def test_keeps_the_shares_and_every_class(self, monkeypatch):
        monkeypatch.setattr(module, "_MOST_ROWS", 100)
        y = torch.tensor([0] * 900 + [1] * 299 + [2])
        rows = CLASSES.draw_rows(y, width=8, num_labels=3, seed=0)
        counts = y[rows].bincount()
        assert len(rows) == len(rows.unique()) == 100
        assert counts.tolist() == pytest.approx([75, 25, 1], abs=1)
        assert not CLASSES.draw_rows(y, width=8, num_labels=3, seed=1).equal(rows)

    def test_wide_states_and_many_classes_leave_fewer_rows(self):
        y = torch.arange(20_000) % 500
        assert len(CLASSES.draw_rows(y, width=384, num_labels=2, seed=0)) == 10_000
        assert len(CLASSES.draw_rows(y, width=4096, num_labels=2, seed=0)) == 2441
        assert len(CLASSES.draw_rows(y, width=384, num_labels=500, seed=0)) == 520
        assert len(NUMBERS.draw_rows(y.float(), width=384, num_labels=1, seed=0)) == 10_000

    def test_more_classes_than_rows_of_a_fit_are_refused(self):
        y = torch.arange(20_000) % 10_000
        with pytest.raises(ProbeError, match=r"too many classes: 10,000 occur, .* takes 26 rows"):
            CLASSES.draw_rows(y, width=384, num_labels=10_000, seed=0)
        with pytest.raises(ProbeError, match="too many classes"):
            CLASSES.draw_rows(y, width=384, num_labels=10**9, seed=0)

    def test_as_many_classes_as_rows_have_a_row_each(self, monkeypatch):
        monkeypatch.setattr(module, "_MOST_ROWS", 10)
        y = torch.arange(50) % 10
        assert y[CLASSES.draw_rows(y, width=8, num_labels=10, seed=0)].unique().tolist() == [
            *range(10)
        ]


class TestDrawWords:
    @staticmethod
    def targets(*rows: list[int]) -> torch.Tensor:
        """Return the targets of rows of four words; -1 is none."""
        return torch.stack([torch.tensor(rows), torch.zeros(len(rows), 4).long()], dim=-1)

    def test_takes_all_rows_of_few_words(self):
        targets = self.targets(*[[0, -1, 1, -1]] * 50)
        drawn = WORDS.draw_rows(targets, width=8, num_labels=2, seed=0)
        assert drawn.equal(torch.arange(50))

    def test_takes_rows_of_so_many_words(self, monkeypatch):
        monkeypatch.setattr(module, "_MOST_ROWS", 100)
        targets = self.targets(*[[0, -1, 1, -1]] * 30, *[[0, 1, 0, 1]] * 30)
        drawn = WORDS.draw_rows(targets, width=8, num_labels=2, seed=0)
        assert len(drawn.unique()) == len(drawn)
        assert 97 <= (targets[drawn][..., 0] >= 0).sum() <= 100
        assert not WORDS.draw_rows(targets, width=8, num_labels=2, seed=1).equal(drawn)

    def test_has_every_class_however_rare(self, monkeypatch):
        """Without an entity among its words, a regression cannot be fitted."""
        monkeypatch.setattr(module, "_MOST_ROWS", 40)
        targets = self.targets(*[[0, 0, 0, 0]] * 500, [0, 1, 0, 0], [0, 0, 0, 2])
        for seed in range(5):
            drawn = WORDS.draw_rows(targets, width=8, num_labels=3, seed=seed)
            assert {500, 501} <= set(drawn.tolist())
            assert len(drawn) == 10

    def test_more_classes_than_words_of_a_fit_are_refused(self, monkeypatch):
        monkeypatch.setattr(module, "_MOST_ROWS", 3)
        with pytest.raises(ProbeError, match="too many classes: 4 occur"):
            WORDS.draw_rows(self.targets([0, 1, 2, 3]), width=8, num_labels=4, seed=0)


class TestSpanProbe:
    # Of each window: the token of no answer, one of the question, and the context.
    MARKS = torch.tensor([[0, -1, 0, 1, 0, 2, 0, -1], [3, -1, 0, 0, -1, -1, -1, -1]])

    @property
    def targets(self) -> torch.Tensor:
        return torch.stack([self.MARKS, torch.zeros_like(self.MARKS)], dim=-1).int()

    def test_takes_candidates_with_their_ends(self):
        features = torch.arange(16.0).view(2, 8, 1)
        taken, ends = SpanProbe().examples(features, self.targets)
        assert taken.flatten().tolist() == [0, 2, 3, 4, 5, 6, 8, 10, 11]
        assert ends.int().tolist() == [
            *([0, 0], [0, 0], [1, 0], [0, 0], [0, 1], [0, 0]),
            *([1, 1], [0, 0], [0, 0]),
        ]

    def test_takes_some_of_many_candidates_and_all_ends(self):
        marks = torch.zeros(1, 100, dtype=torch.int32)
        marks[0, 41], marks[0, 43] = 1, 2
        targets = torch.stack([marks, torch.zeros_like(marks)], dim=-1)
        taken, ends = SpanProbe().examples(torch.arange(100.0).view(1, 100, 1), targets)
        assert len(taken) == 10
        assert {0.0, 41.0, 43.0} <= set(taken.flatten().tolist())
        assert ends.sum(0).tolist() == [1, 1]

    def test_draws_as_many_windows_as_a_fit_may_take(self):
        targets = self.targets.repeat(2000, 1, 1)
        rows = SpanProbe().draw_rows(targets, width=384, num_labels=2, seed=0)
        taken, _ = SpanProbe().examples(torch.zeros(len(rows), 8, 1), targets[rows])
        assert 900 < len(rows) < 4000
        assert len(taken) <= 10_000
        assert rows.equal(rows.sort().values)
        few = SpanProbe().draw_rows(targets[:5], width=384, num_labels=2, seed=0)
        assert few.tolist() == [0, 1, 2, 3, 4]

    def test_without_the_input_no_token_is_likelier(self):
        assert SpanProbe().constant(self.targets, num_labels=2).tolist() == [0, 0]

"""The linear probe: a regularised linear model on the frozen state that a task head reads."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from torch import Tensor, nn

from hifi.errors import ProbeError

Floats = NDArray[np.float64]
# λ, the weight of ‖w‖²/2 beside the mean loss of a row, on features of variance 1; increasing.
_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_WITHOUT_SPLIT = 1e-1  # of fewer rows than a split takes
_HELD_OUT = 5  # every fifth row of a class measures the strengths
_MOST_ITERATIONS = 2000  # of lbfgs; fewer for a large fit
# A feature that varies less than this share of its own size is taken for constant (bfloat16 rounds
# by 0.4 %), and so is one that varies less than a small share of the usual size. Dividing by such a
# spread would turn rounding into weights that dwarf all gradients; MiniLM's first token has them.
_LEAST_SPREAD = 1e-2
_LEAST_SIZE = 1e-4
_MOST_ROWS = 10_000
_OTHER_TOKENS = 8  # of a window, beside those that begin or end its answer; chosen, not measured
_MOST_FEATURES = 10_000_000  # numbers in memory: 80 MB
_MOST_PRODUCTS = 100_000_000  # rows × features × labels of one evaluation of the loss: 0.1 s
_MOST_PRODUCTS_OF_A_TRY = 500 * _MOST_PRODUCTS  # of all its iterations: 50 s
TRIES = len(_STRENGTHS) + 1  # fits: one for each strength, and one of all rows


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A linear model of the state that the last layer of a task head reads.

    Attributes:
        weight: float32 ``[num_labels, D]``.
        bias: float32 ``[num_labels]``; None for a task head without one.
    """

    weight: Tensor
    bias: Tensor | None

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits ``[…, num_labels]`` of features ``[…, D]``, in float32."""
        device = features.device
        bias = None if self.bias is None else self.bias.to(device)
        return torch.nn.functional.linear(features.float(), self.weight.to(device), bias)


@dataclass(frozen=True)
class _Linear:
    """Weights ``[num_labels, D]`` and intercepts ``[num_labels]``, in float64."""

    weights: Floats
    intercepts: Floats


class ProbeKind(ABC):
    """How the probe of a kind of task is fitted: one object for all its data sets."""

    def fit(
        self,
        features: Tensor,
        targets: Tensor,
        *,
        num_labels: int,
        has_bias: bool,
        seed: int,
        on_try: Callable[[int], None] | None = None,
    ) -> LinearProbe:
        """Fit a probe; equal calls on one machine, with as many threads, return equal bits.

        Features are scaled to variance 1. The strength is the one with the lowest loss on every
        fifth row of each class; the probe is then fitted on all rows. If lbfgs does not converge
        with a strength, the next stronger one is used.

        Args:
            features: ``[n, D]``, as :meth:`examples` returns them.
            targets: ``[n, …]``, as :meth:`examples` returns them.
            num_labels: of the task.
            has_bias: whether the task head's last layer has a bias.
            seed: of the split.
            on_try: called after each try with its number, at most TRIES, which repeats if the fit
                of all rows has to be repeated; an exception that it raises ends the fit.

        Raises:
            ProbeError: a feature is not finite, or no strength converges.
        """
        x, y = features.double().numpy(), targets.numpy()
        if not np.isfinite(x).all():
            raise ProbeError("a state that the task head reads is not finite")
        scale = _Scale.of(x, has_bias=has_bias)
        x = scale.apply(x)

        def solve(rows: NDArray[np.int64], strength: float, *, number: int) -> _Linear | None:
            found = self._solve(
                x[rows], y[rows], strength=strength, num_labels=num_labels, has_bias=has_bias
            )
            if on_try is not None:
                on_try(number)
            return found

        is_held = self._held_out(y, seed=seed)

        def measure(strength: float) -> float:
            number = TRIES - 1 - _STRENGTHS.index(strength)  # the strongest first
            found = solve(np.flatnonzero(~is_held), strength, number=number)
            if found is None:
                return np.inf
            return self._error(x[is_held] @ found.weights.T + found.intercepts, y[is_held])

        best = _WITHOUT_SPLIT
        if is_held.any():
            best = min(sorted(_STRENGTHS, reverse=True), key=measure)  # of equal ones the strongest
        for strength in (best, *(each for each in _STRENGTHS if each > best)):
            found = solve(np.arange(len(y)), strength, number=TRIES)
            if found is not None:
                return scale.undo(found, has_bias=has_bias)
        raise ProbeError("no fit converges")

    def draw_rows(self, targets: Tensor, *, width: int, num_labels: int, seed: int) -> Tensor:
        """Draw the rows for a fit, so that its time is limited; at least one of each class.

        Args:
            targets: of the training split.
            width: D, the number of features.
            num_labels: of the task.
            seed: of the draw.

        Returns:
            Indices in increasing order, int64: all rows if they are few enough.

        Raises:
            ProbeError: there are more classes than rows that a fit may take.
        """
        most = self._most_rows(width=width, num_labels=num_labels)
        groups = self._groups(targets.numpy())
        if len(groups) <= most:
            return torch.arange(len(groups))
        _check_classes(len(np.unique(groups)), most=most, width=width)
        ranks = _rank_rows(groups, seed=seed)
        sizes = np.bincount(groups)[groups]
        share = (ranks + 0.5) / sizes  # the first of each class by share keep the classes' shares
        order = np.lexsort((share, ranks > 0))
        return torch.from_numpy(np.sort(order[:most]))

    def _most_rows(self, *, width: int, num_labels: int) -> int:
        """Return the number of rows that a fit may take."""
        return min(_MOST_ROWS, _MOST_FEATURES // width, _MOST_PRODUCTS // (width * num_labels))

    def examples(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is fitted, ``[m, D]`` and ``[m, …]``; by default the rows themselves.

        Args:
            features: of samples, ``[n, …]``.
            targets: of samples, ``[n, …]``.
        """
        return features, targets

    @abstractmethod
    def constant(self, targets: Tensor, *, num_labels: int) -> Tensor:
        """Return the logits ``[num_labels]`` of the best answer that ignores the input."""

    def _held_out(self, y: NDArray[np.int64], *, seed: int) -> NDArray[np.bool_]:
        """Return which rows measure the strengths."""
        is_held: NDArray[np.bool_]
        is_held = _rank_rows(self._groups(y), seed=seed) % _HELD_OUT == _HELD_OUT - 1
        return is_held

    def _groups(self, targets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the group of each row, from 0; splits and draws keep the groups' shares.

        By default all rows are one group.
        """
        return np.zeros(len(targets), dtype=np.int64)

    @abstractmethod
    def _solve(
        self,
        x: Floats,
        y: NDArray[np.int64],
        *,
        strength: float,
        num_labels: int,
        has_bias: bool,
    ) -> _Linear | None:
        """Fit scaled features; None if the fit does not converge."""

    @abstractmethod
    def _error(self, logits: Floats, y: NDArray[np.int64]) -> float:
        """Return the mean loss of rows that were held out."""


class ClassProbe(ProbeKind):
    """Multinomial logistic regression."""

    def constant(self, targets: Tensor, *, num_labels: int) -> Tensor:
        """Return the logarithms of the classes' shares; a class without rows has half a row."""
        return _log_shares(targets, count=num_labels)

    def _groups(self, targets: NDArray[np.int64]) -> NDArray[np.int64]:
        return targets

    def _solve(
        self,
        x: Floats,
        y: NDArray[np.int64],
        *,
        strength: float,
        num_labels: int,
        has_bias: bool,
    ) -> _Linear | None:
        if len(np.unique(y)) < 2:
            raise ProbeError("all rows or words of the fit have the same class")
        solver = _converge(x, y, strength=strength, has_bias=has_bias)
        if solver is None:
            return None
        weights, intercepts = solver.coef_, solver.intercept_ * np.ones(len(solver.coef_))
        if len(weights) == 1:  # of two classes scikit-learn returns the difference
            weights = np.concatenate([-weights, weights]) / 2
            intercepts = np.concatenate([-intercepts, intercepts]) / 2
        whole = _Linear(np.zeros((num_labels, x.shape[1])), np.zeros(num_labels))
        whole.weights[solver.classes_] = weights
        # A class that is named but has no row: less likely than the rarest one.
        whole.intercepts[:] = intercepts.min() - np.log(2 * len(x)) if has_bias else 0.0
        whole.intercepts[solver.classes_] = intercepts
        return whole

    def _error(self, logits: Floats, y: NDArray[np.int64]) -> float:
        shares = torch.from_numpy(logits).softmax(-1).numpy()
        return float(log_loss(y, shares, labels=np.arange(logits.shape[1])))


class WordProbe(ClassProbe):
    """Multinomial logistic regression of words; targets are ``[n, S, 2]``, -1 for other tokens."""

    def constant(self, targets: Tensor, *, num_labels: int) -> Tensor:
        """Return the logarithms of the classes' shares of the words."""
        labels = targets[..., 0]
        return super().constant(labels[labels >= 0].long(), num_labels=num_labels)

    def draw_rows(self, targets: Tensor, *, width: int, num_labels: int, seed: int) -> Tensor:
        """Draw rows with so many words together as a fit may take; all if they are few enough.

        At least one row of each class is among them, even if those have more words together.

        Raises:
            ProbeError: there are more classes than words that a fit may take.
        """
        most = self._most_rows(width=width, num_labels=num_labels)
        labels = targets[..., 0].numpy()
        words = (labels >= 0).sum(1)
        if words.sum() <= most:
            return torch.arange(len(words))
        order = np.random.default_rng(seed).permutation(len(words))
        having = ((labels == label).any(1)[order] for label in range(num_labels))
        found = [has.argmax() for has in having if has.any()]
        _check_classes(len(found), most=most, width=width)
        first = np.unique(found)
        order = np.concatenate([order[first], np.delete(order, first)])
        kept = max(len(first), int(np.searchsorted(np.cumsum(words[order]), most, side="right")))
        return torch.from_numpy(np.sort(order[:kept]))

    def examples(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the words."""
        labels = targets[:, : features.shape[1], 0]
        return features[labels >= 0], labels[labels >= 0].long()


class LabelsProbe(ProbeKind):
    """A logistic regression for each label, all of one strength; targets are ``[n, labels]``."""

    def constant(self, targets: Tensor, *, num_labels: int) -> Tensor:  # noqa: ARG002 - as many as targets
        """Return the log odds of each label; one of no row, or of all, is half a row away."""
        rows, counts = len(targets), targets.double().sum(0)
        counts = counts.clamp(min=0.5, max=rows - 0.5)
        return (counts / (rows - counts)).log().float()

    def _solve(
        self,
        x: Floats,
        y: NDArray[np.int64],
        *,
        strength: float,
        num_labels: int,
        has_bias: bool,
    ) -> _Linear | None:
        whole = _Linear(np.zeros((num_labels, x.shape[1])), np.zeros(num_labels))
        known = self.constant(torch.from_numpy(y), num_labels=num_labels).double().numpy()
        for label, truth in enumerate(y.T):
            if truth.all() or not truth.any():  # nothing to learn from
                whole.intercepts[label] = known[label] if has_bias else 0.0
                continue
            solver = _converge(x, truth, strength=strength, has_bias=has_bias, fits=num_labels)
            if solver is None:
                return None
            whole.weights[label] = solver.coef_[0]
            whole.intercepts[label] = np.squeeze(solver.intercept_)
        return whole

    def _error(self, logits: Floats, y: NDArray[np.int64]) -> float:
        # log(1 + e^z) − y z, the cross entropy of a label
        return float(np.mean(np.logaddexp(0, logits) - y * logits))


class SpanProbe(LabelsProbe):
    """Which tokens begin and end an answer, two logistic regressions.

    The targets are ``[n, S, 2]``, as :class:`hifi.tasks.questions.encoder.EncodedQuestions` has
    them. Of the tokens that do neither, some of each window are enough: leaving out others moves
    only the intercept, which all tokens of a window share.
    """

    def constant(self, targets: Tensor, *, num_labels: int) -> Tensor:  # noqa: ARG002 - two ends
        """Return equal logits: no token is likelier than another without the input."""
        return torch.zeros(num_labels)

    def draw_rows(self, targets: Tensor, *, width: int, num_labels: int, seed: int) -> Tensor:
        """Draw windows with so many tokens together as a fit may take; all if they are few."""
        most = self._most_rows(width=width, num_labels=num_labels) // (_OTHER_TOKENS + 3)
        order = np.random.default_rng(seed).permutation(len(targets))
        return torch.from_numpy(np.sort(order[: max(1, most)]))

    def examples(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first and last tokens of answers, those of no answer, and some others."""
        marks = targets[:, : features.shape[1], 0].long()
        is_candidate = marks >= 0
        rank = is_candidate.cumsum(1) - 1  # among the candidates of its window
        step = (is_candidate.sum(1, keepdim=True) / _OTHER_TOKENS).ceil().clamp(min=1)
        chosen = is_candidate & ((marks > 0) | (rank % step == 0))
        ends = marks[chosen]
        return features[chosen], torch.stack([ends & 1, ends & 2], dim=1) > 0


class ChoiceProbe(ProbeKind):
    """Which choice of a row is right: a logistic regression of what sets a choice apart.

    Features are ``[n, C, D]`` and targets the place of the right choice, ``[n]``. Each choice is
    fitted as right or wrong, after the mean of its row's choices is subtracted from its features: a
    softmax over the choices ignores what they share.
    """

    def constant(self, targets: Tensor, *, num_labels: int) -> Tensor:
        """Return the logarithms of the places' shares; one without rows has half a row."""
        return _log_shares(targets, count=num_labels)

    def examples(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the choices ``[n·C, D]``, and of each whether it is right, and its row."""
        rows, count = features.shape[:2]
        features = features.float()
        is_right = nn.functional.one_hot(targets, count)
        row = torch.arange(rows)[:, None].expand(rows, count)
        apart = features - features.mean(1, keepdim=True)
        return apart.flatten(0, 1), torch.stack([is_right, row], dim=-1).flatten(0, 1)

    def _held_out(self, y: NDArray[np.int64], *, seed: int) -> NDArray[np.bool_]:
        """Return all choices of every fifth row: what sets two choices apart is the same twice."""
        rows = y[:, 1]
        is_held = super()._held_out(np.unique(rows), seed=seed)
        held: NDArray[np.bool_] = is_held[rows]
        return held

    def _solve(
        self,
        x: Floats,
        y: NDArray[np.int64],
        *,
        strength: float,
        num_labels: int,
        has_bias: bool,
    ) -> _Linear | None:
        solver = _converge(x, y[:, 0], strength=strength, has_bias=has_bias)
        if solver is None:
            return None
        intercept = np.squeeze(solver.intercept_) * np.ones(num_labels)
        return _Linear(solver.coef_.reshape(num_labels, -1), intercept)

    def _error(self, logits: Floats, y: NDArray[np.int64]) -> float:
        count = len(y) // int(y[:, 0].sum())
        shares = torch.from_numpy(logits).reshape(-1, count).log_softmax(-1).numpy()
        return float(-shares[y[:, 0].reshape(-1, count) == 1].mean())


class NumberProbe(ProbeKind):
    """Ridge regression."""

    def constant(self, targets: Tensor, *, num_labels: int) -> Tensor:
        """Return the mean."""
        return targets.double().mean().float().expand(num_labels)

    def _solve(
        self,
        x: Floats,
        y: NDArray[np.int64],
        *,
        strength: float,
        num_labels: int,
        has_bias: bool,
    ) -> _Linear | None:
        ridge = Ridge(alpha=strength * len(x), fit_intercept=has_bias, solver="cholesky")
        ridge.fit(x, y.astype(np.float64))
        return _Linear(ridge.coef_.reshape(num_labels, -1), np.full(num_labels, ridge.intercept_))

    def _error(self, logits: Floats, y: NDArray[np.int64]) -> float:
        return float(np.mean((logits[:, 0] - y) ** 2))


def _log_shares(targets: Tensor, *, count: int) -> Tensor:
    """Return the logarithm of each number's share, ``[count]``; one that is absent has half a row.

    Args:
        targets: numbers from 0, ``[n]``.
        count: of different numbers.
    """
    counts = targets.bincount(minlength=count).double().clamp(min=0.5)
    return (counts / len(targets)).log().float()


def _check_classes(classes: int, *, most: int, width: int) -> None:
    """Raise if more classes occur than a fit may take rows."""
    if classes > most:
        raise ProbeError(
            f"too many classes: {classes:,} occur, and with {width:,} features of a row a fit "
            f"takes {most:,} rows at most"
        )


def _converge(
    x: Floats, y: NDArray[np.int64], *, strength: float, has_bias: bool, fits: int = 1
) -> LogisticRegression | None:
    """Fit a logistic regression; None if it does not converge within the iterations of a try.

    Args:
        x: scaled features.
        y: the classes.
        strength: λ.
        has_bias: whether there are intercepts.
        fits: of a try together.
    """
    products = x.size * max(fits, len(np.unique(y)))
    iterations = max(1, min(_MOST_ITERATIONS, _MOST_PRODUCTS_OF_A_TRY // products))
    solver = LogisticRegression(
        C=1 / (strength * len(x)), fit_intercept=has_bias, max_iter=iterations
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # read from n_iter_ below
        solver.fit(x, y)
    return solver if solver.n_iter_.max() < iterations else None


@dataclass(frozen=True)
class _Scale:
    """Shift and spread of each feature, ``[D]``; the shift is 0 if the model has no bias."""

    shift: Floats
    spread: Floats

    @classmethod
    def of(cls, x: Floats, *, has_bias: bool) -> _Scale:
        size = np.sqrt((x**2).mean(0))
        shift = x.mean(0) if has_bias else np.zeros(x.shape[1])
        least = np.maximum(_LEAST_SPREAD * size, _LEAST_SIZE * np.median(size))
        spread = np.maximum(np.sqrt(((x - shift) ** 2).mean(0)), least)
        return cls(shift, np.where(spread > 0, spread, 1.0))

    def apply(self, x: Floats) -> Floats:
        scaled: Floats = (x - self.shift) / self.spread
        return scaled

    def undo(self, found: _Linear, *, has_bias: bool) -> LinearProbe:
        """Express a fit on scaled features in the features themselves."""
        weights = found.weights / self.spread
        intercepts = found.intercepts - weights @ self.shift
        return LinearProbe(
            torch.from_numpy(weights).float(),
            torch.from_numpy(intercepts).float() if has_bias else None,
        )


def _rank_rows(groups: NDArray[np.int64], *, seed: int) -> NDArray[np.int64]:
    """Return each row's place in a random order of its group, from 0."""
    order = np.random.default_rng(seed).permutation(len(groups))
    order = order[np.argsort(groups[order], kind="stable")]  # group by group
    sizes = np.bincount(groups)
    starts = np.cumsum(sizes) - sizes
    ranks = np.empty(len(groups), dtype=np.int64)
    ranks[order] = np.arange(len(groups)) - starts[groups[order]]
    return ranks

"""benchmarks.paper.methods: each trains what it says and only that."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from transformers import BertModel

from benchmarks.paper.methods import METHODS
from benchmarks.paper.methods.ablations import TABLE_3
from benchmarks.paper.methods.adapters import (
    QUERY_KEY,
    QUERY_VALUE,
    ia3,
    lora,
    prefix_tuning,
    shira,
)
from benchmarks.paper.methods.base import Outcome, Run, file_bytes
from benchmarks.paper.methods.child_tuning import (
    SHARE,
    child_tuning,
    fisher_information,
    largest,
)
from benchmarks.paper.methods.diff_pruning import Difference, diff_pruning
from benchmarks.paper.methods.head_starts import HEAD_STARTS
from benchmarks.paper.methods.linear_probe import start_from_probe
from benchmarks.paper.methods.plain import bitfit, full, head_only
from benchmarks.paper.methods.rival import Rival, head_modules, trained_by
from benchmarks.paper.running import Workplace
from benchmarks.paper.tasks import TASKS
from hifi.backbones.models import ModelSource
from hifi.data.settings import Hyperparameters
from hifi.errors import InvalidArgumentError, ModelError, TrainingDivergedError
from hifi.training.preparation import Prepared, prepare
from tests.architectures import HIDDEN, LAYERS, QUERY_HEADS, VOCABULARY, tiny_model
from tests.benchmarks.paper.tiny import HYPERPARAMETERS, tiny_run
from tests.tiny_tasks import save_text_model

SETTINGS = Hyperparameters(**HYPERPARAMETERS, precision="float32")
PROBE_SETTINGS = replace(SETTINGS, head_start="probe")
NO_STEP = 1e-30  # so small that no logit changes by a bit
HEAD = 2 * HIDDEN + 2
INNER = 37
# Embeddings of words, places and types with their norm; per layer four projections, two
# feed-forward layers, two norms; the pooler; the task head.
_LAYER = 4 * (HIDDEN**2 + HIDDEN) + 2 * HIDDEN * INNER + INNER + HIDDEN + 2 * 2 * HIDDEN
MODEL_WEIGHTS = (VOCABULARY + 64 + 2 + 2) * HIDDEN + LAYERS * _LAYER + HIDDEN**2 + HIDDEN + HEAD


@pytest.fixture
def run(workplace: Workplace) -> Run:
    """Return 40 rows for training and as many for validation, with a test split."""
    return tiny_run(workplace, "cola")


def ready_for(run: Run) -> Prepared:
    return prepare(
        run.source,
        spec=run.task.spec,
        train=run.splits.train,
        validation=run.splits.validation,
        settings=replace(SETTINGS, head_start=run.head_start),
        device=torch.device("cpu"),
    )


def built(build: Callable[[Prepared, Hyperparameters], Rival]) -> tuple[Callable, list[Rival]]:
    """Return the builder, and where its rivals are found after a run."""
    kept: list[Rival] = []

    def build_and_keep(ready: Prepared, settings: Hyperparameters) -> Rival:
        kept.append(build(ready, settings))
        return kept[0]

    return build_and_keep, kept


def plain_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of all weights; PEFT's and parametrize's names without what these add."""
    found = {}
    for name, value in model.state_dict().items():
        plain = name.removeprefix("base_model.").removeprefix("model.").replace(".base_layer", "")
        plain = plain.replace("parametrizations.", "").replace(".original", "")
        found[plain.replace("_module", "")] = value.clone()
    return found


def is_bias(name: str) -> bool:
    return name.endswith(".bias")


def is_head(name: str) -> bool:
    return name.startswith("classifier.")


def nothing(_name: str) -> bool:
    return False


SIZES = [
    (full, MODEL_WEIGHTS),
    (head_only, HEAD),
    # four projections, two norms and two feed-forward layers; the embeddings' norm and the pooler
    (bitfit, HEAD + LAYERS * (7 * HIDDEN + INNER) + 2 * HIDDEN),
    (lora(QUERY_KEY), HEAD + LAYERS * 2 * 8 * 2 * HIDDEN),
    (lora(QUERY_VALUE), HEAD + LAYERS * 2 * 8 * 2 * HIDDEN),
    (prefix_tuning, HEAD + 20 * LAYERS * 2 * HIDDEN),
    # keys, values, and the inputs of both modules called output.dense
    (ia3, HEAD + LAYERS * (2 * HIDDEN + HIDDEN + INNER)),
    (shira, HEAD + LAYERS * 2 * 8 * 2 * HIDDEN),
    (child_tuning, HEAD + round(SHARE * (MODEL_WEIGHTS - HEAD))),
    (diff_pruning, HEAD + round(0.005 * (MODEL_WEIGHTS - HEAD))),
]


class TestWhatIsTrained:
    @pytest.mark.parametrize(("build", "weights"), SIZES)
    def test_as_many_weights_as_the_method_says(self, run: Run, build: Callable, weights: int):
        assert trained_by(build)(run).trained_weights == weights

    @pytest.mark.parametrize(
        ("build", "may_change"),
        [
            (head_only, is_head),
            (bitfit, lambda name: is_head(name) or is_bias(name)),
            (lora(QUERY_VALUE), nothing),
            (prefix_tuning, nothing),
            (ia3, nothing),
            (shira, nothing),
            (diff_pruning, is_head),
        ],
    )
    def test_all_other_weights_stay_bit_for_bit(
        self, run: Run, build: Callable, may_change: Callable[[str], bool]
    ):
        before = plain_weights(ready_for(run).loaded.model)
        keep, rivals = built(build)
        trained_by(keep)(run)
        after = plain_weights(rivals[0].network)
        compared = [name for name in before if name in after and not may_change(name)]
        assert len(compared) >= 20
        for name in compared:
            if not is_head(name):
                assert torch.equal(before[name], after[name]), name

    @pytest.mark.parametrize(("build", "_weights"), SIZES)
    def test_what_is_trained_changes_the_answers(self, run: Run, build: Callable, _weights: int):
        outcome = trained_by(build)(run)
        frozen = trained_by(build)(run_with(run, learning_rate=1e-12))
        assert outcome.evaluations != frozen.evaluations

    def test_full_changes_every_matrix_in_use(self, run: Run):
        before = plain_weights(ready_for(run).loaded.model)
        keep, rivals = built(full)
        trained_by(keep)(run)
        after = plain_weights(rivals[0].network)
        same = [name for name in before if torch.equal(before[name], after[name])]
        assert same == []

    def test_dropout_of_head_only_is_in_the_task_head_alone(self, run: Run):
        rival = head_only(ready_for(run), SETTINGS)
        rival.set_training()
        training = {name for name, module in rival.network.named_modules() if module.training}
        assert training == {"", "dropout", "classifier"}


def run_with(run: Run, **hyperparameters) -> Run:
    return Run(
        source=run.source,
        task=run.task,
        splits=run.splits,
        head_start=run.head_start,
        hyperparameters={**run.hyperparameters, **hyperparameters},
    )


# test_ablations.py runs the other rankings, test_encoded.py and figures/test_sweeps.py other sizes,
# rivals/ those that need an environment of their own.
LEFT_OUT = set(TABLE_3) - {"hifi", "hifi-random", "hifi-budget"}
LEFT_OUT |= {name for name in METHODS if name.startswith(("hifi-heads-", "hifi-k", "lora-qv-r"))}
LEFT_OUT |= {name for name, method in METHODS.items() if method.environment is not None}


class TestOutcome:
    @pytest.mark.parametrize("name", [name for name in METHODS if name not in LEFT_OUT])
    @pytest.mark.parametrize("task", ["cola", "stsb"])
    def test_every_method_measures_every_kind_of_task(
        self, workplace: Workplace, name: str, task: str
    ):
        method = METHODS[name]
        run = tiny_run(workplace, task, head_start=method.head_starts[0])
        outcome = method.run(run)
        metric = TASKS[task].metric
        values = [each[metric] for each in outcome.evaluations]
        assert outcome.test is not None
        assert set(outcome.test) == set(outcome.evaluations[0])
        assert outcome.trained_weights > 0
        assert outcome.stored_bytes["float32"] >= 4 * min(HEAD // 2, outcome.trained_weights)
        if name == "diff-pruning":  # the dense phase does not count
            assert outcome.best == 1
        else:
            ranks = [(each[metric], -each["loss"]) for each in outcome.evaluations]
            assert outcome.best == ranks.index(max(ranks))
        if method.usual_rate is not None:
            assert (outcome.learning_rate, outcome.epochs) == (0.01, 2)
            assert len(values) == (2 if method.head_starts[0] == "random" else 3)

    @pytest.mark.parametrize("name", ["full", "lora-qv", "hifi", "probe"])
    def test_equal_runs_have_equal_results(self, workplace: Workplace, name: str):
        run = tiny_run(workplace, "cola", head_start=METHODS[name].head_starts[0])
        first, second = (METHODS[name].run(run) for _ in range(2))
        assert (first.evaluations, first.test) == (second.evaluations, second.test)

    def test_the_seed_draws_loras_weights(self, run: Run):
        drawn = []
        for seed in (0, 1):
            keep, rivals = built(lora(QUERY_VALUE))
            trained_by(keep)(run_with(run, seed=seed, learning_rate=1e-12))
            state = rivals[0].network.state_dict()
            drawn.append(next(v for name, v in state.items() if "lora_A" in name))
        assert not torch.allclose(drawn[0], drawn[1], atol=1e-3)

    def test_the_best_epoch_is_measured_on_test(self, run: Run):
        # Validation and test are the same rows: the best epoch's metrics must come back.
        same = Run(
            source=run.source,
            task=run.task,
            splits=type(run.splits)(run.splits.train, run.splits.validation, run.splits.validation),
            head_start="random",
            hyperparameters={**HYPERPARAMETERS, "epochs": 4},
        )
        for name in ("full", "lora-qv", "diff-pruning", "child-tuning", "hifi"):
            outcome: Outcome = METHODS[name].run(same)
            assert outcome.test == pytest.approx(outcome.evaluations[outcome.best]), name

    def test_a_loss_that_is_not_finite_is_a_divergence(self, run: Run):
        def spoil(ready: Prepared, settings: Hyperparameters) -> Rival:
            nn.init.constant_(ready.loaded.model.classifier.bias, math.inf)
            return full(ready, settings)

        with pytest.raises(TrainingDivergedError, match="a training loss is nan"):
            trained_by(spoil)(run)


def header_size(state: dict[str, torch.Tensor]) -> int:
    return len(save(state)) - sum(value.numel() * value.element_size() for value in state.values())


class TestStored:
    def test_full_stores_all_weights(self, run: Run):
        keep, rivals = built(full)
        size = trained_by(keep)(run).stored_bytes["float32"]
        assert size - 4 * MODEL_WEIGHTS == header_size(rivals[0].network.state_dict())

    def test_sparse_differences_have_a_value_and_a_place(self, run: Run):
        for build in (child_tuning, diff_pruning):
            outcome = trained_by(build)(run)
            changed = outcome.trained_weights - HEAD
            size = outcome.stored_bytes["float32"]
            assert 8 * changed + 4 * HEAD < size < 8 * changed + 4 * HEAD + 20_000

    def test_ours_has_every_encoding(self, run: Run):
        sizes = METHODS["hifi"].run(run).stored_bytes
        assert list(sizes) == ["float32", "bfloat16", "int8"]
        assert sizes["float32"] > sizes["bfloat16"] > sizes["int8"]

    def test_a_file_holds_what_is_counted(self):
        tensors = {"a": torch.arange(3.0), "b": torch.ones(2, 2).T}
        content = save({name: value.contiguous() for name, value in tensors.items()})
        assert file_bytes(tensors) == len(content)
        assert torch.equal(load(content)["a"], tensors["a"])


class TestHeads:
    def test_layer_wise_has_three_in_every_layer(self, run: Run):
        heads = METHODS["hifi"].run(run).heads
        assert heads is not None
        assert [layer for layer, _ in heads] == [0, 0, 0, 1, 1, 1, 2, 2, 2]

    def test_mid_top_has_three_in_the_upper_layers(self, run: Run):
        heads = METHODS["hifi-mid-top"].run(run).heads
        assert heads is not None
        assert [layer for layer, _ in heads] == [2, 2, 2]

    def test_a_budget_is_as_large_and_needs_no_three_in_a_layer(self, run: Run):
        heads = METHODS["hifi-budget"].run(run).heads
        assert heads is not None
        assert len(heads) == 9
        assert heads != METHODS["hifi"].run(run).heads

    def test_random_heads_differ_by_seed(self, run: Run):
        chosen = [METHODS["hifi-random"].run(run_with(run, seed=seed)).heads for seed in (0, 1)]
        assert chosen[0] != chosen[1]
        assert all(head < QUERY_HEADS for heads in chosen if heads for _, head in heads)


def test_warnings_of_the_library_are_kept(workplace: Workplace):
    run = tiny_run(workplace, "stsb", head_start="probe", learning_rate=NO_STEP)
    assert "no_gain" in METHODS["hifi"].run(run).warnings


class TestHeadStart:
    def test_the_probe_is_in_the_last_layer_when_training_starts(self, workplace: Workplace):
        run = tiny_run(workplace, "cola", head_start="probe")
        parameters = start_from_probe(ready_for(run), PROBE_SETTINGS)
        seen = []

        def look(started: Prepared, settings: Hyperparameters) -> Rival:
            seen.append(started.loaded.model.classifier.weight.detach().clone())
            return full(started, settings)

        trained_by(look)(run)
        assert torch.equal(seen[0], parameters["classifier.weight"])

    def test_the_probes_own_logits_come_from_the_started_head(self, workplace: Workplace):
        run = tiny_run(workplace, "stsb", head_start="probe")
        probe = METHODS["probe"].run(run)
        started = trained_by(head_only)(run_with(run, learning_rate=1e-12))
        assert started.evaluations[0] == pytest.approx(probe.evaluations[0], abs=1e-4)

    @pytest.mark.parametrize("name", ["full", "lora-qv", "ia3", "hifi"])
    def test_a_start_that_no_epoch_improved_on_is_kept(self, workplace: Workplace, name: str):
        run = tiny_run(workplace, "stsb", head_start="probe")
        probe = METHODS["probe"].run(run)
        unmoved = METHODS[name].run(run_with(run, learning_rate=NO_STEP))
        assert unmoved.best == 0
        assert unmoved.evaluations[0] == pytest.approx(probe.evaluations[0], abs=1e-4)
        assert unmoved.test == pytest.approx(probe.test, abs=1e-4)

    @pytest.mark.parametrize("task", ["cola", "stsb"])
    def test_a_probe_is_better_on_its_rows_than_a_constant(self, workplace: Workplace, task: str):
        ready = ready_for(tiny_run(workplace, task, head_start="probe"))
        train, kind = ready.data.train, ready.data.task
        start_from_probe(ready, PROBE_SETTINGS)
        batch = train.batch(range(40))
        with torch.no_grad():
            loss = kind.loss(ready.loaded.model(**batch.inputs).logits, batch.targets)
        targets = train.targets.double()
        constant = math.log(2) if task == "cola" else targets.var(correction=0).item()
        assert loss.item() < 0.99 * constant

    def test_a_random_start_changes_nothing(self, run: Run):
        ready = ready_for(run)
        before = plain_weights(ready.loaded.model)
        HEAD_STARTS["random"](ready, SETTINGS)
        after = plain_weights(ready.loaded.model)
        assert all(torch.equal(before[name], after[name]) for name in before)

    @pytest.mark.parametrize("name", ["hifi", "hifi-budget"])
    def test_ours_start_where_the_run_says(self, workplace: Workplace, name: str):
        first = [
            METHODS[name]
            .run(run_with(tiny_run(workplace, "stsb", head_start=start), learning_rate=1e-12))
            .evaluations[0]
            for start in ("probe", "random")
        ]
        assert first[0]["loss"] < first[1]["loss"]


class TestFisher:
    def test_is_the_sum_of_squared_gradients_of_batches(self, run: Run):
        ready = ready_for(run)
        found = fisher_information(ready, batch_size=40)  # one batch
        model, train = ready.loaded.model, ready.data.train
        batch = train.batch(range(40))
        logits = model(**batch.inputs).logits
        nn.functional.cross_entropy(logits, batch.targets).backward()
        for name, parameter in model.named_parameters():
            expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad**2
            torch.testing.assert_close(found[name], expected, atol=1e-9, rtol=1e-3)

    def test_the_largest_are_chosen_over_all_parameters(self):
        values = {"a": torch.tensor([[1.0, 9.0], [0.0, 7.0]]), "b": torch.tensor([8.0, 2.0])}
        masks = largest(values, share=0.5)
        assert masks["a"].tolist() == [[False, True], [False, True]]
        assert masks["b"].tolist() == [True, False]

    def test_at_least_one_is_chosen_and_ties_do_not_add_any(self):
        masks = largest({"a": torch.zeros(10)}, share=0.001)
        assert int(masks["a"].sum()) == 1

    def test_weights_outside_the_mask_stay_bit_for_bit(self, run: Run):
        before = plain_weights(ready_for(run).loaded.model)
        keep, rivals = built(child_tuning)
        trained_by(keep)(run)
        after = plain_weights(rivals[0].network)
        masks = rivals[0]._masks
        assert set(masks) == {name for name in before if not is_head(name)}
        for name, mask in masks.items():
            assert torch.equal(before[name][~mask], after[name][~mask]), name
        moved = sum(int((before[n] != after[n])[mask].sum()) for n, mask in masks.items())
        assert moved > 0.95 * sum(int(mask.sum()) for mask in masks.values())


class TestHardConcrete:
    def test_without_noise_a_gate_is_the_stretched_sigmoid(self):
        # σ(ln 3) = 0.75: 0.75 · 3 − 1.5 = 0.75; σ(0) · 3 − 1.5 = 0; σ(5) · 3 − 1.5 > 1.
        difference = Difference(torch.zeros(3)).eval()
        difference.log_alpha.data = torch.tensor([math.log(3), 0.0, 5.0])
        torch.testing.assert_close(difference.gates(), torch.tensor([0.75, 0.0, 1.0]))

    def test_sampled_gates_are_non_zero_as_often_as_expected(self):
        torch.manual_seed(0)
        difference = Difference(torch.zeros(20_000)).train()
        for log_alpha, share in ((0.0, 0.5), (math.log(3), 0.75), (-math.log(3), 0.25)):
            difference.log_alpha.data.fill_(log_alpha)
            assert difference.expected_count().item() == pytest.approx(20_000 * share, rel=1e-4)
            found = difference.gates().count_nonzero().item()
            assert found == pytest.approx(20_000 * share, abs=300)

    def test_the_penalty_closes_the_gate_of_a_useless_difference(self):
        # Loss (θ₀ + z₀w₀ − 1)² + 0.05·E‖z‖₀: only the first weight helps.
        torch.manual_seed(0)
        difference = Difference(torch.zeros(2)).train()
        difference.log_alpha.data.fill_(1.0)
        optimizer = torch.optim.Adam(difference.parameters(), lr=0.05)
        for _ in range(600):
            weights = difference(torch.zeros(2))
            loss = (weights[0] - 1) ** 2 + 0.05 * difference.expected_count()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        gates = difference.eval().gates()
        assert gates[0] > 0.5
        assert gates[1] == 0
        assert difference(torch.zeros(2))[0].item() == pytest.approx(1, abs=0.25)

    def test_fixed_gates_are_the_mask_and_keep_the_value(self):
        difference = Difference(torch.zeros(2)).eval()
        difference.log_alpha.data.fill_(math.log(3))  # gates of 0.75
        difference.value.data = torch.tensor([4.0, 8.0])
        difference.fix(torch.tensor([True, False]))
        difference.train()  # no noise any more
        torch.testing.assert_close(difference(torch.ones(2)), torch.tensor([4.0, 1.0]))

    def test_one_epoch_has_no_two_phases(self, run: Run):
        with pytest.raises(InvalidArgumentError, match="at least 2 with diff-pruning"):
            METHODS["diff-pruning"].run(run_with(run, epochs=1))


class TestMissingPooler:
    @pytest.fixture
    def bare(self, workplace: Workplace, tmp_path: Path) -> Workplace:
        folder = save_text_model(tmp_path / "bare")
        model = tiny_model("bert")
        BertModel(model.config, add_pooling_layer=False).save_pretrained(folder)
        return Workplace(data=workplace.data, source=ModelSource("bare", folder))

    @pytest.mark.parametrize("name", ["head-only", "bitfit", "lora-qv", "ia3", "shira"])
    def test_is_trained_and_stored_with_the_task_head(
        self, workplace: Workplace, bare: Workplace, name: str
    ):
        whole, fresh = (METHODS[name].run(tiny_run(each, "cola")) for each in (workplace, bare))
        pooler = HIDDEN**2 if name == "bitfit" else HIDDEN**2 + HIDDEN  # its bias is one anyway
        assert fresh.trained_weights == whole.trained_weights + pooler
        more = fresh.stored_bytes["float32"] - whole.stored_bytes["float32"]
        assert more >= 4 * pooler

    def test_is_refused_by_prefix_tuning(self, bare: Workplace):
        with pytest.raises(ModelError, match=r"bare lacks bert\.pooler, which stock PEFT does not"):
            METHODS["prefix"].run(tiny_run(bare, "cola"))


def test_peft_stores_the_whole_task_head(run: Run):
    assert head_modules(ready_for(run)) == ["classifier"]
    for build in (partial(lora(QUERY_VALUE)), ia3, shira):
        keep, rivals = built(build)
        trained_by(keep)(run)
        saved = [n for n, p in rivals[0].network.named_parameters() if p.requires_grad]
        assert [n for n in saved if ".classifier." in n] == [
            "base_model.model.classifier.modules_to_save.default.weight",
            "base_model.model.classifier.modules_to_save.default.bias",
        ]

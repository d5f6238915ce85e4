"""Stored bytes and the quality of what is read back, in every encoding."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from benchmarks.paper.methods import METHODS
from benchmarks.paper.methods.adapters import QUERY_VALUE, ia3, lora
from benchmarks.paper.methods.base import LOSSY
from benchmarks.paper.methods.encoded import read_back
from benchmarks.paper.methods.plain import bitfit
from hifi.data.settings import Hyperparameters
from tests.architectures import HIDDEN, LAYERS
from tests.benchmarks.paper.tiny import HYPERPARAMETERS, tiny_run

if TYPE_CHECKING:
    from benchmarks.paper.running import Workplace
    from hifi.training.preparation import Prepared

SETTINGS = Hyperparameters(**HYPERPARAMETERS, precision="float32")


@pytest.fixture
def ready(workplace: Workplace) -> Prepared:
    return tiny_run(workplace, "cola").prepare()


def content(tensors: dict[str, torch.Tensor]) -> int:
    """Return the bytes of the numbers alone, without the file's header."""
    return sum(value.numel() * value.element_size() for value in tensors.values())


class TestReadBack:
    def test_a_vector_is_one_row_and_a_matrix_has_scales_along_its_shorter_side(self):
        trained = {"v": torch.randn(40), "tall": torch.randn(40, 3), "wide": torch.randn(3, 40)}
        origins = {name: torch.zeros_like(value) for name, value in trained.items()}
        size, values = read_back(trained, origins=origins, head=(), encoding="int8")
        stored = 40 + 4 + 2 * (3 * 40 + 3 * 4)
        header = size - stored
        assert 0 < header < 1000
        for name, value in trained.items():
            rows = value[None] if value.dim() == 1 else value if name == "wide" else value.T
            step = rows.abs().amax(1, keepdim=True) / 127
            found = values[name][None] if value.dim() == 1 else values[name]
            found = found.T if name == "tall" else found
            assert bool(((found - rows).abs() <= 0.5001 * step).all()), name

    def test_bfloat16_halves_the_numbers(self):
        trained = {"w": torch.randn(30, 20)}
        origins = {"w": torch.zeros(30, 20)}
        size, values = read_back(trained, origins=origins, head=(), encoding="bfloat16")
        assert 2 * 600 < size < 2 * 600 + 300
        assert torch.equal(values["w"], trained["w"].bfloat16().float())

    def test_differences_to_the_origin_are_stored(self):
        origin = {"b": 100 + torch.rand(8)}
        trained = {"b": origin["b"] + 0.001}
        _, values = read_back(trained, origins=origin, head=(), encoding="bfloat16")
        assert torch.allclose(values["b"], trained["b"], rtol=1e-6)  # bfloat16(100.001) is 100

    def test_the_task_head_is_exact(self):
        trained = {"c.weight": torch.randn(2, 8), "w": torch.randn(4, 4)}
        origins = {name: torch.zeros_like(value) for name, value in trained.items()}
        size, values = read_back(trained, origins=origins, head=["c.weight"], encoding="int8")
        assert torch.equal(values["c.weight"], trained["c.weight"])
        assert size > content({"c.weight": trained["c.weight"]}) + 16 + 16

    def test_what_has_not_moved_is_read_back_as_it_was(self):
        origin = {"w": torch.randn(4, 6)}
        for encoding in LOSSY:
            _, values = read_back(origin, origins=origin, head=(), encoding=encoding)
            assert torch.equal(values["w"], origin["w"])


class TestParts:
    """Which tensors are the task head's, and which are known without a file."""

    @pytest.mark.parametrize("build", [bitfit, ia3, lora(QUERY_VALUE)])
    def test_the_task_head_is_known_by_its_module(self, ready: Prepared, build):
        rival = build(ready, SETTINGS)
        named = sorted(rival.trained()[name].shape for name in rival.head())
        assert named == [torch.Size([2]), torch.Size([2, HIDDEN])]

    def test_only_loras_a_is_stored_whole(self, ready: Prepared):
        rival = lora(QUERY_VALUE, rank=3)(ready, SETTINGS)
        for name, start in rival.trained().items():
            if name not in rival.head():
                assert tuple(start.shape) in ((3, HIDDEN), (HIDDEN, 3))
                assert torch.equal(rival.origin(start), torch.zeros_like(start))
        assert len(rival.trained()) == 2 + LAYERS * 2 * 2

    def test_ia3_starts_at_one_and_biases_at_the_backbones(self, workplace: Workplace):
        for build in (ia3, bitfit):
            rival = build(tiny_run(workplace, "cola").prepare(), SETTINGS)
            for name, start in rival.trained().items():
                if name not in rival.head():
                    assert torch.equal(rival.origin(start), start)


MEASURED = ["hifi", "hifi-budget", "hifi-heads-1", "hifi-default"]
MEASURED += ["lora-qv", "lora-qv-r1", "bitfit", "ia3"]


class TestOutcome:
    @pytest.mark.parametrize("name", MEASURED)
    def test_every_encoding_is_measured_on_both_splits(self, workplace: Workplace, name: str):
        # From a random start, which is not kept: a delta of step 0 loses nothing.
        outcome = METHODS[name].run(tiny_run(workplace, "stsb", head_start="random"))
        assert list(outcome.stored_bytes) == ["float32", *LOSSY]
        # A scale's name takes more than int8 saves in vectors as short as the tiny model's.
        assert outcome.stored_bytes["bfloat16"] < outcome.stored_bytes["float32"]
        assert list(outcome.encoded) == list(LOSSY)
        exact = outcome.evaluations[outcome.best]
        for splits in outcome.encoded.values():
            for found, expected in ((splits["validation"], exact), (splits["test"], outcome.test)):
                assert found is not None
                assert expected is not None
                assert found["loss"] == pytest.approx(expected["loss"], abs=0.02)
        # int8 is read back, not the float32 values again
        assert outcome.encoded["int8"]["test"] != outcome.encoded["bfloat16"]["test"]

    def test_a_coarse_encoding_is_seen_in_the_metrics(
        self, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
    ):
        def lose(trained, *, origins, head, **_settings):
            return 1, {n: v if n in head else 0 * origins[n] for n, v in trained.items()}

        monkeypatch.setattr("benchmarks.paper.methods.rival.read_back", lose)
        outcome = METHODS["bitfit"].run(tiny_run(workplace, "stsb"))
        assert outcome.stored_bytes["int8"] == 1
        lost = outcome.encoded["int8"]["validation"]
        assert lost is not None
        assert abs(lost["loss"] - outcome.evaluations[outcome.best]["loss"]) > 1e-3
        kept = METHODS["bitfit"].run(replace(tiny_run(workplace, "stsb")))
        assert kept.test == outcome.test  # measured before

    def test_methods_of_other_tables_are_not_measured_again(self, workplace: Workplace):
        run = tiny_run(workplace, "cola")
        assert METHODS["head-only"].run(run).encoded == {}
        assert list(METHODS["head-only"].run(run).stored_bytes) == ["float32"]

    @pytest.mark.parametrize(("name", "heads"), [("hifi-heads-1", 1), ("hifi-heads-8", 8)])
    def test_as_many_heads_as_the_name_says(self, workplace: Workplace, name: str, heads: int):
        outcome = METHODS[name].run(tiny_run(workplace, "cola", head_start="probe", epochs=1))
        assert len(outcome.heads or ()) == heads

    def test_lora_has_the_rank_of_its_name(self, workplace: Workplace):
        run = tiny_run(workplace, "cola", epochs=1)
        weights = {
            name: METHODS[name].run(run).trained_weights
            for name in METHODS
            if "-r" in name and name.startswith("lora")
        }
        head = 2 * HIDDEN + 2
        assert weights == {
            f"lora-qv-r{rank}": head + LAYERS * 2 * rank * 2 * HIDDEN for rank in (1, 2, 4, 16, 32)
        }

"""Backbones in float16, and with a tokenizer that knows tokens which they do not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers as tf

from hifi import finetune
from tests.architectures import tiny_model
from tests.tiny_deltas import save_bare_backbone
from tests.tiny_tasks import text_rows
from tests.worker.inference.asking import ask, codes
from tests.worker.inference.conftest import order_of
from tests.worker.inference.test_answers import shares_of_merged
from worker.inference.memory import backbones as module

if TYPE_CHECKING:
    from starlette.testclient import TestClient

    from tests.worker.inference.conftest import Home

ADDED = "<user>"
TEXTS = ("w1 w2 w3", "w30 w31")
CLOSE = 2e-3  # of shares, between float16 and what the device computes in


def tune(home: Home, folder: Path, file: Path) -> dict[str, Any]:
    """Tune a backbone of the home as a job does; return the order for its delta.

    The small weights of a random task head keep the roundings of two dtypes small in the answers.
    """
    rows = text_rows(8, labels=("bad", "good"))
    short = {"k": 1, "epochs": 1, "batch_size": 4, "n_samples": 4, "max_length": 16}
    finetune(model=folder, train=rows, head_start="random", **short).delta.save(file)
    return order_of(home.put(file), model=folder.name)


@pytest.fixture
def half(home: Home) -> Path:
    """Return the folder of a float16 backbone in the home."""
    folder = save_bare_backbone(home.settings.models / "half")
    model = tiny_model("bert", dtype=torch.float16, max_position_embeddings=128)
    model.base_model.save_pretrained(folder)
    return folder


class TestFloat16:
    def test_predictions_and_merged_models_agree(
        self, home: Home, half: Path, client: TestClient, tmp_path: Path
    ):
        order = tune(home, half, tmp_path / "delta")
        answers = ask(client, order, *({"text": text} for text in TEXTS))
        for answer, shares in zip(answers, shares_of_merged(client, order, TEXTS), strict=True):
            assert answer["scores"] == pytest.approx(shares, abs=CLOSE)

    @pytest.mark.parametrize("has_bfloat16", [True, False])
    def test_its_room_is_that_of_the_computed_dtype(
        self, has_bfloat16: bool, home: Home, half: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": has_bfloat16})
        device = torch.device("cpu")
        files = module._find_files(home.settings, (half.name, None), device=device)
        model = module.load_bare_backbone(files.source, device=device).model
        needed = sum(parameter.nbytes for parameter in model.parameters())
        assert needed <= files.size <= 1.5 * needed  # a small model's file has a large header


class TestTokenWithoutEmbedding:
    def test_is_the_error_of_its_input_only(self, home: Home, client: TestClient, tmp_path: Path):
        folder = save_bare_backbone(home.settings.models / "longer")
        tokenizer = tf.AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens([ADDED])
        tokenizer.save_pretrained(folder)
        order = tune(home, folder, tmp_path / "delta")
        answers = ask(client, order, {"text": "w1"}, {"text": f"w1 {ADDED}"}, {"text": "w2"})
        assert codes(answers) == [None, "invalid_input", None]
        error = answers[1]["error"]
        assert error["param"] == "text"
        assert f"the token '{ADDED}' has the number 99, but longer has" in error["message"]

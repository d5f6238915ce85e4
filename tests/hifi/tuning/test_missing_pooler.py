"""HeadTuner on a checkpoint without its pooler: the delta has everything that was trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from hifi import HeadBank, HeadDelta
from hifi.deltas.loading import load_backbone, write_merged_model
from hifi.errors import ModelError
from hifi.tuning.tuner import HeadTuner
from tests.architectures import ARCHITECTURES, tiny_batch, tiny_model
from tests.tiny_tasks import save_text_model
from tests.tiny_tuning import selection, train

BATCH = tiny_batch("bert", seed=7)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a BERT for masked language modelling, which has no pooler."""
    folder = save_text_model(tmp_path / "no-pooler")
    settings = ARCHITECTURES["bert"].config(**ARCHITECTURES["bert"].arguments)
    tf.BertForMaskedLM(settings).save_pretrained(folder)
    return folder


def load(folder: Path, *, seed: int, **settings) -> tf.PreTrainedModel:
    """Load a classifier; what the checkpoint lacks depends on the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return tf.BertForSequenceClassification.from_pretrained(folder, **settings)


def tuned(folder: Path, **settings) -> tuple[HeadDelta, torch.Tensor]:
    """Train a classifier; return its delta, and its logits as a plain model."""
    model = load(folder, seed=1, **settings)
    tuner = HeadTuner(model, selection())
    train(model, tuner.parameters(), name="bert")
    delta = tuner.delta(task={"type": "classification"}, labels=["no", "yes"])
    with torch.no_grad():
        return delta, tuner.detach()(**BATCH).logits


class TestOwnLoop:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_merges_into_any_newly_loaded_backbone(self, dtype: torch.dtype, folder: Path):
        delta, expected = tuned(folder, dtype=dtype)
        assert "bert.pooler.dense.weight" in delta.task_head
        for seed in (2, 3):
            model = load(folder, seed=seed, dtype=dtype)
            delta.check_backbone(model)
            displaced = delta.merge(model)
            with torch.no_grad():
                assert model(**BATCH).logits.equal(expected)
            assert "bert.pooler.dense.weight" in displaced.task_head

    def test_trains_the_pooler(self, folder: Path):
        model = load(folder, seed=1)
        before = model.bert.pooler.dense.weight.detach().clone()
        tuner = HeadTuner(model, selection())
        train(model, tuner.parameters(), name="bert")
        assert not model.bert.pooler.dense.weight.equal(before)

    def test_is_served_by_a_bank(self, folder: Path):
        delta, expected = tuned(folder)
        with torch.random.fork_rng():
            torch.manual_seed(9)
            bank = HeadBank(tf.AutoModel.from_pretrained(folder).eval())
        bank.add("task", delta)
        torch.testing.assert_close(torch.stack(bank.forward(BATCH, ["task"] * 4)), expected)

    def test_is_written_as_a_merged_model(self, folder: Path, tmp_path: Path):
        delta, expected = tuned(folder)
        delta.save(tmp_path / "delta")
        loaded = HeadDelta.load(tmp_path / "delta")
        backbone = load_backbone(loaded, model=str(folder), revision=None)
        write_merged_model(tmp_path / "merged", delta=loaded, backbone=backbone)
        with torch.no_grad():
            assert load(tmp_path / "merged", seed=5)(**BATCH).logits.equal(expected)

    def test_is_exported_to_peft(self, folder: Path, tmp_path: Path):
        peft = pytest.importorskip("peft")
        delta, expected = tuned(folder)
        delta.to_lora(tmp_path / "adapter", load(folder, seed=4))
        model = peft.PeftModel.from_pretrained(load(folder, seed=6), tmp_path / "adapter").eval()
        with torch.no_grad():
            torch.testing.assert_close(model(**BATCH).logits, expected)

    def test_of_a_bare_vision_model(self, tmp_path: Path):
        tiny_model("vit").save_pretrained(tmp_path)  # without a pooler
        batch = tiny_batch("vit")
        models = [tf.ViTModel.from_pretrained(tmp_path) for _ in range(2)]
        tuner = HeadTuner(models[0], selection())
        optimizer = torch.optim.AdamW(tuner.parameters(), lr=1e-2)
        models[0](**batch).pooler_output.square().sum().backward()
        optimizer.step()
        tuner.delta().merge(models[1])
        with torch.no_grad():
            expected = tuner.detach()(**batch).pooler_output
            assert models[1](**batch).pooler_output.equal(expected)

    def test_of_a_partial_checkpoint_is_refused_before_anything_changes(self, folder: Path):
        file = folder / "model.safetensors"
        whole = load_file(file)
        part = {name: tensor for name, tensor in whole.items() if "layer.2" not in name}
        save_file(part, file, {"format": "pt"})
        model = load(folder, seed=1)
        with pytest.raises(ModelError, match="no-pooler lacked 16 weights of the backbone"):
            HeadTuner(model, selection())
        assert all(parameter.requires_grad for parameter in model.parameters())


class TestTrainer:
    def test_merges_into_a_newly_loaded_backbone(self, folder: Path, tmp_path: Path):
        model = load(folder, seed=1)
        tuner = HeadTuner(model, selection())
        batch = tiny_batch("bert", lengths=(8,) * 8, labels=True)
        rows = [{key: value[index] for key, value in batch.items()} for index in range(8)]
        arguments = tf.TrainingArguments(
            str(tmp_path / "out"),
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            num_train_epochs=2,
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            save_strategy="no",
            use_cpu=True,
        )
        tf.Trainer(model, arguments, train_dataset=rows).train()
        delta = tuner.delta()
        again = load(folder, seed=2).eval()
        delta.merge(again)
        with torch.no_grad():
            assert again(**BATCH).logits.equal(tuner.detach().eval()(**BATCH).logits)

"""hifi.deltas.loading: a delta's own backbone, and nothing of a foreign file believed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import huggingface_hub
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    T5Config,
)

from hifi.backbones.fingerprint import backbone_fingerprint
from hifi.backbones.heads import HeadId
from hifi.backbones.models import resolve_model
from hifi.deltas.delta import HeadDelta
from hifi.deltas.loading import load_backbone, load_bare_backbone
from hifi.errors import (
    BackboneMismatchError,
    DeltaFileError,
    ModelError,
    TaskNotSupportedError,
    UnsupportedArchitectureError,
)
from hifi.selection.head_selection import HeadSelection
from hifi.serving.bank import HeadBank
from hifi.tuning.tuner import HeadTuner
from tests.architectures import ARCHITECTURES, NAMES, PAD, VOCABULARY, tiny_model
from tests.tiny_tasks import END, save_image_model, save_text_model, tiny_tokenizer

CPU = torch.device("cpu")
PADDED = {"pad_token": "[PAD]"}


def recording(delta, **task):
    """Change a delta's task metadata."""
    return replace(delta, metadata=replace(delta.metadata, task={**delta.metadata.task, **task}))


def own_loop_delta(folder, **task):
    """Return the delta of a foreign training loop: its task has a type and what ``task`` adds."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    tuner = HeadTuner(model, HeadSelection.from_heads([HeadId(0, 1)], num_layers=3))
    return tuner.delta(task={"type": "classification", **task}, labels=[0, 1])


@pytest.fixture
def delta(delta_file):
    return HeadDelta.load(delta_file)


class TestLoadBackbone:
    def test_has_a_task_head_of_the_deltas_shape(self, delta, backbone):
        loaded = load_backbone(delta, model=str(backbone), revision=None)
        assert loaded.source.name == "tiny-bert"
        assert loaded.model.config.id2label == {0: "bad", 1: "good"}
        delta.merge(loaded.model)

    def test_a_delta_without_a_task_is_refused(self, delta, backbone):
        free = replace(delta, metadata=replace(delta.metadata, task=None))
        with pytest.raises(TaskNotSupportedError, match="does not record its task"):
            load_backbone(free, model=str(backbone), revision=None)

    def test_another_backbone_is_refused(self, delta, tmp_path):
        other = tiny_model("bert", seed=1, max_position_embeddings=128)
        other.base_model.save_pretrained(tmp_path)
        with pytest.raises(BackboneMismatchError, match="fingerprint"):
            load_backbone(delta, model=str(tmp_path), revision=None)

    def test_another_architecture_is_named(self, delta, tmp_path):
        folder = save_text_model(tmp_path / "roberta", "roberta")
        with pytest.raises(BackboneMismatchError, match="'bert'; that of 'roberta' is 'roberta'"):
            load_backbone(delta, model=str(folder), revision=None)

    @pytest.mark.parametrize("name", ["vit", "gpt2"])
    def test_another_architecture_comes_before_what_it_cannot_do(self, name, delta, tmp_path):
        save = save_image_model if ARCHITECTURES[name].image else save_text_model
        folder = save(tmp_path / "other", name)
        told = recording(delta, pad_token_id=VOCABULARY + 9)  # not one of the other's tokens
        match = f"'tiny-bert' .*'bert'; that of 'other' is '{name}'"
        with pytest.raises(BackboneMismatchError, match=match):
            load_backbone(told, model=str(folder), revision=None)

    def test_a_refusal_shows_the_fingerprint_that_the_other_commands_show(self, delta, tmp_path):
        bfloat16 = replace(delta, metadata=replace(delta.metadata, compute_dtype="bfloat16"))
        other = tiny_model("bert", seed=1, max_position_embeddings=128)
        other.base_model.save_pretrained(tmp_path)
        with pytest.raises(BackboneMismatchError, match=backbone_fingerprint(other)):
            load_backbone(bfloat16, model=str(tmp_path), revision=None)

    def test_a_folder_of_the_deltas_model_name_is_used(self, delta, backbone, monkeypatch):
        monkeypatch.chdir(backbone.parent)
        assert load_backbone(delta, model=None, revision=None).source.name == "tiny-bert"

    def test_a_missing_folder_is_named_and_the_hub_is_not_called(self, delta, monkeypatch):
        monkeypatch.setattr(huggingface_hub, "snapshot_download", None)  # calling it would fail
        with pytest.raises(ModelError, match=r"names its backbone only as 'tiny-bert'.*--model"):
            load_backbone(delta, model=None, revision=None)

    @pytest.mark.parametrize("name", ["x" * 300, "a\0b", "~stranger"])
    def test_a_name_that_no_folder_can_have(self, delta, name):
        odd = replace(delta, metadata=replace(delta.metadata, model=name))
        with pytest.raises(ModelError, match="names its backbone only as"):
            load_backbone(odd, model=None, revision=None)

    def test_a_hub_id_without_a_commit_is_looked_for_on_the_hub(self, delta):
        unpinned = replace(delta, metadata=replace(delta.metadata, model="owner/model"))
        with pytest.raises(ModelError, match="'owner/model' is not a folder here"):
            load_backbone(unpinned, model=None, revision=None)

    def test_a_pinned_hub_id_is_looked_for_on_the_hub(self, delta):
        pinned = replace(delta, metadata=replace(delta.metadata, revision="c0ffee"))
        with pytest.raises(ModelError, match="'tiny-bert' is not a folder here"):
            load_backbone(pinned, model=None, revision=None)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *(("pad_token_id", value) for value in ("x", [1], 1.5, True, None, -1, VOCABULARY)),
            *(("padding_side", value) for value in ("up", 3, None, ["left"])),
            *(("max_length", value) for value in ("x", 0, -4, 1.5, True, [1], 2**31)),
            *(("num_labels", value) for value in ("2", 0, -1, 3, 10**9, 2.0, None)),
        ],
    )
    def test_a_record_that_cannot_be_is_refused_by_name(self, name, value, delta, backbone):
        foreign = recording(delta, **{name: value})
        with pytest.raises(DeltaFileError, match=rf"task records {name}="):
            load_backbone(foreign, model=str(backbone), revision=None)

    @pytest.mark.parametrize("number", [0, 3, 10**9])
    def test_a_number_of_labels_that_the_task_head_lacks_is_refused(self, number, delta, backbone):
        foreign = recording(delta, num_labels=number)
        unnamed = replace(foreign, metadata=replace(foreign.metadata, labels=None))
        with pytest.raises(DeltaFileError, match=rf"task records num_labels={number}: .* 2, is"):
            load_backbone(unnamed, model=str(backbone), revision=None)

    def test_a_record_at_its_limits_is_taken(self, delta, backbone):
        told = recording(delta, pad_token_id=VOCABULARY - 1, padding_side="left", max_length=1)
        loaded = load_backbone(told, model=str(backbone), revision=None)
        assert loaded.model.config.pad_token_id == VOCABULARY - 1


class TestLoadBareBackbone:
    @pytest.mark.parametrize("name", NAMES)
    def test_is_the_backbone_of_every_task(self, name, tmp_path):
        save = save_image_model if ARCHITECTURES[name].image else save_text_model
        folder = save(tmp_path / name, name)
        bare = load_bare_backbone(resolve_model(folder), device=CPU)
        reference = AutoModel.from_pretrained(folder).state_dict()
        weights = bare.model.state_dict()
        assert all(weights[key].equal(reference[key]) for key in weights)
        assert bare.fingerprint == backbone_fingerprint(tiny_model(name))
        assert bare.model.base_model is bare.model
        assert not bare.model.training
        assert (bare.model.device, bare.model.dtype) == (CPU, torch.float32)
        HeadBank(bare.model).close()

    def test_has_the_fingerprint_that_its_deltas_record(self, delta, backbone):
        bare = load_bare_backbone(resolve_model(backbone), device=CPU)
        assert bare.fingerprint == delta.metadata.fingerprint

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("computed", [torch.bfloat16, torch.float32])
    def test_of_half_precision_has_the_dtype_of_the_device(
        self, computed, dtype, tmp_path, monkeypatch
    ):
        capabilities = {"avx512_bf16": computed == torch.bfloat16}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
        folder = save_text_model(tmp_path)
        config = BertConfig(**ARCHITECTURES["bert"].arguments)
        stored = BertModel(config, add_pooling_layer=False).to(dtype)
        stored.save_pretrained(folder)
        bare = load_bare_backbone(resolve_model(folder), device=CPU)
        assert bare.fingerprint == backbone_fingerprint(stored)
        model = bare.model
        assert {parameter.dtype for parameter in model.parameters()} == {computed}
        assert model.pooler is not None
        with torch.no_grad():
            model(input_ids=torch.tensor([[1, 5, 2]]))

    @pytest.mark.parametrize(("special", "expected"), [({}, 2), (PADDED, PAD)])
    def test_pads_with_what_its_merged_models_pad_with(self, special, expected, tmp_path):
        folder = save_text_model(tmp_path, "gpt2", pad_token_id=None)
        tiny_tokenizer(eos_token=END, **special).save_pretrained(folder)
        model = load_bare_backbone(resolve_model(folder), device=CPU).model
        assert model.config.pad_token_id == expected

    def test_several_at_once_do_not_mix_their_dtypes(self, backbone, tmp_path, monkeypatch):
        half = save_text_model(tmp_path)
        tiny_model("bert", dtype=torch.bfloat16).base_model.save_pretrained(half)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
        dtypes = {backbone: torch.float32, half: torch.bfloat16}

        def load(folder):
            return load_bare_backbone(resolve_model(folder), device=CPU).model.dtype

        folders = [*dtypes] * 30
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(load, folders)) == [dtypes[folder] for folder in folders]
        assert torch.get_default_dtype() == torch.float32

    def test_something_that_is_no_backbone_is_refused(self, tmp_path):
        folder = save_text_model(tmp_path / "model")
        (folder / "tokenizer.json").unlink()
        with pytest.raises(ModelError, match="tokenizer"):
            load_bare_backbone(resolve_model(folder), device=CPU)
        (folder / "model.safetensors").write_bytes(b"nonsense")
        with pytest.raises(ModelError):
            load_bare_backbone(resolve_model(folder), device=CPU)
        T5Config().save_pretrained(folder)
        with pytest.raises(UnsupportedArchitectureError):
            load_bare_backbone(resolve_model(folder), device=CPU)


class TestLoadProcessor:
    def test_a_tokenizer_is_set_to_what_the_fine_tune_used(self, delta, backbone):
        told = recording(delta, pad_token_id=7, padding_side="left", max_length=5)
        loaded = load_backbone(told, model=str(backbone), revision=None)
        tokenizer = loaded.load_processor()
        assert tokenizer.pad_token_id == loaded.model.config.pad_token_id == 7
        assert tokenizer.padding_side == "left"
        assert tokenizer.model_max_length == 5

    @pytest.mark.parametrize(
        ("configured", "special", "expected"),
        [
            (None, {"eos_token": END}, 2),
            (None, {"eos_token": END, **PADDED}, PAD),
            (5, {"eos_token": END}, 5),
            (5, {"eos_token": END, **PADDED}, 5),
        ],
    )
    def test_model_and_tokenizer_agree_on_a_pad_token_that_nothing_records(
        self, configured, special, expected, tmp_path
    ):
        folder = save_text_model(tmp_path / "gpt2", "gpt2", pad_token_id=configured)
        tiny_tokenizer(**special).save_pretrained(folder)
        loaded = load_backbone(own_loop_delta(folder), model=str(folder), revision=None)
        tokenizer = loaded.load_processor()
        assert tokenizer.pad_token_id == expected
        assert loaded.model.config.pad_token_id == expected

    def test_a_pad_token_that_only_the_model_has_leaves_the_tokenizers(self, tmp_path):
        folder = save_text_model(tmp_path / "gpt2", "gpt2", vocab_size=VOCABULARY + 1)
        tiny_tokenizer(**PADDED).save_pretrained(folder)
        delta = own_loop_delta(folder, pad_token_id=VOCABULARY)
        loaded = load_backbone(delta, model=str(folder), revision=None)
        assert loaded.load_processor().pad_token_id == PAD

    def test_without_any_pad_token_there_is_none(self, tmp_path):
        folder = save_text_model(tmp_path / "gpt2", "gpt2", pad_token_id=None)
        tiny_tokenizer().save_pretrained(folder)
        loaded = load_backbone(own_loop_delta(folder), model=str(folder), revision=None)
        assert loaded.load_processor().pad_token is None
        assert loaded.model.config.pad_token_id is None

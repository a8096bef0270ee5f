"""What transformers' ModelTesterMixin asks of its own models, for HandUNet."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForPoseEstimation, Trainer, TrainingArguments

from modeling_handunet import (
    HandUNetConfig,
    HandUNetForPoseEstimation,
    HandUNetPoseEstimatorOutput,
    render_heatmaps,
)
from modeling_handunet.losses import HAND_LOSS_WEIGHT, LEFT, NO_HAND, RIGHT, SOME_HAND, UNLABELED
from modeling_handunet.modeling_handunet import HandClassifier

SIZE = 32


def tiny_config(**fields) -> HandUNetConfig:
    return HandUNetConfig(**{"image_size": SIZE, "hidden_sizes": (4, 8), **fields})


@pytest.fixture
def model() -> HandUNetForPoseEstimation:
    """A tiny model whose BatchNorm layers are not the identity."""
    model = HandUNetForPoseEstimation(tiny_config())
    with torch.no_grad():
        for _ in range(2):
            model(2 * torch.randn(8, 3, SIZE, SIZE) + 1)
    return model.eval()


def batch(count: int = 2) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": torch.randn(count, 3, SIZE, SIZE),
        "labels": render_heatmaps(torch.rand(count, 21, 2) * SIZE, SIZE, 3.0),
        "visibility": torch.rand(count, 21) > 0.2,
    }


def state_of(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal_states(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]), name


class TestArchitecture:
    def test_the_default_has_the_stated_number_of_parameters(self):
        assert HandUNetForPoseEstimation(HandUNetConfig()).num_parameters() == 491_206

    def test_each_block_is_normalisation_convolution_relu_twice_without_bias(self):
        model = HandUNetForPoseEstimation(HandUNetConfig())
        blocks = [*model.down, *model.up]
        assert len(blocks) == 7
        for block in blocks:
            assert [type(layer).__name__ for layer in block] == ["BatchNorm2d", "Conv2d", "ReLU"] * 2
        convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
        assert len(convolutions) == 15
        assert all(layer.bias is None and layer.kernel_size == (3, 3) for layer in convolutions)
        # Concatenated with the skip connections: 128 + 64 -> 64, 64 + 32 -> 32, 32 + 16 -> 16.
        assert [block[1].in_channels for block in model.up] == [192, 96, 48]

    @pytest.mark.parametrize(
        ("image_size", "hidden_sizes", "channels", "keypoints"),
        [(8, (4,), 3, 21), (16, (4, 6), 1, 5), (64, (2, 3, 4, 5, 6), 4, 2)],
    )
    def test_other_sizes_and_depths_follow_from_the_configuration(self, image_size, hidden_sizes, channels, keypoints):
        names = {index: f"point_{index}" for index in range(keypoints)}
        config = HandUNetConfig(
            image_size=image_size, hidden_sizes=hidden_sizes, num_channels=channels, id2label=names, skeleton=()
        )
        outputs = HandUNetForPoseEstimation(config)(torch.randn(2, channels, image_size, image_size))
        assert outputs.heatmaps.shape == (2, keypoints, image_size, image_size)
        assert 0 <= outputs.heatmaps.min() and outputs.heatmaps.max() <= 1

    def test_convolutions_start_as_torchs_own_and_normalisation_as_the_identity(self):
        model = HandUNetForPoseEstimation(HandUNetConfig())
        bound = 1 / (64 * 9) ** 0.5  # kaiming uniform with a = sqrt(5): 1 / sqrt(fan in)
        weight = model.down[3][1].weight
        assert 0.98 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
        assert model.down[0][0].weight.eq(1).all() and model.down[0][0].bias.eq(0).all()

    def test_inputs_of_another_shape_are_refused_with_the_expected_one(self, model):
        for shape in [(2, 3, 64, 64), (2, 1, SIZE, SIZE), (3, SIZE, SIZE)]:
            with pytest.raises(ValueError, match=r"expected \(batch, 3, 32, 32\)"):
                model(torch.randn(shape))
        with pytest.raises(ValueError, match="render the targets at the model's image_size"):
            model(torch.randn(1, 3, SIZE, SIZE), labels=torch.zeros(1, 21, 8, 8))
        with pytest.raises(TypeError, match="lables"):
            model(torch.randn(1, 3, SIZE, SIZE), lables=torch.zeros(1, 21, SIZE, SIZE))


class TestOutputs:
    def test_outputs_come_as_object_and_as_tuple(self, model):
        inputs = batch()
        outputs = model(**inputs)
        assert isinstance(outputs, HandUNetPoseEstimatorOutput)
        assert list(outputs) == ["loss", "heatmaps"] and outputs.loss.shape == ()
        as_tuple = model(**inputs, return_dict=False)
        assert isinstance(as_tuple, tuple) and len(as_tuple) == 2
        assert torch.equal(as_tuple[0], outputs.loss) and torch.equal(as_tuple[1], outputs.heatmaps)
        assert list(model(inputs["pixel_values"])) == ["heatmaps"]

    @pytest.mark.parametrize("sizes", [(4, 8, 8), (4,)])
    def test_a_hand_classifier_reads_features_and_changes_no_heatmap(self, sizes):
        model = HandUNetForPoseEstimation(HandUNetConfig(image_size=SIZE, hidden_sizes=sizes, classifier_size=5))
        inputs = torch.randn(3, 3, SIZE, SIZE)
        before = model.classifier.layers[0].running_mean.clone()
        assert model(inputs, labels=torch.zeros(3, 21, SIZE, SIZE)).hand_logits is None
        assert torch.equal(model.classifier.layers[0].running_mean, before)  # training on heatmaps leaves it alone
        outputs = model.eval()(inputs, output_hidden_states=True)
        assert outputs.hand_logits.shape == (3, 3)
        pooled = HandClassifier.pool(*model.deepest(outputs.hidden_states))
        deep = outputs.hidden_states[len(sizes) - 1]
        assert torch.allclose(pooled[:, : sizes[-1]], deep.mean((2, 3)).log1p(), atol=1e-6)
        quarter = deep.shape[-1] // 4
        middle = deep[..., quarter : deep.shape[-1] - quarter, quarter : deep.shape[-1] - quarter]
        assert torch.equal(pooled[:, 3 * sizes[-1] : 4 * sizes[-1]], middle.amax((2, 3)).log1p())
        assert torch.equal(model.classifier.layers(pooled), outputs.hand_logits)
        heatmaps, model.classifier = outputs.heatmaps, None
        assert torch.equal(model(inputs).heatmaps, heatmaps) and model(inputs).hand_logits is None

    def test_what_crops_show_teaches_the_hand_classifier_beside_the_heatmaps(self):
        model = HandUNetForPoseEstimation(HandUNetConfig(image_size=SIZE, hidden_sizes=(4, 8), classifier_size=5)).eval()
        inputs, labels = torch.randn(5, 3, SIZE, SIZE), torch.zeros(5, 21, SIZE, SIZE)
        classes = torch.tensor([RIGHT, LEFT, NO_HAND, SOME_HAND, UNLABELED])
        outputs = model(inputs, labels=labels, hand_classes=classes)
        chances = outputs.hand_logits.softmax(1)
        told = [chances[0, RIGHT], chances[1, LEFT], chances[2, NO_HAND], chances[3, RIGHT] + chances[3, LEFT]]
        added = HAND_LOSS_WEIGHT * -torch.stack(told).log().mean()
        torch.testing.assert_close(outputs.loss, model(inputs, labels=labels).loss + added)
        nothing = model(inputs, labels=labels, hand_classes=torch.full((5,), UNLABELED))
        assert torch.equal(nothing.loss, model(inputs, labels=labels).loss)
        outputs.loss.backward()
        assert model.down[0][1].weight.grad.abs().sum() > 0  # the network learns from them, too

    def test_hidden_states_are_the_blocks_outputs_in_order(self, model):
        outputs = model(torch.randn(2, 3, SIZE, SIZE), output_hidden_states=True)
        assert [tuple(state.shape) for state in outputs.hidden_states] == [
            (2, 4, SIZE, SIZE),
            (2, 8, SIZE // 2, SIZE // 2),
            (2, 4, SIZE, SIZE),
        ]
        assert torch.equal(model.head(outputs.hidden_states[-1]).sigmoid(), outputs.heatmaps)
        model.config.output_hidden_states = True
        assert len(model(torch.randn(2, 3, SIZE, SIZE)).hidden_states) == 3

    def test_a_batch_gives_what_single_images_give(self, model):
        pixel_values = torch.randn(5, 3, SIZE, SIZE)
        alone = torch.cat([model(image[None]).heatmaps for image in pixel_values])
        torch.testing.assert_close(model(pixel_values).heatmaps, alone, atol=1e-6, rtol=0)

    def test_no_image_gives_no_heatmap(self, model):
        assert model(torch.zeros(0, 3, SIZE, SIZE)).heatmaps.shape == (0, 21, SIZE, SIZE)

    def test_the_same_input_gives_the_same_output(self, model):
        pixel_values = torch.randn(2, 3, SIZE, SIZE)
        assert torch.equal(model(pixel_values).heatmaps, model(pixel_values).heatmaps)


class TestTraining:
    def test_gradients_reach_every_parameter(self, model):
        model.train()(**batch()).loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name

    def test_training_steps_lower_the_loss(self, model):
        inputs, optimizer = batch(), torch.optim.AdamW(model.parameters(), 1e-2)
        losses = []
        for _ in range(5):
            loss = model.train()(**inputs).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.005

    def test_training_is_the_same_from_the_same_seed(self):
        states = []
        for _ in range(2):
            torch.manual_seed(3)
            model = HandUNetForPoseEstimation(tiny_config())
            model(**batch()).loss.backward()
            states.append({**state_of(model), "grad": model.down[0][1].weight.grad.clone()})
        assert_equal_states(*states)

    def test_invisible_keypoints_do_not_change_the_loss(self, model):
        inputs = batch()
        loss = model(**inputs).loss
        inputs["labels"][~inputs["visibility"]] = 0.3
        torch.testing.assert_close(model(**inputs).loss, loss)

    def test_bfloat16_autocast_trains_with_a_float32_loss(self, model):
        inputs = batch()
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model.train()(**inputs)
        assert outputs.loss.dtype == torch.float32
        outputs.loss.backward()
        expected = model(**inputs).loss
        assert outputs.loss.item() == pytest.approx(expected.item(), abs=0.01)

    def test_activation_checkpointing_which_would_count_statistics_twice_is_refused(self, model):
        with pytest.raises(ValueError, match="does not support activation checkpointing"):
            model.activation_checkpointing_enable()

    def test_transformers_trainer_trains_and_evaluates_it_unmodified(self, tmp_path):
        class Hands(torch.utils.data.Dataset):
            inputs = batch(16)

            def __len__(self):
                return 16

            def __getitem__(self, index):
                return {name: values[index] for name, values in self.inputs.items()}

        def trainer(**options) -> Trainer:
            torch.manual_seed(0)
            arguments = TrainingArguments(
                output_dir=tmp_path,
                max_steps=20,
                learning_rate=1e-2,
                use_cpu=True,
                dataloader_pin_memory=False,
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                **options,
            )
            data = Hands()
            return Trainer(HandUNetForPoseEstimation(tiny_config()), arguments, train_dataset=data, eval_dataset=data)

        whole = trainer(per_device_train_batch_size=8)
        before = whole.evaluate()["eval_loss"]
        result = whole.train()
        assert result.global_step == 20 and result.training_loss < 1
        assert whole.evaluate()["eval_loss"] < before - 0.005
        predictions = whole.predict(whole.eval_dataset)
        assert predictions.predictions.shape == (16, 21, SIZE, SIZE)
        # Accumulated gradients are averaged: the loss of a step of two batches is that of a batch, not of two.
        accumulated = trainer(per_device_train_batch_size=4, gradient_accumulation_steps=2)
        assert accumulated.train().training_loss == pytest.approx(result.training_loss, abs=0.02)


class TestSaving:
    @pytest.fixture
    def folder(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        return tmp_path

    def test_saved_weights_come_back_bit_for_bit_from_every_auto_class(self, model, folder):
        pixel_values = torch.randn(2, 3, SIZE, SIZE)
        for auto_class in (HandUNetForPoseEstimation, AutoModelForPoseEstimation, AutoModel):
            loaded = auto_class.from_pretrained(folder)
            assert type(loaded) is HandUNetForPoseEstimation and not loaded.training
            assert_equal_states(state_of(model), state_of(loaded))
            assert torch.equal(loaded(pixel_values).heatmaps, model(pixel_values).heatmaps)

    def test_a_model_is_made_from_its_configuration_alone(self):
        assert isinstance(AutoModelForPoseEstimation.from_config(tiny_config()), HandUNetForPoseEstimation)

    def test_nothing_saved_is_a_pickle(self, model, folder):
        assert sorted(path.suffix for path in folder.iterdir() if path.suffix != ".py") == [".json", ".safetensors"]
        assert load_file(folder / "model.safetensors").keys() == model.state_dict().keys()

    def test_a_folder_without_weights_is_refused(self, folder):
        (folder / "model.safetensors").unlink()
        with pytest.raises(OSError, match="model.safetensors"):
            HandUNetForPoseEstimation.from_pretrained(folder)

    def test_a_folder_without_a_configuration_is_refused(self, tmp_path):
        """Also where the weights would fit the defaults."""
        HandUNetForPoseEstimation(HandUNetConfig()).save_pretrained(tmp_path)
        (tmp_path / "config.json").unlink()
        for load in (HandUNetForPoseEstimation.from_pretrained, AutoModelForPoseEstimation.from_pretrained):
            with pytest.raises((OSError, ValueError), match="config.json"):
                load(tmp_path)

    def test_misfitting_weights_are_refused_by_name(self, folder):
        path = folder / "model.safetensors"
        weights = load_file(path)
        weights["head.bias"] = torch.zeros(21)
        weights["up.0.1.weight"] = torch.zeros(4, 7, 3, 3)
        del weights["down.1.3.running_var"]
        save_file(weights, path, metadata={"format": "pt"})
        message = (
            r"do not fit.*missing: down\.1\.3\.running_var; unexpected: head\.bias; "
            r"up\.0\.1\.weight has shape \(4, 7, 3, 3\), expected \(4, 12, 3, 3\).*ignore_mismatched_sizes=True"
        )
        with pytest.raises(ValueError, match=message):
            HandUNetForPoseEstimation.from_pretrained(folder)

    def test_the_weights_of_another_model_are_refused_in_a_short_sentence(self, folder):
        save_file({"embeddings.weight": torch.zeros(3)}, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"missing: down\.0\.0\.bias; .*and \d+ more\."):
            HandUNetForPoseEstimation.from_pretrained(folder)

    def test_misfitting_weights_are_initialised_on_request_and_named(self, model, folder, caplog):
        config = tiny_config(id2label={0: "a", 1: "b"}, skeleton=())
        with caplog.at_level("WARNING", logger="modeling_handunet"):
            torch.manual_seed(0)
            loaded, info = HandUNetForPoseEstimation.from_pretrained(
                folder, config=config, ignore_mismatched_sizes=True, output_loading_info=True
            )
        assert "head.weight has shape (21, 4, 3, 3), expected (2, 4, 3, 3)" in caplog.text
        assert [name for name, *_ in info["mismatched_keys"]] == ["head.weight"]
        assert torch.equal(loaded.up[0][1].weight, model.up[0][1].weight)
        assert loaded.head.weight.shape == (2, 4, 3, 3) and 0 < loaded.head.weight.abs().max() <= 1 / 6

    def test_a_truncated_weights_file_is_an_error(self, folder):
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(OSError, match=f"{folder} are damaged"):
            HandUNetForPoseEstimation.from_pretrained(folder)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_dtypes_run_and_come_back_as_they_were(self, model, tmp_path, dtype):
        pixel_values = torch.randn(2, 3, SIZE, SIZE)
        expected = model(pixel_values).heatmaps
        converted = copy.deepcopy(model).to(dtype)
        heatmaps = converted(pixel_values.to(dtype)).heatmaps
        assert heatmaps.dtype == dtype
        torch.testing.assert_close(heatmaps.float(), expected, atol=0.03, rtol=0)
        converted.save_pretrained(tmp_path)
        loaded = HandUNetForPoseEstimation.from_pretrained(tmp_path)
        assert loaded.dtype == dtype
        assert_equal_states(state_of(converted), state_of(loaded))
        assert HandUNetForPoseEstimation.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32

    def test_device_map_auto_loads_the_same_model(self, model, folder):
        loaded = HandUNetForPoseEstimation.from_pretrained(folder, device_map="auto")
        assert_equal_states(state_of(model), {name: tensor.cpu() for name, tensor in state_of(loaded).items()})

    def test_a_saved_model_is_loaded_without_memory(self, folder):
        empty = HandUNetForPoseEstimation.from_pretrained(folder, device_map="meta")
        assert all(tensor.is_meta for tensor in empty.state_dict().values())
        assert empty(torch.empty(2, 3, SIZE, SIZE, device="meta")).heatmaps.shape == (2, 21, SIZE, SIZE)

    def test_a_model_made_without_memory_takes_its_weights_later(self, model):
        with torch.device("meta"):
            empty = HandUNetForPoseEstimation(tiny_config())
        assert all(tensor.is_meta for tensor in empty.state_dict().values())
        empty.load_state_dict(model.state_dict(), assign=True)
        pixel_values = torch.randn(1, 3, SIZE, SIZE)
        assert torch.equal(empty.eval()(pixel_values).heatmaps, model(pixel_values).heatmaps)

    def test_a_saved_folder_names_its_classes_and_its_pipeline(self, folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        assert config.architectures == ["HandUNetForPoseEstimation"]
        assert config.auto_map == {
            "AutoConfig": "configuration_handunet.HandUNetConfig",
            "AutoModel": "modeling_handunet.HandUNetForPoseEstimation",
            "AutoModelForPoseEstimation": "modeling_handunet.HandUNetForPoseEstimation",
        }


def test_torch_export_keeps_the_answers_for_batches_of_any_size(model):
    program = torch.export.export(
        model,
        (torch.randn(2, 3, SIZE, SIZE),),
        dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch", min=1, max=64)}},
    )
    for count in (1, 5):
        pixel_values = torch.randn(count, 3, SIZE, SIZE)
        exported = program.module()(pixel_values)
        torch.testing.assert_close(exported["heatmaps"], model(pixel_values).heatmaps, atol=1e-6, rtol=0)

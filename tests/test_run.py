import json
import re

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from PIL import Image

from dataset_script import HandCrops, SyntheticHands
from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation, HandUNetImageProcessor
from tests.tiny_training import make_run, train_steps
from training import data
from training.arguments import Arguments
from dataset_script.augmentation import augmentation_keys
from training.data import EpochShuffle, Resident, load_splits
from training.initial_weights import load_processor, make_model, without_deep_levels
from training.optimisation import make_schedule
from training.run import batches_at_once, made_together, make_loader


def network(*sizes: int) -> HandUNetForPoseEstimation:
    torch.manual_seed(0)
    return HandUNetForPoseEstimation(HandUNetConfig(hidden_sizes=sizes, image_size=32, sigma=2.0))


def test_a_shallower_network_keeps_the_weights_of_the_levels_that_it_shares():
    deep = network(4, 6, 8, 10)
    shallow = without_deep_levels(deep, 2)
    assert shallow.config.hidden_sizes == (4, 6) and shallow.config.sigma == 2.0 and shallow.config.image_size == 32
    assert torch.equal(shallow.down[1][1].weight, deep.down[1][1].weight)
    assert torch.equal(shallow.up[0][1].weight, deep.up[2][1].weight)  # both from 6 + 4 channels to 4
    assert torch.equal(shallow.head.weight, deep.head.weight)
    whole = without_deep_levels(deep, 4)
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(whole.eval()(images).heatmaps, deep.eval()(images).heatmaps)


def test_training_may_start_from_a_model_at_another_image_size_or_depth(tmp_path):
    network(4, 6, 8).save_pretrained(tmp_path)
    model = make_model(Arguments(init=str(tmp_path), image_size=64))
    assert model.config.image_size == 64 and model(torch.randn(1, 3, 64, 64)).heatmaps.shape == (1, 21, 64, 64)
    model = make_model(Arguments(init=str(tmp_path), image_size=64, init_levels=2))
    assert model.config.hidden_sizes == (4, 6) and model.config.image_size == 64


def test_levels_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="--init_levels 5: the model to start from has 3 levels"):
        without_deep_levels(network(4, 6, 8), 5)
    with pytest.raises(ValueError, match="--init_levels has no effect here: .* by --init"):
        Arguments(init_levels=2)


def test_crops_on_a_device_come_in_the_batches_that_they_come_in_from_the_disk(tmp_path):
    """On a GPU the training set is held there; the CPU stands for it here, in two processes' share of the batches."""
    crops = HandCrops(SyntheticHands(11, image_size=32), 32, cache_dir=tmp_path)
    args = Arguments(batch_size=2, image_size=32, workers=2)

    def batches(dataset):
        loader = make_loader(dataset, args, sampler=EpochShuffle(len(dataset), seed=3), drop_last=True)
        return list(prepare_data_loader(loader, num_processes=2, process_index=1, put_on_device=False))

    args.workers = 0
    expected = batches(crops)
    args.workers = 2  # which the resident ones need not
    found = batches(Resident(crops, "cpu", batch_size=4))
    assert len(found) == len(expected) > 1
    for mine, its in zip(found, expected):
        assert mine.keys() == its.keys()
        for name in its:
            torch.testing.assert_close(mine[name], its[name], rtol=0, atol=0)


def test_crops_are_held_by_a_gpu_only_while_half_of_its_memory_stays_free(tmp_path, monkeypatch):
    crops = HandCrops(SyntheticHands(4, image_size=32), 32, cache_dir=tmp_path)
    held = []
    monkeypatch.setattr(data, "Resident", lambda dataset, device: held.append(device) or "resident")
    gpu, needed = torch.device("cuda", 0), 4 * 3 * 32 * 32
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * needed, 10 * needed))
    assert data.resident_where_it_fits(crops, gpu) is crops
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * needed + 1, 10 * needed))
    assert data.resident_where_it_fits(crops, gpu) == "resident" and held == [gpu]
    assert data.resident_where_it_fits(crops, torch.device("cpu")) is crops
    drawn_anew = HandCrops(SyntheticHands(4, image_size=32), 32)
    assert data.resident_where_it_fits(drawn_anew, gpu) is drawn_anew


def test_what_is_saved_of_a_run_is_what_it_started_from_and_was_told(tmp_path):
    network(4, 6, 8).save_pretrained(tmp_path / "start")
    run = make_run(tmp_path / "run", init=str(tmp_path / "start"), hidden_sizes=HandUNetConfig().hidden_sizes, image_size=64, sigma=1.5)
    assert run.config.hidden_sizes == (4, 6, 8) and run.args.to_dict()["hidden_sizes"] == [4, 6, 8]
    assert run.config.sigma == 1.5 and run.model.loss.energy == pytest.approx(torch.pi * 1.5**2)


def test_the_training_loss_is_that_of_all_batches_of_the_steps(tmp_path):
    """With weights that stand still, accumulating gradients over two batches changes no figure."""
    sums = []
    for batches in (1, 2):
        settings = {"batch_size": 4 // batches, "gradient_accumulation_steps": batches, "augmentation": 0.0}
        run = make_run(tmp_path / str(batches), learning_rate=1e-30, **settings)
        run.model.eval()
        run.model.train = lambda *_: run.model  # batch statistics, too
        train_steps(run)
        total, count = run.loss_sum.tolist()
        assert count == 2
        sums.append(total)
    assert sums[0] == pytest.approx(sums[1], rel=0.02)  # the mean over batches; keypoints outside weigh a little otherwise


def test_a_model_is_scored_on_crops_as_it_wants_them_unless_others_are_asked_for():
    args = Arguments(eval_only=True, model="x", annotations="y")
    args.take_from_model(96, 0.6, 2.0)
    assert (args.image_size, args.box_fill, args.sigma) == (96, 0.6, 2.0)
    args = Arguments(eval_only=True, model="x", annotations="y", image_size=64, box_fill=0.5, sigma=4.0)
    args.take_from_model(96, 0.6, 2.0)
    assert (args.image_size, args.box_fill, args.sigma) == (64, 0.5, 4.0)
    args = Arguments(annotations="y")
    assert (args.image_size, args.box_fill, args.sigma) == (128, 0.45, 3.0)


def test_hands_that_are_drawn_as_crops_say_how_much_of_them_a_box_takes():
    """Their model is then given hands of the size that it has learnt, wherever a box cuts them out."""
    for difficulty in ("easy", "full"):
        args = Arguments(difficulty=difficulty)
        sizes = [row["box_size"] for row in HandCrops(SyntheticHands(64, difficulty=difficulty), 128)]
        assert np.mean(sizes) / 128 == pytest.approx(args.box_fill, abs=0.02)


def test_a_widened_network_computes_what_the_narrow_one_does_and_learns_with_all_channels(tmp_path):
    narrow = network(4, 6, 8)
    for module in narrow.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # not what a new channel would have by itself
            for values, low, high in ((module.running_mean, -1, 1), (module.running_var, 0.5, 2), (module.weight, 0.5, 2), (module.bias, -1, 1)):
                torch.nn.init.uniform_(values, low, high)
    narrow.save_pretrained(tmp_path)
    wide = make_model(Arguments(init=str(tmp_path), image_size=32, init_hidden_sizes=(5, 6, 11)))
    assert wide.config.hidden_sizes == (5, 6, 11) and wide.config.sigma == 3.0
    torch.rand(3)
    again = make_model(Arguments(init=str(tmp_path), image_size=32, init_hidden_sizes=(5, 6, 11)))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in wide.state_dict().items())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(wide.eval()(images).heatmaps, narrow.eval()(images).heatmaps)
    torch.testing.assert_close(wide.train()(images).heatmaps, narrow.train()(images).heatmaps)
    wide(images).heatmaps.sum().backward()
    assert wide.down[2][1].weight.grad[8:].abs().sum() == 0  # their outputs have no effect yet
    assert wide.up[0][1].weight.grad[:, 8:11].abs().sum() > 0  # but it is about to be learnt
    with torch.no_grad():
        for parameter in wide.parameters():
            parameter -= 1e-6 * (0 if parameter.grad is None else parameter.grad)
    wide.zero_grad()
    wide(images).heatmaps.sum().backward()
    assert wide.down[2][1].weight.grad[8:].abs().sum() > 0


def test_other_levels_than_those_of_the_weights_to_start_from_are_refused(tmp_path):
    network(4, 6).save_pretrained(tmp_path)
    assert make_model(Arguments(init=str(tmp_path))).config.hidden_sizes == (4, 6)
    with pytest.raises(ValueError, match="--hidden_sizes 4 8: --init .* brings its own, 4 6"):
        make_model(Arguments(init=str(tmp_path), hidden_sizes=(4, 8)))
    for sizes in ((4, 5), (4, 6, 8)):
        with pytest.raises(ValueError, match=f"--init_hidden_sizes {' '.join(map(str, sizes))}: the model to start from has 4 6"):
            make_model(Arguments(init=str(tmp_path), init_hidden_sizes=sizes))
    with pytest.raises(ValueError, match="--init_hidden_sizes has no effect here: .* by --init"):
        Arguments(init_hidden_sizes=(4, 8))


@pytest.mark.parametrize(
    "setting, value",
    [
        *(("image_mean", [0.1, 0.2, 0.3]), ("image_std", [0.1, 0.2, 0.3]), ("rescale_factor", 1.0)),
        *(("do_rescale", False), ("do_normalize", False)),
    ],
)
def test_a_processor_that_normalises_otherwise_is_refused_by_name(tmp_path, setting, value):
    HandUNetImageProcessor(**{setting: value}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path.name} normalises by {setting} {value}, and train.py")):
        load_processor(str(tmp_path))


def test_photographs_are_counted_and_too_few_are_refused_by_name(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "b.png")
    points = [float(number % 21 + 5) for number in range(42)]
    keypoints = [value for x, y in zip(points[::2], points[1::2]) for value in (x, y, 2)]
    file = tmp_path / "hands.json"

    def prepare(names: str, **options):
        images = [{"id": name, "file_name": f"{name}.png"} for name in names]
        hands = [{"id": f"{name}{hand}", "image_id": name, "keypoints": keypoints} for name in names for hand in range(3)]
        file.write_text(json.dumps({"images": images, "annotations": hands}))
        return load_splits(Arguments(annotations=str(file), images=str(tmp_path), cache_dir=str(tmp_path / "cache"), **options))

    with pytest.raises(ValueError, match=f"{file.name} leaves no photograph for train"):
        prepare("a")
    splits = prepare("ab", train_samples=2, test_samples=1)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [2, 3, 1]
    assert splits.source == file.name  # goes onto cards: no folder of this machine
    assert len(prepare("ab", eval_only=True, model="x", test_samples=4).test) == 4


@pytest.mark.parametrize("difficulty", ["easy", "scenes"])
def test_endless_hands_are_drawn_where_the_training_runs_unless_workers_draw_them(tmp_path, monkeypatch, difficulty):
    used, draw = [], SyntheticHands.render_hands
    monkeypatch.setattr(SyntheticHands, "render_hands", lambda self, indices, device="cpu": used.append(str(device)) or draw(self, indices))
    counts = {"train_samples": 2, "validation_samples": 1, "test_samples": 1}
    for workers, expected in ((0, "cpu:0"), (1, "cpu")):
        args = Arguments(difficulty=difficulty, streaming=True, workers=workers, image_size=32, cache_dir=str(tmp_path), **counts)
        train = load_splits(args, torch.device("cpu:0")).train  # which is no other device, but another name
        used.clear()
        train.__getitems__([0, 1])
        assert used == [expected]


def test_inputs_made_for_several_batches_are_those_of_each(tmp_path):
    counts = {"train_samples": 10, "validation_samples": 1, "test_samples": 1, "layers": 4}
    args = Arguments(difficulty="scenes", image_size=32, batch_size=3, cache_dir=str(tmp_path), **counts)
    splits = load_splits(args)
    batches = [splits.train.__getitems__(numbers) for numbers in ([0, 1, 2], [3, 4, 5], [6, 7, 8], [9])]

    def make(batch):
        return splits.scenes(batch["image"], batch["keypoints"], batch["skin"], augmentation_keys(0, 0, batch["index"]))

    for count in (1, 3, 9):
        pairs = list(made_together(iter(batches), make, count))
        assert [batch["index"].tolist() for batch, _ in pairs] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
        for batch, made in pairs:
            for mine, alone in zip(made, make(batch)):
                torch.testing.assert_close(mine, alone, rtol=0, atol=0)


def test_only_a_gpu_that_does_not_accumulate_makes_several_steps_scenes_at_once(monkeypatch):
    """Looking ahead in accelerate's loader would end the accumulation of gradients too early."""
    memory = {"free": 80 * 2**30}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (memory["free"], 80 * 2**30))
    args = Arguments(difficulty="scenes", batch_size=128)
    assert batches_at_once(args, torch.device("cpu")) == 1
    assert batches_at_once(args, torch.device("cuda")) == 16
    memory["free"] = 8 * 2**30
    assert batches_at_once(args, torch.device("cuda")) == 4  # 512 scenes of 4 MB
    memory["free"] = 2**28
    assert batches_at_once(args, torch.device("cuda")) == 1
    accumulating = Arguments(difficulty="scenes", batch_size=128, gradient_accumulation_steps=2)
    memory["free"] = 80 * 2**30
    assert batches_at_once(accumulating, torch.device("cuda")) == 1


@pytest.mark.parametrize("patience, stalled", [(2, 1), (3, 2), (4, 3), (10, 8), (30, 21)])  # 30: the published training's
def test_on_a_plateau_the_learning_rate_is_halved_before_the_run_would_end(patience, stalled):
    optimizer = torch.optim.SGD(network(4).parameters(), 1.0)
    schedule = make_schedule(Arguments(schedule="plateau", patience=patience), optimizer, 100)
    epochs = 0
    while optimizer.param_groups[0]["lr"] == 1.0:
        schedule.step(0.5)
        epochs += 1
    assert epochs - 1 == stalled < patience

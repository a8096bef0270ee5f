import pytest
import torch
from accelerate.data_loader import prepare_data_loader

from dataset_script import HandCrops, SyntheticHands
from modeling_handunet import HandUNetConfig, HandUNetForPoseEstimation
from tests.tiny_training import make_run, train_steps
from training import data
from training.arguments import Arguments
from training.data import EpochShuffle, Resident
from training.run import make_loader, make_model, without_deep_levels


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
    with pytest.raises(ValueError, match="--init_levels without --init"):
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
    run = make_run(tmp_path / "run", init=str(tmp_path / "start"), hidden_sizes=(16, 32), image_size=64, sigma=1.5)
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
    args = Arguments(eval_only=True, model="x")
    args.take_crops_of(96, 0.6)
    assert (args.image_size, args.box_fill) == (96, 0.6)
    args = Arguments(eval_only=True, model="x", image_size=64, box_fill=0.5)
    args.take_crops_of(96, 0.6)
    assert (args.image_size, args.box_fill) == (64, 0.5)
    assert (Arguments().image_size, Arguments().box_fill) == (128, 0.45)

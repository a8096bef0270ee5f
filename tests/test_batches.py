"""How samples become batches, and batches inputs."""

import torch
from accelerate.data_loader import prepare_data_loader

from dataset_script import HandCrops, SyntheticHands
from dataset_script.augmentation import augmentation_keys
from dataset_script.sources import make_source
from training import batches as batches_module
from training.arguments import make_arguments
from training.batches import DeviceCrops, EpochShuffle, make_loader
from training.inputs import batches_at_once, with_inputs


def test_crops_on_a_device_come_in_the_batches_that_they_come_in_from_the_disk(tmp_path):
    """On a GPU the training set is held there; the CPU stands for it here, in two processes' share of the batches."""
    crops = HandCrops(SyntheticHands(11, image_size=32), 32, cache_dir=tmp_path)

    def batches(dataset, workers: int):
        loader = make_loader(dataset, 2, workers, sampler=EpochShuffle(len(dataset), seed=3), drop_last=True)
        return list(prepare_data_loader(loader, num_processes=2, process_index=1, put_on_device=False))

    expected = batches(crops, workers=0)
    found = batches(DeviceCrops(crops, "cpu", batch_size=4), workers=2)  # which they do not need
    assert len(found) == len(expected) > 1
    for mine, its in zip(found, expected):
        assert mine.keys() == its.keys()
        for name in its:
            torch.testing.assert_close(mine[name], its[name], rtol=0, atol=0)


def test_crops_are_held_by_a_gpu_only_while_half_of_its_memory_stays_free(tmp_path, monkeypatch):
    crops = HandCrops(SyntheticHands(4, image_size=32), 32, cache_dir=tmp_path)
    held = []
    monkeypatch.setattr(batches_module, "DeviceCrops", lambda dataset, device: held.append(device) or "on the GPU")
    gpu, needed = torch.device("cuda", 0), 4 * 3 * 32 * 32
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * needed, 10 * needed))
    assert batches_module.on_gpu_if_it_fits(crops, gpu) is crops
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * needed + 1, 10 * needed))
    assert batches_module.on_gpu_if_it_fits(crops, gpu) == "on the GPU" and held == [gpu]
    assert batches_module.on_gpu_if_it_fits(crops, torch.device("cpu")) is crops
    drawn_anew = HandCrops(SyntheticHands(4, image_size=32), 32)
    assert batches_module.on_gpu_if_it_fits(drawn_anew, gpu) is drawn_anew


def test_inputs_made_for_several_batches_are_those_of_each(tmp_path):
    args = make_arguments(
        dataset=["scenes", "synthetic"], shares=[2, 1], image_size=32, cache_dir=str(tmp_path), layers=4,
        train_samples=10, validation_samples=1, test_samples=1,
    )  # fmt: skip
    source = make_source(args.data.dataset, args.data.shares, args.data, image_size=32, box_fill=0.45)
    train = source.splits().train
    batches = [train.__getitems__(numbers) for numbers in ([0, 1, 2], [3, 4, 5], [6, 7, 8], [9])]
    assert {tuple(batch["parts"]) for batch in batches} != {(0,)}  # not of one source alone
    alone = [source.make_inputs(batch, augmentation_keys(0, 0, batch["index"])) for batch in batches]
    for count in (1, 3, 9):
        pairs = list(with_inputs(iter(batches), source, seed=0, epoch=0, at_once=count))
        assert [batch["index"].tolist() for batch, _ in pairs] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
        for (_, made), expected in zip(pairs, alone):
            for mine, its in zip(made, expected):
                torch.testing.assert_close(mine, its, rtol=0, atol=0)


def test_only_a_gpu_that_does_not_accumulate_makes_several_steps_inputs_at_once(monkeypatch):
    """Prefetching in accelerate's loader would end the accumulation of gradients too early."""
    memory = {"free": 80 * 2**30}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (memory["free"], 80 * 2**30))
    args = make_arguments(dataset=["scenes"], batch_size=128)
    assert batches_at_once(args, torch.device("cpu")) == 1
    assert batches_at_once(args, torch.device("cuda")) == 16
    memory["free"] = 8 * 2**30
    assert batches_at_once(args, torch.device("cuda")) == 4  # 512 scenes of 4 MB
    memory["free"] = 2**28
    assert batches_at_once(args, torch.device("cuda")) == 1
    accumulating = make_arguments(dataset=["scenes"], batch_size=128, gradient_accumulation_steps=2)
    memory["free"] = 80 * 2**30
    assert batches_at_once(accumulating, torch.device("cuda")) == 1

"""Train a hand pose model, score it, draw it and save it as a Hub repository.

    accelerate launch train.py                                     # synthetic hands: nothing to download
    accelerate launch train.py --data_dir FreiHAND_pub_v2          # FreiHAND, the extracted folder or the zip
    accelerate launch train.py --dataset coco --annotations hands.json --images photos --init outputs/handunet/model
    accelerate launch train.py --resume                            # go on where a run was stopped or killed
    accelerate launch train.py --recipe seed --data_dir FreiHAND_pub_v2    # the design this project started from
    python train.py --eval_only --model outputs/handunet/model --dataset coco --annotations hands.json
    ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes 2 train.py    # two processes without a GPU

Everything goes to --output_dir: `model/` is the Hub repository (push it with --push_to_hub USER/NAME), `metrics.json` the
figures, `figures/` the plots, `checkpoints/` what --resume needs, `logs/` the curves for tensorboard.
"""

import json
import os
import signal
import sys
import time
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from dataset_script.files import shorten
from modeling_handunet import render_heatmaps
from release.hub import push_model
from release.saving import save_model
from training.arguments import Arguments, parse_arguments
from training.confidence import calibration, told_from_negatives
from training.data import load_splits
from training.evaluation import (
    load_metric, mean_over, mean_pose_arrays, normalize, predict, score, score_by_group, worst_over_green_screen,
)  # fmt: skip
from training.figures import draw_contact_sheet, draw_figures
from training.memory import keep_freed_memory
from training.initial_weights import load_any_model, load_processor
from training.run import Run, is_better, make_loader

SELECTED_BY = "mean_error_percent"  # of the validation split; lower is better


def main() -> None:
    """Read the command line, then train or score."""
    args = parse_arguments(description=__doc__)
    keep_freed_memory()
    torch.backends.cudnn.benchmark = True  # crops are all of one size: time the GPU's ways to convolve them, once
    transformers_logging.disable_progress_bar()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()  # they would flood a log file
    accelerator = Accelerator(
        cpu=torch.backends.mps.is_available(),  # Apple's GPUs have no float64, which random keys and metrics are made of
        mixed_precision=args.mixed_precision,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],  # the others wait while one prepares data
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=None if args.eval_only else "tensorboard",
        project_dir=args.output_dir,
    )
    try:
        if args.eval_only:
            evaluate_only(args, accelerator)
        else:
            training_function(args, accelerator)
    except (ValueError, OSError) as error:
        if accelerator.num_processes > 1:
            raise  # the launcher ends the other processes
        sys.exit(f"train.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    accelerator.end_training()


def evaluate_only(args: Arguments, accelerator: Accelerator) -> None:
    """Score any model on any dataset, by the project's metric."""
    model = load_any_model(args.model)
    args.take_from_model(model.config.image_size, load_processor(args.model).box_fill, model.config.sigma)
    splits = load_splits(args, accelerator.device)
    say_what_is_left_out(accelerator, splits.left_out)
    loader = DataLoader(splits.test, args.batch_size, num_workers=args.workers)
    model, loader = accelerator.prepare(model, loader)
    arrays = predict(accelerator, model, loader, sigma=args.sigma, quantize=False, decoding=args.decoding)
    if accelerator.is_main_process:
        print(f"{args.model} on {splits.source}: {len(arrays['index'])} hands")
        figures = score(load_metric(), arrays, args.image_size)
        if splits.test_groups:
            parts = score_by_group(load_metric(), arrays, splits.test_groups, args.image_size)
            shown = {name: {k: v for k, v in part.items() if not isinstance(v, list)} for name, part in parts.items()}
            figures |= {f"by_{splits.grouped_by}": shown, f"mean_over_{splits.grouped_by}s": mean_over(parts)}
            if (ratio := worst_over_green_screen(parts)) is not None:
                figures["worst_over_green_screen"] = ratio
        print(json.dumps(figures, indent=2))
        if args.contact_sheet:
            draw_contact_sheet(Path(args.contact_sheet), arrays, splits.test)


def prepare_output(args: Arguments, accelerator: Accelerator) -> Path:
    """Make the output folder, and refuse to mix two runs in one."""
    output = Path(args.output_dir)
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output_dir {output} is a file: name a folder.")
    if not args.resume and output.exists() and any(output.iterdir()):
        raise ValueError(
            f"{output} is not empty. To go on with the run in it, add --resume; to keep it and start another, name a "
            "new folder with --output_dir; to start again, remove it first."
        )
    accelerator.wait_for_everyone()
    for name in ("checkpoints", "logs", "figures"):
        (output / name).mkdir(parents=True, exist_ok=True)
    return output


def training_function(args: Arguments, accelerator: Accelerator) -> None:
    """The whole of a training, from the data to the saved model."""
    output = prepare_output(args, accelerator)
    if args.init:
        load_processor(args.init)  # refuses weights that were trained on pixels normalised otherwise
    say(accelerator, f"Preparing {args.dataset} data ...")
    with accelerator.main_process_first():
        splits = load_splits(args, accelerator.device)
    say_what_is_left_out(accelerator, splits.left_out)
    run = Run(args, accelerator, splits)
    if args.resume:
        say(accelerator, run.resume())
    if accelerator.is_main_process:
        args.save(output / "arguments.json")
    accelerator.init_trackers("logs")
    metric = load_metric() if accelerator.is_main_process else None
    interrupts = Interrupts(accelerator)
    say(
        accelerator,
        f"{len(splits.train)} training samples of {splits.source}, {len(splits.validation)} for validation, "
        f"{len(splits.test)} for test; {sum(p.numel() for p in run.model.parameters()):,} parameters; "
        f"{accelerator.num_processes} process(es) on {accelerator.device.type}.",
    )

    while run.epoch < args.epochs and run.validations_without_improvement < args.patience:
        speed = train_one_epoch(run, interrupts)
        validate(run, metric, speed)
        run.epoch, run.batch, run.loss_sum = run.epoch + 1, 0, torch.zeros_like(run.loss_sum)
        run.save()
        stop_if_asked(run, interrupts)
    if run.epoch < args.epochs:
        say(accelerator, f"Stopped early: no improvement in the last {args.patience} validations.")
    finish(run, metric, output)


def train_one_epoch(run: Run, interrupts: "Interrupts") -> float:
    """The steps of the current epoch that are not done yet; returns images/s over all processes."""
    args, accelerator, model = run.args, run.accelerator, run.model
    run.start_epoch()
    model.train()
    loader = skip_first_batches(run.train_loader, run.batch) if run.batch else run.train_loader
    started, images_done = time.perf_counter(), 0
    quiet = not accelerator.is_main_process or not sys.stderr.isatty()
    bar = tqdm(total=len(run.train_loader), initial=run.batch, desc=f"epoch {run.epoch + 1}", disable=quiet, leave=False)
    samples, losses = [], []  # of the batches that make up this step
    with closing(iter(loader)) as batches:  # ends the dataloader's workers at once, however the loop is left
        for batch, (images, keypoints, visibility) in run.with_inputs(batches):
            if not samples:
                statistics = [buffer.clone() for buffer in model.buffers()]
            samples += batch["index"].tolist()
            with accelerator.accumulate(model):
                labels = render_heatmaps(keypoints, images.shape[-1], args.sigma, quantize=args.targets == "quantized")
                pixel_values = normalize(images).contiguous(memory_format=torch.channels_last)
                loss = model(pixel_values=pixel_values, labels=labels, visibility=visibility).loss
                losses.append(loss.detach())
                accelerator.backward(loss * (1 + 0 * loss.detach()))  # an infinite loss, too, has NaN gradients
                run.batch += 1
                images_done += len(images) * accelerator.num_processes
                bar.update()
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm or float("inf"))
                    if torch.isfinite(norm):
                        take_step(run)
                        run.loss_sum += torch.tensor([torch.stack(losses).mean().item(), 1.0], dtype=torch.float64)
                    else:
                        skip_step(run, statistics, samples)
                run.optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue
            samples, losses = [], []
            speed = images_done / (time.perf_counter() - started)
            bar.set_postfix(loss=f"{loss.item():.3f}", images_per_s=f"{speed:.0f}")
            due = run.step % args.checkpoint_every == 0 and not run.bad_steps
            if due and run.batch < len(run.train_loader):
                run.save()
            stop_if_asked(run, interrupts)
    bar.close()
    return images_done / (time.perf_counter() - started)


def take_step(run: Run) -> None:
    """One step of the optimizer, the schedule and the averaged weights."""
    run.optimizer.step()
    if run.args.schedule == "cosine":
        run.schedule.step()
    run.average.update_parameters(run.accelerator.unwrap_model(run.model))
    run.step += 1
    run.bad_steps = 0
    if run.step % 20 == 0:
        run.accelerator.log({"learning_rate": run.optimizer.param_groups[0]["lr"]}, step=run.step)


def skip_step(run: Run, statistics: list[torch.Tensor], samples: list[int]) -> None:
    """Undo what a step with a NaN or infinite loss or gradient did, and end the run after too many of them."""
    for buffer, value in zip(run.model.buffers(), statistics):
        buffer.copy_(value)
    if run.accelerator.scaler is not None:
        run.accelerator.scaler.update()  # lowers its scale
    run.bad_steps += 1
    run.skipped_steps += 1
    samples = sorted(gather_object(samples))
    say(
        run.accelerator,
        f"Skipped a step with a NaN or infinite loss or gradient ({run.skipped_steps} so far, {run.bad_steps} in a "
        f"row): epoch {run.epoch + 1}, samples {', '.join(map(str, samples))}.",
    )
    if run.bad_steps >= run.args.max_bad_steps:
        raise ValueError(
            f"{run.bad_steps} steps in a row had a NaN or infinite loss or gradient, the last with samples "
            f"{', '.join(map(str, samples))}. They changed no weights, and the last checkpoint is whole: look at these "
            "samples, or start another run with a lower --learning_rate."
        )


def validate(run: Run, metric, speed: float) -> None:
    """Score the averaged weights, log, keep them where they are the best so far."""
    args, accelerator = run.args, run.accelerator
    run.share_average()
    quantize = args.targets == "quantized"
    arrays = predict(
        accelerator, run.average.module, run.validation_loader, sigma=args.sigma, quantize=quantize, decoding=args.decoding
    )
    figures = [score(metric, arrays, args.image_size) if accelerator.is_main_process else None]
    broadcast_object_list(figures)
    (figures,) = figures
    total, count = accelerator.reduce(run.loss_sum.to(accelerator.device), "sum").tolist()
    train_loss = total / max(count, 1)
    run.history.append({"epoch": run.epoch + 1, "step": run.step, "train_loss": train_loss, "validation": figures})
    if args.schedule == "plateau":
        run.schedule.step(train_loss)
    improved = is_better(figures[SELECTED_BY], run.best and run.best["validation"][SELECTED_BY])
    if improved:
        run.validations_without_improvement = 0
        run.keep_best()
    else:
        run.validations_without_improvement += 1
    accelerator.log(
        {
            "loss/train": train_loss,
            "loss/validation": figures["loss"],
            "error/validation_percent": figures["mean_error_percent"],
            "images_per_second": speed,
        },
        step=run.step,
    )
    say(
        accelerator,
        f"epoch {run.epoch + 1}/{args.epochs}: loss {train_loss:.4f}, validation loss {figures['loss']:.4f}, "
        f"mean error {figures['mean_error_percent']:.2f} % ({figures['mean_error_px_128']:.2f} px of 128), "
        f"{speed:.0f} images/s{', best so far' if improved else ''}",
    )


def finish(run: Run, metric, output: Path) -> None:
    """Test the best weights, compare them with always answering the mean pose, draw, save and push."""
    args, accelerator = run.args, run.accelerator
    if run.best is None:
        raise ValueError("No validation gave a finite error: the training diverged. Lower --learning_rate.")
    run.start_epoch()  # an endless stream gives the mean pose the same samples, wherever the run was interrupted
    model = run.load_best().to(accelerator.device)
    how = {"sigma": args.sigma, "quantize": False, "decoding": args.decoding}
    arrays = predict(accelerator, model, run.test_loader, **how)
    validation = predict(accelerator, model, run.validation_loader, **how)
    negatives = {
        name: predict(accelerator, model, accelerator.prepare(make_loader(images, args)), **how)
        for name, images in run.splits.test_negatives.items()
    }
    if accelerator.is_main_process:
        splits = run.splits  # the layers of scenes have no place in a crop
        posed, seen = ("validation", splits.validation) if splits.scenes else ("training", splits.train)
        baseline = score(metric, mean_pose_arrays(seen, arrays), args.image_size)
        test = score(metric, arrays, args.image_size)
        ratio = test[SELECTED_BY] / max(baseline[SELECTED_BY], 1e-9)  # 0 where all hands are the same
        metrics = {
            "dataset": run.splits.source,
            "processes": accelerator.num_processes,
            "steps": run.step,
            "skipped_steps": run.skipped_steps,
            "best_epoch": run.best["epoch"],
            "validation": run.best["validation"],
            "test": test,
            "mean_pose": baseline,
            "mean_pose_of": posed,
            "error_over_mean_pose": ratio,
            "calibration": calibration(validation, arrays),
            "history": run.history,
        }
        if negatives:
            metrics["told_from_negatives"] = told_from_negatives(arrays, negatives, metrics["calibration"]["temperature"])
        if run.splits.test_groups:
            metrics["grouped_by"] = run.splits.grouped_by
            metrics["test_by_group"] = score_by_group(metric, arrays, run.splits.test_groups, args.image_size)
            if (worst := worst_over_green_screen(metrics["test_by_group"])) is not None:
                metrics["worst_over_green_screen"] = worst
        unfinished = output / "metrics.json.incomplete"
        unfinished.write_text(json.dumps(metrics, indent=2) + "\n")
        unfinished.replace(output / "metrics.json")
        figures = draw_figures(output / "figures", metrics, arrays, run.splits.test)
        save_model(output / "model", model, args, metrics, run.splits, figures)
        say(
            accelerator,
            f"Test: mean error {test['mean_error_percent']:.2f} % of the image side ({test['mean_error_px_128']:.2f} px of "
            f"128), PCK@0.1 {test['pck@0.1']:.3f}, AUC {test['auc']:.3f}.\n"
            f"Always answering the {posed} set's mean pose: {baseline['mean_error_percent']:.2f} %; this model makes "
            f"{ratio:.2f} of that error.\n"
            f"Model: {output / 'model'}   Figures: {output / 'figures'}   All figures: {output / 'metrics.json'}\n"
            f"Try it: python predict.py PHOTO --model {output / 'model'}",
        )
        if args.push_to_hub:
            push_model(output / "model", args.push_to_hub, space=args.space, say=lambda text: say(accelerator, text))
    accelerator.wait_for_everyone()


class Interrupts:
    """SIGTERM and the first Ctrl-C ask the loop to stop after its step; a second Ctrl-C stops at once."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.received = 0  # the signal's number
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame) -> None:
        if self.received and number == signal.SIGINT:
            os._exit(128 + number)  # at once: what is half-written is never taken for whole
        self.received = number
        if self.accelerator.is_main_process:  # past the buffers of `print`, which may be what was interrupted
            name = signal.Signals(number).name
            text = f"{name}: finishing the step and writing a checkpoint; Ctrl-C again stops at once.\n"
            os.write(sys.stdout.fileno(), text.encode())

    def on_any_process(self) -> int:
        """The signal that asked any process to stop, or 0; all of them get the same answer."""
        if self.accelerator.num_processes == 1:
            return self.received
        return int(self.accelerator.gather(torch.tensor([self.received], device=self.accelerator.device)).max())


def stop_if_asked(run: Run, interrupts: Interrupts) -> None:
    """Leave the program with a checkpoint when a signal asked for it."""
    number = interrupts.on_any_process()
    if number:
        run.save()
        say(run.accelerator, f"Stopped at step {run.step}. Go on with the same command and --resume.")
        run.accelerator.end_training()
        sys.exit(128 + number)


def say_what_is_left_out(accelerator: Accelerator, images: dict[str, str]) -> None:
    """Name the images that have no sample, whether their dataset was built now or earlier."""
    if images:
        named = shorten([f"{name} ({reason})" for name, reason in images.items()])
        say(accelerator, f"Left out {len(images)} images that cannot be read: {named}.")


def say(accelerator: Accelerator, text: str) -> None:
    """Print from one process, without tearing a progress bar."""
    if accelerator.is_main_process:
        tqdm.write(text)
        sys.stdout.flush()


if __name__ == "__main__":
    main()

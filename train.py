"""Train a hand pose model or a hand detector, score it, draw it and save it as a Hub repository.

    accelerate launch train.py                                     # synthetic hands: nothing to download
    accelerate launch train.py --data_dir FreiHAND_pub_v2          # FreiHAND, the extracted folder or the zip
    accelerate launch train.py --annotations hands.json --images photos --init weights/handunet-base    # own photographs
    accelerate launch train.py --dataset scenes freihand --shares 0.3 0.7 --data_dir FreiHAND_pub_v2     # a mixture
    accelerate launch train.py --task detection --people people --photos backgrounds --init weights/handunet    # the detector
    accelerate launch train.py @recipes/seed.args --data_dir FreiHAND_pub_v2    # options from a file, and more
    accelerate launch train.py --resume                            # go on where a run was stopped or killed
    python train.py --eval_only --model outputs/handunet/model --annotations hands.json --images photos
    ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes 2 train.py    # two processes without a GPU

Everything goes to --output_dir: `model/` is the Hub repository (push it with --push_to_hub USER/NAME), `metrics.json` the
figures, `figures/` the plots, `checkpoints/` what --resume needs, `logs/` the curves for tensorboard.
"""

import json
import signal
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import InitProcessGroupKwargs, broadcast, broadcast_object_list, gather_object
from torch.utils.data import DataLoader, Dataset
from transformers.utils import logging as transformers_logging

from dataset_script.sources import Source, make_source
from release.card import PICTURES, shows_pictures
from release.files import write_json
from release.hub import push_model
from release.saving import save_model
from training.arguments import Arguments, parse_arguments
from training.batches import make_loader
from training.evaluation import figures_of_groups
from training.figures import draw_contact_sheet
from training.inputs import normalize, with_inputs
from training.interrupts import trigger_on_signals
from training.memory import keep_freed_memory
from training.output_folder import output_folder
from training.progress import EpochProgress, say, say_what_is_left_out
from training.report import make_report
from training.resume import best_model, keep_best, resume, save_checkpoint
from training.run import Run
from training.tasks import make_task


def main() -> None:
    """Read the command line, then train or score."""
    args = parse_arguments(description=__doc__)
    keep_freed_memory()
    torch.backends.cudnn.benchmark = True  # all crops have one size: try the GPU's convolutions once, take the fastest
    transformers_logging.disable_progress_bar()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()  # they would flood a log file
    accelerator = Accelerator(
        cpu=torch.backends.mps.is_available(),  # Apple's GPUs have no float64, which random keys and metrics need
        mixed_precision=args.optimisation.mixed_precision,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],  # the others wait while one prepares data
        gradient_accumulation_steps=args.optimisation.gradient_accumulation_steps,
        log_with=None if args.output.eval_only else "tensorboard",
        project_dir=args.output.output_dir,
    )
    source = make_source(
        args.data.dataset, args.data.shares, args.data, validate_on=args.data.validate_on, image_size=args.model.image_size,
        box_fill=args.model.box_fill, seed=args.optimisation.seed, eval_only=args.output.eval_only, device=accelerator.device,
    )  # fmt: skip
    try:
        if args.output.eval_only:
            evaluate_only(args, accelerator, source)
        else:
            with output_folder(args.output, accelerator) as output:
                train(args, accelerator, source, output)
    except (ValueError, OSError) as error:
        if accelerator.num_processes > 1:
            raise  # the launcher ends the other processes
        sys.exit(f"train.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    accelerator.end_training()


def train(args: Arguments, accelerator: Accelerator, source: Source, output: Path) -> None:
    """The whole of a training, from the data to the saved model in the folder `output`."""
    say(accelerator, f"Preparing {' and '.join(args.data.dataset)} data ...")
    with accelerator.main_process_first():
        splits = source.splits()
    say_what_is_left_out(accelerator, splits.left_out, source.summary())
    run = Run(args, accelerator, source)
    if args.output.resume:
        say(accelerator, resume(run))
    if accelerator.is_main_process:
        write_json(output / "arguments.json", args.to_dict())
    accelerator.init_trackers("logs")
    metric = run.task.load_metric() if accelerator.is_main_process else None
    stop_if_asked = make_stop(run)
    say(
        accelerator,
        f"{len(splits.train)} training samples of {source.describe().name}, {len(splits.validation)} for validation, "
        f"{len(splits.test)} for test; {sum(p.numel() for p in run.model.parameters()):,} parameters; "
        f"{accelerator.num_processes} process(es) on {accelerator.device.type}.",
    )
    if source.same_validation_and_test:
        say(accelerator, "Validation and test are the same photographs: the weights are chosen on what they are tested on.")
    if args.model.init and not run.step:
        figures = validation_figures(run, metric)
        say(accelerator, f"{args.model.init} before the first step: {run.task.in_words(figures)}")

    while run.epoch < args.optimisation.epochs and run.validations_without_improvement < args.optimisation.patience:
        speed = train_one_epoch(run, stop_if_asked)
        validate(run, metric, speed)
        run.epoch, run.batch, run.loss_sum = run.epoch + 1, 0, torch.zeros_like(run.loss_sum)
        save_checkpoint(run)
        stop_if_asked()
    if run.epoch < args.optimisation.epochs:
        say(accelerator, f"Stopped early: no improvement in the last {args.optimisation.patience} validations.")
    finish(run, metric, output)


def train_one_epoch(run: Run, stop_if_asked: Callable[[], None]) -> float:
    """The steps of the current epoch that are not done yet; returns images/s over all processes."""
    args, accelerator, model = run.args, run.accelerator, run.model
    run.start_epoch()
    model.train()
    loader = skip_first_batches(run.train_loader, run.batch) if run.batch else run.train_loader
    progress = EpochProgress(accelerator, run.epoch, len(run.train_loader), run.batch)
    samples, losses = [], []  # of the batches that make up this step
    with closing(iter(loader)) as batches:  # ends the dataloader's workers at once, also after an error
        for batch, inputs in with_inputs(batches, run.source, args.optimisation.seed, run.epoch, run.batches_at_once):
            if not samples:
                statistics = [buffer.clone() for buffer in model.buffers()]
            samples.append(batch["index"])
            with accelerator.accumulate(model):
                targets = run.make_targets(inputs)  # of pose: labels (B, 21, S, S), visibility (B, 21)
                pixel_values = normalize(inputs.images).contiguous(memory_format=torch.channels_last)  # (B, 3, S, S)
                run.seed_batch()
                loss = model(pixel_values=pixel_values, **targets).loss
                losses.append(loss.detach())
                accelerator.backward(loss * (1 + 0 * loss.detach()))  # makes gradients NaN if the loss is infinite
                run.batch += 1
                progress.advance(len(pixel_values))
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(model.parameters(), args.optimisation.max_grad_norm or float("inf"))
                    # The one place of a step where the CPU waits for the GPU.
                    mean_loss, is_finite = torch.stack([torch.stack(losses).mean(), norm.isfinite()]).tolist()
                    if is_finite:
                        take_step(run)
                        run.loss_sum += torch.tensor([mean_loss, 1.0], dtype=torch.float64)
                    else:
                        skip_step(run, statistics, samples)
                run.optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue
            samples, losses = [], []
            progress.show(mean_loss)
            due = run.step % args.output.checkpoint_every == 0 and not run.bad_steps
            if due and run.batch < len(run.train_loader):
                save_checkpoint(run)
            stop_if_asked()
    progress.close()
    return progress.speed


def take_step(run: Run) -> None:
    """One step of the optimizer, the schedule and the averaged weights."""
    run.optimizer.step()
    if run.args.optimisation.schedule == "cosine":
        run.schedule.step()
    run.average.update_parameters(run.accelerator.unwrap_model(run.model))
    run.step += 1
    run.bad_steps = 0
    if run.step % 20 == 0:
        run.accelerator.log({"learning_rate": run.optimizer.param_groups[0]["lr"]}, step=run.step)


def skip_step(run: Run, statistics: list[torch.Tensor], samples: list[torch.Tensor]) -> None:
    """Undo what a step with a NaN or infinite loss or gradient did, and end the run after too many of them."""
    for buffer, value in zip(run.model.buffers(), statistics):
        buffer.copy_(value)
    if run.accelerator.scaler is not None:
        run.accelerator.scaler.update()  # lowers its scale
    run.bad_steps += 1
    run.skipped_steps += 1
    samples = sorted(gather_object(torch.cat(samples).tolist()))
    say(
        run.accelerator,
        f"Skipped a step with a NaN or infinite loss or gradient ({run.skipped_steps} so far, {run.bad_steps} in a "
        f"row): epoch {run.epoch + 1}, samples {', '.join(map(str, samples))}.",
    )
    if run.bad_steps >= run.args.optimisation.max_bad_steps:
        raise ValueError(
            f"{run.bad_steps} steps in a row had a NaN or infinite loss or gradient, the last with samples "
            f"{', '.join(map(str, samples))}. They changed no weights, and the last checkpoint is whole: look at these "
            "samples, or start another run with a lower --learning_rate."
        )


def validate(run: Run, metric, speed: float) -> None:
    """Score the averaged weights, log the figures, and store the weights if they are the best so far."""
    settings, accelerator = run.args.optimisation, run.accelerator
    figures = validation_figures(run, metric)
    total, count = accelerator.reduce(run.loss_sum.to(accelerator.device), "sum").tolist()
    train_loss = total / max(count, 1)
    run.history.append({"epoch": run.epoch + 1, "step": run.step, "train_loss": train_loss, "validation": figures})
    if settings.schedule == "plateau":
        run.schedule.step(train_loss)
    improved = run.task.is_better(figures, run.best and run.best["validation"])
    if improved:
        run.validations_without_improvement = 0
        keep_best(run)
    else:
        run.validations_without_improvement += 1
    accelerator.log(
        {
            "loss/train": train_loss,
            "loss/validation": figures["loss"],
            **run.task.logged(figures),
            "images_per_second": speed,
        },
        step=run.step,
    )
    say(
        accelerator,
        f"epoch {run.epoch + 1}/{settings.epochs}: loss {train_loss:.4f}, {run.task.in_words(figures)}, "
        f"{speed:.0f} images/s{', best so far' if improved else ''}",
    )


def validation_figures(run: Run, metric) -> dict:
    """The figures of the averaged weights on the validation split, on every process."""
    accelerator = run.accelerator
    if accelerator.num_processes > 1:
        for buffer in run.average.buffers():  # the first process's batch statistics are the ones that are saved
            buffer.copy_(broadcast(buffer))
    arrays = run.task.predict(accelerator, run.average.module, run.validation_loader, run.make_targets)
    figures = [run.task.score(metric, arrays) if accelerator.is_main_process else None]
    broadcast_object_list(figures)
    return figures[0]


def finish(run: Run, metric, output: Path) -> None:
    """Test the best weights, draw, save and push."""
    args, accelerator, splits, task = run.args, run.accelerator, run.splits, run.task
    if run.best is None:
        raise ValueError("No validation gave a finite error: the training diverged. Lower --learning_rate.")
    run.start_epoch()  # so that the mean pose is of the same samples, also if a resumed run ends here
    model = best_model(run).to(accelerator.device)

    def answers(loader: DataLoader) -> dict:
        return task.predict(accelerator, model, loader)

    def prepared(images: Dataset) -> DataLoader:
        return accelerator.prepare(make_loader(images, args.optimisation.batch_size, args.data.workers))

    test, validation = answers(run.test_loader), answers(run.validation_loader)
    negatives = {kind: answers(prepared(images)) for kind, images in splits.test_negatives.items()}
    boxed = answers(prepared(splits.boxed_hands)) if splits.boxed_hands else None
    if accelerator.is_main_process:
        metrics = task.final_metrics(run, metric, test, validation, negatives, boxed)
        write_json(output / "metrics.json", metrics)
        figures = task.draw_figures(output / "figures", metrics, test, splits.test, model.loss.name)
        report = make_report(run, model, metrics)
        published = figures if shows_pictures(report) else [path for path in figures if path.stem not in PICTURES]
        save_model(output / "model", model, task.make_processor(metrics), report, published)
        say(
            accelerator,
            f"{task.summary(metrics)}\n"
            f"Model: {output / 'model'}   Figures: {output / 'figures'}   All figures: {output / 'metrics.json'}\n"
            f"Try it: {task.try_it.format(model=output / 'model')}",
        )
        if args.output.push_to_hub:
            push_model(
                output / "model",
                args.output.push_to_hub,
                space=args.output.space,
                private=args.output.private,
                publish_examples=args.output.publish_examples,
                say=lambda text: say(accelerator, text),
            )
    accelerator.wait_for_everyone()


def evaluate_only(args: Arguments, accelerator: Accelerator, source: Source) -> None:
    """Score any model on any source, by the project's metric."""
    task = make_task(args)
    model, splits = task.load_model(args.output.model), source.splits()
    if not args.output.json:
        say_what_is_left_out(accelerator, splits.left_out, source.summary())
    loader = DataLoader(splits.test, args.optimisation.batch_size, num_workers=args.data.workers)
    loader = accelerator.prepare(loader)
    arrays = task.predict(accelerator, model.to(accelerator.device), loader, task.make_targets)
    if not accelerator.is_main_process:
        return
    metric = task.load_metric()
    parts = task.score_by_group(metric, arrays, splits.test_groups) if splits.test_groups else {}
    figures = {"model": args.output.model, "dataset": source.describe().name, "left_out": splits.left_out}
    figures |= task.score(metric, arrays) | figures_of_groups(parts, splits.grouped_by)
    print(json.dumps(figures, indent=2) if args.output.json else task.table(figures, parts, splits.grouped_by))
    if args.output.contact_sheet:
        draw_contact_sheet(Path(args.output.contact_sheet), arrays, splits.test)


def make_stop(run: Run) -> Callable[[], None]:
    """A function that leaves the program with a checkpoint if a signal asked any process to stop."""
    received = trigger_on_signals(run.accelerator)

    def stop_if_asked() -> None:
        if run.accelerator.check_trigger():
            save_checkpoint(run)
            say(run.accelerator, f"Stopped at step {run.step}. Go on with the same command and --resume.")
            run.accelerator.end_training()
            sys.exit(128 + (received or [signal.SIGTERM])[0])

    return stop_if_asked


if __name__ == "__main__":
    main()

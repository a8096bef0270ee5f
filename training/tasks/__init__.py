"""The tasks that `train.py` can train.  A new one is a file in this folder and a name in `TASKS`."""

from training.arguments import Arguments
from training.tasks.base import Task
from training.tasks.detection import DetectionTask
from training.tasks.pose import PoseTask

TASKS: dict[str, type[Task]] = {"pose": PoseTask, "detection": DetectionTask}


def make_task(args: Arguments) -> Task:
    """What a run trains."""
    return TASKS[args.model.task](args)


__all__ = ["TASKS", "Task", "make_task"]

"""Boxes and handedness as callers give them, brought into one list per image with one entry per hand."""

HANDEDNESS = ("right", "left")


def as_lists(values):
    """`values`, with every array, tensor and tuple in it turned into a list."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    return [as_lists(value) for value in values] if isinstance(values, (list, tuple)) else values


def boxes_by_image(boxes, num_images: int | None = None) -> list[list | None]:
    """Per image a list of boxes, or None for an image without boxes.

    Args:
        boxes: such a list, or the boxes of a single image.  None stands for `num_images` images without boxes.
        num_images: how many images there are, if that is known.
    """
    if boxes is None:
        return [None] * num_images
    boxes = as_lists(boxes)
    if not isinstance(boxes, list) or not all(entry is None or isinstance(entry, list) for entry in boxes):
        raise ValueError(f"boxes={boxes!r}: give one list of boxes (x, y, width, height) per image.")
    first = next((entry for entry in boxes if entry), None)
    if not boxes or (first is not None and not isinstance(first[0], list)):  # the boxes of one image
        if num_images not in (None, 1):
            raise ValueError(f"boxes={boxes!r}: for {num_images} images give one list of boxes each.")
        boxes = [boxes]
    if num_images is not None and len(boxes) != num_images:
        raise ValueError(
            f"Got boxes for {len(boxes)} images, but {num_images} images: give one list of (x, y, width, height) each."
        )
    return boxes


def handedness_by_image(handedness, counts: list[int]) -> list[list[str]]:
    """Per image a list of "right" or "left", one for each of its hands.

    Args:
        handedness: "right" or "left" for all hands, one per image, or one list per image with one per hand; of a single
            image that list itself.  None means "right".
        counts: how many hands each image has.
    """
    values = as_lists(handedness)
    if not isinstance(values, list):
        values = [values] * len(counts)
    elif len(values) != len(counts) and len(counts) == 1 and len(values) == counts[0]:  # the hands of one image
        values = [values]
    if len(values) != len(counts):
        raise ValueError(f"Got handedness for {len(values)} images, but {len(counts)} images.")
    result = []
    for index, (value, count) in enumerate(zip(values, counts)):
        value = value if isinstance(value, list) else [value] * count
        if len(value) != count:
            raise ValueError(f"Image {index} has {count} hands, but handedness for {len(value)}.")
        result.append(["right" if hand is None else hand for hand in value])
    for hand in (hand for hands in result for hand in hands):
        if hand not in HANDEDNESS:
            raise ValueError(f"handedness={hand!r}: a hand is 'right' or 'left'.")
    return result


__all__ = ["HANDEDNESS", "boxes_by_image", "handedness_by_image"]

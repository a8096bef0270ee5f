"""Boxes and handedness as callers give them, brought into one list per image with one entry per hand."""

HANDEDNESS = ("right", "left")
WHOLE_IMAGE = "image"  # instead of boxes: the image is itself the crop of one hand


def as_lists(values):
    """`values`, with every array, tensor and tuple in it turned into a list."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    return [as_lists(value) for value in values] if isinstance(values, (list, tuple)) else values


def boxes_by_image(boxes, num_images: int | None = None) -> list[list | str | None]:
    """Per image a list of boxes, "image" for an image that is itself the crop of one hand, or None if nothing is said.

    Args:
        boxes: such a list, or what holds for a single image; "image" and None hold for all of `num_images` images.
        num_images: how many images there are, if that is known.
    """
    if boxes is None or _is_whole(boxes):
        return [boxes] * (num_images or 1)
    boxes = as_lists(boxes)
    if not isinstance(boxes, list) or not all(entry is None or isinstance(entry, list) or _is_whole(entry) for entry in boxes):
        raise ValueError(
            f"boxes={boxes!r}: give one list of boxes (x, y, width, height) per image, {WHOLE_IMAGE!r} if it is the crop of "
            "one hand, or None."
        )
    first = next((entry for entry in boxes if entry and not _is_whole(entry)), None)
    if not boxes or (first is not None and not isinstance(first[0], list)):  # the boxes of one image
        if num_images not in (None, 1):
            raise ValueError(f"boxes={boxes!r}: for {num_images} images give one list of boxes each.")
        boxes = [boxes]
    if num_images is not None and len(boxes) != num_images:
        raise ValueError(
            f"Got boxes for {len(boxes)} images, but {num_images} images: give one list of (x, y, width, height) each."
        )
    return boxes


def _is_whole(boxes) -> bool:
    return isinstance(boxes, str) and boxes == WHOLE_IMAGE


def count_hands(boxes: list | str | None) -> int | None:
    """How many hands an entry of [`boxes_by_image`] says that an image has; None if nothing is said."""
    return None if boxes is None else 1 if boxes == WHOLE_IMAGE else len(boxes)


def handedness_by_image(handedness, counts: list[int | None]) -> list[list[str | None]]:
    """Per image a list of "right", "left" or None for not known, one for each of its hands.

    Args:
        handedness: "right", "left" or None for all hands, one per image, or one list per image with one per hand; of a
            single image that list itself.
        counts: how many hands each image has.  None: that is not known; such an image has a list of one, which holds for all
            of its hands.
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
        if count is None and isinstance(value, list):
            raise ValueError(f"Image {index} has no boxes: give 'right' or 'left' for all of its hands, or no handedness.")
        value = value if isinstance(value, list) else [value] * (1 if count is None else count)
        if count not in (None, len(value)):
            raise ValueError(f"Image {index} has {count} hands, but handedness for {len(value)}.")
        result.append(value)
    for hand in (hand for hands in result for hand in hands):
        if hand not in (None, *HANDEDNESS):
            raise ValueError(f"handedness={hand!r}: a hand is 'right' or 'left'.")
    return result


__all__ = ["HANDEDNESS", "WHOLE_IMAGE", "boxes_by_image", "count_hands", "handedness_by_image"]

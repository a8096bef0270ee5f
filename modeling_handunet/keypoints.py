"""The 21 keypoints of a hand: their order, names, bones and colours.

The order is that of FreiHAND, COCO-WholeBody and MediaPipe Hands: the wrist, then each finger from its base to its
tip, thumb first.  The whole project indexes keypoints in this order.
"""

FINGER_NAMES = ("thumb", "index", "middle", "ring", "little")
KEYPOINT_NAMES = ("wrist", *(f"{finger}_{joint}" for finger in FINGER_NAMES for joint in (1, 2, 3, 4)))
NUM_KEYPOINTS = len(KEYPOINT_NAMES)

# Bones as (parent, child): the wrist to each finger's base, then along the finger.
SKELETON = tuple((0 if joint == 1 else base + joint - 1, base + joint) for base in (0, 4, 8, 12, 16) for joint in (1, 2, 3, 4))

# Below this mean score of its keypoints, a crop shows no hand that a person would call one.  Programs then say so in words and
# draw the answer faint.
NO_CLEAR_HAND = 0.4

WRIST_COLOR = (230, 230, 230)
FINGER_COLORS = ((255, 99, 72), (255, 190, 40), (80, 200, 90), (60, 160, 255), (190, 110, 255))


def keypoint_color(index: int) -> tuple[int, int, int]:
    """RGB colour of keypoint `index`: one colour per finger, in every picture of the project."""
    return WRIST_COLOR if index == 0 else FINGER_COLORS[(index - 1) // 4 % len(FINGER_COLORS)]


def describe_hand(handedness: str, box, names, keypoints, scores, hand_score: float | None = None) -> dict:
    """One hand as the `keypoint-detection` pipeline answers it: `{"label", "score", "hand_score", "box", "keypoints"}`.

    Args:
        handedness: "right" or "left".
        box: (x_min, y_min, x_max, y_max) in pixels.
        names, keypoints, scores: lists with each keypoint's name, (x, y) in pixels, and score.
        hand_score: how sure it is that there is a hand; None for a box that the caller gave.
    """
    points = zip(names, keypoints, scores)
    return {
        "label": f"{handedness} hand",
        "score": sum(scores) / len(scores),
        "hand_score": hand_score,
        "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), box)),
        "keypoints": [{"name": name, "x": x, "y": y, "score": score} for name, (x, y), score in points],
    }

"""The words that annotation files use for hands and keypoints, read as this project's.

A file says left or right in many places (`handedness`, the category's name, an attribute), and it may list the keypoints in
another order than [`KEYPOINT_NAMES`]. This file owns the words; it knows nothing of files.
"""

import re
import reprlib
from collections.abc import Mapping, Sequence

from modeling_handunet.keypoints import FINGER_NAMES, NUM_KEYPOINTS

UNKNOWN = "unknown"  # the file says that it does not know which hand it is

LEFT_WORDS, RIGHT_WORDS = {"left", "l", "lh", "lhand", "左", "左手"}, {"right", "r", "rh", "rhand", "右", "右手"}
HAND_WORDS = {"hand", "hands", "handed", "the", "human", "side", "is", "a"}
HAND_TAG_WORDS = LEFT_WORDS | RIGHT_WORDS | HAND_WORDS
HELD = ("categoryName", "category_name", "displayName", "label", "name", "classification")  # where an object holds a name
NOT_STATED = {"", "none", "null", "nan", "undefined", "unspecified", "n a", "na"}
NOT_KNOWN = {"unknown", "unclear", "ambiguous", "uncertain", "unsure", "not sure", "not visible"}
BOTH_HANDS = {"both", "interacting", "two"}
# A field tells of the hand if all words of its name are among these.
FIELD_WORDS = {
    "hand", "hands", "handedness", "side", "which", "type", "laterality", "chirality", "label", "name", "class", "category",
    "left", "right", "or", "is", "the", "of", "tag", "tags", "text", "handness", "subcategory", "lr",
}  # fmt: skip
# What is no hand, if another category of the same file is one.
OTHER_THINGS = {"face", "person", "body", "foot", "feet", "head", "animal", "dog", "cat", "eye", "mouth", "pose"}

FINGER_WORDS = {
    **{name: name for name in FINGER_NAMES},
    **{"fore": "index", "forefinger": "index", "pointer": "index", "mid": "middle"},
    **{"pinky": "little", "pinkie": "little", "small": "little"},
}
# In the order along the finger. A thumb has CMC, MCP, IP and tip, the others MCP, PIP, DIP and tip. Other words of a finger, as
# metacarpal, proximal, intermediate and distal, name bones or part of a longer chain, and mean other places in each skeleton.
JOINT_PLACES = {
    **{"cmc": 0, "tmc": 0, "metacarpal": 0, "base": 0, "mcp": 1, "proximal": 1, "knuckle": 1},
    **{"pip": 2, "intermediate": 2, "ip": 2.5, "dip": 3, "distal": 3, "tip": 4, "end": 4},
}
TIP = 4
WRIST_WORDS = {"wrist", "root", "carpus"}
EMPTY_WORDS = {
    "hand", "finger", "fingers", "landmark", "keypoint", "keypoints", "kp", "kpt", "joint", "point", "pt", "node", "id",
    "new",  # Roboflow calls points without a name "new-point-0"
}  # fmt: skip

COMPOUND = re.compile(
    r"(left|right|hand|thumb|index|fore|middle|ring|little|pinky|pinkie)"
    r"(?=hand|finger|wrist|thumb|index|fore|middle|ring|little|pinky|pinkie|tip|cmc|mcp|pip|dip|ip)"
)

KNOWN_NAMES = (
    "known are the wrist, and thumb, index (forefinger), middle, ring and little (pinky) with 1 to 4 or 0 to 3 from base to "
    "tip, or with CMC, MCP, PIP, DIP, IP and tip, as MediaPipe, COCO-WholeBody, InterHand2.6M and RHD write them; or the "
    "numbers 0 to 20 or 1 to 21"
)


def split_words(text: str) -> list[str]:
    """The words and numbers of a name, in lower case: "RIGHT_Hand.indexTip2" is right, hand, index, tip, 2."""
    found = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+", text)
    return [part for word in found for part in COMPOUND.sub(r"\1 ", word.lower()).split()]


def hand_in(text: object) -> str | None:
    """ "left" or "right" if the words of a name say one of them."""
    words = set(split_words(text)) if isinstance(text, str) else set()
    if "not" in words:
        return None
    if words - HAND_TAG_WORDS:  # a single letter among other words may mean anything
        words -= {"l", "r"}
    left, right = words & LEFT_WORDS, words & RIGHT_WORDS
    return None if bool(left) == bool(right) else "left" if left else "right"


def is_hand(text: object) -> bool:
    """Whether a category's name says that it is a hand."""
    return isinstance(text, str) and bool({"hand", "hands", "palm"} & set(split_words(text)) or hand_in(text))


def is_other_thing(text: object) -> bool:
    """Whether a category's name says that it is something else than a hand."""
    return isinstance(text, str) and not is_hand(text) and bool(OTHER_THINGS & set(split_words(text)))


def stated_hands(entry: Mapping, of_photograph: bool = False) -> list[tuple[str, str]]:
    """(field, "left", "right" or `UNKNOWN`) of all fields of an annotation that say which hand it is.

    It looks at the entry itself and at its `attributes` (CVAT), `metadata` (COCO-Annotator), `extra` (Roboflow) and
    `properties`. Of a photograph's entry only fields count that have "hand" in their name. Raises `ValueError` for a field
    that must say left or right, and says something else.
    """
    found, ticks = [], {}
    for name, value in _fields(entry):
        words = split_words(name)
        if not words or not set(words) <= FIELD_WORDS or (of_photograph and "hand" not in name.lower()):
            continue
        if hand := hand_in(name):
            if (ticked := _is_ticked(value)) is not None:
                ticks[hand] = ticked
                if ticked:
                    found.append((name, hand))
                continue
        if hand := _read_field(name, words, value):
            found.append((name, hand))
    if len(ticks) == 1 and not any(ticks.values()):  # `is_left: false`
        found.append((f"not {next(iter(ticks))}", "right" if "left" in ticks else "left"))
    return found


def _fields(entry: Mapping) -> list[tuple[str, object]]:
    fields = [(key, value) for key, value in entry.items() if isinstance(key, str)]
    for place in ("attributes", "metadata", "extra", "properties"):
        more = entry.get(place)
        if isinstance(more, dict):
            fields += [(key, value) for key, value in more.items() if isinstance(key, str)]
        elif isinstance(more, list) and any(isinstance(item, dict) for item in more):  # [{"name": "side", "value": "left"}]
            items = [(item.get("name", item.get("key")), item) for item in more if isinstance(item, dict)]
            fields += [(name, item.get("value", item.get("values"))) for name, item in items if is_name(name)]
        elif isinstance(more, (list, str)):
            fields.append(("tags", more))
    return fields


def is_name(value: object) -> bool:
    """Whether a value is a text that is not empty."""
    return isinstance(value, str) and bool(value)


def _is_ticked(value: object) -> bool | None:
    """The value of a tick box, or None."""
    if isinstance(value, str):
        return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(value.strip().lower())
    return bool(value) if value in (0, 1, True, False) and not isinstance(value, (list, dict)) else None


def _read_field(name: str, words: list[str], value: object) -> str | None:
    """What a field says of the hand; None if it says nothing."""
    must_tell = bool({"handedness", "laterality", "chirality"} & set(words)) or {"hand", "side"} <= set(words)
    about_hands = must_tell or bool({"hand", "hands", "side"} & set(words))
    for _ in range(3):  # MediaPipe's results have a list for each hand, and objects in it
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, dict):
            value = next((value[key] for key in HELD if key in value), value)
    if isinstance(value, list) and not must_tell:  # tags, of which some name the hand
        told = {hand_in(tag) for tag in value if isinstance(tag, str) and not set(split_words(tag)) - HAND_TAG_WORDS} - {None}
        value = told.pop() if len(told) == 1 else value
    if value is None or value != value:  # NaN is pandas's null
        return None
    if isinstance(value, str):
        said = split_words(value)
        text = " ".join(said)
        if text in NOT_STATED:
            return None
        if text in NOT_KNOWN:
            return UNKNOWN if about_hands else None
        hand = hand_in(value)
        if hand and (must_tell or not set(said) - HAND_TAG_WORDS):
            return hand
        understood = not must_tell and not (about_hands and BOTH_HANDS & set(said))
    else:
        understood = not must_tell and not (about_hands and isinstance(value, (int, float)))
    if not understood:
        shown = value if isinstance(value, (str, int, float)) else type(value).__name__
        raise ValueError(f"{name} {str(shown)[:40]!r}, expected 'right' or 'left'")
    return None


def read_keypoint_names(names: Sequence[str]) -> tuple[list[int], str | None]:
    """Which of the project's keypoints each of the names means, and the hand that they name: "left", "right" or None.

    With all 21 names the order along each finger decides. Fewer names must be among one known set of names.

    Raises `ValueError` for names that are not known, or that mean the same keypoint.
    """
    read = [_read_name(name) for name in names]
    unknown = [name for name, found in zip(names, read) if found is None]
    if unknown:
        raise ValueError(f"the keypoint names {', '.join(map(reprlib.repr, unknown[:3]))} are not known: {KNOWN_NAMES}")
    hands = {hand for hand, _, _ in read if hand}
    if len(hands) > 1:
        raise ValueError("the keypoint names are those of a left and of a right hand: give each hand an annotation of its own")
    places = [(part, joint) for _, part, joint in read]
    if len(set(places)) < len(places):
        raise ValueError(f"two of the keypoint names mean the same keypoint: {KNOWN_NAMES}")
    indices = _order_of_all(places) if len(places) == NUM_KEYPOINTS else _order_of_some(places)
    if indices is None:
        shown = ", ".join(map(reprlib.repr, names[:3]))
        raise ValueError(f"the keypoint names {shown} ... do not name 21 keypoints: {KNOWN_NAMES}")
    return indices, next(iter(hands), None)


def _read_name(name: str) -> tuple[str | None, str, float | str] | None:
    """(hand, part, joint) of a keypoint's name: part is "wrist", a finger or "number"; None if it is not known."""
    words = split_words(name)
    sides = {"left" if word in LEFT_WORDS else "right" for word in words if word in LEFT_WORDS | RIGHT_WORDS}
    words = [word for word in words if word not in LEFT_WORDS | RIGHT_WORDS]
    rest = [word for word in words if word not in EMPTY_WORDS]
    hand = sides.pop() if len(sides) == 1 else None
    if sides:
        return None
    numbers = [int(word) for word in rest if word.isdecimal()]
    fingers = {FINGER_WORDS[word] for word in rest if word in FINGER_WORDS}
    joints = [word for word in rest if word in JOINT_PLACES]
    known = len(numbers) + len(joints) + sum(word in FINGER_WORDS or word in WRIST_WORDS for word in rest)
    if known < len(rest) or len(fingers) > 1 or len(joints) > 1:
        return None
    if not fingers:
        if set(rest) & WRIST_WORDS and not joints or (words and not rest and "hand" in words):
            return hand, "wrist", 0
        return (hand, "number", numbers[0]) if len(numbers) == len(rest) == 1 else None
    if not joints and not numbers:
        return None
    return hand, fingers.pop(), joints[0] if joints else numbers[-1]


def _order_of_all(places: list[tuple[str, float | str]]) -> list[int] | None:
    """The keypoints of 21 (part, joint)."""
    parts = {part: [joint for other, joint in places if other == part] for part, _ in places}
    if parts.keys() == {"number"}:
        first = min(parts["number"])
        return [joint - first for _, joint in places] if max(parts["number"]) - first == NUM_KEYPOINTS - 1 else None
    if parts.keys() != {"wrist", *FINGER_NAMES} or any(len(parts[finger]) != 4 for finger in FINGER_NAMES):
        return None
    index = {("wrist", 0): 0}
    for number, finger in enumerate(FINGER_NAMES):
        ordered = _along_the_finger(parts[finger])
        if ordered is None:
            return None
        index |= {(finger, joint): 1 + 4 * number + place for place, joint in enumerate(ordered)}
        if finger != "thumb" and any(isinstance(ordered[at], str) and JOINT_PLACES[ordered[at]] < at + 1 for at in (1, 2)):
            return None  # for example metacarpal, MCP, PIP and tip
    return [index[place] for place in places]


def _along_the_finger(joints: list[float | str]) -> list[float | str] | None:
    """The four joints of a finger from its base to its tip; None if numbers and words do not go together."""
    numbers = sorted(joint for joint in joints if isinstance(joint, int))
    words = sorted((joint for joint in joints if isinstance(joint, str)), key=JOINT_PLACES.get)
    if len({JOINT_PLACES[word] for word in words}) < len(words) or (words and JOINT_PLACES[words[-1]] != TIP):
        return None
    if numbers and (numbers[-1] - numbers[0] != len(numbers) - 1 or [JOINT_PLACES[word] for word in words] not in ([], [TIP])):
        return None
    return [*numbers, *words]


def _order_of_some(places: list[tuple[str, float | str]]) -> list[int] | None:
    """The keypoints of fewer (part, joint): all of them in one known set of names."""
    found = [index for index in map(_as_index, KNOWN_SETS) if all(place in index for place in places)]
    if any(isinstance(place[1], int) and len({index[place] for index in found}) > 1 for place in places):
        return None  # numbers from 1 to 20, or 1 to 3 along a finger, may be counted from 0 or from 1
    return [found[0][place] for place in places] if found else None


def _as_index(names: Sequence[str]) -> dict[tuple[str, float | str], int]:
    return {(part, joint): index for index, (_, part, joint) in enumerate(map(_read_name, names))}


def _names(*joints: object, thumb: Sequence[object] = ()) -> list[str]:
    return ["wrist", *(f"{finger} {joint}" for finger in FINGER_NAMES for joint in (finger == "thumb" and thumb or joints))]


KNOWN_SETS = (
    _names(1, 2, 3, 4),
    _names(0, 1, 2, 3),
    _names("mcp", "pip", "dip", "tip", thumb=("cmc", "mcp", "ip", "tip")),
    _names("mcp", "pip", "dip", "tip"),
    _names(1, 2, 3, "tip"),
    _names("proximal", "intermediate", "distal", "tip", thumb=("metacarpal", "proximal", "distal", "tip")),
    [str(number) for number in range(21)],
    [str(number) for number in range(1, 22)],
)

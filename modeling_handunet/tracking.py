"""Hands in a film: which hand is which from frame to frame, where to look for it next, and steady keypoints.

A hand that was read in one frame is looked for in the next one round its last keypoints, moved on by its speed.  The detector
runs only when a hand may be missing, and every so often.  Hands are taken up by the rule of hands.py.  All rules are on plain
numbers and in time, not in frames; their constants are in [`TrackingRules`].  The browser page follows the same rules, and both
are tested on the recorded cases of `tests/data/tracking_cases.json`.

This file needs neither torch nor transformers, except [`HandTracker`] when it is made.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from .crops import Crop
from .hands import (
    BOX_MARGIN,
    FoundHand,
    HandModels,
    Place,
    Reading,
    answered,
    box_crop,
    check_limits,
    found_place,
    hand_size,
    is_same_hand,
    keypoint_distance,
    least_detection,
    read_places,
    sureness,
)
from .images import load_image
from .keypoints import describe_hand
from .nesting import HANDEDNESS


@dataclass(frozen=True)
class TrackingRules:
    """The constants.  Times are in seconds.  Lengths are shares of a hand's size, the longer side of its keypoints' box."""

    # When the detector runs: so long after its last run, if a hand may be missing, is new, or is near another one;
    search_every: float = 0.09
    # and otherwise.
    look_every: float = 0.3
    # A new hand needs this `hand_score`: more than in a photograph, because a false one stays.
    begin_score: float = 0.5
    # The detector's score must reach that, too, unless the `hand_score` is this: keypoints can be read surely in a thing of the
    # background.
    sure_score: float = 0.6
    # A reading of which the network is less sure is none.
    lost_score: float = 0.25
    # A detection that was read and is no hand is not read again for this time, unless its score grows by so much.
    refuse: float = 2.0
    grown: float = 0.1
    # After the detector's first run, so many new places are read in a frame, those that it is surest of.
    new_at_once: int = 2
    # Detections from this score on confirm a hand that is followed.
    confirm_score: float = 0.15
    # A new hand is dropped if the detector does not see it again when it runs next; an older one after this time.
    drop_after: float = 2.0
    # A hand that cannot be read is looked for where its motion leads, for this time,
    look_on: float = 0.25
    # and its id waits this long for a detection.
    remember: float = 1.0
    # How far a hand can be from where it was expected, on average over its keypoints: so far at once, so much more for each
    # second since it was seen, and at most.  Without a detection it cannot have grown or shrunk by more than the factor.
    reach: float = 0.4
    reach_speed: float = 6.0
    max_reach: float = 2.0
    max_growth: float = 1.8
    # A reading of the other side is so much further away, and one that the detector, when it runs, does not confirm.
    other_side: float = 0.25
    unconfirmed: float = 0.5
    # Two readings are one hand if their keypoints are this near each other on average, or, if they are of two sides, if
    # their boxes overlap by this IoU.
    same_hand: float = 0.2
    same_box: float = 0.6
    # A detection this near the place where a hand is expected, and not of another size by more than the factor, is that
    # hand: both share a crop.
    same_place: float = 0.3
    same_size: float = 1.5
    # Two hands whose middles are this near each other are near.
    near: float = 1.2
    # A box round keypoints becomes one as the detector gives it by this margin at each edge.
    margin: float = BOX_MARGIN
    # Speeds are averaged over about this time.  They carry a hand on for the second one at most, and not further than this.
    speed_time: float = 0.05
    carry_on: float = 0.2
    carry_most: float = 0.6
    # The size of the next crop is averaged over about this time: keypoints that fly off must not make it grow at once.
    size_time: float = 0.4
    # A reading's vote for the hand's side loses its weight by a factor of e in this time.  A hand is asked for its side again
    # after this time, and sooner if it is new or near another one: see `must_ask`.
    votes_time: float = 2.0
    ask_every: float = 1.0
    # The One Euro filter: cut-off in Hz of a hand at rest, what each size per second adds to it, cut-off of the speed.
    # After a gap of this time it starts anew.
    min_cutoff: float = 1.0
    beta: float = 15.0
    speed_cutoff: float = 3.0
    filter_gap: float = 0.2


RULES = TrackingRules()


@dataclass
class Track:
    """One hand.  Points are in pixels, times in seconds.

    keypoints (21, 2) and scores (21,) are as read last, at the time `seen`; `steady` (21, 2) are filtered, and `slope`
    (21, 2) is their speed in pixels per second.  `speed` (2,) is the middle's, and `extent` the hand's size averaged over
    time.  `votes` is above 0 for a right hand, and was last counted at the time `voted`.  `sightings` counts the detector's,
    the first at the time `begun` and the last at `confirmed`.
    """

    id: int
    keypoints: np.ndarray
    scores: np.ndarray
    seen: float
    extent: float
    votes: float
    hand_score: float
    confirmed: float
    voted: float
    begun: float
    speed: np.ndarray = field(default_factory=lambda: np.zeros(2))
    sightings: int = 1
    steady: np.ndarray | None = None
    slope: np.ndarray | None = None

    @property
    def side(self) -> str:
        return "right" if self.votes >= 0 else "left"


@dataclass
class Look:
    """A place to read: a box as the detector gives it, the hand that is expected there, and the detection that is there."""

    box: tuple[float, float, float, float]
    track: Track | None = None
    detection: FoundHand | None = None

    @property
    def side(self) -> str | None:
        return None if self.track is None else self.track.side


@dataclass
class Sight:
    """What was read at a place.  `is_new`: no hand was expected there.  `hand_score` says how sure both networks are that
    there is a hand, 0 without a detection."""

    reading: Reading
    detection: FoundHand | None
    is_new: bool

    @property
    def keypoints(self) -> np.ndarray:
        return self.reading.keypoints

    @property
    def side(self) -> str:
        return self.reading.side

    @property
    def reading_score(self) -> float:
        return self.reading.hand_score

    @property
    def hand_score(self) -> float:
        return 0.0 if self.detection is None else sureness(self.detection.score, self.reading_score)

    @property
    def vote(self) -> float:
        """Above 0 for a right hand: by how much the reading is surer than the one as the other side."""
        margin = self.reading_score - (self.reading.rival or 0.0)
        return margin if self.side == "right" else -margin


class HandTracks:
    """The hands of a film, frame after frame, with an `id` that stays; runs on any [`HandModels`].

        >>> tracks = HandTracks(models)
        >>> tracks(frame, 0.04)  # an RGB PIL image, seconds
        [{"id": 1, "label": "left hand", "score": 0.93, "hand_score": 0.88, "box": {...}, "keypoints": [...]}]

    Args:
        models: the two networks.
        smooth: steady the keypoints by the One Euro filter.
        max_hands: follow at most so many hands; all by default.
        handedness: "right" or "left" if all hands are known to be; by default each is read both ways now and then, and
            the readings vote.
        detection_threshold: a hand begins with at least this `hand_score`, and this score of the detector unless it is sure; by
            default `rules.begin_score`.
        rules: other constants than [`RULES`].
    """

    def __init__(
        self,
        models: HandModels,
        *,
        smooth: bool = True,
        max_hands: int | None = None,
        handedness: str | None = None,
        detection_threshold: float | None = None,
        rules: TrackingRules = RULES,
    ):
        if handedness not in (None, *HANDEDNESS):
            raise ValueError(f"handedness={handedness!r}: give 'right' or 'left' for all hands, or nothing.")
        detection_threshold = rules.begin_score if detection_threshold is None else detection_threshold
        check_limits(detection_threshold, max_hands)
        self.models, self.smooth, self.max_hands, self.handedness = models, smooth, max_hands, handedness
        self.detection_threshold, self.rules = detection_threshold, rules
        self._next_id = 1
        self.reset()

    def reset(self) -> None:
        """Forget all hands and the time, as before another film.  Ids go on, so that none is given twice."""
        self.tracks: list[Track] = []
        self._refused: list[tuple[FoundHand, float]] = []  # detections that are no hands, and when they were read
        self.time: float | None = None
        self._detected: float | None = None
        self._size: tuple[int, int] | None = None

    def __call__(self, photo: Image.Image, time: float) -> list[dict]:
        """The hands of the frame `photo` (RGB), taken at `time` (seconds), by id.

        A hand is answered in the frames in which it is read.  Its keypoints are steadied, its `box` is the one that the
        detector would give round them, its `hand_score` from when the detector saw it last.  A frame of another size is scaled,
        if its shape is the same, and otherwise starts anew.  Raises `ValueError` for a time that is not after the last frame's.
        """

        asking = self.steps(photo.size, time)
        models = self.models
        tracks = answered(
            asking, lambda crops: models.detect(photo, twice=False) if crops is None else models.read(photo, crops)
        )
        return [self._describe(track) for track in tracks]

    def steps(self, size: tuple[int, int], time: float) -> Generator[list[Crop] | None, object, list[Track]]:
        """One frame of `size` (width, height) as a generator that asks for what the networks say, as `steps` of hands.py.

        It returns the hands that are in the frame.
        """
        last_time = self.time
        self._start_frame(size, time)
        found, is_first = None, self._detected is None
        if self._detector_is_due(last_time):
            found = self._usable((yield None))
            self._detected = time
        looks = self._worth_reading(places_to_read(self.tracks, found or [], time, size, self.rules), is_first)
        sights = []
        if looks:
            sights = usable_sights((yield from self._read(looks, found is not None)), size, self.rules)
        used = []
        for track, sight in assign(self.tracks, sights, time, found is not None, self.detection_threshold, self.rules):
            update(track, sight, time, self.smooth, self.rules)
            used.append(sight)
        if found is not None:
            self.tracks = [track for track in self.tracks if is_confirmed(track, time, self.rules)]
        for sight in sorted(sights, key=lambda sight: -sight.hand_score):
            if not any(sight is other for other in used) and self._begin(sight):
                used.append(sight)
        hands = [sight.detection for sight in used]
        new = [look.detection for look in looks if look.side is None]
        self._refused += [(detection, time) for detection in new if not any(detection is hand for hand in hands)]
        return sorted((track for track in self.tracks if track.seen == time), key=lambda track: track.id)

    def _read(self, looks: list[Look], detected: bool):
        """The sight at each place.  What may be a new hand is read both ways and, if it fills its crop badly, again; a hand
        that is followed is read once, and now and then both ways in frames in which the detector runs."""
        size, fill = self.models.image_size, self.models.box_fill
        places, new = [], set()
        for index, look in enumerate(looks):
            if look.side is None:
                places.append(found_place(look.detection, size, fill, self.handedness))
                new.add(index)
            else:
                both = detected and self.handedness is None and must_ask(look.track, self.tracks, self.time, self.rules)
                sides = HANDEDNESS if both else (look.side,)
                places.append(Place(look.box, [box_crop(look.box, side, size, fill) for side in sides]))
        # The classifier was taught on photographs of people; near a camera, the keypoints tell the side better.
        readings = yield from read_places(places, fill, new, classified=False)
        return [Sight(reading, look.detection, look.side is None) for reading, look in zip(readings, looks)]

    def _start_frame(self, size: tuple[int, int], time: float) -> None:
        if not isinstance(time, (int, float, np.number)) or not math.isfinite(time):
            raise ValueError(f"The frame's time is {time!r}: give a number of seconds.")
        if self.time is not None and time <= self.time:
            raise ValueError(
                f"The frame's time is {time!r} s, but the last frame's was {self.time!r} s: it must grow. For another film use "
                "another tracker, or reset()."
            )
        if self._size not in (None, tuple(size)):
            self._change_size(size)
        self.time, self._size = time, tuple(size)
        self.tracks = [track for track in self.tracks if time - track.seen <= self.rules.remember]
        self._refused = [(found, read) for found, read in self._refused if time - read <= self.rules.refuse]

    def _change_size(self, size: tuple[int, int]) -> None:
        scale = size[0] / self._size[0]
        self._refused = []
        if max(abs(self._size[0] * scale - size[0]), abs(self._size[1] * scale - size[1])) > 1:
            self.tracks, self._detected = [], None
        for track in self.tracks:
            for name in ("keypoints", "extent", "speed", "steady", "slope"):
                setattr(track, name, getattr(track, name) * scale)

    def _detector_is_due(self, last_time: float | None) -> bool:
        if self._detected is None:
            return True
        waited, rules = self.time - self._detected, self.rules
        return waited >= rules.look_every or (waited >= rules.search_every and must_search(self.tracks, last_time, rules))

    def _usable(self, found: list[FoundHand]) -> list[FoundHand]:
        return [hand for hand in found if hand.score >= min(self.rules.confirm_score, self.detection_threshold)]

    def _worth_reading(self, looks: list[Look], is_first: bool) -> list[Look]:
        """Without detections that are too weak for a new hand or known to be none, and without any if there is no room; not
        many new ones at a time, unless it `is_first`."""
        followed = [look for look in looks if look.side is not None]
        if self.max_hands is not None and sum(look.detection is not None for look in followed) >= self.max_hands:
            return followed
        least = least_detection(self.detection_threshold)
        new = [look for look in looks if look.side is None and look.detection.score >= least]
        new = [look for look in new if not self._is_refused(look.detection)]
        return followed + sorted(new, key=lambda look: -look.detection.score)[: None if is_first else self.rules.new_at_once]

    def _is_refused(self, found: FoundHand) -> bool:
        """Whether a detection at this place was read a short time ago and is no hand."""
        return any(
            found.score < other.score + self.rules.grown
            and box_distance(found.box, other.box, self.rules) <= self.rules.same_place
            for other, _ in self._refused
        )

    def _begin(self, sight: Sight) -> bool:
        """Begin a new hand, if the networks are sure enough, it is no other one, and there is room; whether it began."""
        time = self.time
        if sight.detection is None or sight.hand_score < self.detection_threshold:
            return False
        if sight.detection.score < self.detection_threshold and sight.hand_score < self.rules.sure_score:
            return False
        if any(track.seen == time and is_same_hand(sight, track) for track in self.tracks):
            return False
        if self.max_hands is not None and len(self.tracks) >= self.max_hands:
            hidden = [track for track in self.tracks if track.seen < time]
            if not hidden:
                return False
            self.tracks.remove(min(hidden, key=lambda track: track.seen))
        keypoints, extent = sight.keypoints, hand_size(sight.keypoints)
        track = Track(self._next_id, keypoints, sight.reading.scores, time, extent, sight.vote, sight.hand_score, *[time] * 3)
        track.steady, track.slope = keypoints, np.zeros_like(keypoints)
        self.tracks.append(track)
        self._next_id += 1
        return True

    def _describe(self, track: Track) -> dict:
        points = np.asarray(track.steady, np.float32)
        box, scores = detector_box(track.steady, self.rules), np.asarray(track.scores, np.float32)
        names = self.models.keypoint_names
        hand = describe_hand(track.side, box, names, points.tolist(), scores.tolist(), track.hand_score)
        return {"id": track.id, **hand}


def detector_box(keypoints: np.ndarray, rules: TrackingRules = RULES) -> tuple[float, float, float, float]:
    """The box (x_min, y_min, x_max, y_max) that a detector would give of the hand with `keypoints` (21, 2)."""
    margin = rules.margin * hand_size(keypoints)
    return (*(keypoints.min(0) - margin).tolist(), *(keypoints.max(0) + margin).tolist())


def expected(track: Track, time: float, rules: TrackingRules = RULES) -> np.ndarray:
    """Where the keypoints (21, 2) are expected at `time`."""
    way = track.speed * min(time - track.seen, rules.carry_on)
    length, most = math.hypot(*way), rules.carry_most * track.extent
    return track.keypoints + way * (most / length if length > most else 1.0)


def middle(keypoints: np.ndarray) -> np.ndarray:
    """The middle (2,) of the box of keypoints (21, 2)."""
    return (keypoints.min(0) + keypoints.max(0)) / 2


def is_inside(point, size: tuple[int, int]) -> bool:
    """Whether a point lies in a frame of `size` (width, height)."""
    return bool(0 <= point[0] < size[0] and 0 <= point[1] < size[1])


def must_search(tracks: list[Track], last_time: float, rules: TrackingRules = RULES) -> bool:
    """Whether a hand is new, is near another one, or was missing in the last frame, so that the detector is needed soon."""
    if not tracks or any(track.sightings < 2 or track.seen < last_time for track in tracks):
        return True
    return any(is_near(track, tracks, rules) for track in tracks)


def is_near(track: Track, tracks: list[Track], rules: TrackingRules = RULES) -> bool:
    """Whether a hand is near another one."""
    place = middle(track.keypoints)
    return any(
        math.dist(place, middle(other.keypoints)) < rules.near * max(track.extent, other.extent)
        for other in tracks
        if other is not track
    )


def must_ask(track: Track, tracks: list[Track], time: float, rules: TrackingRules = RULES) -> bool:
    """Whether a hand is to be read both ways, so that it votes for its side: the sooner if it is new or near another one."""
    waited = time - track.voted
    if waited >= rules.ask_every or track.sightings < 2:
        return True
    return waited >= rules.look_every and (time - track.begun < rules.ask_every or is_near(track, tracks, rules))


def places_to_read(
    tracks: list[Track], found: list[FoundHand], time: float, size: tuple[int, int], rules: TrackingRules = RULES
) -> list[Look]:
    """Where to read: each hand where it is expected, and each detection that lies at none of these places."""
    looks = []
    for track in sorted(tracks, key=lambda track: track.id):
        x, y = middle(expected(track, time, rules)).tolist()
        if time - track.seen <= rules.look_on and is_inside((x, y), size):
            half = track.extent * (0.5 + rules.margin)
            looks.append(Look((x - half, y - half, x + half, y + half), track))
    pairs = [
        (distance, first, second)
        for first, look in enumerate(looks)
        for second, hand in enumerate(found)
        if (distance := box_distance(look.box, hand.box, rules)) <= rules.same_place
    ]
    free = set(range(len(found)))
    for first, second in closest_pairs(pairs):
        looks[first].detection = found[second]
        free.discard(second)
    return looks + [Look(tuple(map(float, found[index].box)), detection=found[index]) for index in sorted(free)]


def box_distance(one, other, rules: TrackingRules = RULES) -> float:
    """Distance of the middles of two boxes over the larger one's longer side; infinite if they differ much in size."""
    sides = [max(box[2] - box[0], box[3] - box[1]) for box in (one, other)]
    if min(sides) <= 0 or max(sides) > rules.same_size * min(sides):
        return math.inf
    x, y = ((one[axis] + one[axis + 2] - other[axis] - other[axis + 2]) / 2 for axis in (0, 1))
    return math.hypot(x, y) / max(sides)


def closest_pairs(pairs: list[tuple[float, int, int]]) -> list[tuple[int, int]]:
    """Of (distance, first, second) the nearest pair, then the nearest of what is left, and so on: each one once."""
    chosen, firsts, seconds = [], set(), set()
    for _, first, second in sorted(pairs):
        if first not in firsts and second not in seconds:
            chosen.append((first, second))
            firsts.add(first)
            seconds.add(second)
    return chosen


def usable_sights(read: list[Sight], size: tuple[int, int], rules: TrackingRules = RULES) -> list[Sight]:
    """The sights that are of a hand in the frame; of two that are one hand, the surer one.  Of new ones, `_begin` decides."""
    sights: list[Sight] = []
    for sight in read:
        is_hand = sight.reading_score >= rules.lost_score and hand_size(sight.keypoints) >= 1
        if not is_hand or not is_inside(middle(sight.keypoints), size):
            continue
        for index, other in enumerate(sights):
            if not (sight.is_new and other.is_new) and is_same_hand(sight, other, rules.same_hand, rules.same_box):
                surer = sight if sight.reading_score > other.reading_score else other
                surer.detection, surer.is_new = other.detection or sight.detection, False
                sights[index] = surer
                break
        else:
            sights.append(sight)
    return sights


def assign(
    tracks: list[Track],
    sights: list[Sight],
    time: float,
    detected: bool,
    threshold: float = RULES.begin_score,
    rules: TrackingRules = RULES,
) -> list[tuple[Track, Sight]]:
    """Which hand is at which sight: the nearest to where its keypoints are expected, if it can have come there.

    `detected` says whether the detector ran on this frame.  A hand that was lost for long needs a sight of its side with
    a `hand_score` of `threshold`.
    """
    pairs = []
    for first, track in enumerate(tracks):
        points, waited = expected(track, time, rules), time - track.seen
        reach = min(rules.reach + rules.reach_speed * waited, rules.max_reach)
        for second, sight in enumerate(sights):
            growth = hand_size(sight.keypoints) / track.extent
            distance = keypoint_distance(points, sight.keypoints) / track.extent
            if distance > reach:
                continue
            if waited > rules.look_on and (sight.side != track.side or sight.hand_score < threshold):
                continue
            if sight.detection is None and not 1 / rules.max_growth <= growth <= rules.max_growth:
                continue
            if detected and sight.detection is None:
                distance += rules.unconfirmed
            if sight.side != track.side:
                distance += rules.other_side
            pairs.append((distance, first, second))
    return [(tracks[first], sights[second]) for first, second in closest_pairs(pairs)]


def update(track: Track, sight: Sight, time: float, smooth: bool = True, rules: TrackingRules = RULES) -> None:
    """Move a hand to where it was read at `time`, and count the detection there."""
    step = time - track.seen
    size = hand_size(sight.keypoints)
    speed = (middle(sight.keypoints) - middle(track.keypoints)) / step
    track.speed = track.speed + (1 - math.exp(-step / rules.speed_time)) * (speed - track.speed)
    track.extent += (1 - math.exp(-step / rules.size_time)) * (size - track.extent)
    if smooth and step <= rules.filter_gap:
        track.steady, track.slope = one_euro(sight.keypoints, track.steady, track.slope, step, size, rules)
    else:
        track.steady, track.slope = sight.keypoints, np.zeros_like(sight.keypoints)
    if sight.reading.rival is not None:
        track.votes = track.votes * math.exp(-(time - track.voted) / rules.votes_time) + sight.vote
        track.voted = time
    track.keypoints, track.scores, track.seen = sight.keypoints, sight.reading.scores, time
    if sight.detection is not None:
        track.hand_score = sight.hand_score
        track.sightings, track.confirmed = track.sightings + 1, time


def is_confirmed(track: Track, time: float, rules: TrackingRules = RULES) -> bool:
    """Whether a hand stays after the detector ran at `time`."""
    return track.confirmed == time or (track.sightings > 1 and time - track.confirmed <= rules.drop_after)


def one_euro(values, steady, slope, step: float, size: float, rules: TrackingRules = RULES):
    """One step of the One Euro filter (Casiez, Roussel, Vogel, CHI 2012, https://doi.org/10.1145/2207676.2208639).

    Each coordinate is low-passed, with a cut-off that rises with its own speed in sizes of the hand per second: steady at
    rest, quick in motion, at any resolution.

    Args:
        values: the new coordinates, in pixels.
        steady, slope: the last filtered ones, and their filtered speed in pixels per second.
        step: seconds since then.
        size: the hand's size in pixels.

    Returns the filtered coordinates and their filtered speed.
    """
    slope = slope + low_pass(rules.speed_cutoff, step) * ((values - steady) / step - slope)
    cutoff = rules.min_cutoff + rules.beta * np.abs(slope) / size
    return steady + low_pass(cutoff, step) * (values - steady), slope


def low_pass(cutoff, step: float):
    """The share of a new value in an exponential low-pass filter with a cut-off in Hz, `step` seconds after the last."""
    return 1 / (1 + 1 / (2 * math.pi * cutoff * step))


class HandTracker(HandTracks):
    """The hands of a film by a pose model in torch.

        >>> tracker = HandTracker(model, processor)
        >>> for time, frame in frames:
        ...     hands = tracker(frame, time)

    Args:
        model, processor: a [`HandUNetForPoseEstimation`] and its [`HandUNetImageProcessor`].
        detector: as in [`TorchHands`]; by default the one that the model names.
        options: of [`HandTracks`].
    """

    def __init__(self, model, processor, detector=None, **options):
        from .torch_hands import TorchHands

        super().__init__(TorchHands(model, processor, detector), **options)

    def __call__(self, frame, time: float) -> list[dict]:
        """As [`HandTracks`], of any image that `load_image` takes."""
        return super().__call__(load_image(frame), time)


__all__ = ["RULES", "HandTracker", "HandTracks", "TrackingRules", "detector_box", "one_euro"]

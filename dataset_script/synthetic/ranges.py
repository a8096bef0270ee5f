"""What may happen in a scene: the one place where the difficulties differ."""

from dataclasses import dataclass, replace

from dataset_script.synthetic.poses import GRASPS, TEMPLATES


@dataclass(frozen=True)
class SceneRanges:
    """What a difficulty allows.  Angles in degrees, lengths in image sides; a share is a probability."""

    templates: tuple[str, ...]  # names of poses.TEMPLATES
    blend: float  # a pose goes up to this part of the way to a second template
    mixed: float  # share of poses whose fingers are each of a template of its own
    noise: float  # standard deviation of the joints' angles
    wrist: float  # standard deviation of the wrist's flexion
    yaw: float  # turned at most so far from showing the palm or the back
    pitch: float  # standard deviation of the tilt towards the viewer
    roll: float  # turned at most so far in the image, either way
    fill: tuple[float, float]  # longer side of the keypoints' box
    shift: float  # the box's centre off the image's, at most
    sleeve: float  # share of covered forearms
    band: float  # share of bracelets and watches
    polish: float  # share of painted nails
    held: float  # share of things held in the hand
    occluder: float  # share of things in front of the hand
    shadow: float  # share of shadows on the background
    soften: float  # share of blurred or coarse pictures
    tint: float  # spread of exposure and white balance
    backgrounds: tuple[float, ...]  # share of each kind, in the order of backgrounds.KINDS


EASY = SceneRanges(
    templates=("open", "flat", "spread", "relaxed", "point", "two", "three", "four", "thumb and two", "letter L", "cup",
               "claw"),
    blend=0.2, mixed=0.0, noise=5.0, wrist=8.0, yaw=25.0, pitch=12.0, roll=45.0, fill=(0.52, 0.62), shift=0.04,
    sleeve=0.3, band=0.0, polish=0.0, held=0.0, occluder=0.0, shadow=0.0, soften=0.2, tint=0.05,
    backgrounds=(0.4, 0.15, 0.08, 0.07, 0.15, 0.1, 0.05),
)
FULL = SceneRanges(
    templates=tuple(TEMPLATES), blend=0.7, mixed=0.0, noise=9.0, wrist=18.0, yaw=180.0, pitch=32.0, roll=180.0, fill=(0.38, 0.58),
    shift=0.06, sleeve=0.45, band=0.12, polish=0.12, held=0.25, occluder=0.12, shadow=0.3, soften=0.5, tint=0.15,
    backgrounds=(0.12, 0.12, 0.22, 0.16, 0.2, 0.09, 0.09),
)
# Hands to be put into scenes later (see :mod:`dataset_script.layers`): small enough that the arm goes on outside the
# crop that will be cut round the hand, and more often closed or holding something, where fingers are mistaken.
LAYERS = replace(
    FULL, templates=(*TEMPLATES, "fist", "thumb up", *GRASPS), mixed=0.3, blend=1.0, noise=11.0, wrist=24.0, pitch=40.0,
    fill=(0.34, 0.37), shift=0.0, held=0.3,
)
# And the scenes they are put into: things more often lie in front of them.
SCENES = replace(FULL, occluder=0.25)

"""What may happen in a picture: the only place where the difficulties differ."""

from dataclasses import dataclass, replace

from dataset_script.synthetic.poses import GRASPS, TEMPLATES


@dataclass(frozen=True)
class SceneRanges:
    """What a difficulty allows. Angles are in degrees, lengths relative to the image's side; a share is a probability."""

    templates: tuple[str, ...]  # names of poses.TEMPLATES
    blend: float  # a pose goes up to this part of the way to a second template
    mixed: float  # share of poses in which each finger has a template of its own
    noise: float  # standard deviation of the joints' angles
    wrist: float  # standard deviation of the wrist's flexion
    yaw: float  # largest turn away from showing the palm or the back
    pitch: float  # standard deviation of the tilt towards the viewer
    roll: float  # largest turn in the image, in both directions
    fill: tuple[float, float]  # longer side of the keypoints' box, least and most
    shift: float  # largest distance of the box's centre from the image's, in x and in y
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
    templates=tuple(TEMPLATES), blend=0.7, mixed=0.0, noise=9.0, wrist=18.0, yaw=180.0, pitch=32.0, roll=180.0,
    fill=(0.38, 0.58), shift=0.06, sleeve=0.45, band=0.12, polish=0.12, held=0.25, occluder=0.12, shadow=0.3, soften=0.5,
    tint=0.15,
    backgrounds=(0.12, 0.12, 0.22, 0.16, 0.2, 0.09, 0.09),
)
# Hands for scenes (see :mod:`dataset_script.layers`): small, so that the arm goes on outside the hand's later crop, and more
# often closed or holding something, because there the network makes most mistakes.
LAYERS = replace(
    FULL, templates=(*TEMPLATES, "fist", "thumb up", *GRASPS), mixed=0.3, blend=1.0, noise=11.0, wrist=24.0, pitch=40.0,
    fill=(0.34, 0.37), shift=0.0, held=0.3,
)
# The scenes that these hands are put into: things lie in front of them more often.
SCENES = replace(FULL, occluder=0.25)

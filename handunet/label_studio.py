"""Give the hands that `handunet --format coco` found to Label Studio, to correct them there.

    python -m handunet.label_studio out/annotations.json --image_url '/data/local-files/?d=film/images/'

writes `label_studio.json`, which is imported into a project, and `label_studio.xml`, the project's labelling interface, beside
the file.  Label Studio has no skeletons, and its own converter forgets the keypoints' names.  So each hand is a rectangle here,
and its keypoints are named points whose parent is the rectangle.  `train.py --annotations` reads what Label Studio then exports
as "JSON".
"""

import argparse
import json
import sys
from pathlib import Path

from handunet.files import written_whole

IMAGE_URL = "/data/local-files/?d="  # Label Studio's address of local files, which it must be allowed to serve
POINT_WIDTH = 0.5  # per cent of the image's width


def tasks(coco: dict, image_url: str) -> list[dict]:
    """Label Studio's tasks, one for each image, of a COCO keypoint file whose categories name the keypoints."""
    categories = {category["id"]: category for category in coco["categories"]}
    images = {image["id"]: image for image in coco["images"]}
    results = {image_id: [] for image_id in images}
    for hand in coco["annotations"]:
        image, category = images[hand["image_id"]], categories[hand["category_id"]]
        results[image["id"]] += regions(hand, category, image["width"], image["height"])
    return [
        {"data": {"image": image_url + image["file_name"]}, "annotations": [{"result": results[image["id"]]}]}
        for image in images.values()
    ]


def regions(hand: dict, category: dict, width: int, height: int) -> list[dict]:
    """The rectangle of a hand, and its labelled keypoints, in per cent of the image's sides."""
    name = f"hand-{hand['id']}"
    place = {"to_name": "image", "original_width": width, "original_height": height, "image_rotation": 0}

    def percent(x: float, y: float) -> dict:
        return {"x": 100 * x / width, "y": 100 * y / height}

    x, y, box_width, box_height = hand["bbox"]
    value = percent(x, y) | {"width": 100 * box_width / width, "height": 100 * box_height / height, "rotation": 0}
    value["rectanglelabels"] = [category["name"]]
    found = [{"id": name, "type": "rectanglelabels", "from_name": "hand", **place, "value": value}]
    for index, keypoint in enumerate(category["keypoints"]):
        x, y, visibility = hand["keypoints"][3 * index : 3 * index + 3]
        if visibility:
            value = percent(x, y) | {"width": POINT_WIDTH, "keypointlabels": [keypoint]}
            point = {"id": f"{name}-{index}", "parentID": name, "type": "keypointlabels", "from_name": "keypoint"}
            found.append({**point, **place, "value": value})
    return found


def interface(coco: dict) -> str:
    """The labelling interface: rectangles of the categories, and points of their keypoints."""
    hands = "\n".join(f'    <Label value="{category["name"]}"/>' for category in coco["categories"])
    names = dict.fromkeys(name for category in coco["categories"] for name in category["keypoints"])
    points = "\n".join(f'    <Label value="{name}"/>' for name in names)
    return f"""<View>
  <Image name="image" value="$image" zoom="true"/>
  <RectangleLabels name="hand" toName="image">
{hands}
  </RectangleLabels>
  <KeyPointLabels name="keypoint" toName="image">
{points}
  </KeyPointLabels>
</View>
"""


def main(arguments: list[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path, help="what `handunet --format coco` wrote")
    parser.add_argument("--image_url", default=IMAGE_URL, help=f"where Label Studio finds the images (default: {IMAGE_URL})")
    args = parser.parse_args(arguments)
    try:
        coco = json.loads(args.annotations.read_text(encoding="utf-8"))
        for suffix, text in ((".json", json.dumps(tasks(coco, args.image_url))), (".xml", interface(coco))):
            with written_whole(args.annotations.with_name(f"label_studio{suffix}")) as partial:
                partial.write_text(text, encoding="utf-8")
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"label_studio: {args.annotations} is no file that `handunet --format coco` wrote: {error!r}")
    print(f"Import label_studio.json into a project with the interface label_studio.xml: {args.annotations.parent}")


if __name__ == "__main__":
    main()

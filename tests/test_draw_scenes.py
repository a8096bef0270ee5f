import json

from PIL import Image

from scripts.draw_scenes import draw


def test_a_sheet_shows_each_scene_twice(tmp_path):
    draw(tmp_path / "sheet.png", 3, ["--image_size", "32", "--train_samples", "3", "--cache_dir", str(tmp_path)])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (10 * 64, 2 * 64)
        plain, drawn = sheet.crop((0, 0, 192, 64)), sheet.crop((0, 64, 192, 128))
        assert plain.tobytes() != drawn.tobytes() and plain.getextrema() != ((0, 0),) * 3


def test_real_hands_stand_below_the_scenes_cut_out_alike(tmp_path):
    (tmp_path / "images").mkdir()
    colors = [(200, 30, 30), (30, 30, 200)]
    for name, color in zip("ab", colors):
        Image.new("RGB", (60, 60), color).save(tmp_path / "images" / f"{name}.png")
    points = [value for joint in range(21) for value in (20 + joint, 20 + joint, 2)]
    hands = [{"id": name, "image_id": name, "keypoints": points} for name in "ab"]
    images = [{"id": name, "file_name": f"{name}.png"} for name in "ab"]
    (tmp_path / "hands.json").write_text(json.dumps({"images": images, "annotations": hands}))
    options = ["--image_size", "32", "--train_samples", "3", "--cache_dir", str(tmp_path)]
    draw(tmp_path / "sheet.png", 3, options, tmp_path / "hands.json")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (10 * 64, 4 * 64 + 8)
        for column, color in enumerate(colors):
            middle = 64 * column + 32
            assert sheet.getpixel((middle, 2 * 64 + 8 + 50)) == color  # below the hand's line of points, black none
            assert sheet.getpixel((middle, 3 * 64 + 8 + 32)) != color  # a bone crosses the middle

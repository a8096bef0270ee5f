from PIL import Image

from scripts.draw_scenes import draw


def test_a_sheet_shows_each_scene_twice(tmp_path):
    draw(tmp_path / "sheet.png", 3, ["--image_size", "32", "--train_samples", "3", "--cache_dir", str(tmp_path)])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (10 * 64, 2 * 64)
        plain, drawn = sheet.crop((0, 0, 192, 64)), sheet.crop((0, 64, 192, 128))
        assert plain.tobytes() != drawn.tobytes() and plain.getextrema() != ((0, 0),) * 3

"""A page on which people try the model: a photograph, its hands, their keypoints; films and the webcam, too.

    python demo/space/app.py --model weights/handunet-base       # on your machine, http://127.0.0.1:7860

On the Hub this is a Space, and the metadata of `README.md` beside this file names its model.  In a checkout the default is
weights/handunet-base.  Photographs stay on the machine that runs this program and are deleted within the hour.
"""

import argparse
import base64
import concurrent.futures
import dataclasses
import io
import json
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

import gradio as gr
import numpy as np
import torch
from gradio.utils import get_upload_folder
from huggingface_hub import ModelCard, RepoCard, hf_hub_download
from PIL import Image, ImageDraw
from transformers import pipeline
from transformers.utils import logging

HERE = Path(__file__).resolve().parent
# In a Space the package and serving.py are beside this file; in a checkout they are two folders and one folder up.
sys.path[1:1] = [str(folder) for folder in (HERE, *HERE.parents[:2])]

from films import Webcam, draw_film  # noqa: E402
from serving import MAX_BYTES, Decoders, RequestError, doubt  # noqa: E402

import modeling_handunet.images  # noqa: E402
from modeling_handunet import KEYPOINT_NAMES, draw_hand  # noqa: E402
from modeling_handunet.crops import Crop  # noqa: E402
from modeling_handunet.keypoints import NO_CLEAR_HAND, keypoint_color  # noqa: E402

PLACEHOLDER = "USER/handunet"
WEIGHTS = HERE.parent.parent / "weights" / "handunet-base"  # the default in a checkout
MAX_PIXELS = 50_000_000
AT_ONCE = 4  # visitors who are answered at the same time
MAX_WAITING = 32  # visitors in the queue; more are told that it is full
MAX_SECONDS = 20  # for one answer
PREVIEW = 1280  # longest side of the photograph that the browser gets, pixels
SMALL = 32  # a photograph with a shorter longest side gets a warning, pixels
DRAWING = 1600  # longest side of the drawing with the skeleton
HEATMAP = 512  # side of the picture of a heatmap
STRONGEST = "all keypoints"
KEEP_SECONDS = 3600
EXAMPLES = json.loads((HERE / "examples" / "examples.json").read_text())
# On a phone the drawing is below the photograph, perhaps out of sight.  The example that the page begins with moves nothing.
SHOW_DRAWING = """() => { if (Number(document.querySelector('#stage .place').dataset.number) > 1)
  document.querySelector('#drawing img')?.scrollIntoView({ block: 'nearest', behavior: 'smooth' }) }"""
MAX_HANDS = 20  # of a photograph
NOT_KNOWN = "Not known"
HANDEDNESS = {"Right hand": "right", "Left hand": "left", NOT_KNOWN: None}  # label of the page -> word of the pipeline
ZOOM_MARGIN = 0.3  # around the hands, of their longer side
FILMS_AT_ONCE = 1  # films and webcams are followed one at a time, so that photographs are answered meanwhile
CAMERA_SECONDS = 60  # after which a visitor's webcam makes room for the next


@dataclasses.dataclass
class Session:
    """The state of one visitor's page."""

    photo: str | None = None  # path of the uploaded file
    name: str = ""
    folder: str | None = None  # holds the downloads
    hands: list[dict] = dataclasses.field(default_factory=list)  # as the pipeline describes them
    crop: np.ndarray | None = None  # (S, S, 3) uint8, not mirrored, also for a left hand
    heatmaps: np.ndarray | None = None  # (21, S, S) in [0, 1], not mirrored either

    def forget(self) -> None:
        """Delete what this session wrote."""
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)


class Model:
    """A HandUNet with its terms.  If it cannot be loaded, `problem` says why, and the page shows that."""

    def __init__(self, name: str):
        self.name, self.problem, self.pipe, self.card, self.finds_hands = name, "", None, None, False
        try:
            if name == str(WEIGHTS) and not WEIGHTS.is_dir():
                raise ValueError(
                    "there is no weights/handunet-base: give a saved folder or an id on the Hub with --model. "
                    "`accelerate launch train.py` makes outputs/handunet/model."
                )
            if Path(name).is_dir() and not (Path(name) / "model.safetensors").is_file():
                raise OSError(f"the folder {name} has no model.safetensors")
            self.pipe = pipeline("keypoint-detection", model=name, allow_urls=False)
            self.finds_hands = has_detector(self.pipe)
        except (OSError, ValueError) as error:
            self.problem = f"The model could not be loaded, so no hand can be read here: {error}"
            return
        try:
            readme = Path(name) / "README.md"
            self.card = ModelCard.load(readme if readme.is_file() else hf_hub_download(name, "README.md"))
        except (OSError, ValueError):
            pass  # the page then says that the terms are unknown

    def terms(self) -> str:
        """A sentence that names the model and its terms of use."""
        folder = Path(self.name).is_dir()
        link = f"`{Path(self.name).name}`" if folder else f"[{self.name}](https://huggingface.co/{self.name})"
        data = self.card.data if self.card else None
        if data is None or not data.license:
            return f"Model: {link}. It has no model card that states its terms: ask whoever made it before you use it."
        label = data.license if data.license != "other" else data.license_name or "its own licence"
        where = f"[{label}]({data.license_link})" if str(data.license_link or "").startswith("https://") else label
        if data.license_name == "research-only":
            return (
                f"Model: {link}. Terms: {where}; the model and what it gives may be used for research only, not commercially."
            )
        return f"Model: {link}. Terms: {where}."

    def find_hands(self, photo: Image.Image, handedness: str | None = None) -> list[dict]:
        """The hands of a photograph, all of them `handedness` if that is known; none without a detector."""
        return self.pipe(photo, handedness=handedness, max_hands=MAX_HANDS) if self.finds_hands else []

    def read_hand(self, photo: Image.Image, box: list[float], handedness: str | None) -> dict:
        """The hand in a box."""
        (hand,) = self.pipe(photo, boxes=[box], handedness=handedness)
        return hand

    @torch.inference_mode()
    def look_at(self, photo: Image.Image, hand: dict) -> tuple[np.ndarray, np.ndarray]:
        """A hand's crop (S, S, 3) and its heatmaps (21, S, S), both not mirrored."""
        box, side, processor = box_of(hand), hand["label"].split()[0], self.pipe.image_processor
        pixel_values = processor(photo, [[box]], [[side]]).pixel_values.to(self.pipe.model.device, self.pipe.model.dtype)
        heatmaps = self.pipe.model(pixel_values).heatmaps[0].float().clamp(0, 1)  # (21, S, S)
        crop = np.asarray(Crop.around_box(box, heatmaps.shape[-1], processor.box_fill).cut(photo))
        return crop, (heatmaps.flip(-1) if side == "left" else heatmaps).cpu().numpy()


def has_detector(pipe) -> bool:
    """Whether the pipeline finds hands by itself."""
    try:
        return pipe.hands.detector is not None
    except OSError:
        return False


def box_of(hand: dict) -> list[float]:
    """A hand's box as (x, y, width, height)."""
    x_min, y_min, x_max, y_max = (float(hand["box"][name]) for name in ("xmin", "ymin", "xmax", "ymax"))
    return [x_min, y_min, x_max - x_min, y_max - y_min]


def shrink(image: Image.Image, side: int) -> Image.Image:
    """`image`, reduced so that its longer side has at most `side` pixels."""
    scale = side / max(image.size)
    if scale >= 1:
        return image
    return image.resize([max(1, round(length * scale)) for length in image.size], Image.Resampling.LANCZOS)


def data_url(image: Image.Image) -> str:
    """The image as a JPEG in a `data:` URL."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def read_photo(path: str, decoders: Decoders) -> Image.Image:
    """The photograph in a file; `ValueError` with a sentence for the visitor if it cannot be used."""
    if Path(path).stat().st_size > MAX_BYTES:
        raise ValueError(f"The file is larger than {MAX_BYTES // 2**20} MB: choose a smaller one.")
    try:
        return decoders.decode(Path(path).read_bytes())
    except RequestError as error:
        sentences = {
            400: "The picture is damaged or cut off: choose another one.",
            415: "This file is not a picture that can be read: choose a JPEG, PNG, WebP or AVIF.",
        }
        raise ValueError(sentences.get(error.status, error.message)) from None


def draw_answer(photo: Image.Image, hands: list[dict]) -> Image.Image:
    """The photograph with its hands; what is no clear hand is drawn faintly, with a label."""
    for hand in hands:
        points = [(point["x"], point["y"]) for point in hand["keypoints"]]
        if doubt(hand, NO_CLEAR_HAND):
            photo = draw_guess(photo, points, f"No clear hand: {hand['score']:.2f}")
        else:
            photo = draw_hand(photo, points, [point["score"] for point in hand["keypoints"]])
    return photo


def scaled(hand: dict, scale: float) -> dict:
    """A hand of a photograph as one of the photograph in another size."""
    points = [{**point, "x": point["x"] * scale, "y": point["y"] * scale} for point in hand["keypoints"]]
    return {**hand, "keypoints": points, "box": {name: value * scale for name, value in hand["box"].items()}}


def zoom_to(drawing: Image.Image, hands: list[dict]) -> Image.Image:
    """The part of a drawing that shows the hands; all of it, if that is most of it or there are none."""
    if not hands:
        return drawing
    x, y = zip(*(values for hand in hands for values in corners(hand)))
    margin = ZOOM_MARGIN * max(max(x) - min(x), max(y) - min(y))
    left, top = max(0, min(x) - margin), max(0, min(y) - margin)
    right, bottom = min(drawing.width, max(x) + margin), min(drawing.height, max(y) + margin)
    if right - left < 16 or bottom - top < 16 or (right - left) * (bottom - top) > 0.7 * drawing.width * drawing.height:
        return drawing
    return drawing.crop(tuple(round(value) for value in (left, top, right, bottom)))


def corners(hand: dict) -> list[tuple[float, float]]:
    """The corners of a hand's box, and its keypoints."""
    box = hand["box"]
    return [(box["xmin"], box["ymin"]), (box["xmax"], box["ymax"]), *((point["x"], point["y"]) for point in hand["keypoints"])]


def listed(hands: list[dict]) -> str:
    """The hands in words: "2 hands: left, right?", where the question mark says that it is no clear hand."""
    sides = ", ".join(hand["label"].split()[0] + "?" * bool(doubt(hand, NO_CLEAR_HAND)) for hand in hands)
    return f"{len(hands)} hand{'s' if len(hands) > 1 else ''}: {sides}"


def draw_guess(photo: Image.Image, points: list[tuple[float, float]], label: str) -> Image.Image:
    """The photograph with faint keypoints, and a label above them that says what they are not."""
    picture = draw_hand(photo, points, np.zeros(len(points)))
    size = max(12, picture.width // 32)
    x, y = (max(0, min(values)) for values in zip(*points))
    position = min(x, picture.width * 0.6), max(0, min(y, picture.height) - 1.5 * size)
    ImageDraw.Draw(picture).text(position, label, fill="white", font_size=size, stroke_width=2, stroke_fill="black")
    return picture


def draw_heatmap(crop: np.ndarray, heatmap: np.ndarray, color: tuple[int, int, int]) -> Image.Image:
    """The crop (S, S, 3), darkened, with a heatmap (S, S) in [0, 1] laid over it in a colour."""
    alpha = heatmap[..., None]
    mixed = crop * (0.45 * (1 - alpha)) + np.array(color) * alpha
    picture = Image.fromarray(np.uint8(np.clip(mixed, 0, 255)))
    return picture.resize((HEATMAP, HEATMAP), Image.Resampling.BICUBIC)


def build_app(model: Model) -> gr.Blocks:
    """The page."""
    decoders = Decoders(modeling_handunet.images.__file__, MAX_PIXELS, AT_ONCE)
    workers = concurrent.futures.ThreadPoolExecutor(AT_ONCE)
    fill = 0.45 if model.pipe is None else model.pipe.image_processor.box_fill
    clear = [None, "", None, gr.skip(), None, gr.DownloadButton(interactive=False), gr.DownloadButton(interactive=False)]

    def reply(number: int | None, message: str, **more):
        """What crop.js shows; the token makes two equal replies different."""
        return gr.HTML(answer={"number": number, "message": message, "token": secrets.token_hex(4), **more})

    def refuse(session: Session, sentence: str, number: int | None, forget_photo: bool = True):
        """A sentence instead of an answer."""
        if not forget_photo:
            return [reply(number, sentence, bad=True), session, gr.skip(), *clear]
        session.forget()
        return [reply(number, sentence, bad=True, preview=""), Session(), gr.skip(), *clear]

    def present(photo: Image.Image, session: Session, shown: str, answer, label=None, last: int = -1):
        """The outputs for the hands of a session; the hand number `last` is described in words and by heatmaps."""
        session.forget()
        label = label or gr.skip()
        if not session.hands:
            return [answer, dataclasses.replace(session, folder=None, crop=None, heatmaps=None), label, *clear]
        for hand in session.hands:
            if unclear := doubt(hand, NO_CLEAR_HAND):
                hand["note"] = f"{unclear} Draw a box close round one hand."
        folder, hand = Path(tempfile.mkdtemp(prefix="handunet-")), session.hands[last]
        session = dataclasses.replace(session, folder=str(folder))
        session.crop, session.heatmaps = model.look_at(photo, hand)
        drawing = shrink(photo, DRAWING)
        drawn = [scaled(one, drawing.width / photo.width) for one in session.hands]
        drawing = draw_answer(drawing, drawn)
        confidence = f"mean confidence {hand['score']:.2f}"
        if len(session.hands) > 1:
            described = f"**{listed(session.hands)}.** Faint joints are the unsure ones."
        elif "note" in hand:
            described = f"**{hand['note']}** What is drawn faintly is a guess."
        else:
            described = f"**{hand['label'].capitalize()}**, {confidence}. Faint joints are the unsure ones."
        stem = Path(session.name).stem[:60] or "photo"
        picture, text, zoomed = folder / f"{stem}-hand.png", folder / f"{stem}-hand.json", folder / "zoomed.png"
        drawing.save(picture)
        zoom_to(drawing, drawn).save(zoomed)
        whole = {"photo": session.name, "width": photo.width, "height": photo.height, "model": model.name}
        text.write_text(json.dumps(whole | {"hands": session.hands}, indent=2) + "\n")
        rows = [
            [
                (f"{number} " if len(session.hands) > 1 else "") + point["name"].replace("_", " "),
                round(point["x"], 1), round(point["y"], 1), round(point["score"], 2),
            ]
            for number, one in enumerate(session.hands, 1)
            for point in one["keypoints"]
        ]  # fmt: skip
        return [
            answer,
            session,
            label,
            str(zoomed),
            described,
            rows,
            gr.skip(),
            show_heatmap(shown, session),
            gr.DownloadButton(value=str(text), interactive=True),
            gr.DownloadButton(value=str(picture), interactive=True),
        ]

    def boxes_of(session: Session) -> list[dict]:
        """What crop.js draws of the hands."""
        return [{"box": box_of(hand), "label": hand["label"].split()[0]} for hand in session.hands]

    def work(function, *arguments):
        """A result that may take `MAX_SECONDS`; `ValueError` with a sentence if it takes longer."""
        try:
            return workers.submit(function, *arguments).result(MAX_SECONDS)
        except TimeoutError:
            raise ValueError(f"This took more than {MAX_SECONDS} s: press again in a moment.") from None

    def open_photo(value, shown: str, session: Session):
        """Open the photograph or the example that the page names, find its hands, and forget the previous one."""
        value = value if isinstance(value, dict) else {}
        number, example, label = value.get("number"), None, NOT_KNOWN if model.finds_hands else None
        if model.problem:
            return refuse(session, model.problem, number)
        if "remove" in value:
            return remove_hand(value, shown, session)
        try:
            if "example" in value:
                example = EXAMPLES[int(value["example"])]
                path, name = str(HERE / "examples" / example["file"]), example["file"]
                if not model.finds_hands:
                    label = next(label for label, side in HANDEDNESS.items() if side == example["handedness"])
            else:
                path, name = str(value.get("path")), Path(str(value.get("name"))).name
                if not Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve()) or not Path(path).is_file():
                    raise ValueError("The photograph did not arrive: choose it again.")
            photo = read_photo(path, decoders)
            hands = work(model.find_hands, photo, example and example["handedness"])
            if example and model.finds_hands and not hands:
                hands = [work(model.read_hand, photo, example["box"], example["handedness"])]
        except (ValueError, TypeError, IndexError, OSError) as error:
            return refuse(session, str(error), number)
        session.forget()
        session = Session(photo=path, name=name, hands=hands)
        width, height = photo.size
        if hands:
            box, message = box_of(hands[0]), f"Found {listed(hands)}. Tap a box to correct it, or draw one round another hand."
        else:
            length = min(max(width, height) * fill, width, height)  # the box for which the whole picture is the crop
            box = example["box"] if example else [(width - length) / 2, (height - length) / 2, length, length]
            message = "Draw a box close round one hand, then press the button."
            message = f"No hand was found. {message}" if model.finds_hands else message
        if small := max(width, height) < SMALL:
            message = f"The picture has only {width} x {height} pixels: expect little of the answer."
        preview = data_url(shrink(photo, PREVIEW))
        answer = reply(
            number, message, bad=small, preview=preview, width=width, height=height, box=box, hands=boxes_of(session),
            selected=0 if hands else None,
        )  # fmt: skip
        return present(photo, session, shown, answer, label, 0)

    def remove_hand(value: dict, shown: str, session: Session):
        """Forget a hand that is none."""
        number, index = value.get("number"), value["remove"]
        if session.photo is None or type(index) is not int or not 0 <= index < len(session.hands):
            return refuse(session, "There is no such hand.", number, False)
        session.hands = session.hands[:index] + session.hands[index + 1 :]
        message = f"Left: {listed(session.hands)}." if session.hands else "No hand is left. Draw a box close round one."
        return present(
            read_photo(session.photo, decoders), session, shown, reply(number, message, hands=boxes_of(session), selected=None)
        )

    def find_keypoints(value, label: str, shown: str, session: Session):
        """Read the hand in the box: a new one, or one whose box was corrected."""
        value = value if isinstance(value, dict) else {}
        number, index = value.get("number"), value.get("hand")
        if model.problem:
            return refuse(session, model.problem, number)
        if "path" in value or "example" in value:  # the page still waits for this photograph
            return refuse(session, "The photograph is still being opened: press again in a moment.", number, False)
        if session.photo is None or "box" not in value:
            return refuse(session, "There is no photograph yet: choose one, use the camera, or take an example.", number, False)
        try:
            photo = read_photo(session.photo, decoders)
            hand = work(model.read_hand, photo, value["box"], HANDEDNESS.get(label))
        except (ValueError, TypeError, OSError) as error:
            return refuse(session, str(error), number, False)
        others = list(session.hands) if model.finds_hands else []
        if type(index) is int and 0 <= index < len(others):
            others[index] = hand
        elif len(others) < MAX_HANDS:
            index, others = len(others), [*others, hand]
        else:
            return refuse(session, f"There are {MAX_HANDS} hands already: remove one first.", number, False)
        session.hands = others
        if unclear := doubt(hand, NO_CLEAR_HAND):
            message = f"{unclear} Draw a box close round one hand."
        else:
            message = f"Read: {hand['label']}, mean confidence {hand['score']:.2f}."
        answer = reply(number, message, bad=bool(unclear), hands=boxes_of(session), selected=index)
        return present(photo, session, shown, answer, last=index)

    def follow_film(path: str | None):
        """The film with its hands, and a sentence."""
        if model.problem or not model.finds_hands:
            return None, model.problem or "This model has no hand detector, which films need."
        if path is None:
            return None, "Choose a film first."
        target = Path(tempfile.mkdtemp(prefix="handunet-film-", dir=get_upload_folder())) / "hands.mp4"
        try:
            return str(target), draw_film(path, str(target), model.pipe.hands)
        except (ValueError, OSError) as error:
            shutil.rmtree(target.parent, ignore_errors=True)
            return None, str(error)

    def follow_camera(picture, camera: Webcam | None):
        """The webcam's newest frame with its hands."""
        if picture is None or model.problem or not model.finds_hands:
            return None, model.problem or "This model has no hand detector, which the webcam needs.", camera
        camera = camera or Webcam(model.pipe.hands)
        return *camera(picture), camera

    def show_heatmap(name: str | None, session: Session) -> Image.Image | None:
        """The heatmap of one keypoint, or the strongest of all of them, over the crop."""
        if session.heatmaps is None or not name:
            return None
        if name == STRONGEST:
            return draw_heatmap(session.crop, session.heatmaps.max(0), (255, 255, 255))
        index = KEYPOINT_NAMES.index(name.replace(" ", "_"))
        picture = draw_heatmap(session.crop, session.heatmaps[index], keypoint_color(index))
        caption = f"{name}, highest {session.heatmaps[index].max():.2f}"
        ImageDraw.Draw(picture).text(
            (10, HEATMAP - 30), caption, fill="white", font_size=18, stroke_width=2, stroke_fill="black"
        )
        return picture

    examples = []
    for example in EXAMPLES:
        with Image.open(HERE / "examples" / example["file"]) as image:
            examples.append({"title": example["title"], "thumbnail": data_url(shrink(image, 128))})
    with gr.Blocks(title="Hand keypoints", analytics_enabled=False, delete_cache=(600, KEEP_SECONDS)) as app:
        gr.Markdown("# Hand keypoints\nHands in photographs and films: 21 keypoints each, with their confidence.")
        gr.Markdown(model.terms() if not model.problem else f"**{model.problem}**", elem_id="terms")
        session = gr.State(Session(), time_to_live=KEEP_SECONDS, delete_callback=Session.forget)
        with gr.Tabs():
            with gr.Tab("Photograph"), gr.Row():
                with gr.Column(min_width=300):
                    stage = gr.HTML(
                        value={},
                        html_template=(HERE / "crop.html").read_text(),
                        css_template=(HERE / "crop.css").read_text(),
                        js_on_load=(HERE / "crop.js").read_text(),
                        elem_id="stage",
                        apply_default_css=False,
                        answer={"message": model.problem, "bad": bool(model.problem)},
                        examples=examples,
                        start=model.finds_hands,
                        box_fill=fill,
                        most_bytes=MAX_BYTES,
                    )
                    side = NOT_KNOWN if model.finds_hands else "Right hand"
                    handedness = gr.Radio(list(HANDEDNESS), value=side, label="Which hand is in the box?", elem_id="handedness")
                    button = gr.Button("Read the hand in the box", variant="primary", elem_id="find")
                with gr.Column(min_width=300):
                    drawing = gr.Image(
                        label="Skeleton", interactive=False, format="png", buttons=["fullscreen"], elem_id="drawing", height=420
                    )
                    summary = gr.Markdown(elem_id="summary")
                    with gr.Row():
                        as_json = gr.DownloadButton("Download JSON", interactive=False, elem_id="json", min_width=120)
                        as_png = gr.DownloadButton("Download PNG", interactive=False, elem_id="png", min_width=120)
                    with gr.Accordion("Heatmaps", open=False, elem_id="heatmaps"):
                        names = [STRONGEST, *(name.replace("_", " ") for name in KEYPOINT_NAMES)]
                        chosen = gr.Dropdown(names, value=STRONGEST, label="Keypoint", elem_id="keypoint")
                        heatmap = gr.Image(label="Heatmap", interactive=False, buttons=["fullscreen"], elem_id="heatmap")
                    table = gr.Dataframe(
                        headers=["Keypoint", "x, px", "y, px", "Score"],
                        datatype=["str", "number", "number", "number"],
                        label="Keypoints, in pixels of the photograph",
                        interactive=False,
                        column_widths=["32%", "21%", "21%", "26%"],
                        max_height=900,
                        elem_id="table",
                    )
            with gr.Tab("Video"), gr.Row():
                with gr.Column(min_width=300):
                    film = gr.Video(label="Film", sources=["upload"], elem_id="film")
                    follow = gr.Button("Follow the hands", variant="primary", elem_id="follow")
                with gr.Column(min_width=300):
                    followed = gr.Video(label="With its hands", interactive=False, elem_id="followed")
                    about_film = gr.Markdown(elem_id="about_film")
            with gr.Tab("Webcam"), gr.Row():
                with gr.Column(min_width=300):
                    camera = gr.Image(label="Webcam", sources=["webcam"], streaming=True, type="pil", elem_id="webcam")
                with gr.Column(min_width=300):
                    live = gr.Image(label="Hands", interactive=False, elem_id="live")
                    about_camera = gr.Markdown(elem_id="about_camera")
        gr.Markdown(
            "Where the model sees no clear hand, the page says so and draws its guess faintly. Photographs and films are read "
            "on the machine that serves this page, are not passed on, and are deleted within the hour."
        )
        outputs = [stage, session, handedness, drawing, summary, table, chosen, heatmap, as_json, as_png]
        # The two that take work share their places. Both show the visitor's number in the queue where the drawing will be.
        shared = {"concurrency_id": "photographs", "concurrency_limit": AT_ONCE, "show_progress_on": [drawing]}
        arrived = stage.photo(
            open_photo,
            [stage, chosen, session],
            outputs,
            show_progress="minimal",
            trigger_mode="always_last",
            api_name=False,
            **shared,
        )
        found = button.click(find_keypoints, [stage, handedness, chosen, session], outputs, api_name=False, **shared)
        found.then(None, js=SHOW_DRAWING)
        if model.finds_hands:
            arrived.then(None, js=SHOW_DRAWING)
        chosen.change(show_heatmap, [chosen, session], heatmap, show_progress="hidden", api_name=False)
        alone = {"concurrency_id": "films", "concurrency_limit": FILMS_AT_ONCE, "api_name": False}
        follow.click(follow_film, film, [followed, about_film], show_progress_on=[followed], **alone)
        watching = gr.State(None, time_to_live=KEEP_SECONDS)
        camera.stream(
            follow_camera, [camera, watching], [live, about_camera, watching], stream_every=0.1, time_limit=CAMERA_SECONDS,
            show_progress="hidden", **alone,
        )  # fmt: skip
    return app.queue(max_size=MAX_WAITING, default_concurrency_limit=AT_ONCE)


def named_model() -> str:
    """The model that the Space's metadata names; in a checkout they name none, and it is weights/handunet-base."""
    models = RepoCard.load(HERE / "README.md", ignore_metadata_errors=True).data.get("models") or [PLACEHOLDER]
    return str(WEIGHTS) if models[0] == PLACEHOLDER else models[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help=f"a saved folder or an id on the Hub (default: {named_model()})")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    args = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(max(1, min(2, torch.get_num_threads())))
    model = Model(args.model or named_model())
    if model.problem:
        print(f"app.py: {model.problem}", file=sys.stderr)
    fonts = ["system-ui", "sans-serif"]  # the theme's own fonts would come from another server
    build_app(model).launch(
        theme=gr.themes.Soft(primary_hue="blue", font=fonts, font_mono=["ui-monospace", "monospace"]),
        server_port=args.port,
        max_file_size=MAX_BYTES,
        share=False,
        ssr_mode=False,
        footer_links=[],
    )


if __name__ == "__main__":
    main()

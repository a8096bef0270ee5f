"""How many frames a second the browser page follows two hands at, and what takes the time.

    python -m benchmarks.browser --output outputs/browser.json     # builds the page; needs node, Chromium and playwright

Headless Chromium shows the page a camera of 640x480 at 30 frames a second with two hands, without a graphics processor.  The
page's frames/s stand beside the bare networks' in the same worker: as often as they answer two hands one after another, with
nothing cut, drawn or followed.  The models are those of `handunet/models`, in float32 and in 8 bits; the rounds alternate.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np

from handunet.backends import OWN_MODELS

ROOT = Path(__file__).resolve().parents[1]
SETTLE_MS = 3000
# Listens to the page's worker, and lets the benchmark ask it: answers of a negative number are not the page's.
LISTEN = """
const asked = new Map();
window.calls = [];
window.frames = []; // when the page asked for the next frame
const next = HTMLVideoElement.prototype.requestVideoFrameCallback;
HTMLVideoElement.prototype.requestVideoFrameCallback = function (then) {
  window.frames.push(performance.now());
  return next.call(this, then);
};
window.Worker = class extends Worker {
  constructor(...parameters) {
    super(...parameters);
    window.modelWorker = this;
    this.addEventListener("message", (event) => {
      const { id } = event.data;
      const { call, count, begin, done } = asked.get(id);
      asked.delete(id);
      window.calls.push({ call, count, begin, ms: performance.now() - begin });
      if (id < 0) {
        event.stopImmediatePropagation();
        done();
      }
    });
  }
  postMessage(message, done) {
    const count = message.parameters?.crops?.length ?? 1;
    asked.set(message.id, { call: message.call, count, begin: performance.now(), done });
    super.postMessage(message);
  }
};
"""
BARE = """async ({ size, seconds }) => {
  const crops = Array(2).fill(new Uint8Array(size * size * 3).fill(90));
  const begin = performance.now();
  let count = 0;
  while (performance.now() - begin < seconds * 1000) {
    count += 1;
    const message = { id: -count, call: "read", parameters: { crops, mirrored: [false, true] } };
    await new Promise((done) => window.modelWorker.postMessage(message, done));
  }
  return (1000 * count) / (performance.now() - begin);
}"""


def measure_live(page, seconds: float) -> dict:
    """The page's frames/s with a camera, and where the milliseconds of a frame go."""
    page.page.evaluate("() => { window.calls.length = window.frames.length = 0; }")
    page.page.wait_for_timeout(1000 * seconds)
    calls, asked = page.page.evaluate("[window.calls, window.frames]")
    label = page.page.inner_text("#status")
    reads = [call for call in calls if call["call"] == "read"]
    spent = (asked[-1] - asked[0]) / 1000 if len(asked) > 1 else float("nan")
    frames = max(len(asked) - 1, 1)
    waited = {name: sum(call["ms"] for call in calls if call["call"] == name) / frames for name in ("detect", "read")}
    return {
        "frames_per_s": frames / spent,
        "detect_ms": waited["detect"],
        "read_ms": waited["read"],
        "rest_ms": 1000 * spent / frames - sum(waited.values()),
        "reads_a_frame": sum(call["count"] for call in reads) / frames,
        "detections_a_frame": sum(call["call"] == "detect" for call in calls) / frames,
        "said": label,
    }


def measure(photograph: Path, rounds: int, seconds: float, runtime: str) -> dict[str, dict]:
    """By precision: `live`, one dict a round; `bare`, frames/s of each round; `runtime`, what the page says of it."""
    from playwright.sync_api import sync_playwright

    from tests.test_web import CAMERA, Page, build, filmed, previewed, two_hands

    results = {precision: {"live": [], "bare": []} for precision in OWN_MODELS}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        dist = build(ROOT / "weights" / "handunet", Path(folder) / "web")
        for precision, model in OWN_MODELS.items():
            shutil.copytree(model.parent, dist / precision)
        frame = two_hands(photograph, CAMERA)
        with previewed(dist) as url, filmed(playwright, [frame], Path(folder) / "two.mjpeg") as browser:
            for _ in range(rounds):
                for precision, result in results.items():
                    with Page(browser, "about:blank", ready=None) as page:
                        page.page.add_init_script(LISTEN)
                        files = f"model={precision}/pose.onnx&detector={precision}/detector.onnx"
                        page.page.goto(f"{url}?runtime={runtime}&{files}")
                        page.says("Ready")
                        result["runtime"] = page.page.inner_text("#runtime")
                        page.page.click("#camera")
                        page.says("Following a ", "right", "left")
                        page.page.wait_for_timeout(SETTLE_MS)
                        result["live"].append(measure_live(page, seconds))
                        page.page.click("#camera")
                        page.says("The camera is off")
                        result["bare"].append(page.page.evaluate(BARE, {"size": 128, "seconds": seconds}))
    return results


def text(precision: str, result: dict) -> str:
    """The figures in sentences."""
    live = {name: float(np.median([one[name] for one in result["live"]])) for name in result["live"][0] if name != "said"}
    bare = float(np.median(result["bare"]))
    return (
        f"{result['runtime']} In {precision} two hands followed: {live['frames_per_s']:.1f} frames/s, "
        f"{live['frames_per_s'] / bare:.2f} of the bare network's {bare:.1f}. Of a frame, {live['read_ms']:.0f} ms are the "
        f"network that reads ({live['reads_a_frame']:.2f} crops), {live['detect_ms']:.0f} ms the detector (in "
        f"{live['detections_a_frame']:.0%} of the frames), and {live['rest_ms']:.0f} ms cutting, following, drawing and "
        "waiting for the camera."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--photograph", type=Path, help="a square picture of a right hand (default: of ../shared/data/freihand_real)"
    )
    parser.add_argument("--runtime", choices=("threads", "single", "webgpu"), default="threads")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--output", type=Path, default=Path("outputs/browser.json"))
    args = parser.parse_args()
    folder = ROOT.parent / "shared" / "data" / "freihand_real" / "training" / "rgb"
    photograph = args.photograph or sorted(folder.glob("*.jpg"))[1]
    results = measure(photograph, args.rounds, args.seconds, args.runtime)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(results, indent=1) + "\n")
    for precision, result in results.items():
        print(text(precision, result))


if __name__ == "__main__":
    main()

// The page: what the person does, what is shown, and what is said.
//
// A source (the camera, or one picture) lasts one turn.  Results of an earlier turn are dropped, so that a slow answer never
// overwrites a newer picture.

import { closeCamera, countCameras, nextFrame, openCamera, play } from "./camera.js";
import { pictureToSquare, squareToBox } from "./crops.js";
import { drawFrame, drawHand, drawName } from "./drawing.js";
import { findHands, readHand } from "./find_hands.js";
import findingRules from "./finding_rules.json";
import { loadHandModels, RUNTIMES, UserError } from "./hand_model.js";
import { openPicture, remarkOnSize } from "./pictures.js";
import { percent, Results } from "./results.js";
import { Speed } from "./speed.js";
import { HandTracks } from "./tracking.js";
import rules from "./tracking_rules.json";

// Below this confidence the page says that there is no clear hand.
const CLEAR_SCORE = 0.4;
const FOLLOWED_HANDS = 2;
// Longer side of a picture's canvas, in pixels: small pictures are enlarged, large ones reduced.
const [MIN_CANVAS, MAX_CANVAS] = [720, 1280];
const EMPTY_CANVAS = [640, 480];
const PANEL_MS = 250; // between two updates of the numbers beside a live picture
const KEY_STEP = 0.05; // how far a key moves or resizes the square, as a share of its side
const MIN_DRAG = 6; // pixels of the page; a shorter drag is a click

const page = Object.fromEntries([...document.querySelectorAll("[id]")].map((node) => [node.id, node]));
const context = page.canvas.getContext("2d");
const video = document.createElement("video");
video.muted = true;
video.playsInline = true;
const frame = document.createElement("canvas").getContext("2d", { alpha: false, willReadFrequently: true });

let turn = 0;
let source = null; // null, "camera" or "picture"
let opening = null; // name of the file that is being opened
let picture = null; // {bitmap, name, notes, box, hands}; box [x, y, width, height] that the person drew, or null
let facing = "user";
let tracks = new HandTracks(rules, findingRules, { maxHands: FOLLOWED_HANDS });
let results = null;
const speed = new Speed();

// --- What is said ---

function say(sentence, isError = false) {
  page.status.classList.toggle("error", isError);
  if (page.status.textContent !== sentence) page.status.textContent = sentence;
}

function complain(error) {
  if (!(error instanceof UserError)) console.error(error);
  say(error instanceof UserError ? error.message : `Something went wrong (${error?.message}): reload the page.`, true);
}

const capitalized = (text) => text[0].toUpperCase() + text.slice(1);

/** "right" or "left" if the person said which hands there are, else null. */
const handedness = () => document.querySelector("input[name=handedness]:checked").value || null;

/** "a right hand", "a right and a left hand", "two left hands", "5 hands". */
function nameHands(hands) {
  const [first, second] = hands.map(({ side }) => side);
  if (hands.length === 1) return `a ${first} hand`;
  if (hands.length > 2) return `${hands.length} hands`;
  return first === second ? `two ${first} hands` : `a ${first} and a ${second} hand`;
}

function nameScores(hands) {
  const scores = hands.map(({ score }) => score);
  if (scores.length < 3) return scores.map(percent).join(" and ");
  return `${percent(Math.min(...scores))} to ${percent(Math.max(...scores))}`;
}
const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

// --- The models: fetched once, and again on request if that failed ---

let loading = null;
// ?model=pose.onnx, ?detector=detector.onnx, ?runtime=webgpu, threads or single
const parameters = new URLSearchParams(location.search);
const address = (name, usual) => new URL(parameters.get(name) ?? usual, document.baseURI).href;
const ownFiles = () => ({ pose: address("model", "pose.onnx"), detector: address("detector", "detector.onnx") });
const filesIn = (folder) => ({ pose: address("", `${folder}/pose.onnx`), detector: address("", `${folder}/detector.onnx`) });

function getModels() {
  page.retry.hidden = true;
  loading ??= loadHandModels(
    ownFiles(),
    parameters.has("model") || parameters.has("detector") ? null : filesIn("int8"),
    RUNTIMES.find((runtime) => runtime === parameters.get("runtime")),
  ).then(
    (models) => {
      results = new Results(models.settings);
      page.runtime.textContent = `Running with ${models.runtime}.`;
      return models;
    },
    (error) => {
      loading = null;
      page.retry.hidden = false;
      throw error;
    },
  );
  return loading;
}

async function prepare() {
  say("Loading the model …");
  try {
    await getModels();
    if (source === null && !opening) say("Ready: start the camera or open a picture.");
    else if (source === "picture") await detectInPicture();
  } catch (error) {
    complain(error);
  }
}

// --- Turns ---

/** Begin a new turn: the last source stops. */
function takeTurn(next) {
  turn += 1;
  closeCamera(video);
  picture?.bitmap.close();
  picture = null;
  opening = null;
  source = next;
  forgetHands();
  results?.show([]);
  [page.canvas.width, page.canvas.height] = EMPTY_CANVAS; // which also clears it
  page.canvas.setAttribute("aria-label", "No picture yet.");
  page.canvas.tabIndex = next === "picture" ? 0 : -1;
  page.stage.classList.toggle("camera", next === "camera");
  page.stage.classList.toggle("picture", next === "picture");
  page.welcome.hidden = false;
  page.hint.hidden = page.speed.hidden = page.turn.hidden = true;
  page.again.hidden = true;
  page["mirror-label"].hidden = next !== "camera";
  page.camera.textContent = next === "camera" ? "Stop camera" : "Start camera";
  return turn;
}

// --- Camera ---

const liveSentence = (hands) =>
  hands.length ? `Following ${nameHands(hands)}.` : "Looking for hands: show one or two to the camera.";

/** Begin anew with the hands of a film. */
function forgetHands() {
  tracks = new HandTracks(rules, findingRules, { maxHands: FOLLOWED_HANDS, handedness: handedness() });
  speed.reset();
}

async function startCamera() {
  const mine = takeTurn("camera");
  say("Waiting for the camera: allow it if the browser asks.");
  try {
    const stream = await openCamera(facing);
    if (mine !== turn) {
      stream.getTracks().forEach((track) => track.stop());
      return;
    }
    const gone = new UserError("The camera was switched off or taken away: start it again.");
    stream.getVideoTracks()[0].addEventListener("ended", () => mine === turn && stopWith(gone));
    await play(video, stream);
    if (mine !== turn) return;
    page.turn.hidden = (await countCameras()) < 2;
    if (!loading) say("Loading the model …");
    const models = await getModels();
    if (mine !== turn) return;
    page.welcome.hidden = true;
    await followHands(mine, models);
  } catch (error) {
    if (mine === turn) stopWith(error);
  }
}

function stopWith(error) {
  takeTurn(null);
  complain(error);
}

function stopCamera() {
  takeTurn(null);
  say("The camera is off.");
}

/** Until the turn ends: follow the hands in each new frame, draw them, and say when one comes or goes. */
async function followHands(mine, models) {
  let lastPanel = -Infinity;
  let coming = nextFrame(video);
  while (true) {
    await coming;
    if (mine !== turn) return;
    coming = nextFrame(video); // asked for now, because the next frame may come while this one is computed
    if (document.hidden) {
      await pause(100);
      continue;
    }
    const { videoWidth: width, videoHeight: height } = video;
    resize(frame.canvas, width, height);
    frame.drawImage(video, 0, 0, width, height);
    const hands = await tracks.follow(models, frame.canvas, [width, height], performance.now() / 1000);
    if (mine !== turn) return;
    if (!document.hidden) say(liveSentence(hands));
    drawLive(hands, models.settings);
    const now = performance.now();
    speed.add(now);
    if (now - lastPanel < PANEL_MS) continue;
    lastPanel = now;
    results.show(hands);
    const rate = speed.framesPerSecond;
    page.speed.hidden = rate === null;
    if (rate !== null) page.speed.textContent = `${rate.toFixed(0)} frames/s`;
    page.canvas.setAttribute("aria-label", describeCanvas("The camera's picture", hands));
  }
}

function describeCanvas(what, hands) {
  if (!hands.length) return `${what} without a hand.`;
  return `${what} with the skeleton of ${nameHands(hands)}, ${nameScores(hands)} sure.`;
}

function drawLive(hands, settings) {
  const { canvas } = page;
  const mirrored = page.mirror.checked;
  resize(canvas, frame.canvas.width, frame.canvas.height);
  context.save();
  if (mirrored) context.setTransform(-1, 0, 0, 1, canvas.width, 0);
  context.drawImage(frame.canvas, 0, 0);
  for (const { keypoints, scores } of hands) drawHand(context, keypoints, scores, settings);
  context.restore();
  for (const { box: [left, top, right], side } of hands) {
    drawName(context, mirrored ? canvas.width - right : left, top, capitalized(side));
  }
}

function resize(canvas, width, height) {
  if (canvas.width === width && canvas.height === height) return;
  canvas.width = width;
  canvas.height = height;
}

document.addEventListener("visibilitychange", () => {
  if (source !== "camera" || !video.srcObject) return;
  video.srcObject.getTracks().forEach((track) => (track.enabled = !document.hidden));
  forgetHands();
  if (document.hidden) say("Paused while this page is hidden.");
  else say(liveSentence([]));
});

// --- Pictures ---

/** Open the first of these files and say that there were others. */
async function showFiles(files) {
  if (!files.length) return;
  const [file] = files;
  const name = file.name || "the picture";
  const notes = [];
  if (files.length > 1) notes.push(`You gave ${files.length} files: this is the first.`);
  if (opening) notes.push(`“${opening}” was set aside for it.`);
  const mine = takeTurn("picture");
  opening = name;
  say(`Opening “${name}” …`);
  try {
    const bitmap = await openPicture(file);
    if (mine !== turn) {
      bitmap.close();
      return;
    }
    notes.push(remarkOnSize(bitmap));
    picture = { bitmap, name, notes, box: null, hands: [] };
    page.welcome.hidden = true;
    drawPicture();
    page.hint.textContent =
      "A hand is missing? Draw a square round it, or select the picture and use the arrow keys, + and −. Escape: all hands.";
    page.hint.hidden = false;
    await detectInPicture();
    if (mine === turn) opening = null;
  } catch (error) {
    if (mine !== turn) return;
    if (!picture) takeTurn(null);
    opening = null;
    complain(error);
  }
}

let asked = 0; // if a picture is asked about several times, only the last answer is shown

async function detectInPicture() {
  const [mine, question] = [turn, ++asked];
  if (!picture) return;
  if (!loading || !results) say("Loading the model …");
  const models = await getModels();
  if (mine !== turn || question !== asked) return;
  const { bitmap, box } = picture;
  let hands;
  try {
    hands = box
      ? [await readHand(models, bitmap, toCorners(box), findingRules, handedness())]
      : await findHands(models, bitmap, findingRules, handedness());
  } catch (error) {
    if (mine !== turn) return; // the picture was closed between two looks at it
    throw error;
  }
  if (mine !== turn || question !== asked) return;
  picture.hands = hands.map((hand, index) => ({ id: index + 1, ...hand }));
  picture.settings = models.settings;
  page.again.hidden = !box;
  drawPicture();
  results.show(picture.hands);
  say([...picture.notes, pictureSentence()].filter(Boolean).join(" "));
  page.canvas.setAttribute("aria-label", describeCanvas(`The picture “${picture.name}”`, hands));
}

const toCorners = ([x, y, width, height]) => [x, y, x + width, y + height];

function pictureSentence() {
  const { bitmap, name, box, hands } = picture;
  const where = `${box ? "the square in " : ""}“${name}” (${bitmap.width} × ${bitmap.height} pixels)`;
  if (!hands.length) return `No hand found in ${where}. If there is one, draw a square round it.`;
  // Found hands are clear, but one in a square may not be.
  if (hands[0].score < CLEAR_SCORE) {
    return `No clear hand in ${where}: only ${nameScores(hands)} sure. Draw a square close round the hand.`;
  }
  return `${capitalized(nameHands(hands))} in ${where}: ${nameScores(hands)} sure.`;
}

/** Answer again after the side changed. */
function detectAgain() {
  detectInPicture().catch(complain);
}

/** Answer for the hand in a square that the person drew, or with null for all hands. */
function setBox(box) {
  picture.box = box;
  picture.hands = [];
  drawPicture();
  detectAgain();
}

function drawPicture() {
  const { bitmap, box, hands } = picture;
  const longer = Math.max(bitmap.width, bitmap.height);
  const scale = Math.min(Math.max(longer, MIN_CANVAS), MAX_CANVAS) / longer;
  resize(page.canvas, Math.max(Math.round(bitmap.width * scale), 1), Math.max(Math.round(bitmap.height * scale), 1));
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#000";
  context.fillRect(0, 0, page.canvas.width, page.canvas.height);
  context.drawImage(bitmap, 0, 0, page.canvas.width, page.canvas.height);
  if (box) drawFrame(context, box.map((value) => value * scale));
  for (const { keypoints, scores } of hands) {
    drawHand(context, keypoints.map(([x, y]) => [x * scale, y * scale]), scores, picture.settings);
  }
  for (const { box: [left, top], side, score } of hands) {
    drawName(context, left * scale, top * scale, score >= CLEAR_SCORE ? capitalized(side) : `${capitalized(side)}?`);
  }
}

/** A pointer's place in pixels of the picture. */
function toPicture({ clientX, clientY }) {
  const { left, top, width, height } = page.canvas.getBoundingClientRect();
  const { bitmap } = picture;
  const [x, y] = [((clientX - left) / width) * bitmap.width, ((clientY - top) / height) * bitmap.height];
  return [Math.min(Math.max(x, 0), bitmap.width), Math.min(Math.max(y, 0), bitmap.height)];
}

let drag = null;

page.canvas.addEventListener("pointerdown", (event) => {
  if (!picture || event.button !== 0) return;
  drag = event;
  page.canvas.setPointerCapture(event.pointerId);
});

page.canvas.addEventListener("pointermove", (event) => {
  if (!picture || drag?.pointerId !== event.pointerId) return;
  if (Math.max(Math.abs(event.clientX - drag.clientX), Math.abs(event.clientY - drag.clientY)) < MIN_DRAG) return;
  const [[x, y], [otherX, otherY]] = [toPicture(drag), toPicture(event)];
  const box = [Math.min(x, otherX), Math.min(y, otherY), Math.abs(x - otherX), Math.abs(y - otherY)];
  if (box[2] < 1 || box[3] < 1) return;
  setBox(box);
});

for (const name of ["pointerup", "pointercancel"]) page.canvas.addEventListener(name, () => (drag = null));

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const SIZES = { "+": 1, "=": 1, "-": -1, "−": -1 };

page.canvas.addEventListener("keydown", (event) => {
  if (!picture?.settings || event.ctrlKey || event.metaKey || event.altKey) return;
  const { width, height } = picture.bitmap;
  const [x, y, w, h] = picture.box ?? squareToBox(pictureToSquare(width, height), picture.settings.box_fill);
  const step = Math.max(w, h) * KEY_STEP;
  if (event.key in MOVES) {
    const [right, down] = MOVES[event.key];
    // The centre stays on the picture.
    const moved = [x + w / 2 + right * step, y + h / 2 + down * step];
    const [centerX, centerY] = [Math.min(Math.max(moved[0], 0), width), Math.min(Math.max(moved[1], 0), height)];
    setBox([centerX - w / 2, centerY - h / 2, w, h]);
  } else if (event.key in SIZES) {
    const factor = 1 + SIZES[event.key] * 2 * KEY_STEP;
    const longer = Math.max(w, h) * factor;
    if (longer < 4 || longer > 3 * Math.max(width, height)) return;
    setBox([x + (w - w * factor) / 2, y + (h - h * factor) / 2, w * factor, h * factor]);
  } else if (event.key === "Escape") {
    setBox(null);
  } else {
    return;
  }
  event.preventDefault();
});

// --- Controls ---

page.camera.addEventListener("click", () => (source === "camera" ? stopCamera() : startCamera()));
page.open.addEventListener("click", () => page.file.click());
page.file.addEventListener("change", () => {
  const files = [...page.file.files];
  page.file.value = ""; // so that the same file can be chosen again
  showFiles(files);
});
page.again.addEventListener("click", () => picture && setBox(null));
page.turn.addEventListener("click", () => {
  facing = facing === "user" ? "environment" : "user";
  page.mirror.checked = facing === "user";
  startCamera();
});
page.retry.addEventListener("click", prepare);
page.details.addEventListener("toggle", () => results?.refresh());
for (const radio of document.querySelectorAll("input[name=handedness]")) {
  radio.addEventListener("change", () => {
    forgetHands();
    if (picture) detectAgain();
  });
}

document.addEventListener("dragover", (event) => {
  event.preventDefault();
  page.stage.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) page.stage.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  page.stage.classList.remove("dropping");
  const files = [...event.dataTransfer.files];
  if (files.length) showFiles(files);
  else say("That was not a file: drop a picture from this device.", true);
});
document.addEventListener("paste", (event) => showFiles([...(event.clipboardData?.files ?? [])]));
window.addEventListener("unhandledrejection", ({ reason }) => complain(reason));

prepare();

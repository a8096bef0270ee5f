// The photograph's place on the page: choose, drop, paste or photograph a picture, and draw the box round the hand.
// Gradio calls this once with `element`, `props`, `trigger`, `upload` and `watch`.  What Python is told is props.value:
// {path, name}, {example} or {remove} with the event "photo", then {box, hand} in pixels of the upright photograph with
// every event: `hand` is the number of the hand whose box it is, or null for a new one.
const find = (selector) => element.querySelector(selector);
const [place, photo, picture, box, square, video, input] =
  [".place", ".photo", ".photo img", ".box", ".square", "video", "input"].map(find);
const SMALLEST = 0.02; // of the photograph's longer side
let opened = null; // Python's answer to the photograph that is shown
let current = null; // the box [x, y, width, height], px of the photograph
let fresh = true; // nobody has touched the box yet: a drag that starts in it draws a new one, and later ones move it
let hands = []; // of the photograph: {box, label}
let selected = null; // number of the hand whose box is the current one
let drag = null;
let stream = null;
let latest = 0; // number of the newest photograph; an older one that arrives late is dropped

function say(text, bad = false) {
  find(".message").textContent = text;
  find(".message").classList.toggle("bad", bad);
}

function busy(on) {
  for (const name of ["choose", "camera", "shoot"]) find(`[data-do="${name}"]`).disabled = on;
}

// Photographs.

function ask(value, text) {
  say(text);
  props.value = { ...value, number: latest };
  trigger("photo");
}

async function send(file) {
  stopCamera();
  if (file.size > props.most_bytes) {
    return say(`${file.name} has ${(file.size / 2 ** 20).toFixed(0)} MB: choose one of at most ${props.most_bytes / 2 ** 20} MB.`, true);
  }
  if (file.size === 0) return say(`${file.name} is empty: choose another photograph.`, true);
  const mine = ++latest;
  say(`Sending ${file.name} …`);
  try {
    const { path } = await upload(file);
    if (mine === latest) ask({ path, name: file.name }, "Opening the photograph …");
  } catch (error) {
    if (mine === latest) say(`${file.name} could not be sent: check the connection and try again.`, true);
  }
}

function show() {
  const answer = props.answer;
  if (!answer || (answer.preview !== undefined && answer.number !== latest)) return;
  say(answer.message, Boolean(answer.bad));
  place.dataset.number = props.start ? latest : latest + 1; // 1 is the example that the page begins with
  if (answer.preview === undefined) { // about the photograph that is there
    if (answer.hands && answer.number === latest) {
      list(answer.hands, answer.selected);
      fresh = fresh || selected === null;
    }
    return;
  }
  opened = answer;
  const there = Boolean(answer.preview);
  photo.hidden = find(".under").hidden = !there;
  find(".hint").hidden = there;
  place.classList.toggle("full", there);
  current = null;
  if (!there) {
    list([], null);
    picture.removeAttribute("src");
    props.value = { number: latest };
    return;
  }
  picture.src = answer.preview;
  picture.alt = `The photograph, ${answer.width} by ${answer.height} pixels`;
  list(answer.hands || [], answer.selected ?? null);
  set(answer.box);
  fresh = selected === null;
}

// The hands that there are: a thin box each, but for the one that is being corrected.

function list(found, number) {
  [hands, selected] = [found, number];
  find(".hands").replaceChildren(...hands.map(({ box: [x, y, width, height], label }, index) => {
    const node = Object.assign(document.createElement("b"), { textContent: label, hidden: index === selected });
    node.dataset.hand = index;
    Object.assign(node.style, {
      left: `${(100 * x) / opened.width}%`, top: `${(100 * y) / opened.height}%`,
      width: `${(100 * width) / opened.width}%`, height: `${(100 * height) / opened.height}%`,
    });
    return node;
  }));
  find('[data-do="remove"]').hidden = selected === null;
  if (current) set(current);
}

function select(index) {
  list(hands, index);
  if (index === null) return;
  set(hands[index].box);
  fresh = false;
}

// The box.

function set([x, y, width, height]) {
  const { width: w, height: h } = opened;
  const least = Math.max(SMALLEST * Math.max(w, h), 1);
  width = Math.min(Math.max(width, Math.min(least, w)), w);
  height = Math.min(Math.max(height, Math.min(least, h)), h);
  x = Math.min(Math.max(x, 0), w - width);
  y = Math.min(Math.max(y, 0), h - height);
  current = [x, y, width, height];
  const put = (node, left, top, right, bottom) => {
    node.style.left = `${(100 * left) / w}%`;
    node.style.top = `${(100 * top) / h}%`;
    node.style.width = `${(100 * right) / w}%`;
    node.style.height = `${(100 * bottom) / h}%`;
  };
  const side = Math.max(width, height) / props.box_fill;
  put(box, x, y, width, height);
  put(square, x + width / 2 - side / 2, y + height / 2 - side / 2, side, side);
  find("output").textContent = `${Math.round(width)} × ${Math.round(height)} px at ${Math.round(x)}, ${Math.round(y)}`;
  props.value = { box: current, hand: selected, number: latest };
}

function place_of(event) {
  const area = picture.getBoundingClientRect();
  const scale = opened.width / area.width;
  return [(event.clientX - area.left) * scale, (event.clientY - area.top) * scale];
}

photo.addEventListener("pointerdown", (event) => {
  if (!current || !event.isPrimary || event.button !== 0) return;
  event.preventDefault();
  photo.focus({ preventScroll: true });
  photo.setPointerCapture(event.pointerId);
  const [x, y, width, height] = current;
  const grip = event.target.dataset.grip;
  const at = place_of(event);
  const tapped = event.target.dataset.hand; // another hand's box: a tap selects it, and a drag draws a new one
  if (grip) drag = { fixed: [grip.includes("w") ? x + width : x, grip.includes("n") ? y + height : y] };
  else if (event.target === box && !fresh) drag = { offset: [at[0] - x, at[1] - y] };
  else drag = { fixed: at, drawn: true, before: current, tapped };
});
photo.addEventListener("pointermove", (event) => {
  if (!drag || !event.isPrimary) return;
  const { width: w, height: h } = opened;
  let [x, y] = place_of(event);
  if (drag.offset) return set([x - drag.offset[0], y - drag.offset[1], current[2], current[3]]);
  [x, y] = [Math.min(Math.max(x, 0), w), Math.min(Math.max(y, 0), h)];
  const [fx, fy] = [Math.min(Math.max(drag.fixed[0], 0), w), Math.min(Math.max(drag.fixed[1], 0), h)];
  set([Math.min(x, fx), Math.min(y, fy), Math.abs(x - fx), Math.abs(y - fy)]);
});
for (const end of ["pointerup", "pointercancel"]) {
  photo.addEventListener(end, () => {
    if (drag && drag.drawn && Math.max(current[2], current[3]) < 2.5 * SMALLEST * Math.max(opened.width, opened.height)) {
      set(drag.before); // a tap, not a box
      if (drag.tapped !== undefined) select(Number(drag.tapped));
    } else if (drag) {
      fresh = false;
      if (drag.drawn) select(null); // a new hand's
    }
    drag = null;
  });
}
photo.addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!steps || !current) return;
  event.preventDefault();
  const [dx, dy] = steps.map((step) => step * Math.max(opened.width, opened.height) * 0.01);
  const [x, y, width, height] = current;
  fresh = false;
  set(event.shiftKey ? [x, y, width + dx, height + dy] : [x + dx, y + dy, width, height]);
});

// The camera.

function stopCamera() {
  if (stream) for (const track of stream.getTracks()) track.stop();
  stream = null;
  video.srcObject = null;
  video.hidden = find('[data-do="shoot"]').hidden = find('[data-do="stop"]').hidden = true;
  find('[data-do="camera"]').hidden = false;
  photo.hidden = !current;
  find(".hint").hidden = Boolean(current);
}

async function startCamera() {
  if (!navigator.mediaDevices || !navigator.mediaDevices.getUserMedia) {
    return say("This browser gives no camera to this page: it needs https or 127.0.0.1. Choose a photograph instead.", true);
  }
  say("Waiting for the camera …");
  busy(true);
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1280 } } });
    video.srcObject = stream;
    await video.play();
  } catch (error) {
    stopCamera();
    return say({
      NotFoundError: "There is no camera on this machine: choose a photograph instead.",
      NotAllowedError: "The camera was not allowed: allow it in the browser's settings for this page, or choose a photograph.",
      NotReadableError: "The camera is in use by another program: close that one, or choose a photograph.",
    }[error.name] || `The camera cannot be used (${error.name}): choose a photograph instead.`, true);
  } finally {
    busy(false);
  }
  video.hidden = find('[data-do="shoot"]').hidden = find('[data-do="stop"]').hidden = false;
  find('[data-do="camera"]').hidden = photo.hidden = find(".hint").hidden = true;
  say("Hold one hand so that it fills about half of the picture.");
}

function shoot() {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => {
    if (blob) send(new File([blob], "camera.jpg", { type: "image/jpeg" }));
    else say("The camera gave no picture: try again.", true);
  }, "image/jpeg", 0.95);
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden && stream) {
    stopCamera();
    say("The camera was switched off while the page was out of sight: start it again.");
  }
});

// Buttons, dropping, pasting, examples.

const actions = { choose: () => input.click(), camera: startCamera, shoot, stop: () => { stopCamera(); say(""); },
  reset: () => { list(hands, opened.selected ?? null); set(opened.box); fresh = selected === null; },
  remove: () => ask({ remove: selected }, "Removing the hand …") };
element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.do) return actions[button.dataset.do]();
  stopCamera();
  latest += 1;
  ask({ example: Number(button.dataset.example) }, "Opening the example …");
});
input.addEventListener("change", () => {
  if (input.files.length) send(input.files[0]);
  input.value = ""; // so that the same file can be chosen again
});
place.addEventListener("dragover", (event) => { event.preventDefault(); place.classList.add("over"); });
place.addEventListener("dragleave", () => place.classList.remove("over"));
place.addEventListener("drop", (event) => {
  event.preventDefault();
  place.classList.remove("over");
  const file = event.dataTransfer.files[0];
  if (file) send(file);
  else say("What was dropped is not a file: save the picture and choose it.", true);
});
document.addEventListener("paste", (event) => {
  const file = event.clipboardData && event.clipboardData.files[0];
  if (file) send(file);
});
props.examples.forEach(({ title, thumbnail }, index) => {
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.example = index;
  button.title = button.ariaLabel = `Example: ${title}`;
  button.append(Object.assign(document.createElement("img"), { src: thumbnail, alt: "" }));
  find(".examples").append(button);
});
watch("answer", show);
show();
if (props.start) { // an example is answered before anybody asks
  latest += 1;
  ask({ example: 0 }, "Opening the example …");
}

// The webcam: opens it, explains what is wrong with it, and waits for its frames.

import { UserError } from "./hand_model.js";

const FIRST_FRAME_SECONDS = 10;

const REFUSALS = {
  NotAllowedError: "The camera was not allowed: permit it for this page in the browser, or open a picture instead.",
  SecurityError: "The browser does not let this page use the camera: open a picture instead.",
  NotFoundError: "There is no camera on this device: open a picture instead.",
  OverconstrainedError: "There is no such camera on this device: open a picture instead.",
  NotReadableError: "The camera is there but gives no picture: another program may be using it.",
  AbortError: "The camera is there but gives no picture: another program may be using it.",
};

/**
 * Open a camera.
 *
 * @param {"user"|"environment"} facing which camera, on devices with several.
 * @returns {Promise<MediaStream>}
 * @throws {UserError} that says why there is none.
 */
export async function openCamera(facing) {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new UserError("Browsers give the camera to https pages and localhost only: open a picture instead.");
  }
  const video = { facingMode: facing, width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 30 } };
  try {
    return await navigator.mediaDevices.getUserMedia({ video, audio: false });
  } catch (error) {
    throw new UserError(REFUSALS[error.name] ?? `The camera cannot be used (${error.name}): open a picture instead.`);
  }
}

/** The number of cameras. It is known only after the person allowed one. */
export async function countCameras() {
  const devices = await navigator.mediaDevices.enumerateDevices();
  return devices.filter(({ kind }) => kind === "videoinput").length;
}

/** Show `stream` in the `video` element. Resolves when it has a first frame. */
export async function play(video, stream) {
  video.srcObject = stream;
  let timer;
  const late = new Promise((_, reject) => {
    const message = "The camera gives no picture: is it covered, switched off or used by another program?";
    timer = setTimeout(() => reject(new UserError(message)), FIRST_FRAME_SECONDS * 1000);
  });
  try {
    await Promise.race([video.play().then(() => nextFrame(video)), late]);
  } catch (error) {
    throw error instanceof UserError ? error : new UserError("The camera's picture cannot be shown: try again.");
  } finally {
    clearTimeout(timer);
  }
}

/** Resolves with the next new frame. While the page is hidden, that may be when it is shown again. */
export function nextFrame(video) {
  return new Promise((done) => {
    if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(() => done());
    else requestAnimationFrame(() => done());
  });
}

export function closeCamera(video) {
  video.srcObject?.getTracks().forEach((track) => track.stop());
  video.srcObject = null;
}

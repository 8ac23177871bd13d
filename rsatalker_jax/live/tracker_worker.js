"use strict";
// MediaPipe's face landmarker in a thread of its own, so that the page draws on while it looks at a picture.
//
// to it      { picture, time }       an ImageBitmap, and when it was taken, milliseconds that rise
// from it    { loaded }              once
//            { names }               once, before the first face: of the scores
//            { time, scores, matrix } of each picture; both null where there is no face
//            { trouble }              it cannot go on
// The files lie beside this one (tracker.py).

const file = (name) => new URL(name, location.href).href;
const loading = (async () => {
  const { FaceLandmarker } = await import(file("vision_bundle.mjs"));
  const options = {
    baseOptions: { modelAssetPath: file("face_landmarker.task"), delegate: "CPU" }, canvas: new OffscreenCanvas(1, 1),
    runningMode: "VIDEO", numFaces: 1, outputFaceBlendshapes: true, outputFacialTransformationMatrixes: true,
  };
  const wasm = { wasmLoaderPath: file("vision_wasm_internal.js"), wasmBinaryPath: file("vision_wasm_internal.wasm") };
  const landmarker = await FaceLandmarker.createFromOptions(wasm, options);
  // The first picture takes long, whatever is on it.
  landmarker.detectForVideo(new ImageData(64, 64), 0);
  return landmarker;
})();
let told = false;

const look = async ({ picture, time }) => {
  const landmarker = await loading;
  const found = landmarker.detectForVideo(picture, time);
  picture.close();
  const [scores] = found.faceBlendshapes, [matrix] = found.facialTransformationMatrixes;
  if (!scores) return { time, scores: null, matrix: null };
  if (!told) postMessage({ names: scores.categories.map(({ categoryName }) => categoryName) });
  told = true;
  return { time, scores: Float32Array.from(scores.categories, ({ score }) => score), matrix: Float32Array.from(matrix.data) };
};

const fail = (error) => postMessage({ trouble: String(error?.message ?? error) });
loading.then(() => postMessage({ loaded: true }), fail);
onmessage = ({ data }) => look(data).then(postMessage, fail);

const root = element.querySelector(".painter"), easel = root.querySelector(".easel"), canvas = root.querySelector("canvas");
const [size, erase, colour] = root.querySelectorAll("input"), pen = canvas.getContext("2d"), use = root.querySelector("select");
let own = "", source = null, arrived = 0, last = null, touched = false;

const side = (id) => +(document.querySelector(`#${id} input`)?.value ?? 0) || 128;
const sheet = (height) => {
  const made = document.createElement("canvas");
  [made.width, made.height] = [canvas.width, height];
  return [made, made.getContext("2d")];
};
// What the strokes are to be: a region; without a picture always the map itself; over one as it is chosen. See web/painting.py.
const how = () => (use ? (source ? use.value : "map") : "region");
const publish = () => {
  const drawn = how(), { height } = canvas;
  const [cover, white] = sheet(height), [made, ink] = sheet(drawn === "picture" ? 2 * height : height);
  white.drawImage(canvas, 0, 0);
  white.globalCompositeOperation = "source-in";
  white.fillStyle = "white";
  white.fillRect(0, 0, cover.width, height);
  ink.fillRect(0, 0, made.width, made.height);
  ink.drawImage(drawn === "region" ? cover : canvas, 0, 0);
  if (drawn === "picture") ink.drawImage(cover, 0, height);
  const address = made.toDataURL("image/png");
  props.value = own = drawn === "region" ? address : address.replace(";", `;drawn=${drawn};`);
};
const show = () => {
  root.dataset.how = how();
  if (!touched) size.value = how() === "region" ? 20 : 4;
  root.classList.toggle("alone", !source);
};
const changed = () => { show(); if (own) publish(); };
const clear = () => { pen.clearRect(0, 0, canvas.width, canvas.height); props.value = own = ""; };
// A mask that comes from the server: white becomes ink, black becomes nothing.
const load = () => {
  if (props.value === own) return;
  own = props.value ?? "";
  arrived = Date.now();
  if (use && own) use.value = "region";
  if (!own) return pen.clearRect(0, 0, canvas.width, canvas.height);
  const image = new Image();
  image.onload = () => {
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    pen.drawImage(image, 0, 0);
    const pixels = pen.getImageData(0, 0, canvas.width, canvas.height);
    for (let i = 0; i < pixels.data.length; i += 4) pixels.data[i + 3] = pixels.data[i];
    pen.putImageData(pixels, 0, 0);
  };
  image.src = own;
};
// What is painted belongs to the picture below it: another picture, a clean canvas.
const follow = () => {
  if (!element.isConnected) return clearInterval(timer);
  const image = document.querySelector(`${root.dataset.source} img`), found = image?.src ?? "";
  if (image && !image.naturalWidth) return;
  const [width, height] = image ? [image.naturalWidth, image.naturalHeight] : [side("width"), side("height")];
  if (source === null && props.value) { source = found; load(); }
  if (found === source && (image || own || (canvas.width === width && canvas.height === height))) return;
  const kept = Date.now() - arrived < 5000 && own;
  source = found;
  show();
  easel.style.backgroundImage = found ? `url("${found}")` : "none";
  if (kept) return;
  [canvas.width, canvas.height] = [width, height];
  if (own) clear();
};
const place = (event) => {
  const box = canvas.getBoundingClientRect();
  return [((event.clientX - box.left) * canvas.width) / box.width, ((event.clientY - box.top) * canvas.height) / box.height];
};
const stroke = (event) => {
  const next = place(event);
  pen.globalCompositeOperation = erase.checked ? "destination-out" : "source-over";
  pen.strokeStyle = how() === "region" ? "white" : colour.value;
  pen.lineCap = pen.lineJoin = "round";
  pen.lineWidth = Math.max(1, (size.value / 200) * Math.min(canvas.width, canvas.height));
  pen.beginPath();
  pen.moveTo(...(last ?? next));
  pen.lineTo(...next);
  pen.stroke();
  last = next;
};
canvas.onpointerdown = (event) => { follow(); canvas.setPointerCapture(event.pointerId); last = null; stroke(event); };
canvas.onpointermove = (event) => { if (last) stroke(event); };
canvas.onpointerup = canvas.onpointercancel = () => { if (last) publish(); last = null; };
root.querySelector("button").onclick = clear;
size.oninput = () => { touched = true; };
if (use) use.onchange = changed;
watch("value", load);
const timer = setInterval(follow, 400);
follow();

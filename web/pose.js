const root = element.querySelector(".poser"), canvas = root.querySelector("canvas"), pen = canvas.getContext("2d");
const limbs = JSON.parse(root.dataset.limbs), colours = JSON.parse(root.dataset.colours), names = JSON.parse(root.dataset.joints);
const standing = JSON.parse(root.dataset.standing), said = root.querySelector("output");
const [add, remove] = root.querySelectorAll("button");
const REACH = 14;
let chosen = null, before = null;  // [person, joint]; where the pointer was

const people = () => (Array.isArray(props.value) ? props.value : []);
const copy = () => people().map((joints) => joints.map((joint) => (joint ? [...joint] : null)));
const colour = (i, light = 1) => `rgb(${colours[i].map((value) => Math.round(value * light))})`;
const at = (joint) => [joint[0] * canvas.width, joint[1] * canvas.height];
const draw = (shown = people()) => {
  pen.fillStyle = "black";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.lineCap = "round";
  for (const joints of shown) limbs.forEach(([a, b], i) => {
    if (!joints[a] || !joints[b]) return;
    pen.strokeStyle = colour(i, 0.6);
    pen.lineWidth = 8;
    pen.beginPath(); pen.moveTo(...at(joints[a])); pen.lineTo(...at(joints[b])); pen.stroke();
  });
  shown.forEach((joints, person) => joints.forEach((joint, i) => {
    if (!joint) return;
    const here = chosen && chosen[0] === person && chosen[1] === i;
    pen.fillStyle = colour(i);
    pen.beginPath(); pen.arc(...at(joint), here ? 8 : 5, 0, 2 * Math.PI); pen.fill();
    if (here) { pen.strokeStyle = "white"; pen.lineWidth = 2; pen.stroke(); }
  }));
  said.textContent = chosen && shown[chosen[0]] ? `Person ${chosen[0] + 1}, ${names[chosen[1]].replace("_", " ")}` : `${shown.length} ${shown.length === 1 ? "person" : "people"}`;
};
const place = (event) => {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map((value) => Math.min(1, Math.max(0, value)));
};
const nearest = ([x, y]) => {
  let found = null, least = REACH;
  people().forEach((joints, person) => joints.forEach((joint, i) => {
    if (!joint) return;
    const distance = Math.hypot((joint[0] - x) * canvas.width, (joint[1] - y) * canvas.height);
    if (distance < least) [found, least] = [[person, i], distance];
  }));
  return found;
};
const moved = (shown, dx, dy, whole) => {
  const joints = shown[chosen[0]];
  joints.forEach((joint, i) => {
    if (joint && (whole || i === chosen[1])) joints[i] = [joint[0] + dx, joint[1] + dy].map((value) => Math.min(1, Math.max(0, value)));
  });
  return shown;
};
let live = null;
canvas.onpointerdown = (event) => {
  before = place(event);
  chosen = nearest(before);
  live = chosen ? copy() : null;
  if (chosen) canvas.setPointerCapture(event.pointerId);
  canvas.focus();
  draw();
};
canvas.onpointermove = (event) => {
  if (!live) return;
  const next = place(event);
  draw(moved(live, next[0] - before[0], next[1] - before[1], event.shiftKey));
  before = next;
};
canvas.onpointerup = canvas.onpointercancel = () => { if (live) props.value = live; live = null; draw(); };
canvas.ondblclick = () => {
  if (!chosen) return;
  const shown = copy();
  shown[chosen[0]][chosen[1]] = null;
  chosen = null;
  props.value = shown;
  draw();
};
canvas.onkeydown = (event) => {
  const step = { ArrowLeft: [-0.01, 0], ArrowRight: [0.01, 0], ArrowUp: [0, -0.01], ArrowDown: [0, 0.01] }[event.key];
  if (event.key === "Tab" && !event.altKey) return;
  if (event.key === "n" && people().length) chosen = [chosen ? chosen[0] : 0, chosen ? (chosen[1] + 1) % names.length : 0];
  if (step && chosen && people()[chosen[0]]) { event.preventDefault(); props.value = moved(copy(), ...step, event.shiftKey); }
  draw();
};
add.onclick = () => {
  const shift = (0.4 * people().length) % 0.55;
  props.value = [...copy(), standing.map(([x, y]) => [Math.min(1, x + shift), y])];
  draw();
};
remove.onclick = () => {
  const gone = chosen ? chosen[0] : people().length - 1;
  chosen = null;
  props.value = copy().filter((_, i) => i !== gone);
  draw();
};
watch("value", () => draw());
draw();

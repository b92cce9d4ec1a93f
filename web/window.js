const [start, end] = element.querySelectorAll("input"), said = element.querySelector("output");
const percent = (value) => `${Math.round(100 * value)}%`;
const show = () => {
  [start.value, end.value] = Array.isArray(props.value) ? props.value : [0, 1];
  tell();
};
const tell = () => {
  said.textContent = `${percent(start.value)} to ${percent(end.value)}`;
  element.querySelector(".rails").style.setProperty("--from", percent(start.value));
  element.querySelector(".rails").style.setProperty("--to", percent(end.value));
};
// The end that is dragged pushes the other one.
start.oninput = () => { if (+end.value < +start.value) end.value = start.value; tell(); };
end.oninput = () => { if (+start.value > +end.value) start.value = end.value; tell(); };
start.onchange = end.onchange = () => { props.value = [+start.value, +end.value]; };
watch("value", show);
show();

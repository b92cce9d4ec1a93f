// What the page holds, by tab and name. Every input tells when it changes, so that an event sends all of a tab as one value: as inputs of
// an event, Gradio would look for each of them in the whole page, several times, and show the event's progress on all of them.
window.limn = (() => {
  const QUIET_MS = 120, LATE_MS = 300; // so long nothing has changed; so late a change may arrive
  const LOOK_MS = 60000; // so long the server may look at an uploaded picture before it is taken as it is
  const HEAD = 64; // of a painting so much says what it is
  const tabs = {}, presses = {}, looks = {};
  let kinds = {}, slots = []; // of control: what the prepared inputs show for each, and which there are
  let timer = 0, edited = 0, heard = 0;

  const tab = (name) => (tabs[name] ??= { values: {}, names: [], version: "", open: false });
  const read = (key) => {
    try { return JSON.parse(localStorage.getItem(key)); } catch { return null; } // nothing is stored, or not by us
  };
  const save = (key) => {
    const { values, names, version, open } = tabs[key];
    const kept = Object.fromEntries(names.filter((name) => name in values).map((name) => [name, values[name]]));
    try { if (open) localStorage.setItem(key, JSON.stringify({ version, values: kept })); } catch { /* a full or forbidden store */ }
  };
  const rest = () => {
    Object.keys(tabs).forEach(save);
    document.querySelector("#examine")?.click();
  };
  // What was edited a moment ago is on its way through Gradio, on a busy machine behind the click that asks for it; and whether an
  // uploaded picture is a finished map may not be known yet.
  const awaited = (now) => (heard < edited && now < edited + LATE_MS) || Object.values(looks).some((since) => now < since + LOOK_MS);
  const arrived = async () => {
    do await new Promise((done) => setTimeout(done, 0));
    while (awaited(performance.now()));
  };
  const held = async (key) => {
    await arrived();
    return { ...tab(key).values };
  };
  addEventListener("input", () => { edited = performance.now(); }, true);
  addEventListener("mousedown", (event) => {
    if (event.target.closest?.("[role=option]")) edited = performance.now();
  }, true);

  return {
    // An input's new value, and the button that is pressed for it, once for all that changes at the same time.
    hold(key, name, value, button) {
      tab(key).values[name] = value;
      heard = performance.now();
      clearTimeout(timer);
      timer = setTimeout(rest, QUIET_MS);
      if (!button) return;
      clearTimeout(presses[button]);
      presses[button] = setTimeout(() => document.getElementById(button)?.click(), 0);
    },
    // The server begins to look at what was uploaded, to set the switch `name`; it has, and this is the switch.
    look(name) { looks[name] = performance.now(); },
    looked(key, name, value) {
      tab(key).values[name] = value;
      delete looks[name];
    },
    // What was stored when the page was left. `initial`: the inputs as they were made; `names`: those that are stored, from `open` on.
    begin(key, version, names, initial) {
      const own = Object.assign(tab(key), { version, names });
      own.values = { ...initial, ...own.values };
      return read(key);
    },
    open(key) { tab(key).open = true; },
    know(shown, all) { [kinds, slots] = [shown, all]; },
    // The inputs of a control unit as another kind has them, held at once: what is asked for now must not have the last kind's values.
    turn(key, unit, kind) {
      const own = kinds[kind] ?? {};
      for (const slot in own) tab(key).values[unit + slot] = own[slot].value;
      return slots.map((slot) => ({ __type__: "update", ...(own[slot] ?? { visible: false }) }));
    },
    // Everything, when the changes on their way have arrived; a picture that is still being sent is not among them, and this is told.
    async all(key) {
      const values = await held(key);
      return document.querySelector("#asked .uploading") ? { ...values, uploading: true } : values;
    },
    // The same, with the beginning of each painting alone.
    async sketch(key) {
      const short = (value) => (typeof value === "string" && value.startsWith("data:") ? value.slice(0, HEAD) : value);
      return Object.fromEntries(Object.entries(await held(key)).map(([name, value]) => [name, short(value)]));
    },
    // Values whose names begin so.
    async some(key, ...beginnings) {
      const found = Object.entries(await held(key));
      return Object.fromEntries(found.filter(([name]) => beginnings.some((beginning) => name.startsWith(beginning))));
    },
  };
})();

// Ctrl+Enter renders from anywhere in Create, and draws Compare's grid: leaving the field first hands its last keystrokes over.
addEventListener("keydown", (event) => {
  if (!event.ctrlKey || event.key !== "Enter") return;
  event.preventDefault();
  if (document.activeElement) document.activeElement.blur();
  [...document.querySelectorAll("#render, #draw-grid")].find((button) => button.offsetParent)?.click();
}, true);

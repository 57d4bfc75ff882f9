"use strict";
// Theme: follows the system until the button is pressed; a browser may refuse to remember it for a local file.
const root = document.documentElement;
const remember = {
  get: () => { try { return localStorage.getItem("duet-theme"); } catch { return null; } },
  set: (value) => { try { localStorage.setItem("duet-theme", value); } catch { /* then only for this view */ } },
};
if (["light", "dark"].includes(remember.get())) root.dataset.theme = remember.get();
const theme = document.getElementById("theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  const now = root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  root.dataset.theme = now === "dark" ? "light" : "dark";
  remember.set(root.dataset.theme);
});

// Copy buttons; where the clipboard is refused, the text is selected instead.
for (const button of document.querySelectorAll("button.copy")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const code = button.previousElementSibling;
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    } catch {
      getSelection().selectAllChildren(code);
    }
  });
}

// Open every rung, by the button or when printing.
const rungs = [...document.querySelectorAll("details.rung")];
const expand = document.getElementById("expand");
if (expand) {
  expand.hidden = false;
  expand.addEventListener("click", () => {
    const open = rungs.some((rung) => !rung.open);
    for (const rung of rungs) rung.open = open;
    expand.textContent = open ? expand.dataset.hide : expand.dataset.show;
  });
}
let before = [];
addEventListener("beforeprint", () => { before = rungs.map((rung) => rung.open); for (const rung of rungs) rung.open = true; });
addEventListener("afterprint", () => rungs.forEach((rung, i) => { rung.open = before[i]; }));

// The values of the step under the pointer, in all plots of a chart at once.
for (const figure of document.querySelectorAll(".figure.loss")) {
  const points = JSON.parse(figure.dataset.points);
  const readout = figure.querySelector(".readout");
  const cursors = [...figure.querySelectorAll(".cursor")];
  const show = (on) => { for (const part of [readout, ...cursors]) part.hidden = !on; };
  figure.addEventListener("pointermove", (event) => {
    const box = figure.querySelector("svg").getBoundingClientRect();
    const at = (event.clientX - box.left) / box.width;
    if (at < -0.02 || at > 1.02) { show(false); return; }
    const [x, text] = points.reduce((a, b) => (Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a));
    readout.textContent = text;
    for (const cursor of cursors) cursor.style.left = `calc(var(--gutter) + (100% - var(--gutter)) * ${x})`;
    show(true);
  });
  figure.addEventListener("pointerleave", () => show(false));
}

// Tables that sort by a column: numbers as numbers, missing values last; a second press reverses the order.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button.sort").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of heads) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const numeric = head.classList.contains("num");
    const key = (row) => row.cells[column].dataset.value;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      return (up ? 1 : -1) * (numeric ? Number(x) - Number(y) : x.localeCompare(y, "en", { numeric: true }));
    });
    table.tBodies[0].append(...rows);
  }));
}

// The slider through the steps of denoising: two arms side by side, and their difference.
const walk = document.getElementById("walk");
if (walk) {
  const data = JSON.parse(document.getElementById("walk-data").textContent);
  const [height, width, channels] = data.shape;
  const part = (id) => document.getElementById(`walk-${id}`);
  const [left, right, what, step] = ["left", "right", "what", "step"].map(part);
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const states = data.arms.map((arm) => ({ x: bytes(arm.x), estimate: bytes(arm.estimate), rows: arm.row.length }));
  const size = data.count * height * width * channels;
  const columns = Math.min(5, data.count);
  const lines = Math.ceil(data.count / columns);
  // The row of an arm at the same fraction of its steps as the slider; arms may have different numbers of steps.
  const at = (arm) => Math.round(Number(step.value) / Math.max(1, Number(step.max)) * (states[arm].rows - 1));
  const frame = (arm) => states[arm][what.value].subarray(at(arm) * size, (at(arm) + 1) * size);
  const draw = (id, values) => {
    const canvas = part(id);
    canvas.width = columns * (width + 1) - 1;
    canvas.height = lines * (height + 1) - 1;
    const context = canvas.getContext("2d");
    for (let k = 0; k < data.count; k += 1) {
      const image = context.createImageData(width, height);
      for (let p = 0; p < width * height; p += 1) {
        for (let c = 0; c < 3; c += 1) {
          image.data[4 * p + c] = values[(k * width * height + p) * channels + Math.min(c, channels - 1)];
        }
        image.data[4 * p + 3] = 255;
      }
      context.putImageData(image, (k % columns) * (width + 1), Math.floor(k / columns) * (height + 1));
    }
  };
  const show = () => {
    const [a, b] = [Number(left.value), Number(right.value)];
    const [one, two] = [frame(a), frame(b)];
    const apart = one.map((value, i) => Math.abs(value - two[i]));
    draw("a", one);
    draw("b", two);
    draw("d", apart.map((value) => Math.min(255, data.gain * value)));
    const label = (arm) => {
      const ratio = data.arms[arm].sigma_alpha ? `, σ/α ${data.arms[arm].sigma_alpha[at(arm)].toPrecision(2)}` : "";
      return `${data.arms[arm].name}: row ${data.arms[arm].row[at(arm)] + 1}${ratio}`;
    };
    part("a-name").textContent = label(a);
    part("b-name").textContent = label(b);
    const differing = apart.reduce((sum, value) => sum + (value > 0), 0);
    const largest = apart.reduce((most, value) => Math.max(most, value), 0);
    part("text").textContent = differing
      ? `${differing} of ${size} values differ, by at most ${largest} of 255`
      : `all ${size} values are equal`;
  };
  right.value = "1";
  for (const control of [left, right, what, step]) control.addEventListener("input", show);
  walk.hidden = false;
  show();
}

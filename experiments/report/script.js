"use strict";
// Theme: follows the system until the button is pressed; a browser may refuse to remember it for a local file.
const root = document.documentElement;
const remember = {
  get: () => { try { return localStorage.getItem("duet-theme"); } catch { return null; } },
  set: (value) => { try { localStorage.setItem("duet-theme", value); } catch { /* only for this view, then */ } },
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

// Every check at once, by the button or on paper.
const rungs = [...document.querySelectorAll("details.rung")];
const expand = document.getElementById("expand");
if (expand) {
  expand.hidden = false;
  expand.addEventListener("click", () => {
    const open = rungs.some((rung) => !rung.open);
    for (const rung of rungs) rung.open = open;
    expand.textContent = open ? "Hide the checks" : "Show every check";
  });
}
let before = [];
addEventListener("beforeprint", () => { before = rungs.map((rung) => rung.open); for (const rung of rungs) rung.open = true; });
addEventListener("afterprint", () => rungs.forEach((rung, i) => { rung.open = before[i]; }));

// The values of the step under the pointer, in both plots of the loss at once.
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

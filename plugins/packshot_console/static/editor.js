// The cutout editor. The mask is one byte a pixel here and one bit a pixel on its way; HQ-SAM, on the server, answers
// clicks and boxes with a new one. Questions wait for each other, so an answer is never about an older mask.

const base = document.body.dataset.base;
const root = document.getElementById("editor");
const $ = (id) => document.getElementById(id);
const mayDecide = root.dataset.mayDecide === "yes";
const picture = $("picture").getContext("2d");
const overlay = $("overlay").getContext("2d");
const HINTS = {
  include: "Click on what belongs to the product.", exclude: "Click on what does not belong to it.",
  box: "Draw a box: what it contains is cut out anew.", brush: "Paint product.", eraser: "Paint background.",
  hand: "Drag the picture.",
};
const KEYS = {i: "include", x: "exclude", b: "box", p: "brush", r: "eraser", h: "hand"};
const STEPS_KEPT = 30;

let width = 0, height = 0;
let mask = new Uint8Array();
let clicks = [];             // [x, y, 1 or 0] in shares of the picture
let steps = [];              // {mask, clicks} before each step
let first = new Uint8Array();
let tool = "include";
let view = {scale: 1, x: 0, y: 0};
let queue = Promise.resolve();
let asked = 0;
let drag = null;

// ------------------------------------------------------------------------------------------------ the server

function packed() {
  const bytes = new Uint8Array(Math.ceil(mask.length / 8));
  for (let i = 0; i < mask.length; i += 1) if (mask[i]) bytes[i >> 3] |= 128 >> (i & 7);
  let text = "";
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return btoa(text);
}

function unpacked(text) {
  const bytes = atob(text);
  const made = new Uint8Array(width * height);
  for (let i = 0; i < made.length; i += 1) made[i] = (bytes.charCodeAt(i >> 3) >> (7 - (i & 7))) & 1;
  return made;
}

async function ask(path, body) {
  const options = {method: "POST", credentials: "same-origin", body: JSON.stringify(body), headers: {"Content-Type": "application/json"}};
  const answer = await fetch(`${base}editor/${root.dataset.final}/${path}`, options);
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(told.words || told.detail || `the server answers ${answer.status}`);
  return told;
}

function question(prompt) {
  if (!mayDecide) return say("Your account may look, and not decide.", true);
  const began = performance.now();
  asked += 1;
  state();
  queue = queue.then(async () => {
    const before = {mask, clicks};
    clicks = prompt.click ? [...clicks, prompt.click] : [];
    draw();
    try {
      const told = await ask("answers", {width, height, mask: packed(), clicks, box: prompt.box ?? []});
      remember(before);
      mask = unpacked(told.mask);
      say("");
    } catch (error) {
      clicks = before.clicks;
      say(`No answer: ${error.message}.`, true);
    }
    draw();
    root.dataset.answers = `${root.dataset.answers} ${Math.round(performance.now() - began)}`.trim();
  }).finally(() => { asked -= 1; state(); });
  return queue;
}

// ------------------------------------------------------------------------------------------------ what is shown

function say(words, bad = false) {
  $("notice").textContent = words;
  $("notice").classList.toggle("bad", bad);
  $("notice").hidden = !words;
}

function state() {
  if (root.dataset.state !== "loading") root.dataset.state = asked ? "busy" : "ready";
  $("which").textContent = {loading: "Opening…", busy: "Thinking…", ready: tool[0].toUpperCase() + tool.slice(1)}[root.dataset.state];
  $("board").classList.toggle("busy", asked > 0);
  $("undo").disabled = !steps.length || asked > 0;
  const changed = mask.some((on, i) => on !== first[i]);
  root.dataset.changed = changed ? "yes" : "no";
  $("save").disabled = !mayDecide || !changed || asked > 0;
}

function draw() {
  const shown = overlay.createImageData(width, height);
  const pixels = new Uint32Array(shown.data.buffer);  // little endian: 0xAABBGGRR
  const edge = Math.max(1, Math.round(Math.max(width, height) / 700));
  for (let y = 0, i = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1, i += 1) {
      const on = mask[i];
      const inner = on && (x < edge || y < edge || x >= width - edge || y >= height - edge
        || !mask[i - edge] || !mask[i + edge] || !mask[i - edge * width] || !mask[i + edge * width]);
      const outer = !on && (mask[i - edge] || mask[i + edge] || mask[i - edge * width] || mask[i + edge * width]);
      pixels[i] = inner ? 0xffff30ff : outer ? 0xffffffff : on ? 0 : 0x8a301818;
    }
  }
  overlay.putImageData(shown, 0, 0);
  const radius = Math.max(width, height) / 130;
  for (const [x, y, product] of clicks) {
    overlay.beginPath();
    overlay.arc(x * width, y * height, radius, 0, 7);
    overlay.fillStyle = product ? "#15a34a" : "#dc2626";
    overlay.strokeStyle = "#fff";
    overlay.lineWidth = radius / 3;
    overlay.fill();
    overlay.stroke();
  }
}

function look() {
  $("sheet").style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
}

function whole() {
  const board = $("board");
  view.scale = Math.min(board.clientWidth / width, board.clientHeight / height) * 0.96;
  view.x = (board.clientWidth - width * view.scale) / 2;
  view.y = (board.clientHeight - height * view.scale) / 2;
  look();
}

function zoom(factor, x = $("board").clientWidth / 2, y = $("board").clientHeight / 2) {
  const scale = Math.min(12, Math.max(0.1, view.scale * factor));
  view.x = x - (x - view.x) * scale / view.scale;
  view.y = y - (y - view.y) * scale / view.scale;
  view.scale = scale;
  look();
}

function choose(name) {
  tool = name;
  root.dataset.tool = name;
  for (const button of root.querySelectorAll("[data-tool]")) button.setAttribute("aria-pressed", String(button.dataset.tool === name));
  $("hint").textContent = HINTS[name];
  $("ring").hidden = true;
  state();
}

// ------------------------------------------------------------------------------------------------ what a person does

function remember(before) {
  steps.push(before);
  if (steps.length > STEPS_KEPT) steps.shift();
}

function undo() {
  if (asked || !steps.length) return;
  ({mask, clicks} = steps.pop());
  draw();
  state();
}

function place(event) {
  const board = $("board").getBoundingClientRect();
  const at = {left: event.clientX - board.left, top: event.clientY - board.top};
  return {...at, x: (at.left - view.x) / view.scale, y: (at.top - view.y) / view.scale};
}

function paint(from, to, on) {
  const radius = Number($("size").value) / view.scale / 2;
  const length = Math.hypot(to.x - from.x, to.y - from.y);
  const count = Math.max(1, Math.ceil(length / Math.max(0.5, radius / 2)));
  for (let n = 0; n <= count; n += 1) {
    const cx = from.x + (to.x - from.x) * n / count;
    const cy = from.y + (to.y - from.y) * n / count;
    for (let y = Math.max(0, Math.ceil(cy - radius)); y <= Math.min(height - 1, cy + radius); y += 1) {
      const reach = Math.sqrt(Math.max(0, radius * radius - (y - cy) ** 2));
      const left = Math.max(0, Math.ceil(cx - reach));
      const right = Math.min(width - 1, Math.floor(cx + reach));
      if (right >= left) mask.fill(on, y * width + left, y * width + right + 1);
    }
  }
}

function ring(event) {
  const brushing = tool === "brush" || tool === "eraser";
  $("ring").hidden = !brushing || event === null;
  if (!brushing || event === null) return;
  const at = place(event);
  const size = Number($("size").value);
  Object.assign($("ring").style, {width: `${size}px`, height: `${size}px`, left: `${at.left - size / 2}px`, top: `${at.top - size / 2}px`});
}

const inside = (at) => at.x >= 0 && at.y >= 0 && at.x < width && at.y < height;
const board = $("board");

board.addEventListener("pointerdown", (event) => {
  if (root.dataset.state === "loading" || event.button > 1) return;
  event.preventDefault();
  board.setPointerCapture(event.pointerId);
  const at = place(event);
  if (tool === "hand" || event.button === 1) drag = {kind: "hand", x: event.clientX - view.x, y: event.clientY - view.y};
  else if (tool === "box") drag = {kind: "box", from: at};
  else if ((tool === "brush" || tool === "eraser") && !asked) {
    remember({mask, clicks});
    mask = mask.slice();
    clicks = [];
    drag = {kind: tool, from: at};
    paint(at, at, tool === "brush" ? 1 : 0);
    draw();
  } else if ((tool === "include" || tool === "exclude") && inside(at)) {
    question({click: [at.x / width, at.y / height, tool === "include" ? 1 : 0]});
  }
});

board.addEventListener("pointermove", (event) => {
  ring(event);
  if (!drag) return;
  const at = place(event);
  if (drag.kind === "hand") {
    view.x = event.clientX - drag.x;
    view.y = event.clientY - drag.y;
    look();
  } else if (drag.kind === "box") {
    const {left, top} = drag.from;
    $("box").hidden = false;
    Object.assign($("box").style, {left: `${Math.min(left, at.left)}px`, top: `${Math.min(top, at.top)}px`,
      width: `${Math.abs(at.left - left)}px`, height: `${Math.abs(at.top - top)}px`});
  } else {
    paint(drag.from, at, drag.kind === "brush" ? 1 : 0);
    drag.from = at;
    requestAnimationFrame(draw);
  }
});

board.addEventListener("pointerup", (event) => {
  const done = drag;
  drag = null;
  $("box").hidden = true;
  if (done?.kind === "box") {
    const at = place(event);
    const share = (value, size) => Math.min(1, Math.max(0, value / size));
    const sides = [share(Math.min(done.from.x, at.x), width), share(Math.min(done.from.y, at.y), height),
      share(Math.max(done.from.x, at.x), width), share(Math.max(done.from.y, at.y), height)];
    if ((sides[2] - sides[0]) * width >= 4 && (sides[3] - sides[1]) * height >= 4) question({box: sides});
  }
  state();
});
board.addEventListener("pointerleave", () => ring(null));
board.addEventListener("wheel", (event) => {
  event.preventDefault();
  const at = place(event);
  zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2, at.left, at.top);
}, {passive: false});
addEventListener("resize", whole);

const back = () => location.assign(`${base}review${location.search}`);

async function save() {
  $("really").disabled = true;
  try {
    const told = await ask("cutouts", {width, height, mask: packed()});
    sessionStorage.setItem("packshot said", `The cutout is saved. ${told.sent} held image${told.sent === 1 ? " is" : "s are"} being made again.`);
    back();
  } catch (error) {
    $("confirm").close();
    say(`Not saved: ${error.message}.`, true);
    $("really").disabled = false;
  }
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return undefined;
  const key = event.key.toLowerCase();
  if ($("confirm").open) return key === "s" && !event.repeat && !$("really").disabled ? save() : undefined;
  if ($("legend").open) return undefined;
  if (key === " ") {
    event.preventDefault();
    return $("overlay").classList.add("away");
  }
  if (KEYS[key]) choose(KEYS[key]);
  else if (key === "z") undo();
  else if (key === "s" && !$("save").disabled) $("confirm").showModal();
  else if (key === "[" || key === "]") $("size").value = Number($("size").value) + (key === "]" ? 4 : -4);
  else if (key === "+" || key === "=") zoom(1.5);
  else if (key === "-") zoom(1 / 1.5);
  else if (key === "0") whole();
  else if (key === "escape") back();
  else if (key === "?") $("legend").showModal();
  else return undefined;
  return event.preventDefault();
});
addEventListener("keyup", (event) => event.key === " " && $("overlay").classList.remove("away"));
for (const button of root.querySelectorAll("[data-tool]")) button.addEventListener("click", () => { choose(button.dataset.tool); button.blur(); });
$("undo").addEventListener("click", (event) => { event.currentTarget.blur(); undo(); });
$("back").addEventListener("click", back);
$("save").addEventListener("click", (event) => { event.currentTarget.blur(); $("confirm").showModal(); });
$("really").addEventListener("click", save);
$("legend-open").addEventListener("click", () => $("legend").showModal());
$("size").addEventListener("change", (event) => event.currentTarget.blur());

// ------------------------------------------------------------------------------------------------ opening

async function loaded(digest) {
  const image = new Image();
  image.src = `${base}pictures/${digest}?size=${root.dataset.side}`;
  await image.decode();
  return image;
}

choose("include");
try {
  const began = performance.now();
  const opened = () => { root.dataset.opened = Math.round(performance.now() - began); };
  if (mayDecide) ask("open", {}).then(opened).catch((error) => say(`Clicks are not answered: ${error.message}. Brush and eraser work.`, true));
  const [photo, cutout] = await Promise.all([loaded(root.dataset.photo), loaded(root.dataset.cutout)]);
  width = photo.naturalWidth;
  height = photo.naturalHeight;
  for (const id of ["picture", "overlay"]) Object.assign($(id), {width, height});
  picture.drawImage(cutout, 0, 0, width, height);
  const alpha = picture.getImageData(0, 0, width, height).data;
  mask = new Uint8Array(width * height);
  for (let i = 0; i < mask.length; i += 1) mask[i] = alpha[4 * i + 3] > 127 ? 1 : 0;
  first = mask;
  picture.clearRect(0, 0, width, height);
  picture.drawImage(photo, 0, 0);
  draw();
  whole();
  root.dataset.state = "ready";
  state();
} catch (error) {
  say(`The photo cannot be shown: ${error.message}.`, true);
}
window.focus();  // in Airflow's frame the keys would go to Airflow's page

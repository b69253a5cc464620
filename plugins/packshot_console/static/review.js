// The review page. One list of images, of which one is shown; a decision names its sha256 and moves on at once, and the
// server's answer comes behind. The ledger refuses what somebody else decided, so nothing here has to be right for that.

import {comparable} from "./compare.js";

const base = document.body.dataset.base;
const root = document.getElementById("review");
const mayDecide = root.dataset.mayDecide === "yes";
const seat = Array.from(crypto.getRandomValues(new Uint8Array(8)), (n) => n.toString(16).padStart(2, "0")).join("");
const $ = (id) => document.getElementById(id);
const AHEAD = 5;
const SIZE = 1024;
const DONE = {approve: "approved", reject: "rejected", retry: "to be tried again", confirm: "right", edit: "being made again"};
const KEYS = {a: "approve", r: "reject", t: "retry"};
const OF_CUTOUTS = ["cutout", "whole", "certain", "openings", "see_through"];
const CHIPS = ["grown product", "wrong light", "unnatural shadow", "bad cutout", "wrong colour", "not our style"];

let images = [];          // {item, decision, choice}
let at = 0;
let left = 0;
let last = "";            // final of the newest image that was fetched: the cursor
let whole = false;        // the queue has no more images after `last`
let shown = "final";
let view = {scale: 1, x: 0, y: 0};
let fetching = null;
const undoable = [];      // {undo: path, places: [entry], words}
const waiting = new Set();

// ------------------------------------------------------------------------------------------------ the server

const filter = () => new URLSearchParams(new FormData($("filters")));

async function ask(path, body) {
  const options = body === undefined ? {} : {method: "POST", body: JSON.stringify(body), headers: {"Content-Type": "application/json"}};
  const answer = await fetch(`${base}${path}`, {credentials: "same-origin", ...options});
  const document = await answer.json().catch(() => ({}));
  if (!answer.ok && answer.status !== 409) throw new Error(document.detail || `the server answers ${answer.status}`);
  return {ok: answer.ok, document};
}

function fetchMore(fresh = false) {
  fetching ??= (async () => {
    const query = filter();
    query.set("after", last);
    query.set("seat", seat);
    if (fresh) query.set("fresh", "true");
    const {document: found} = await ask(`review/queue?${query}`);
    const known = new Set(images.map((one) => one.item.final));
    for (const item of found.items) if (!known.has(item.final)) images.push({item});
    if (found.items.length) last = found.items.at(-1).final;
    whole = found.items.length === 0;
    left = Math.max(0, found.count - waiting.size);
  })().catch((error) => say(error.message, true)).finally(() => { fetching = null; });
  return fetching;
}

// ------------------------------------------------------------------------------------------------ pictures

const source = (digest) => `${base}pictures/${digest}?size=${SIZE}`;

function pictures(item) {
  const found = item.walk.pictures.map((one) => [one.label, one.digest]);
  for (const verdict of item.walk.verdicts) {
    if (!verdict.passed && verdict.where) found.push([found.some(([name]) => name === "overlay") ? verdict.check : "overlay", verdict.where]);
  }
  return found.filter(([, digest]) => digest);
}

const preloaded = new Map();
function preload() {
  for (const {item} of images.slice(at, at + AHEAD + 1)) {
    for (const [, digest] of pictures(item)) {
      if (preloaded.has(digest)) continue;
      const image = new Image();
      image.src = source(digest);
      preloaded.set(digest, image);
      if (preloaded.size > 60) preloaded.delete(preloaded.keys().next().value);
    }
  }
}

// ------------------------------------------------------------------------------------------------ what is shown

const compare = comparable($("pair"));

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function say(words, bad = false) {
  $("notice").textContent = words;
  $("notice").classList.toggle("bad", bad);
  $("notice").hidden = !words;
}

function show() {
  const entry = images[at];
  $("left").textContent = left;
  $("stage").hidden = !entry;
  $("empty").hidden = Boolean(entry);
  $("undo").disabled = !undoable.length;
  $("undo-last").hidden = !undoable.length;
  if (!entry) {
    $("empty-words").textContent = left > 0 ? `End of the queue. ${left} images are left that you passed by, or that are open in another window, yours or somebody else’s.` : "Nothing waits for a decision.";
    $("again").hidden = left === 0;
    root.dataset.shown = "";
    return;
  }
  const {item} = entry;
  root.dataset.shown = item.final;
  $("title").textContent = item.title;
  $("where").replaceChildren(
    Object.assign(element("a", "mono", item.sku), {href: `${base}products/${encodeURIComponent(item.sku)}`}), `${item.photo && ` · ${item.photo}`} · ${item.scene} for ${item.channel} · `,
    Object.assign(element("a", "", item.run), {href: `${base}runs/${encodeURIComponent(item.run)}`}),
  );
  $("reason").textContent = item.reason;
  $("place").textContent = `${at + 1} of ${images.length}${whole ? "" : "+"}` + (entry.choice ? ` · ${DONE[entry.choice]}` : "");
  $("previous").disabled = at === 0;
  for (const choice of ["approve", "reject", "retry"]) $(choice).disabled = !mayDecide || Boolean(entry.choice);
  if (item.spot) $("retry").disabled = true;
  $("edit").disabled = item.spot || Boolean(entry.choice);
  $("approve").firstChild.data = item.spot ? "Right " : "Approve ";
  $("reject").firstChild.data = item.spot ? "Wrong " : "Reject ";
  $("spot").hidden = !item.spot;
  $("reason").parentElement.classList.toggle("held", !item.spot);

  $("strip").replaceChildren(...pictures(item).map(([name, digest], n) => {
    const button = element("button", "thumb");
    button.type = "button";
    button.dataset.name = name;
    const image = Object.assign(new Image(), {src: source(digest), alt: ""});
    button.append(image, element("span", "", name), element("kbd", "", String(n + 1)));
    button.addEventListener("click", () => { shown = name; picture(); });
    return button;
  }));
  $("checks").replaceChildren(...item.walk.verdicts.map((verdict) => {
    const row = element("tr", verdict.passed ? "" : "held");
    row.append(
      element("td", "", verdict.passed ? "✓" : "✗"), element("td", "", verdict.check),
      element("td", "number", verdict.score), element("td", "number quiet", verdict.threshold),
    );
    return row;
  }));
  $("tries").replaceChildren(...item.walk.candidates.map((one) => {
    const figure = element("figure", one.chosen ? "chosen" : "");
    if (one.raw) figure.append(Object.assign(new Image(), {src: `${base}pictures/${one.raw}?size=160`, alt: `seed ${one.seed}`, loading: "lazy"}));
    const growth = one.e_plus === null ? "–" : `E⁺ ${(100 * one.e_plus).toFixed(1)} %`;
    figure.append(element("figcaption", "", growth), element("span", "quiet mono", one.seed === null ? "" : `${one.seed}`));
    return figure;
  }));
  $("words").value = "";
  const said = (item.spot ? [] : item.checks).map((check) => check.replaceAll("_", " "));
  $("chips").replaceChildren(...[...new Set([...said, ...CHIPS])].map((words) => {
    const chip = element("button", "chip", words);
    chip.type = "button";
    chip.addEventListener("click", () => { $("words").value = words; mark(); chip.blur(); });
    return chip;
  }));
  $("words").placeholder = said.join(", ") || "in your words";
  mark();
  picture();
  preload();
  clearTimeout(warming);
  startProcess();
  if (item.checks.some((check) => OF_CUTOUTS.includes(check))) warm(1500);
}

function mark() {
  for (const chip of $("chips").children) chip.classList.toggle("on", chip.textContent === $("words").value);
}

function picture() {
  const {item} = images[at];
  const found = new Map(pictures(item));
  const name = found.has(shown) ? shown : "final";
  const other = name === "photo" ? "final" : "photo";
  for (const [id, which] of [["after", name], ["before", other]]) {
    const digest = found.get(which);
    if (digest && $(id).dataset.digest !== digest) {
      $(id).dataset.digest = digest;
      $(id).src = source(digest);
    }
    $(id).alt = `${which} of ${item.title}`;
  }
  $("which").textContent = name;
  for (const button of $("strip").children) button.setAttribute("aria-pressed", String(button.dataset.name === name));
  look();
}

function look() {
  for (const id of ["before", "after"]) $(id).style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
}

function zoom(factor) {
  view.scale = Math.min(8, Math.max(1, view.scale * factor));
  if (view.scale === 1) view = {scale: 1, x: 0, y: 0};
  look();
}

// ------------------------------------------------------------------------------------------------ what a person does

async function move(step) {
  at = Math.max(0, at + step);
  if (at + AHEAD >= images.length && !whole) {
    const more = fetchMore();
    if (at >= images.length) await more;
  }
  if (at >= images.length && waiting.size) {
    await Promise.allSettled([...waiting]);
    await fetchMore();
  }
  show();
}

function decide(choice) {
  const entry = images[at];
  if (!mayDecide) return say("Your account may look, and not decide.", true);
  if (!entry || entry.choice) return;
  if (entry.item.spot && choice === "retry") return say("It is published already: say whether it is right or wrong.", true);
  if (entry.item.spot && choice === "approve") choice = "confirm";
  const reason = $("words").value.trim() || (["approve", "confirm"].includes(choice) || entry.item.spot ? "" : $("words").placeholder);
  entry.choice = choice;
  left = Math.max(0, left - 1);
  say("");
  const sent = send(entry, choice, reason);
  waiting.add(sent);
  sent.finally(() => waiting.delete(sent));
  undoable.push({entries: [entry], sent, words: `${entry.item.title}: ${DONE[choice]}`});
  move(1);
}

async function send(entry, choice, reason) {
  try {
    const {ok, document: told} = await ask("review/decisions", {final: entry.item.final, choice, reason});
    if (ok) return {path: `review/decisions/${told.id}/undo`};
    forget(entry);
    if (told.problem === "superseded" && told.item) {
      entry.item = told.item;
      images = images.filter((one) => one === entry || one.item.final !== told.item.final);
      entry.choice = undefined;
      at = images.indexOf(entry);
      say(`This image took the place of the one you decided: ${told.words}.`, true);
      left += 1;
      show();
    } else {
      say(told.words, true);
    }
  } catch (error) {
    forget(entry);
    entry.choice = undefined;
    left += 1;
    at = images.indexOf(entry);
    say(`Not decided: ${error.message}.`, true);
    show();
  }
  return null;
}

// The editor's process takes seconds to start. So it starts with the first image whose cutout can be edited. It ends
// after some idle minutes, so it is asked for anew from time to time.
let started = -Infinity;
function startProcess() {
  const item = images[at]?.item;
  if (!mayDecide || !item || item.spot || performance.now() - started < 60_000) return;
  started = performance.now();
  fetch(`${base}editor/process`, {method: "POST", credentials: "same-origin"}).catch(() => {});
}

// To open a photo takes as long again. So it is opened when somebody looks for a while at an image whose cutout is in
// doubt, or points at the button.
let warming = null;
const warmed = new Set();
function warm(wait) {
  clearTimeout(warming);
  const item = images[at]?.item;
  if (!mayDecide || !item || item.spot || warmed.has(item.final)) return;
  warming = setTimeout(() => {
    warmed.add(item.final);
    fetch(`${base}editor/${item.final}/open`, {method: "POST", credentials: "same-origin"}).catch(() => {});
  }, wait);
}

async function edit() {
  const entry = images[at];
  if (!entry || entry.choice) return undefined;
  if (entry.item.spot) return say("It is published already: say whether it is right or wrong.", true);
  await Promise.allSettled([...waiting]);
  return location.assign(`${base}editor/${entry.item.final}?${filter()}`);
}

function forget(entry) {
  const n = undoable.findIndex((one) => one.entries.includes(entry));
  if (n >= 0) undoable.splice(n, 1);
}

async function undo() {
  const step = undoable.pop();
  if (!step) return say("There is nothing to undo.");
  const done = await step.sent;
  if (!done) return undefined;
  try {
    const {ok, document: told} = await ask(done.path, {});
    if (!ok) return say(told.words, true);
  } catch (error) {
    undoable.push(step);
    return say(`Not undone: ${error.message}.`, true);
  }
  say(`Undone. ${step.words}.`);
  if (!step.entries.length) return restart();
  for (const entry of step.entries) entry.choice = undefined;
  left += step.entries.length;
  at = images.indexOf(step.entries[0]);
  return show();
}

async function restart() {
  images = images.filter(() => false);
  at = 0;
  last = "";
  whole = false;
  await Promise.allSettled([...waiting]);
  await fetchMore(true);
  show();
}

// ------------------------------------------------------------------------------------------------ batches

let fingerprint = "";

async function openBatch() {
  await Promise.allSettled([...waiting]);
  const {document: found} = await ask(`review/selection?${filter()}`);
  fingerprint = found.fingerprint;
  $("batch-count").textContent = found.count;
  const chosen = [...filter()].filter(([, value]) => value).map(([name, value]) => `${name} ${value}`);
  $("batch-filter").textContent = chosen.length ? `Only ${chosen.join(", ")}. A sample of ${found.sample.length}:` : `The whole queue. A sample of ${found.sample.length}:`;
  $("sample").replaceChildren(...found.sample.map((one) => {
    const figure = element("figure");
    figure.append(Object.assign(new Image(), {src: `${base}pictures/${one.final}?size=360`, alt: one.title}), element("figcaption", "", one.title));
    return figure;
  }));
  for (const button of $("batch").querySelectorAll("[data-choice]")) button.disabled = !mayDecide || !found.count;
  $("batch").showModal();
}

async function decideBatch(choice) {
  const body = {...Object.fromEntries(filter()), fingerprint, choice, reason: $("batch-words").value.trim()};
  $("batch").close();
  try {
    const {ok, document: told} = await ask("review/batches", body);
    if (!ok) return say(told.words, true);
    const words = `${told.count} images ${DONE[choice]}`;
    undoable.push({entries: [], sent: Promise.resolve({path: `review/batches/${told.batch}/undo`}), words});
    await restart();
    return say(`${words}. Undo takes all of them back.`);
  } catch (error) {
    return say(`Not decided: ${error.message}.`, true);
  }
}

// ------------------------------------------------------------------------------------------------ keys and buttons

const typing = (event) => event.target.closest("input, select, textarea, dialog[open]");

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape" && event.target === $("words")) return $("words").blur();
  if (event.key === "Enter" && event.target === $("words")) return $("words").blur();
  if (typing(event)) return undefined;
  const key = event.key.toLowerCase();
  if (key === " ") {
    event.preventDefault();
    return compare.flip(true);
  }
  if (event.repeat && (KEYS[key] || key === "z")) return undefined;
  if (KEYS[key]) decide(KEYS[key]);
  else if (key === "z") undo();
  else if (key === "e") edit();
  else if (key === "arrowright") move(1);
  else if (key === "arrowleft") move(-1);
  else if (key === "+" || key === "=") zoom(1.5);
  else if (key === "-") zoom(1 / 1.5);
  else if (key === "0") zoom(0);
  else if (key === "?") $("legend").showModal();
  else if (/^[1-9]$/.test(key)) $("strip").children[Number(key) - 1]?.click();
  else return undefined;
  return event.preventDefault();
});
addEventListener("keyup", (event) => event.key === " " && compare.flip(false));
addEventListener("blur", () => compare.flip(false));
addEventListener("pagehide", () => fetch(`${base}review/seats/${seat}/leave`, {method: "POST", keepalive: true}));

for (const choice of ["approve", "reject", "retry"]) $(choice).addEventListener("click", (event) => { event.currentTarget.blur(); decide(choice); });
$("undo").addEventListener("click", (event) => { event.currentTarget.blur(); undo(); });
$("edit").addEventListener("click", edit);
$("edit").addEventListener("pointerenter", () => warm(100));
$("next").addEventListener("click", (event) => { event.currentTarget.blur(); move(1); });
$("previous").addEventListener("click", (event) => { event.currentTarget.blur(); move(-1); });
$("words").addEventListener("input", mark);
$("again").addEventListener("click", restart);
$("undo-last").addEventListener("click", undo);
$("legend-open").addEventListener("click", () => $("legend").showModal());
$("batch-open").addEventListener("click", () => openBatch().catch((error) => say(error.message, true)));
for (const button of $("batch").querySelectorAll("[data-choice]")) button.addEventListener("click", () => decideBatch(button.dataset.choice));
$("filters").addEventListener("change", () => {
  history.replaceState(null, "", `?${filter()}`);
  restart();
});

const pair = $("pair");
let from = null;
pair.addEventListener("wheel", (event) => { event.preventDefault(); zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2); }, {passive: false});
pair.addEventListener("pointerdown", (event) => {
  if (view.scale === 1 || event.target.tagName !== "IMG") return;
  event.preventDefault();
  from = {x: event.clientX - view.x, y: event.clientY - view.y};
});
addEventListener("pointermove", (event) => {
  if (!from) return;
  view.x = event.clientX - from.x;
  view.y = event.clientY - from.y;
  look();
});
addEventListener("pointerup", () => { from = null; });

await fetchMore(true);
show();
say(sessionStorage.getItem("packshot said") ?? "");  // by the editor, which leads back here
sessionStorage.removeItem("packshot said");
window.focus();  // in Airflow's frame the keys would go to Airflow's page

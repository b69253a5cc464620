// The campaign form: what was chosen goes to the server, which refuses it in a sentence, or counts it and starts it.

const base = document.body.dataset.base;
const form = document.getElementById("campaign");
const notice = document.getElementById("notice");
const outlook = document.getElementById("outlook");
const [count, start] = ["count", "start"].map((id) => document.getElementById(id));
const numbers = new Intl.NumberFormat("en");
const mayStart = !count.disabled;

function chosen() {
  const values = new FormData(form);
  const which = values.get("which");
  const named = which === "skus";
  return {
    scene: values.get("scene") ?? "",
    channels: values.getAll("channel"),
    category: which === "category" ? values.get("category") ?? "" : "",
    skus: named ? values.get("skus").split("\n").map((sku) => sku.trim()).filter(Boolean) : [],
    first: named ? "" : values.get("first"),
    last: named ? "" : values.get("last"),
  };
}

function problem() {
  const values = new FormData(form);
  if (!values.get("scene")) return "Choose a scene.";
  if (values.get("which") === "skus" && !chosen().skus.length) return "Enter a SKU.";
  return "";
}

function say(words) {
  notice.textContent = words;
  notice.hidden = !words;
}

async function ask(path) {
  const options = {method: "POST", credentials: "same-origin", body: JSON.stringify(chosen()), headers: {"Content-Type": "application/json"}};
  count.disabled = start.disabled = true;
  try {
    const answer = await fetch(`${base}campaign/${path}`, options);
    const told = await answer.json();
    if (answer.ok) return told;
    say(told.words || told.detail);
  } catch (error) {
    say(`The server did not answer: ${error.message}.`);
  } finally {
    count.disabled = start.disabled = !mayStart;
  }
  return null;
}

function duration(seconds) {
  if (seconds < 90) return `${Math.ceil(seconds)} s`;
  if (seconds < 5400) return `${Math.ceil(seconds / 60)} min`;
  return `${numbers.format(Math.ceil(seconds / 3600))} h`;
}

function manyRuns() {
  const {channels, first, last} = chosen();
  const days = first || last ? "day" : "";
  return `one for each ${[days, channels.length > 1 ? "channel" : ""].filter(Boolean).join(" and ")}`;
}

function show(found) {
  const set = (id, words) => { document.getElementById(id).textContent = words; };
  set("products", numbers.format(found.products));
  set("runs", found.runs > 1 ? `in ${numbers.format(found.runs)} runs, ${manyRuns()}` : "in one run");
  set("reused", numbers.format(found.reused));
  set("computed", numbers.format(found.computed));
  set("time", found.seconds || !found.computed ? duration(found.seconds) : "unknown");
  set("cost", found.cost && found.seconds ? `about ${found.cost}` : "");
  set("unmeasured", found.unmeasured.length ? `without ${found.unmeasured.join(", ")}: not measured yet` : "");
  const part = document.getElementById("proportion");
  part.hidden = found.followed === found.products;
  part.textContent = `In proportion to the first ${numbers.format(found.followed)} products.`;
  outlook.hidden = false;
  outlook.scrollIntoView({block: "nearest"});
}

function follow() {
  const which = new FormData(form).get("which");
  for (const part of form.querySelectorAll("[data-of]")) part.hidden = !part.dataset.of.split(" ").includes(which);
  outlook.hidden = true;
  say("");
}

form.addEventListener("input", follow);
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const words = problem();
  outlook.hidden = true;
  say(words);
  if (words) return;
  const found = await ask("forecasts");
  if (found) show(found);
});
start.addEventListener("click", async () => {
  const made = await ask("starts");
  if (made) location.assign(made.page);
});
follow();

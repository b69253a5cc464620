// Cancelling a run that is in progress, and starting another over what a run did not publish.

const notice = document.getElementById("notice");
const cancellation = document.getElementById("cancellation");
const again = document.getElementById("again");
const numbers = new Intl.NumberFormat("en");
let wanted = {};

function set(id, words) {
  document.getElementById(id).textContent = words;
}

function say(words) {
  notice.textContent = words;
  notice.hidden = !words;
}

async function ask(path, body) {
  const options = {credentials: "same-origin"};
  if (body) Object.assign(options, {method: "POST", body: JSON.stringify(body), headers: {"Content-Type": "application/json"}});
  say("");
  try {
    const answer = await fetch(path, options);
    const told = await answer.json();
    if (answer.ok) return told;
    say(told.words || told.detail);
  } catch (error) {
    say(`The server did not answer: ${error.message}.`);
  }
  return null;
}

async function cancel() {
  cancellation.close();
  const done = await ask(cancellation.dataset.path, {reason: document.getElementById("why").value.trim()});
  if (done) location.reload();
}

async function look(button) {
  const {state, cause} = button.dataset;
  button.disabled = true;
  const told = await ask(`${again.dataset.path}?${new URLSearchParams({state, cause})}`);
  button.disabled = false;
  if (!told) return;
  wanted = {state, cause, shots: told.shots};
  set("count", `Try ${told.shots === 1 ? "1 product" : `${numbers.format(told.shots)} products`} again?`);
  set("how", told.reprocess === "missing"
    ? `A campaign in scene ${told.scene} goes on where these stopped. Finished steps are reused.`
    : `A campaign in scene ${told.scene} makes these anew, with the next seed.`);
  set("left", told.left ? `Left out: ${numbers.format(told.left)}, made again or decided since, gone from the feed, or too many for one campaign.` : "");
  again.showModal();
}

async function start() {
  again.close();
  const made = await ask(again.dataset.path, wanted);
  if (made) location.assign(made.page);
}

document.getElementById("cancel-now")?.addEventListener("click", async (event) => {
  if (await ask(event.target.dataset.path, {reason: ""})) location.reload();
});
document.getElementById("cancel")?.addEventListener("click", () => cancellation.showModal());
document.getElementById("confirm-cancel")?.addEventListener("click", cancel);
document.getElementById("confirm-again")?.addEventListener("click", start);
for (const button of document.querySelectorAll("[data-cause]")) button.addEventListener("click", () => look(button));

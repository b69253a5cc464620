// Taking back what is shown: a dialog asks for the reason, the server does it, the page is loaded anew.
// Sharing it: the server makes a link to a contact sheet of what the page is narrowed to.

const base = document.body.dataset.base;
const dialog = document.getElementById("rollback");
let wanted = {};

function say(words) {
  const notice = document.getElementById("notice");
  notice.textContent = words;
  notice.hidden = false;
  notice.classList.add("bad");
}

function ask(what, body) {
  wanted = body;
  document.getElementById("what").textContent = what;
  document.getElementById("why").value = "";
  dialog.showModal();
}

async function send(path, body) {
  const options = {method: "POST", credentials: "same-origin", body: JSON.stringify(body), headers: {"Content-Type": "application/json"}};
  const answer = await fetch(`${base}live/${path}`, options);
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.words || told.detail);
  return told;
}

async function rollBack() {
  dialog.close();
  try {
    await send("rollbacks", {...wanted, reason: document.getElementById("why").value.trim()});
    location.reload();
  } catch (error) {
    say(`Not rolled back: ${error.message}.`);
  }
}

for (const button of document.querySelectorAll("[data-rollback]")) {
  button.addEventListener("click", () => ask(button.dataset.title, {publications: [Number(button.dataset.rollback)]}));
}
for (const button of document.querySelectorAll("[data-rollback-run]")) {
  button.addEventListener("click", () => ask(`${button.dataset.count} images of run ${button.dataset.rollbackRun}`, {run: button.dataset.rollbackRun}));
}
document.getElementById("confirm").addEventListener("click", rollBack);

async function share(event) {
  event.preventDefault();
  const problem = document.getElementById("sheet-problem");
  problem.hidden = true;
  try {
    const choice = JSON.parse(document.getElementById("share").dataset.choice);
    const made = await send("sheets", {...choice, days: Number(document.getElementById("days").value)});
    const link = document.getElementById("link");
    link.value = made.link;
    document.getElementById("link-words").textContent = `${made.images} images, until ${made.ends}. Copy the link and send it.`;
    link.parentElement.hidden = false;
    link.select();
  } catch (error) {
    problem.textContent = error.message;
    problem.hidden = false;
  }
}

document.getElementById("share")?.addEventListener("click", () => document.getElementById("sheet").showModal());
document.getElementById("make-link").addEventListener("submit", share);

// Taking back what is shown: a dialog asks for the reason, the server does it, the page is loaded anew.

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

async function rollBack() {
  dialog.close();
  const body = {...wanted, reason: document.getElementById("why").value.trim()};
  const options = {method: "POST", credentials: "same-origin", body: JSON.stringify(body), headers: {"Content-Type": "application/json"}};
  try {
    const answer = await fetch(`${base}live/rollbacks`, options);
    const told = await answer.json();
    if (answer.ok) location.reload();
    else say(told.words || told.detail);
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

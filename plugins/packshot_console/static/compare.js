// Two pictures of one shot: a slider, side by side, or one over the other while a key or the pointer is held.
//
//   <div class="pair"><img class="before"><img class="after"></div>
//
// `comparable` adds the controls. It returns functions for who drives it by keys.

const MODES = [["slider", "Slider"], ["side", "Side by side"], ["flip", "Flip"]];

const driven = new WeakMap();

export function comparable(pair) {
  if (driven.has(pair)) return driven.get(pair);
  const before = pair.querySelector(".before");
  const after = pair.querySelector(".after");
  const controls = document.createElement("div");
  controls.className = "modes";
  controls.setAttribute("role", "group");
  controls.setAttribute("aria-label", "How to compare");
  const range = document.createElement("input");
  Object.assign(range, {type: "range", min: 0, max: 100, value: 50, className: "divide"});
  range.setAttribute("aria-label", "Where the two pictures meet");

  const divide = () => pair.style.setProperty("--divide", `${range.value}%`);
  const flip = (on) => pair.classList.toggle("flipped", on);
  const mode = (name) => {
    pair.dataset.mode = name;
    for (const button of controls.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.mode === name));
    }
    range.hidden = name !== "slider";
    flip(false);
  };

  for (const [name, label] of MODES) {
    const button = document.createElement("button");
    Object.assign(button, {type: "button", textContent: label});
    button.dataset.mode = name;
    button.addEventListener("click", () => mode(name));
    controls.append(button);
  }
  range.addEventListener("input", divide);
  for (const image of [before, after]) {
    image.addEventListener("pointerdown", () => pair.dataset.mode === "flip" && flip(true));
  }
  addEventListener("pointerup", () => flip(false));
  pair.append(range);
  pair.after(controls);
  divide();
  mode(pair.dataset.mode || "flip");
  driven.set(pair, {flip, mode});
  return driven.get(pair);
}

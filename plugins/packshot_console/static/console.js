// What every page does: take the theme of Airflow's own pages where it stands in their frame, and make pairs comparable.

import {comparable} from "./compare.js";

function theme() {
  try {
    if (window.parent === window) return;
    const outer = window.parent.document.documentElement;
    const follow = () => {
      const name = outer.classList.contains("dark") ? "dark" : outer.classList.contains("light") ? "light" : "";
      document.documentElement.style.colorScheme = name;
    };
    follow();
    new MutationObserver(follow).observe(outer, {attributes: true, attributeFilter: ["class"]});
  } catch {
    // another site's frame: the browser's own theme stays
  }
}

theme();
for (const pair of document.querySelectorAll(".pair")) comparable(pair);

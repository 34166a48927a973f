"use strict";
for (const figure of document.querySelectorAll(".picture")) {
  const stage = figure.querySelector(".stage");
  const range = stage.querySelector("input");
  const layers = [...stage.querySelectorAll(".layer")];
  const sides = { left: figure.querySelector('[data-side="left"]'), right: figure.querySelector('[data-side="right"]') };
  const show = () => {
    stage.style.setProperty("--at", range.value + "%");
    const names = {};
    for (const side in sides) {
      layers.forEach((layer, i) => layer.classList.toggle(side, i === Number(sides[side].value)));
      names[side] = sides[side].selectedOptions[0].textContent;
    }
    range.setAttribute("aria-valuetext", `${range.value} % ${names.left}, ${100 - range.value} % ${names.right}`);
  };
  range.addEventListener("input", show);
  for (const side in sides) sides[side].addEventListener("change", show);
  show(); // browsers keep what was chosen when a page is loaded again
}

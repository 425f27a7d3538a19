"use strict";
for (const box of document.querySelectorAll(".compare")) {
  const range = box.querySelector("input");
  const move = () => box.style.setProperty("--cut", range.value + "%");
  range.addEventListener("input", move);
  move();
}
const dialog = document.getElementById("compare");
for (const button of document.querySelectorAll("button[data-compare]")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const [photo, render] = button.closest("article").querySelectorAll("img");
    const [under, over] = dialog.querySelectorAll("img");
    under.src = render.src;
    under.alt = render.alt;
    over.src = photo.src;
    over.alt = photo.alt;
    document.getElementById("compare-name").textContent = button.dataset.compare;
    dialog.showModal();
  });
}
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

"use strict";
(() => {
  // Paper shows everything: details are opened for printing, and closed again.
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((part) => { part.open = true; });
  });
  window.addEventListener("afterprint", () => opened.forEach((part) => { part.open = false; }));

  // A finger cannot rest on a point: a touch shows what a mouse would read.
  const tip = document.getElementById("tip");
  document.addEventListener("pointerdown", (event) => {
    const title = event.pointerType === "touch" && event.target.querySelector && event.target.closest("svg.chart *")
      && event.target.querySelector(":scope > title");
    tip.hidden = !title;
    if (title) tip.textContent = title.textContent;
  });

  // Code that is to be run can be copied.
  if (navigator.clipboard) {
    document.querySelectorAll("#again ~ pre").forEach((pre) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = "Copy";
      button.addEventListener("click", async () => {
        await navigator.clipboard.writeText(pre.querySelector("code").textContent);
        button.textContent = "Copied";
        setTimeout(() => { button.textContent = "Copy"; }, 1500);
      });
      pre.before(button);
    });
  }
})();

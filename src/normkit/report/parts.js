// Folds that open when something leads to them, buttons that open all of them, and code to copy.
(function () {
  "use strict";

  function reveal() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) { return; }
    for (let node = target; node; node = node.parentElement) {
      if (node.tagName === "DETAILS") { node.open = true; }
    }
    target.scrollIntoView();
    const line = target.querySelector("summary");
    if (line) { line.focus({ preventScroll: true }); }
  }

  function openAll(button) {
    const open = button.dataset.open === "true";
    const folds = button.closest("section").querySelectorAll(":scope > details.fold");
    folds.forEach((fold) => { fold.open = open; });
  }

  function selectAll(node) {
    const range = document.createRange();
    range.selectNodeContents(node);
    const selection = getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
  }

  async function copy(button, code) {
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch (refused) {  // the browser's right: the reader has Ctrl-C
      selectAll(code);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  }

  document.querySelectorAll(".all").forEach((line) => { line.hidden = false; });
  document.querySelectorAll(".all button").forEach((button) => {
    button.addEventListener("click", () => openAll(button));
  });
  document.querySelectorAll("div.code").forEach((block) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.addEventListener("click", () => copy(button, block.querySelector("code")));
    block.append(button);
  });
  document.addEventListener("click", (event) => {  // a second time to the same place, too
    const link = event.target.closest("a");
    if (link && link.getAttribute("href") === location.hash) { setTimeout(reveal); }
  });
  addEventListener("hashchange", reveal);
  reveal();
})();

// Folds that open when something leads to them, buttons that open all of them, code to copy, and
// scores that show the cards of one mark.
(function () {
  "use strict";

  function reveal() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) { return; }
    if (target.hidden) { filter(""); }
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

  // Only what has this mark is shown; all of it where the mark is "".
  function filter(mark) {
    document.querySelectorAll(".scores button").forEach(function (button) {
      button.setAttribute("aria-pressed", String(button.parentElement.dataset.mark === mark));
    });
    document.querySelectorAll(".tiles [data-mark], .card[data-mark]").forEach(function (one) {
      one.hidden = mark !== "" && one.dataset.mark !== mark;
    });
    document.querySelectorAll(".group, section.cards").forEach(function (group) {
      group.hidden = !group.querySelector("[data-mark]:not([hidden])");
    });
    document.querySelectorAll(".board").forEach(function (board) {
      const all = board.querySelectorAll(".tiles li"), left = board.querySelectorAll(".tiles li:not([hidden])");
      const line = board.querySelector(".shown");
      line.textContent = mark ? `Only ${left.length} of ${all.length} ${board.querySelector(".scores").dataset.unit} are shown. ` : "";
      if (mark) {
        line.append(button("Show all", () => filter("")));
      }
    });
  }

  function button(words, act) {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = words;
    made.addEventListener("click", () => act(made));
    return made;
  }

  document.querySelectorAll(".all").forEach((line) => { line.hidden = false; });
  document.querySelectorAll(".all button").forEach((one) => {
    one.addEventListener("click", () => openAll(one));
  });
  document.querySelectorAll("div.code").forEach((block) => {
    block.append(button("Copy", (made) => copy(made, block.querySelector("code"))));
  });
  document.querySelectorAll(".scores li:not(.none)").forEach((one) => {
    const mark = one.dataset.mark;
    const made = button("", () => filter(made.getAttribute("aria-pressed") === "true" ? "" : mark));
    made.setAttribute("aria-pressed", "false");
    made.append(...one.childNodes);
    one.append(made);
  });
  document.addEventListener("click", (event) => {  // a second time to the same place, too
    const link = event.target.closest("a");
    if (link && link.getAttribute("href") === location.hash) { setTimeout(reveal); }
  });
  addEventListener("hashchange", reveal);
  reveal();
})();

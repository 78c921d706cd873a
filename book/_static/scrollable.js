// What scrolls by itself can be reached, and so scrolled, by the keyboard.
window.addEventListener("load", () => {
  for (const table of document.querySelectorAll(".bd-article table")) {
    if (table.scrollWidth > table.clientWidth) table.tabIndex = 0;
  }
});

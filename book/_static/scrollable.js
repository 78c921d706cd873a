// What is wider than the page scrolls by itself, says so, and can be reached, and so scrolled, by the keyboard.
// Figures stay legible for that, and are enlarged by a click, or a key.
window.addEventListener("load", () => {
  const observer = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const scrolls = target.scrollWidth > target.clientWidth;
      target.toggleAttribute("data-scrolls", scrolls);
      target.toggleAttribute("tabindex", scrolls);
      if (scrolls) target.tabIndex = 0;
    }
  });
  for (const image of document.querySelectorAll(".bd-article :is(figure, .output) img")) {
    const frame = document.createElement("div");
    frame.className = "frame";
    image.style.setProperty("--own-width", `${image.naturalWidth}px`);
    const toggle = () => image.setAttribute("aria-pressed", image.classList.toggle("enlarged"));
    image.tabIndex = 0;
    image.setAttribute("role", "button");
    image.setAttribute("aria-pressed", "false");
    image.addEventListener("click", toggle);
    image.addEventListener("keydown", (event) => {
      if (!["Enter", " "].includes(event.key)) return;
      event.preventDefault();
      toggle();
    });
    image.replaceWith(frame);
    frame.append(image);
  }
  for (const wide of document.querySelectorAll(".bd-article :is(table, .frame)")) observer.observe(wide);
});

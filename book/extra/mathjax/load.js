// Sphinx asks for MathJax on every page from which one with formulas can be reached; fetch it where there are some.
if (document.querySelector(".math")) {
  const script = document.createElement("script");
  script.src = new URL("tex-svg.js", document.currentScript.src);
  document.head.append(script);
}

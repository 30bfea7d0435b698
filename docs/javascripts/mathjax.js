// Formulas are typeset in the page by the MathJax that lies beside it; pages without formulas do not load it.
window.MathJax = {
  tex: { inlineMath: [["\\(", "\\)"]], displayMath: [["\\[", "\\]"]] },
  options: { ignoreHtmlClass: ".*|", processHtmlClass: "arithmatex", enableMenu: false },
};
const beside = document.currentScript.src.replace(/javascripts\/[^/]*$/, "mathjax/tex-svg.js");
document.addEventListener("DOMContentLoaded", () => {
  if (document.querySelector(".arithmatex") === null) return;
  const script = document.createElement("script");
  script.src = beside;
  document.head.append(script);
});

"use strict";
// What the page does beside being read: it filters the examples, and unblurs pictures. No text of the corpus is handled here.
(() => {
  const controls = document.getElementById("filters");
  if (!controls) return;
  const { examples } = JSON.parse(document.getElementById("data").textContent);
  const cards = [...document.querySelectorAll(".card")];
  const byCase = document.getElementById("by-case");
  const byClass = document.getElementById("by-class");
  const boxes = [...controls.querySelectorAll("input[name=flag]")];
  const pictures = [...document.querySelectorAll("button.picture")];
  const reveal = document.getElementById("reveal");

  const filter = () => {
    const flags = boxes.filter((box) => box.checked).map((box) => box.value);
    let shown = 0;
    for (const card of cards) {
      const example = examples[Number(card.dataset.n)];
      const fits =
        (!byCase.value || example.cases.includes(byCase.value)) &&
        (!byClass.value || example.label === Number(byClass.value)) &&
        flags.every((flag) => example.flags.includes(flag));
      card.hidden = !fits;
      shown += fits;
    }
    document.getElementById("shown").textContent = `${shown} of ${cards.length} examples`;
    document.getElementById("none").hidden = shown > 0;
  };

  const show = (picture, isShown) => {
    picture.classList.toggle("blurred", !isShown);
    picture.setAttribute("aria-pressed", String(isShown));
  };

  const tellReveal = () => {
    const all = pictures.every((picture) => picture.getAttribute("aria-pressed") === "true");
    reveal.setAttribute("aria-pressed", String(all));
    reveal.textContent = all ? "Blur all pictures" : "Show all pictures";
  };

  for (const control of [byCase, byClass, ...boxes]) control.addEventListener("change", filter);
  document.getElementById("clear").addEventListener("click", () => {
    byCase.value = byClass.value = "";
    for (const box of boxes) box.checked = false;
    filter();
  });
  for (const link of document.querySelectorAll("a[data-case]")) {
    link.addEventListener("click", () => {
      byCase.value = link.dataset.case;
      byClass.value = "";
      for (const box of boxes) box.checked = false;
      filter();
    });
  }
  for (const picture of pictures) {
    picture.addEventListener("click", () => {
      show(picture, picture.getAttribute("aria-pressed") !== "true");
      tellReveal();
    });
  }
  reveal?.addEventListener("click", () => {
    const isShown = reveal.getAttribute("aria-pressed") !== "true";
    for (const picture of pictures) show(picture, isShown);
    tellReveal();
  });
  addEventListener("beforeprint", () => {
    for (const text of document.querySelectorAll("details.text")) text.open = true;
  });
  controls.hidden = false;
  filter(); // a browser that goes back may have kept what was chosen
})();

"use strict";
// Filters the examples, and blurs and unblurs images. No text of the corpus is handled here.
(() => {
  const controls = document.getElementById("filters");
  if (!controls) return;
  const { examples } = JSON.parse(document.getElementById("data").textContent);
  const cards = [...document.querySelectorAll(".card")];
  const byCase = document.getElementById("by-case");
  const byClass = document.getElementById("by-class");
  const boxes = [...controls.querySelectorAll("input[name=flag]")];
  const images = [...document.querySelectorAll("button.image")];
  const reveal = document.getElementById("reveal");

  const filter = () => {
    const flags = boxes.filter((box) => box.checked).map((box) => box.value);
    let shown = 0;
    for (const card of cards) {
      const example = examples[Number(card.dataset.n)];
      const fits =
        (!byCase.value || example.cases.includes(byCase.value)) &&
        (!byClass.value || [example.label].flat().includes(Number(byClass.value))) &&
        flags.every((flag) => example.flags.includes(flag));
      card.hidden = !fits;
      shown += fits;
    }
    document.getElementById("shown").textContent = `${shown} of ${cards.length} examples`;
    document.getElementById("none").hidden = shown > 0;
  };

  const show = (image, isShown) => {
    image.classList.toggle("blurred", !isShown);
    image.setAttribute("aria-pressed", String(isShown));
  };

  const updateReveal = () => {
    const all = images.every((image) => image.getAttribute("aria-pressed") === "true");
    reveal.setAttribute("aria-pressed", String(all));
    reveal.textContent = all ? "Blur all images" : "Show all images";
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
  for (const image of images) {
    image.addEventListener("click", () => {
      show(image, image.getAttribute("aria-pressed") !== "true");
      updateReveal();
    });
  }
  reveal?.addEventListener("click", () => {
    const isShown = reveal.getAttribute("aria-pressed") !== "true";
    for (const image of images) show(image, isShown);
    updateReveal();
  });
  addEventListener("beforeprint", () => {
    for (const text of document.querySelectorAll("details.text")) text.open = true;
  });
  controls.hidden = false;
  filter(); // a browser that goes back may have kept the filters
})();

"use strict";
// Shows the items of #data page by page. Text only ever becomes text: nothing here writes markup.
(() => {
  const PAGE = 20;
  const { items, images } = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const list = at("items"), state = at("state"), previous = at("previous"), next = at("next");
  const selects = { benchmark: at("benchmark"), group: at("group") };
  let page = 0;

  const make = (tag, text, name) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (name) node.className = name;
    return node;
  };

  for (const [key, select] of Object.entries(selects)) {
    const counts = new Map();
    for (const item of items) counts.set(item[key], (counts.get(item[key]) || 0) + 1);
    for (const [name, count] of counts) {
      const option = make("option", `${name} (${count})`);
      option.value = name;
      select.append(option);
    }
    select.parentElement.hidden = counts.size < 2;
  }

  const card = (item) => {
    const node = make("li");
    if (item.image === null) {
      node.append(make("div", item.missing, "noimage"));
    } else {
      const image = make("img");
      image.src = images[item.image];
      image.alt = `Image of: ${item.question}`;
      image.loading = "lazy";
      node.append(image);
    }
    const words = make("div", undefined, "words");
    words.append(make("p", item.question, "question"));
    const facts = make("dl");
    for (const [name, value] of item.facts) facts.append(make("dt", name), make("dd", value));
    words.append(facts);
    node.append(words);
    return node;
  };

  const show = () => {
    const wanted = at("search").value.trim().toLowerCase();
    const found = items.filter(
      (item) =>
        Object.entries(selects).every(([key, select]) => !select.value || item[key] === select.value) &&
        (!wanted || [item.question, ...item.facts.map((fact) => fact[1])].join("\n").toLowerCase().includes(wanted)),
    );
    page = Math.max(0, Math.min(page, Math.ceil(found.length / PAGE) - 1));
    const start = page * PAGE, end = Math.min(found.length, start + PAGE);
    list.replaceChildren(...found.slice(start, end).map(card));
    state.textContent = found.length ? `${start + 1} to ${end} of ${found.length}` : "nothing found";
    previous.disabled = page === 0;
    next.disabled = end >= found.length;
  };

  const turn = (step) => {
    page += step;
    show();
    at("browser").scrollIntoView();
  };
  const restart = () => {
    page = 0;
    show();
  };
  for (const select of Object.values(selects)) select.addEventListener("change", restart);
  at("search").addEventListener("input", restart);
  previous.addEventListener("click", () => turn(-1));
  next.addEventListener("click", () => turn(1));
  document.addEventListener("keydown", (event) => {
    const writing = ["INPUT", "SELECT"].includes(event.target.tagName);
    if (writing || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (event.key === "ArrowLeft" && !previous.disabled) turn(-1);
    if (event.key === "ArrowRight" && !next.disabled) turn(1);
  });
  at("controls").hidden = false;
  show();
})();

"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

/* The class table: a heading's button sorts, first ascending, then descending; "–" stays last. */
{
  const table = byId("class-table");
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  const rows = [...body.rows];
  const compareText = new Intl.Collator(undefined, { numeric: true }).compare;

  const sortBy = (column) => {
    const heading = headings[column];
    const ascending = heading.getAttribute("aria-sort") !== "ascending";
    const numeric = heading.classList.contains("n");
    const keys = new Map(rows.map((row) => {
      const text = row.cells[column].textContent;
      return [row, text === "–" ? null : numeric ? Number(text) : text];
    }));
    const sign = ascending ? 1 : -1;
    rows.sort((a, b) => {
      const [x, y] = [keys.get(a), keys.get(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      return sign * (numeric ? x - y : compareText(x, y));
    });
    headings.forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    body.append(...rows);
  };
  headings.forEach((heading, column) => {
    heading.firstElementChild.addEventListener("click", () => sortBy(column));
  });

  const filter = byId("class-filter");
  filter.addEventListener("input", () => {
    const wanted = filter.value.trim().toLowerCase();
    let found = 0;
    for (const row of rows) {
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
      found += !row.hidden;
    }
    byId("class-count").textContent = wanted ? `${found} of ${rows.length}` : "";
  });
}

/* The matrices: one pair of classes is pointed at in all of them. */
{
  const { names, values } = data.matrices;
  const boxes = [...document.querySelectorAll(".matrix")];
  const titles = { words: "words", before: "untrained", after: "before" in values ? "trained" : "images" };
  const bytes = Object.fromEntries(
    Object.entries(values).map(([name, text]) => [name, atob(text)]),
  );
  const n = names.length;
  let [row, column] = [0, 0];

  const point = (i, j) => {
    row = Math.min(Math.max(i, 0), n - 1);
    column = Math.min(Math.max(j, 0), n - 1);
    for (const box of boxes) {
      const [across, down] = box.querySelectorAll(".cross");
      across.style.top = `${(100 * (row + 0.5)) / n}%`;
      down.style.left = `${(100 * (column + 0.5)) / n}%`;
      across.hidden = down.hidden = false;
    }
    const cosines = boxes.map((box) => {
      const code = bytes[box.dataset.name].charCodeAt(row * n + column);
      return `${titles[box.dataset.name]} ${(code / 100 - 1).toFixed(2)}`;
    });
    byId("matrix-readout").textContent = `${names[row]} × ${names[column]}: ${cosines.join(", ")}`;
  };

  for (const box of boxes) {
    const follow = (event) => {
      const area = box.getBoundingClientRect();
      point(
        Math.floor((n * (event.clientY - area.top)) / area.height),
        Math.floor((n * (event.clientX - area.left)) / area.width),
      );
    };
    box.addEventListener("pointermove", follow);
    box.addEventListener("pointerdown", follow);
    box.addEventListener("focus", () => {
      if (box.matches(":focus-visible")) point(row, column);
    });
    box.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      point(row + step[0], column + step[1]);
    });
  }
}

/* The map: pointing at an image or choosing a class shows the images of the class. */
{
  const { names, groups, classes, images } = data.map;
  const plot = byId("map-plot");
  const circles = [...plot.querySelectorAll("circle")];
  const choice = byId("map-class");
  const shown = byId("map-shown");
  const members = names.map(() => []);
  classes.forEach((label, at) => members[label].push(at));
  names
    .map((name, label) => [name, label])
    .sort((a, b) => a[0].localeCompare(b[0]))
    .forEach(([name, label]) => choice.add(new Option(name, label)));

  const show = (label, at) => {
    plot.classList.toggle("chosen", label !== null);
    circles.forEach((circle, place) => {
      circle.classList.toggle("of", classes[place] === label);
      circle.classList.toggle("at", place === at);
    });
    shown.replaceChildren();
    if (label === null) return;
    const title = document.createElement("p");
    title.append(names[label]);
    const detail = document.createElement("span");
    const count = members[label].length;
    detail.textContent = [groups[label], `${count} image${count === 1 ? "" : "s"}`].filter(Boolean).join(", ");
    title.append(detail);
    const strip = document.createElement("div");
    const first = at === undefined ? members[label] : [at, ...members[label].filter((other) => other !== at)];
    for (const member of first.slice(0, 30)) {
      if (!images[member]) continue;
      const image = new Image();
      image.src = `data:image/webp;base64,${images[member]}`;
      image.alt = member === at ? `${names[label]}, pointed at` : names[label];
      image.classList.toggle("at", member === at);
      strip.append(image);
    }
    shown.append(title, strip);
  };

  /* The nearest circle within reach, so that small points need no aim. */
  const nearest = (event) => {
    const area = plot.getBoundingClientRect();
    const box = plot.viewBox.baseVal;
    const scale = Math.max(box.width / area.width, box.height / area.height);
    const x = (event.clientX - area.left - area.width / 2) * scale + box.width / 2;
    const y = (event.clientY - area.top - area.height / 2) * scale + box.height / 2;
    let [best, distance] = [null, (18 * scale) ** 2];
    circles.forEach((circle, at) => {
      const apart = (circle.cx.baseVal.value - x) ** 2 + (circle.cy.baseVal.value - y) ** 2;
      if (apart < distance) [best, distance] = [at, apart];
    });
    return best;
  };
  const follow = (event) => {
    const at = nearest(event);
    if (at === null) return;
    choice.value = classes[at];
    show(classes[at], at);
  };
  plot.addEventListener("pointermove", follow);
  plot.addEventListener("pointerdown", follow);
  choice.addEventListener("change", () => show(choice.value === "" ? null : Number(choice.value)));
}

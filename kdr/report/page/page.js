"use strict";
// Draws the figures in the reader's colour scheme, sorts tables, shows the page's age, and reloads
// it while the study runs.
(() => {
  const { figures, palettes } = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const touch = window.matchMedia("(pointer: coarse)").matches;

  const coloured = (value, palette) => {
    if (Array.isArray(value)) return value.map((item) => coloured(item, palette));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, coloured(item, palette)]));
    return typeof value === "string" && Object.hasOwn(palette, value) ? palette[value] : value;
  };

  const options = {
    responsive: true,
    displaylogo: false,
    showSendToCloud: false,
    displayModeBar: window.matchMedia("(hover: hover)").matches ? "hover" : false,
    modeBarButtons: [["toImage", "resetScale2d"]],
  };
  const draw = async () => {
    const palette = palettes[dark.matches ? "dark" : "light"];
    for (const [id, figure] of Object.entries(figures)) {
      const { data, layout } = coloured(figure, palette);
      // on a touch screen, dragging a figure must scroll the page
      if (touch) layout.dragmode = false;
      await Plotly.react(id, data, layout, options);
    }
    document.body.dataset.drawn = dark.matches ? "dark" : "light";
  };
  // one drawing at a time: a change of scheme waits for the previous drawing
  let drawing = draw();
  dark.addEventListener("change", () => { drawing = drawing.then(draw); });

  // tables: each head becomes a button; numbers sort before text, empty cells always come last
  const key = (cell) => {
    const text = cell.textContent.trim();
    const number = Number.parseFloat(text.replace(/^[<[]/, ""));
    return text === "" ? null : Number.isNaN(number) ? text.toLowerCase() : number;
  };
  const compare = (a, b) => typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
  const sort = (table, column, descending) => {
    const rows = [...table.tBodies[0].rows].map((row) => [key(row.cells[column]), row]);
    rows.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : descending ? compare(b, a) : compare(a, b));
    table.tBodies[0].append(...rows.map(([, row]) => row));
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const descending = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        sort(table, column, descending);
      });
    });
  }

  const age = document.getElementById("age");
  const written = Date.parse(document.querySelector("time").dateTime);
  const showAge = () => {
    const minutes = Math.floor((Date.now() - written) / 60000);
    const [count, unit] = minutes < 120 ? [minutes, "minute"] : minutes < 2880 ? [Math.floor(minutes / 60), "hour"] : [Math.floor(minutes / 1440), "day"];
    age.textContent = minutes < 1 ? ", just now" : `, ${count} ${unit}${count === 1 ? "" : "s"} ago`;
  };
  showAge();
  setInterval(showAge, 30000);

  // while the study runs: reload, and reopen the details that were open
  const seconds = Number(document.body.dataset.reloadS);
  if (!seconds) return;
  const allDetails = () => [...document.querySelectorAll("details")];
  // browsers may refuse session storage to a page that was opened from disk
  const store = (work) => { try { return work(window.sessionStorage); } catch { return null; } };
  const name = `kdr-open:${document.title}`;
  const open = new Set(JSON.parse(store((kept) => kept.getItem(name)) ?? "[]"));
  allDetails().forEach((details, index) => { details.open = open.has(index); });
  setTimeout(() => {
    const indices = allDetails().flatMap((details, index) => details.open ? [index] : []);
    store((kept) => kept.setItem(name, JSON.stringify(indices)));
    location.reload();
  }, seconds * 1000);
})();

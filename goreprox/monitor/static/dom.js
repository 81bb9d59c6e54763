// Makes and changes elements. Whatever comes from the network becomes text: nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (value === true) {
      element.setAttribute(name, "");
    } else if (value !== false && value !== null && value !== undefined) {
      element.setAttribute(name, value);
    }
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Makes the children of `parent` those of `items`, in their order. An element stays the same as long as its key is
// there, so that the focus, a selection, and what a screen reader is reading stay where they are.
export function keyed(parent, items, keyOf, make, update) {
  const before = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    let child = before.get(key);
    if (child === undefined) {
      child = make(item);
      child.dataset.key = key;
    }
    before.delete(key);
    update(child, item);
    if (child === place) place = place.nextElementSibling;
    else parent.insertBefore(child, place);
  }
  for (const child of before.values()) child.remove();
}

// A table whose rows are sorted by a column that the user chooses. A column has a `title` and `text(item)`; `value(item)`
// to sort by, if that is another; `number` if it holds numbers; `long` if its text may take several lines; `mark(item)`,
// the class of the cell; or `node(item)`, an element made once in place of the text.
export function table({ caption, columns, keyOf, sort = null, descending = false, empty = "none" }) {
  let by = sort;
  let down = descending;
  let rows = [];
  const heads = columns.map((column, index) => {
    const button = h("button", { type: "button", on: { click: () => choose(index) } }, column.title);
    return h("th", { scope: "col", class: column.number ? "number" : null },
      column.node ? h("span", {}, column.title) : button);
  });
  const body = h("tbody");
  const nothing = h("p", { class: "empty" }, empty);
  const scroll = h("div", { class: "scroll", role: "region", "aria-label": caption, tabindex: "0" },
    h("table", {}, h("caption", {}, caption), h("thead", {}, h("tr", {}, ...heads)), body));

  function choose(index) {
    down = by === index ? !down : false;
    by = index;
    show();
  }

  function sorted() {
    if (by === null) return rows;
    const value = columns[by].value ?? columns[by].text;
    const found = [...rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      return typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
    });
    return down ? found.reverse() : found;
  }

  function show() {
    heads.forEach((head, index) => {
      if (index === by) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    nothing.hidden = rows.length > 0;
    scroll.hidden = rows.length === 0;
    keyed(body, sorted(), keyOf,
      (item) => h("tr", {}, ...columns.map((column) =>
        h("td", { class: column.number ? "number" : column.long ? "long" : null },
          column.node ? column.node(item) : ""))),
      (row, item) => columns.forEach((column, index) => {
        const cell = row.children[index];
        if (!column.node) setText(cell, column.text(item));
        if (column.mark) cell.className = `${column.mark(item)}${column.long ? " long" : ""}`;
      }));
  }

  show();
  return { element: h("div", { class: "table" }, scroll, nothing), update(items) { rows = items; show(); } };
}

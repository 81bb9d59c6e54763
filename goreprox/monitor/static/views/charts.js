// Lines over the last hour, drawn by hand.

import { h, setText, svg } from "../dom.js";

const WIDTH = 480;
const HEIGHT = 160;
const BOTTOM = 18;
const TOP = 14;
const HOUR_S = 3600;
const GAP_S = 20; // without samples: the line is interrupted

// The smallest of 1, 2, 5, 10, 20, ... that is not below a value.
function round(value) {
  const unit = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 2, 5, 10].map((step) => step * unit).find((step) => step >= value) ?? 1;
}

function path(points, x, y) {
  let before = -Infinity;
  return points.map(([at, value]) => {
    const move = at - before > GAP_S ? "M" : "L";
    before = at;
    return `${move}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
  }).join("");
}

// `lines` are pairs of a class and a name; `write` writes a value for people.
export function chart(title, write, lines) {
  const drawn = lines.map(([name]) => svg("path", { class: `line ${name}` }));
  const top = svg("text", { x: 0, y: TOP - 4 });
  const axis = [0, 15, 30, 45, 60].map((minutes) => {
    const at = WIDTH * (1 - minutes / 60);
    return svg("g", { class: "axis" }, svg("line", { x1: at, x2: at, y1: TOP, y2: HEIGHT - BOTTOM }),
      svg("text", { x: at, y: HEIGHT - 4, "text-anchor": { 0: "end", 60: "start" }[minutes] ?? "middle" },
        minutes === 0 ? "now" : `${minutes} min`));
  });
  const image = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" }, ...axis,
    svg("line", { class: "axis", x1: 0, x2: WIDTH, y1: TOP, y2: TOP }), top, ...drawn);
  const values = lines.map(() => h("span"));
  const legend = h("figcaption", {}, h("strong", {}, title), ...lines.flatMap(([name, text], index) =>
    [" ", h("span", { class: `key ${name}` }, ""), ` ${text} `, values[index]]));
  return {
    element: h("figure", { class: "chart" }, legend, image),
    update(now, points) {
      const recent = points.map((line) => line.filter(([at]) => at > now - HOUR_S));
      const most = round(Math.max(1, ...recent.flat().map(([, value]) => value)));
      const x = (at) => WIDTH * (1 - (now - at) / HOUR_S);
      const y = (value) => HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (value / most);
      recent.forEach((line, index) => {
        drawn[index].setAttribute("d", path(line, x, y));
        setText(values[index], line.length ? write(line.at(-1)[1]) : "");
      });
      setText(top, write(most));
      image.setAttribute("aria-label", `${title} of the last hour, at most ${write(most)}; now `
        + recent.map((line, index) => `${line.length ? write(line.at(-1)[1]) : "nothing"} ${lines[index][1]}`).join(", "));
    },
  };
}

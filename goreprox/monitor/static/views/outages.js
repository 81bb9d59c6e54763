// Outages of the last hour on a line of time, what each has replayed, and everything else that has happened.

import { h, keyed, svg, table } from "../dom.js";
import { dateOf, duration, size, timeOf } from "../format.js";

const HOUR_S = 3600;
const WIDTH = 800;
const LEFT = 190;
const ROW = 26;

function x(at, now) {
  return LEFT + (WIDTH - LEFT) * Math.min(Math.max(1 - (now - at) / HOUR_S, 0), 1);
}

export default {
  name: "outages",
  title: "Outages",
  mount(root, model) {
    const bars = svg("g");
    const axis = svg("g", { class: "axis" });
    const line = svg("svg", { class: "timeline", role: "img" }, axis, bars);
    const list = table({
      caption: "Outages",
      empty: "No outage that this dashboard knows of.",
      keyOf: (outage) => outage.key,
      sort: 0,
      descending: true,
      columns: [
        { title: "began", text: (outage) => dateOf(new Date(outage.began * 1000)), value: (outage) => outage.began },
        { title: "process", text: (outage) => outage.process },
        { title: "peer", text: (outage) => outage.peer },
        { title: "lasted", text: (outage) => (outage.ended === null ? "lasts" : duration(outage.ended - outage.began)),
          value: (outage) => (outage.ended ?? model.at) - outage.began, number: true,
          mark: (outage) => (outage.ended === null ? "bad number" : "number") },
        { title: "streams", text: (outage) => String(outage.streams), value: (outage) => outage.streams, number: true },
        { title: "replayed", text: (outage) => (outage.replayed === null ? "" : size(outage.replayed)),
          value: (outage) => outage.replayed ?? 0, number: true },
        { title: "reason", text: (outage) => outage.reason, long: true },
      ],
    });
    const events = table({
      caption: "What has happened",
      keyOf: (event) => event.key,
      sort: 0,
      descending: true,
      columns: [
        { title: "when", text: (event) => dateOf(new Date(event.at)), value: (event) => event.at },
        { title: "process", text: (event) => event.process },
        { title: "event", text: (event) => event.event },
        { title: "what", text: (event) => event.message, long: true },
      ],
    });
    root.append(h("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": "Outages of the last hour" }, line),
      list.element, events.element);

    function draw(outages) {
      const now = model.at;
      const recent = outages.filter((outage) => (outage.ended ?? now) > now - HOUR_S);
      const sessions = [...new Set(recent.map((outage) => `${outage.process} – ${outage.peer}`))].sort();
      const height = Math.max(sessions.length, 1) * ROW + 24;
      line.setAttribute("viewBox", `0 0 ${WIDTH} ${height}`);
      line.setAttribute("aria-label", `${recent.length} outages in the last hour; the table below has them`);
      const ticks = [0, 15, 30, 45, 60];
      axis.replaceChildren(
        ...ticks.map((minutes) => svg("line", { x1: x(now - minutes * 60, now), x2: x(now - minutes * 60, now), y1: 0,
          y2: height - 18 })),
        ...ticks.map((minutes) => svg("text", { x: x(now - minutes * 60, now), y: height - 4,
          "text-anchor": minutes === 0 ? "end" : "middle" }, timeOf(new Date((now - minutes * 60) * 1000)).slice(0, 5))),
        ...sessions.map((name, row) => svg("text", { x: 0, y: row * ROW + 18 },
          name.length > 28 ? `${name.slice(0, 27)}…` : name)));
      keyed(bars, recent, (outage) => outage.key,
        () => svg("rect", { height: ROW - 8, rx: 3 }, svg("title")),
        (bar, outage) => {
          const begin = x(outage.began, now);
          bar.setAttribute("class", outage.ended === null ? "lasts" : "over");
          bar.setAttribute("x", begin);
          bar.setAttribute("y", sessions.indexOf(`${outage.process} – ${outage.peer}`) * ROW + 4);
          bar.setAttribute("width", Math.max(x(outage.ended ?? now, now) - begin, 3));
          bar.firstChild.textContent = `${timeOf(new Date(outage.began * 1000))}: ${outage.ended === null ? "lasts"
            : `${duration(outage.ended - outage.began)}, ${size(outage.replayed)} replayed`}`;
        });
    }

    return {
      update() {
        const outages = model.outages;
        draw(outages);
        list.update(outages);
        events.update(model.happened);
      },
    };
  },
};

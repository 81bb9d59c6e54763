// A picture of edges, brokers and providers, and of the ways between them: those in use, standing by, and lost. It is
// made of all statuses of this machine, so processes elsewhere appear as far as these know them.

import { h, keyed, svg } from "../dom.js";
import { milliseconds } from "../format.js";

const COLUMNS = ["Edges", "Brokers", "Providers"];
const WIDTH = 760;
const BOX = 180;
const ROW = 62;
const TOP = 26;
const RANK = { lost: 0, standby: 1, use: 2 };

class Graph {
  nodes = new Map();
  lines = new Map();

  node(id, column, title, detail, state = "up") {
    const before = this.nodes.get(id);
    if (!before || before.state === "seen") this.nodes.set(id, { id, column, title, detail, state });
    return id;
  }

  line(from, to, state, round = null) {
    if (from === to) return;
    const key = [from, to].sort().join(" ");
    const before = this.lines.get(key);
    if (!before || RANK[state] > RANK[before.state]) this.lines.set(key, { key, from, to, state, round });
    else if (before.state === state && before.round === null) before.round = round;
  }
}

function brokerOf(graph, label, side, statuses) {
  const port = Number(label.split(":").pop());
  const found = statuses.find(([, status]) => status.broker && (status.ports[side] ?? []).includes(port));
  if (found) return `broker ${found[1].incarnation}`;
  return graph.node(`at ${label}`, 1, label, "elsewhere", "seen");
}

function build(statuses) {
  const graph = new Graph();
  for (const [who, status] of statuses) {
    const detail = `${status.role}${status.draining ? ", draining" : ""}`;
    if (status.role === "broker") graph.node(`broker ${status.incarnation}`, 1, status.name, who);
    else graph.node(status.incarnation, status.role === "provider" ? 2 : 0, status.name, detail);
    if (status.role === "server") {
      graph.node(`broker ${status.incarnation}`, 1, status.name, "its broker");
      graph.line(status.incarnation, `broker ${status.incarnation}`, "use");
    }
  }
  for (const [, status] of statuses) {
    if (status.role === "broker") continue;
    const own = status.incarnation;
    const side = status.role === "provider" ? "providers" : "edges";
    for (const link of status.links) {
      const used = status.peers.flatMap((peer) => peer.paths)
        .filter((path) => path.label === link.label && path.in_use);
      const rounds = used.map((path) => path.round_trip_s).filter((round) => round !== null);
      graph.line(own, brokerOf(graph, link.label, side, statuses),
        link.state !== "up" ? "lost" : used.length ? "use" : "standby", rounds.length ? Math.min(...rounds) : null);
    }
    for (const peer of status.peers) {
      const there = graph.node(peer.incarnation, peer.role === "provider" ? 2 : 0, peer.name,
        `${peer.process ?? peer.role}${peer.machine ? ` on ${peer.machine}` : ""}`, "seen");
      const isHere = statuses.some(([, other]) => other.incarnation === peer.incarnation);
      for (const path of peer.paths) {
        const state = path.in_use ? "use" : "standby";
        if (status.role === "server") graph.line(`broker ${own}`, there, state, path.round_trip_s);
        else if (!isHere) graph.line(brokerOf(graph, path.label, side, statuses), there, state);
      }
      if (!peer.paths.length) graph.line(status.role === "server" ? `broker ${own}` : own, there, "lost");
    }
  }
  for (const [, status] of statuses) {
    if (status.role !== "broker") continue;
    for (const member of status.broker.members) {
      const there = graph.node(member.incarnation, member.role === "provider" ? 2 : 0, member.name, member.role, "seen");
      graph.line(`broker ${status.incarnation}`, there, "standby");
    }
  }
  return graph;
}

function placed(graph) {
  const columns = COLUMNS.map((_, column) => [...graph.nodes.values()].filter((node) => node.column === column)
    .sort((a, b) => a.title.localeCompare(b.title) || a.id.localeCompare(b.id)));
  const rows = Math.max(1, ...columns.map((nodes) => nodes.length));
  columns.forEach((nodes, column) => nodes.forEach((node, row) => {
    node.x = column * (WIDTH - BOX) / (COLUMNS.length - 1);
    node.y = TOP + (row + (rows - nodes.length) / 2) * ROW;
  }));
  return rows;
}

const short = (text) => (text.length > 24 ? `${text.slice(0, 23)}…` : text);

export function topology() {
  const lines = svg("g");
  const nodes = svg("g");
  const image = svg("svg", { class: "topology", role: "img" },
    ...COLUMNS.map((title, column) => svg("text", { class: "column", x: column * (WIDTH - BOX) / 2, y: 14 }, title)),
    lines, nodes);
  const key = h("p", { class: "legend" }, ...[["use", "in use"], ["standby", "standing by"], ["lost", "lost"]]
    .flatMap(([state, text]) => [svg("svg", { class: "topology sample", viewBox: "0 0 30 8", "aria-hidden": "true" },
      svg("path", { class: state, d: "M0 4H30" })), ` ${text}  `]));

  function drawLine(group, line, graph) {
    const [a, b] = [graph.nodes.get(line.from), graph.nodes.get(line.to)].sort((one, other) => one.x - other.x);
    const [x1, x2] = a.x === b.x ? [a.x + BOX, b.x + BOX] : [a.x + BOX, b.x];
    const [y1, y2] = [a.y + 21, b.y + 21];
    const [path, text] = group.children;
    path.setAttribute("class", line.state);
    path.setAttribute("d", `M${x1} ${y1}C${(x1 + x2) / 2} ${y1} ${(x1 + x2) / 2} ${y2} ${x2} ${y2}`);
    text.setAttribute("x", (x1 + x2) / 2);
    text.setAttribute("y", (y1 + y2) / 2 - 6);
    text.textContent = line.state === "use" ? milliseconds(line.round) : "";
  }

  return {
    element: h("div", { class: "card" },
      h("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": "Topology" }, image), key),
    update(model) {
      const graph = build(model.statuses);
      const rows = placed(graph);
      image.setAttribute("viewBox", `-2 0 ${WIDTH + 4} ${TOP + rows * ROW}`);
      const states = [...graph.lines.values()].map((line) => line.state);
      const counted = (state) => states.filter((each) => each === state).length;
      image.setAttribute("aria-label", `${graph.nodes.size} processes; ways between them: ${counted("use")} in use, `
        + `${counted("standby")} standing by, ${counted("lost")} lost. The table of paths has them all.`);
      keyed(lines, [...graph.lines.values()], (line) => line.key,
        () => svg("g", {}, svg("path"), svg("text", { "text-anchor": "middle" })),
        (group, line) => drawLine(group, line, graph));
      keyed(nodes, [...graph.nodes.values()], (node) => node.id,
        () => svg("g", {}, svg("rect", { width: BOX, height: 44, rx: 6 }), svg("text", { class: "title", x: 10, y: 19 }),
          svg("text", { class: "detail", x: 10, y: 35 })),
        (group, node) => {
          group.setAttribute("transform", `translate(${node.x} ${node.y})`);
          group.setAttribute("class", `node ${node.state}`);
          group.children[1].textContent = short(node.title);
          group.children[2].textContent = short(node.detail);
        });
    },
  };
}

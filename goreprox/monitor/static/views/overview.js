// The processes and the ways between them, the last hour, services and where clients find them, and their targets.

import { h, setText, table } from "../dom.js";
import { count, duration, milliseconds, rate } from "../format.js";
import { chart } from "./charts.js";
import { topology } from "./topology.js";

const HOUR_S = 3600;
const CLIENT_SIDE = ["server", "edge"];

function tile(title) {
  const value = h("dd");
  return { element: h("div", { class: "tile" }, h("dt", {}, title), value), set: (text) => setText(value, text) };
}

function processes() {
  return table({
    caption: "Processes",
    empty: "No process runs in this runtime directory.",
    keyOf: (each) => each.who,
    sort: 0,
    columns: [
      { title: "process", text: (each) => each.who },
      { title: "state", text: (each) => each.state, mark: (each) => each.mark, long: true },
      { title: "up", text: (each) => (each.status ? duration(each.status.up_s) : ""),
        value: (each) => each.status?.up_s ?? 0, number: true },
      { title: "connections", text: (each) => (each.status?.streams ? count(each.status.streams.open) : ""),
        value: (each) => each.status?.streams?.open ?? 0, number: true },
      { title: "version", text: (each) => (each.status ? each.status.version : "") },
      { title: "pid", text: (each) => (each.status ? String(each.status.pid) : ""), number: true },
    ],
  });
}

function process(each) {
  const { who, report, status } = each;
  if (status === null) return { who, status, state: report.reason ?? "does not respond", mark: "bad" };
  if (status.draining) return { who, status, state: "draining", mark: "warn" };
  if (!report.ready) return { who, status, state: report.reason, mark: "bad" };
  if (report.missing.length) return { who, status, state: `no provider: ${report.missing.join(", ")}`, mark: "warn" };
  return { who, status, state: "ready", mark: "good" };
}

function paths() {
  return table({
    caption: "Paths",
    empty: "No session.",
    keyOf: (path) => path.key,
    sort: 0,
    columns: [
      { title: "process", text: (path) => path.who },
      { title: "peer", text: (path) => path.peer },
      { title: "broker", text: (path) => path.broker },
      { title: "path", text: (path) => path.state, mark: (path) => path.mark, long: true },
      { title: "round trip", text: (path) => milliseconds(path.round), value: (path) => path.round ?? 0, number: true },
      { title: "outages", text: (path) => count(path.outages), value: (path) => path.outages, number: true },
    ],
  });
}

function pathsOf(who, status) {
  return status.peers.flatMap((peer) => {
    const row = { who, peer: `${peer.role} ${peer.name}`, outages: peer.outages };
    const key = `${who} ${peer.incarnation}`;
    const up = peer.paths.map((path) => ({ ...row, key: `${key} ${path.label}`, broker: path.label,
      state: path.in_use ? "in use" : "standing by", mark: path.in_use ? "good" : "", round: path.round_trip_s }));
    if (up.length) return up;
    return [{ ...row, key, broker: "", state: `lost ${duration(peer.down_s ?? 0)} ago`, mark: "bad", round: null }];
  }).concat(status.links.filter((link) => link.state !== "up").map((link) => ({ who, key: `${who} ${link.label}`,
    peer: "", broker: link.label, state: link.problem ?? "connecting", mark: "bad", round: null, outages: 0 })));
}

function services() {
  return table({
    caption: "Services and where clients find them",
    empty: "No service.",
    keyOf: (service) => service.key,
    sort: 0,
    columns: [
      { title: "service", text: (service) => service.name },
      { title: "process", text: (service) => service.who },
      { title: "where", text: (service) => service.where.join(", "), long: true },
      { title: "served by", text: (service) => service.by.join(", ") || "nobody",
        mark: (service) => (service.by.length ? "good" : "warn") },
      { title: "problem", text: (service) => service.problem ?? "", long: true },
    ],
  });
}

function servicesOf(who, status) {
  if (!CLIENT_SIDE.includes(status.role)) return [];
  const by = (name) => status.peers.filter((peer) => peer.services.includes(name) && peer.state !== "down")
    .map((peer) => peer.name);
  const own = Object.entries(status.services).map(([name, where]) =>
    ({ key: `${who} ${name}`, who, name, where, by: by(name), problem: null }));
  const published = Object.entries(status.published ?? {}).map(([name, each]) =>
    ({ key: `${who} published ${name}`, who, name, where: each.at, by: by(name), problem: each.problem }));
  return [...own, ...published];
}

function targets() {
  return table({
    caption: "Targets",
    empty: "No provider runs on this machine.",
    keyOf: (target) => target.key,
    sort: 0,
    columns: [
      { title: "service", text: (target) => target.name },
      { title: "process", text: (target) => target.who },
      { title: "target", text: (target) => target.where.join(", ") },
      { title: "health", text: (target) => target.state, mark: (target) => target.mark },
      { title: "check", text: (target) => target.check },
      { title: "problem", text: (target) => target.problem, long: true },
      { title: "failed dials", text: (target) => count(target.failures), value: (target) => target.failures,
        number: true },
    ],
  });
}

const HEALTH = { well: "good", withdrawn: "bad", unknown: "warn" };

function targetsOf(who, status) {
  if (status.role !== "provider") return [];
  return Object.entries(status.services).map(([name, where]) => {
    const check = (status.checks ?? {})[name];
    return { key: `${who} ${name}`, who, name, where, check: check?.check ?? "",
      state: check ? `${check.condition} for ${duration(check.since_s)}` : "not checked", mark: HEALTH[check?.condition] ?? "",
      problem: check?.problem ?? "", failures: status.counters?.dial_failures[name] ?? 0 };
  });
}

export default {
  name: "overview",
  title: "Overview",
  mount(root, model) {
    const tiles = Object.fromEntries([["open", "Connections"], ["sent", "From clients"], ["received", "To clients"],
      ["ready", "Processes ready"], ["outages", "Outages in the last hour"]].map(([key, title]) => [key, tile(title)]));
    const map = topology();
    const tables = [[processes(), (who, status, each) => [process(each)]], [services(), servicesOf],
      [targets(), targetsOf], [paths(), pathsOf]];
    const choice = h("select", { id: "of", on: { change: () => update() } });
    const throughput = chart("Throughput", rate, [["sent", "from sockets"], ["received", "to sockets"]]);
    const open = chart("Connections", count, [["open", "open"]]);
    root.append(h("dl", { class: "tiles" }, ...Object.values(tiles).map((each) => each.element)),
      map.element,
      h("div", { class: "pair" }, throughput.element, open.element),
      h("p", {}, h("label", { for: "of" }, "The last hour of "), choice),
      ...tables.map(([each]) => each.element));

    // The processes of a role count each connection once; edge and provider on one machine count it both.
    function side() {
      const roles = model.statuses.filter(([, status]) => status.streams).map(([who, status]) => [who, status.role]);
      const clients = roles.filter(([, role]) => CLIENT_SIDE.includes(role));
      return (clients.length ? clients : roles).map(([who]) => who);
    }

    function choose() {
      const known = [...model.history.keys()].sort();
      const wanted = ["", ...known];
      if (wanted.join("\n") === [...choice.options].map((option) => option.value).join("\n")) return;
      const before = choice.value;
      choice.replaceChildren(...wanted.map((who) => h("option", { value: who }, who || "all that accept clients")));
      choice.value = wanted.includes(before) ? before : "";
    }

    function update() {
      choose();
      const of = choice.value ? [choice.value] : side();
      const sums = new Map();
      for (const who of of) {
        for (const [at, ...values] of model.history.get(who) ?? []) {
          const sum = sums.get(at) ?? [0, 0, 0];
          sums.set(at, sum.map((value, index) => value + values[index]));
        }
      }
      const samples = [...sums].sort((a, b) => a[0] - b[0]);
      const line = (index) => samples.map(([at, values]) => [at, values[index]]);
      throughput.update(model.at, [line(1), line(2)]);
      open.update(model.at, [line(0)]);
      const statuses = new Map(model.statuses);
      const last = samples.at(-1)?.[1] ?? [0, 0, 0];
      tiles.open.set(count(of.reduce((sum, who) => sum + (statuses.get(who)?.streams?.open ?? 0), 0)));
      tiles.sent.set(rate(last[1]));
      tiles.received.set(rate(last[2]));
      tiles.ready.set(`${model.processes.filter((each) => each.report.ready).length} of ${model.processes.length}`);
      tiles.outages.set(count(model.outages.filter((each) => (each.ended ?? model.at) > model.at - HOUR_S).length));
      map.update(model);
      for (const [list, rowsOf] of tables) {
        list.update(model.processes.flatMap((each) =>
          (each.status || rowsOf.length === 3 ? rowsOf(each.who, each.status, each) : [])));
      }
    }

    return { update };
  },
};

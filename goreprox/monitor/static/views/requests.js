// The requests that servers and edges with --inspect have kept; one of them with its response; and its replay.

import { h, setText, table } from "../dom.js";
import { count, milliseconds, size, timeOf } from "../format.js";
import { get, post } from "../session.js";

const EVERY_MS = 2000;
const CONDITIONS = {
  service: (row, value) => row.service === value,
  status: (row, value) => String(row.status ?? "").startsWith(value),
  method: (row, value) => row.method === value.toUpperCase(),
  client: (row, value) => row.client.startsWith(value),
};
const numberOf = (id) => Number(id.split("-")[1]);
const markOf = (id) => id.split("-")[0];

// Splits `status:5 /login` into conditions of fields, and words to look for.
function parse(text) {
  return text.trim().split(/\s+/).filter(Boolean).map((word) => {
    const [name, ...value] = word.split(":");
    if (name in CONDITIONS && value.join("")) return (row) => CONDITIONS[name](row, value.join(":"));
    return (row) => `${row.id} ${row.method} ${row.host}${row.path} ${row.service} ${row.client} ${row.status ?? ""} `
      .concat(row.error ?? "", " ", row.replay_of ?? "").toLowerCase().includes(word.toLowerCase());
  });
}

// What is known of the requests of all processes, from one list after the other.
class Kept {
  #processes = new Map(); // by process: `after`, and its rows by id

  get after() {
    return [...this.#processes.values()].map((each) => each.after);
  }

  get rows() {
    return [...this.#processes].flatMap(([who, each]) => [...each.rows.values()].map((row) => ({ ...row, who })));
  }

  take(processes) {
    const before = this.#processes;
    this.#processes = new Map();
    for (const { who, after, oldest, requests } of processes) {
      if (after === null) continue;
      const known = before.get(who);
      const rows = known && markOf(known.after) === markOf(after) ? known.rows : new Map();
      for (const row of requests) rows.set(row.id, row);
      for (const id of rows.keys()) if (oldest === null || numberOf(id) < numberOf(oldest)) rows.delete(id);
      this.#processes.set(who, { after, rows });
    }
  }
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

function message(title, first, part) {
  if (part === null) return null;
  const { body } = part;
  const fields = [...part.fields, ...part.trailers].map(([name, value]) => `${name}: ${value}`).join("\n");
  const notes = [`${count(body.bytes)} bytes`, body.type, body.encoding, body.note].filter(Boolean).join(", ");
  return h("section", {}, h("h3", {}, title),
    h("pre", { tabindex: "0", "aria-label": `Header section of the ${title.toLowerCase()}` }, `${first}\n${fields}`),
    body.bytes ? h("p", {}, `Body: ${notes}`) : null,
    body.text ? h("pre", { tabindex: "0", "aria-label": `Body of the ${title.toLowerCase()}` }, pretty(body.text)) : null);
}

function timing(times) {
  const parts = [["queue", times.queue_s], ["target", times.target_s], ["transfer", times.transfer_s]];
  return parts.filter(([, value]) => value !== null).map(([name, value]) => `${name} ${milliseconds(value)}`).join(", ");
}

function save(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  h("a", { href: url, download: name }).click();
  URL.revokeObjectURL(url);
}

export default {
  name: "requests",
  title: "Requests",
  mount(root, model) {
    const kept = new Kept();
    let filter = [];
    let timer = 0;
    let left = false;
    let isOn = false;
    const list = table({
      caption: "Requests",
      keyOf: (row) => row.id,
      sort: 1,
      descending: true,
      columns: [
        { title: "id", node: (row) => h("button", { type: "button", "aria-label": `Show ${row.id}`,
          on: { click: () => open(row.id) } }, row.id) },
        { title: "at", text: (row) => timeOf(new Date(row.at)), value: (row) => row.at },
        { title: "method", text: (row) => row.method },
        { title: "host", text: (row) => row.host },
        { title: "path", text: (row) => row.path, long: true },
        { title: "service", text: (row) => row.service },
        { title: "client", text: (row) => row.client },
        { title: "status", text: (row) => String(row.status ?? (row.over ? "none" : "…")),
          mark: (row) => (row.error ? "bad" : "") },
        { title: "took", text: (row) => milliseconds(row.duration_s), value: (row) => row.duration_s, number: true },
        { title: "sent", text: (row) => size(row.request_bytes), value: (row) => row.request_bytes, number: true },
        { title: "received", text: (row) => size(row.response_bytes), value: (row) => row.response_bytes,
          number: true },
        { title: "notes", text: (row) => [row.error, row.replay_of && `replay of ${row.replay_of}`]
          .filter(Boolean).join(", ") },
      ],
    });
    const told = h("p", { role: "status" });
    const problem = h("p", { role: "alert" });
    const input = h("input", { id: "filter", type: "search", placeholder: "service:web status:5 /login",
      on: { input: () => { filter = parse(input.value); show(); } } });
    const one = h("section", { class: "request", "aria-live": "polite" });

    async function open(id) {
      try {
        const found = await get(`/api/requests/detail?${new URLSearchParams({ id })}`);
        if (left) return;
        setText(problem, "");
        one.replaceChildren(...detail(found));
        one.querySelector("h2").focus();
      } catch (error) {
        setText(problem, error.message);
      }
    }

    function detail(found) {
      const done = h("span", { role: "status" });
      const command = h("pre", { class: "curl", tabindex: "0", "aria-label": "Command for curl" }, found.curl);
      const { curl, ...document } = found;
      const buttons = [
        h("button", { type: "button", on: { click: () => copy(curl, done) } }, "Copy as curl"),
        h("button", { type: "button", on: { click: () => save(`${found.id}.json`, JSON.stringify(document, null, 2)) } },
          "Download"),
        h("button", { type: "button", on: { click: () => one.replaceChildren() } }, "Close"),
      ];
      if (model.allowActions) {
        buttons.unshift(h("button", { type: "button", disabled: found.not_replayable !== null,
          on: { click: () => replay(found.id, done) } }, "Replay"));
      }
      const facts = [`${found.client} to ${found.service || "no service"}`, found.provider && `by ${found.provider}`,
        found.token && `token ${found.token}`, timing(found.timing), found.replay_of && `replay of ${found.replay_of}`,
        found.error, found.not_replayable && `cannot be sent once more: ${found.not_replayable}`];
      return [
        h("h2", { tabindex: "-1" }, `${found.method} ${found.host}${found.path}`),
        h("p", {}, facts.filter(Boolean).join("; ")),
        h("p", {}, ...buttons.flatMap((button) => [button, " "]), done),
        message("Request", `${found.method} ${found.path} HTTP/${found.version}`, found.request),
        message("Response", `${found.status} ${found.reason}`, found.response),
        h("section", {}, h("h3", {}, "curl"), command),
      ].filter((each) => each !== null);
    }

    async function copy(text, done) {
      try {
        await navigator.clipboard.writeText(text);
        setText(done, "copied; replace what is masked (***)");
      } catch {
        setText(done, "the browser does not let the page copy: select the command below");
      }
    }

    async function replay(id, done) {
      setText(done, "waiting for the response");
      try {
        const again = await post("/api/requests/replay", { id });
        setText(done, "");
        await look();
        await open(again.id);
      } catch (error) {
        setText(done, error.message);
      }
    }

    function show() {
      const rows = kept.rows.filter((row) => filter.every((fits) => fits(row)));
      list.update(rows);
      setText(told, isOn ? `${count(rows.length)} shown; secrets are masked`
        : "No process keeps requests: start a server or an edge with --inspect.");
    }

    async function look() {
      clearTimeout(timer);
      try {
        const found = await get(`/api/requests?${new URLSearchParams(kept.after.map((id) => ["after", id]))}`);
        if (left) return;
        kept.take(found.processes);
        isOn = found.processes.some((each) => each.inspecting);
        setText(problem, found.problems.join("; "));
        show();
      } catch (error) {
        setText(problem, error.message);
      }
      clearTimeout(timer);
      if (!left) timer = setTimeout(look, EVERY_MS);
    }

    root.append(h("p", {}, h("label", { for: "filter" }, "Filter "), input), told, problem, list.element, one);
    look();
    return { update() {}, leave() { left = true; clearTimeout(timer); } };
  },
};

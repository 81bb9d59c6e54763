// The open connections, as the processes list them while this view is shown; and their end, where that is allowed.

import { h, setText, table } from "../dom.js";
import { count, duration, rate, size } from "../format.js";
import { get, post } from "../session.js";

const EVERY_MS = 2000;
const CONDITIONS = ["service", "client", "provider"];

// Splits `service:web 10.1` into the conditions that processes know, and words to look for here.
function parse(text) {
  const words = text.trim().split(/\s+/).filter(Boolean);
  const query = new URLSearchParams();
  const rest = [];
  for (const word of words) {
    const [name, ...value] = word.split(":");
    if (CONDITIONS.includes(name) && value.length && value.join("")) query.set(name, value.join(":"));
    else rest.push(word.toLowerCase());
  }
  return { query: query.toString(), words: rest };
}

function rows(found, before) {
  return found.processes.flatMap(({ who, streams }) => streams.map((stream) => {
    const then = before.get(stream.id);
    const seconds = Math.max(then ? stream.at_s - then.at_s : stream.open_s, 0.001);
    const perSecond = (name) => Math.max(stream[name] - (then ? then[name] : 0), 0) / seconds;
    return { ...stream, who, sent: perSecond("sent_bytes"), received: perSecond("received_bytes") };
  }));
}

const more = (stream) => ["target", "host", "token", "certificate"]
  .filter((name) => name in stream).map((name) => `${name} ${stream[name]}`).join(", ");

export default {
  name: "streams",
  title: "Streams",
  mount(root, model) {
    let before = new Map();
    let listed = [];
    let filter = parse("");
    let timer = 0;
    let left = false;
    const actions = model.allowActions
      ? [{ title: "end", node: (stream) => h("button", { type: "button", "aria-label": `End ${stream.id}`,
        on: { click: () => ask(stream) } }, "End") }]
      : [];
    const list = table({
      caption: "Open connections",
      keyOf: (stream) => stream.id,
      sort: actions.length + 5,
      columns: [
        ...actions,
        { title: "id", text: (stream) => stream.id },
        { title: "process", text: (stream) => stream.who },
        { title: "client", text: (stream) => stream.client },
        { title: "service", text: (stream) => stream.service },
        { title: "by way of", text: (stream) => stream.peer ?? "" },
        { title: "open", text: (stream) => duration(stream.open_s), value: (stream) => stream.open_s, number: true },
        { title: "state", text: (stream) => stream.state },
        { title: "sent", text: (stream) => size(stream.sent_bytes), value: (stream) => stream.sent_bytes, number: true },
        { title: "received", text: (stream) => size(stream.received_bytes), value: (stream) => stream.received_bytes,
          number: true },
        { title: "sent/s", text: (stream) => rate(stream.sent), value: (stream) => stream.sent, number: true },
        { title: "received/s", text: (stream) => rate(stream.received), value: (stream) => stream.received,
          number: true },
        { title: "outages", text: (stream) => String(stream.outages), value: (stream) => stream.outages, number: true },
        { title: "more", text: more, long: true },
      ],
    });
    const told = h("p", { role: "status" });
    const problem = h("p", { role: "alert" });
    const input = h("input", { id: "filter", type: "search", placeholder: "service:web 198.51.100.7",
      on: { input: () => { filter = parse(input.value); again(); } } });
    const question = h("p", { id: "question" });
    const dialog = h("dialog", { "aria-labelledby": "question" },
      h("form", { method: "dialog" }, question,
        h("button", { value: "end" }, "End it"), " ", h("button", { value: "", autofocus: true }, "Keep it")));

    function ask(stream) {
      setText(question, `End the connection of ${stream.client} to ${stream.service}? Both sides are reset.`);
      dialog.returnValue = "";
      dialog.onclose = async () => {
        if (dialog.returnValue !== "end") return;
        try {
          await post("/api/streams/end", { ids: [stream.id] });
          setText(problem, "");
        } catch (error) {
          setText(problem, error.message);
        }
        again();
      };
      dialog.showModal();
    }

    function show() {
      const words = filter.words;
      const found = words.length === 0 ? listed : listed.filter((stream) => {
        const text = `${stream.id} ${stream.who} ${stream.client} ${stream.service} ${stream.peer ?? ""} ${stream.state} `
          + more(stream);
        return words.every((word) => text.toLowerCase().includes(word));
      });
      list.update(found);
      return found.length;
    }

    async function look() {
      try {
        const asked = filter;
        const found = await get(`/api/streams?${asked.query}`);
        if (left || asked !== filter) return;
        listed = rows(found, before);
        before = new Map(listed.map((stream) => [stream.id, stream]));
        const shown = show();
        const whole = found.processes.every((each) => each.is_whole);
        setText(told, `${count(shown)} shown${whole ? "" : ", of the first 1,000 of each process: give service:NAME, "
          + "client:NETWORK or provider:NAME"}`);
        setText(problem, found.problems.join("; "));
      } catch (error) {
        setText(problem, error.message);
      }
      clearTimeout(timer);
      if (!left) timer = setTimeout(look, EVERY_MS);
    }

    function again() {
      clearTimeout(timer);
      show();
      look();
    }

    root.append(h("p", {}, h("label", { for: "filter" }, "Filter "), input), told, problem, list.element, dialog);
    look();
    return { update() {}, leave() { left = true; clearTimeout(timer); } };
  },
};

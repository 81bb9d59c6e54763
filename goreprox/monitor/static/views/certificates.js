// Certificates with their expiry, those by ACME included; keys of peers, and tokens with their expiry.

import { h, setText, table } from "../dom.js";
import { dateOf, duration } from "../format.js";
import { get } from "../session.js";

const WARN_S = 14 * 86400;

function until(at, now) {
  if (at === null) return "there is none";
  return at <= now ? `expired ${duration(now - at)} ago` : `in ${duration(at - now)}`;
}

function mark(at, now) {
  if (at === null || at <= now) return "bad";
  return at - now < WARN_S ? "warn" : "good";
}

export default {
  name: "certificates",
  title: "Certificates",
  mount(root, model) {
    const list = table({
      caption: "Certificates",
      empty: "No process shows certificates to its clients.",
      keyOf: (each) => each.key,
      sort: 3,
      columns: [
        { title: "process", text: (each) => each.who },
        { title: "option", text: (each) => each.option },
        { title: "file or host", text: (each) => each.what, long: true },
        { title: "expires", text: (each) => until(each.at, model.at), value: (each) => each.at ?? 0,
          mark: (each) => mark(each.at, model.at) },
        { title: "at", text: (each) => (each.at === null ? "" : dateOf(new Date(each.at * 1000))) },
        { title: "next one", text: (each) => (each.next ? dateOf(new Date(each.next * 1000)) : "") },
        { title: "problem", text: (each) => each.problem ?? "", long: true },
      ],
    });
    const keys = table({
      caption: "Keys and tokens",
      empty: "No process accepts keys or tokens.",
      keyOf: (each) => `${each.who} ${each.kind} ${each.name}`,
      sort: 0,
      columns: [
        { title: "process", text: (each) => each.who },
        { title: "kind", text: (each) => each.kind },
        { title: "name", text: (each) => each.name },
        { title: "services", text: (each) => (each.services === null ? "any" : each.services.join(", ") || "none"),
          long: true },
        { title: "expires", text: (each) => (each.expires_at === null ? "never" : until(each.expires_at, model.at)),
          value: (each) => each.expires_at ?? Infinity,
          mark: (each) => (each.expires_at === null ? "" : mark(each.expires_at, model.at)) },
      ],
    });
    const problem = h("p", { role: "alert" });
    root.append(h("p", {}, "What clients are shown, and which keys and tokens are accepted as this view is opened."),
      list.element, problem, keys.element);
    get("/api/keys").then(({ accepted, problems }) => {
      keys.update(accepted);
      setText(problem, problems.join("; "));
    }, (error) => setText(problem, error.message));
    return {
      update() {
        list.update(model.statuses.flatMap(([who, status]) => [
          ...(status.certificates ?? []).map((each) => ({ key: `${who} ${each.file}`, who, option: each.option,
            what: each.file, at: each.expires_at, next: null, problem: null })),
          ...Object.entries(status.acme ?? {}).map(([host, each]) => ({ key: `${who} acme ${host}`, who,
            option: "acme", what: host, at: each.expires_at, next: each.next_at, problem: each.problem })),
        ]));
      },
    };
  },
};

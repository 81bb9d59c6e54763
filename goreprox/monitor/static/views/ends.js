// The connections that ended last, and why.

import { h, table } from "../dom.js";
import { dateOf, size } from "../format.js";

export default {
  name: "ends",
  title: "Recent ends",
  mount(root, model) {
    const list = table({
      caption: "Connections that ended last",
      keyOf: (end) => end.key,
      sort: 0,
      descending: true,
      columns: [
        { title: "ended", text: (end) => dateOf(new Date(end.ended_at)), value: (end) => end.ended_at },
        { title: "process", text: (end) => end.who },
        { title: "client", text: (end) => end.client },
        { title: "service", text: (end) => end.service },
        { title: "by way of", text: (end) => end.peer ?? "" },
        { title: "sent", text: (end) => size(end.sent_bytes), value: (end) => end.sent_bytes, number: true },
        { title: "received", text: (end) => size(end.received_bytes), value: (end) => end.received_bytes, number: true },
        { title: "code", text: (end) => end.code ?? "", mark: (end) => (end.code === "done" ? "good" : "warn") },
        { title: "reason", text: (end) => end.reason, long: true },
      ],
    });
    root.append(h("p", {}, "The last 20 of each process."), list.element);
    return {
      update() {
        list.update(model.statuses.flatMap(([who, status]) => status.ends.map((end, index) =>
          ({ ...end, who, key: `${who} ${end.ended_at} ${end.client} ${index - status.ends.length}` }))));
      },
    };
  },
};

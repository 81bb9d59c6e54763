// The options that each process runs with, and where they come from, as `goreprox check --show` prints them.

import { h, setText, table } from "../dom.js";
import { get } from "../session.js";

export default {
  name: "configuration",
  title: "Configuration",
  mount(root) {
    let listed = [];
    const problem = h("p", { role: "alert" });
    const isAll = h("input", { type: "checkbox", id: "all", on: { change: () => show() } });
    const list = table({
      caption: "Options",
      empty: "No option is given: all are defaults.",
      keyOf: (option) => `${option.who} ${option.option}`,
      sort: 0,
      columns: [
        { title: "process", text: (option) => option.who },
        { title: "option", text: (option) => option.option },
        { title: "value", text: (option) => option.values.join(", ") || "-", long: true },
        { title: "from", text: (option) => option.source },
      ],
    });

    function show() {
      list.update(isAll.checked ? listed : listed.filter((option) => option.source !== "default"));
    }

    async function look() {
      try {
        const { processes } = await get("/api/options");
        listed = processes.flatMap(({ who, options }) => options.map((option) => ({ ...option, who })));
        setText(problem, "");
        show();
      } catch (error) {
        setText(problem, error.message);
      }
    }

    root.append(h("p", {}, isAll, " ", h("label", { for: "all" }, "Defaults, too"), " ",
      h("button", { type: "button", on: { click: look } }, "Read again")), problem, list.element);
    look();
    return { update() {} };
  },
};

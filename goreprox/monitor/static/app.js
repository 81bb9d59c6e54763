// Signs in, follows what happens, and shows one view at a time, named by the fragment of the URL.
//
// A view is a module in `views/` whose default export has a `name`, a `title`, and `mount(root, model)`, which builds
// it in an element and returns `update()`, called whenever the model has changed, and optionally `leave()`.

import { h, setText } from "./dom.js";
import { Model } from "./model.js";
import { SignedOut, events, isKnown, signIn, signOut } from "./session.js";
import overview from "./views/overview.js";
import streams from "./views/streams.js";
import requests from "./views/requests.js";
import outages from "./views/outages.js";
import ends from "./views/ends.js";
import certificates from "./views/certificates.js";
import configuration from "./views/configuration.js";

const VIEWS = [overview, streams, requests, outages, ends, certificates, configuration];
const AGAIN_MS = 1000;

const main = document.getElementById("main");
const nav = document.getElementById("views");
const form = document.getElementById("sign-in");
const leaving = document.getElementById("sign-out");
const model = new Model();
let shown = null; // the view and what its `mount` has returned
let frame = 0;

function tell(text, mark = "") {
  const state = document.getElementById("state");
  setText(state, text);
  state.className = mark;
}

function named() {
  return VIEWS.find((view) => `#${view.name}` === location.hash) ?? VIEWS[0];
}

function show() {
  const view = named();
  if (shown?.view === view) return;
  shown?.parts.leave?.();
  const root = h("section", { class: `view ${view.name}`, "aria-labelledby": "title" },
    h("h1", { id: "title" }, view.title));
  main.replaceChildren(root);
  shown = { view, parts: view.mount(root, model) };
  shown.parts.update();
  document.title = `${view.title} – Goreprox`;
  for (const link of nav.querySelectorAll("a")) {
    if (link.hash === `#${view.name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function changed() {
  if (frame) return;
  frame = requestAnimationFrame(() => {
    frame = 0;
    shown?.parts.update();
  });
}

function showSignIn(problem) {
  shown?.parts.leave?.();
  shown = null;
  nav.hidden = leaving.hidden = true;
  form.hidden = false;
  main.replaceChildren(form);
  setText(document.getElementById("sign-in-problem"), problem);
  tell("signed out");
}

async function follow() {
  form.hidden = true;
  nav.hidden = leaving.hidden = false;
  for (;;) {
    try {
      let isFirst = true;
      for await (const [event, data] of events("/api/live")) {
        model.take(event, data);
        if (isFirst) {
          tell("live", "good");
          show();
          isFirst = false;
        }
        changed();
      }
    } catch (problem) {
      if (problem instanceof SignedOut) {
        showSignIn(problem.message);
        return;
      }
    }
    tell("reconnecting", "bad");
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
}

async function begin(secret) {
  try {
    await signIn(secret);
  } catch (problem) {
    showSignIn(problem.message);
    return;
  }
  await follow();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const secret = document.getElementById("secret");
  const given = secret.value.trim();
  secret.value = "";
  begin(given.split("#").pop());
});
leaving.addEventListener("click", async () => {
  await signOut();
  location.reload();
});
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
window.addEventListener("hashchange", () => {
  if (shown) show();
});
for (const view of VIEWS) nav.append(h("a", { href: `#${view.name}` }, view.title));

// The URL that `goreprox dashboard invite` prints has a secret as its fragment, which is not kept in the history.
const fragment = location.hash.slice(1);
if (fragment && !VIEWS.some((view) => view.name === fragment)) {
  history.replaceState(null, "", "/");
  begin(fragment);
} else if (isKnown()) {
  follow();
} else {
  showSignIn("");
}

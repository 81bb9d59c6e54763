// The session of this browser: a cookie that scripts cannot read, and a token that only pages of this origin find.

const KEY = "token";
const FIELD = "X-Goreprox-Token";

export class SignedOut extends Error {}

// Asks the dashboard. Throws SignedOut if there is no session, and Error with what the dashboard says.
async function ask(method, path, body = undefined, signal = undefined) {
  const headers = { [FIELD]: localStorage.getItem(KEY) ?? "" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const response = await fetch(path, {
    method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (response.ok) return response;
  const said = await response.json().catch(() => ({}));
  const problem = said.problem ?? `the dashboard responds with ${response.status}`;
  throw response.status === 401 ? new SignedOut(problem) : new Error(problem);
}

export async function get(path) {
  return (await ask("GET", path)).json();
}

export async function post(path, body) {
  return (await ask("POST", path, body)).json();
}

export function isKnown() {
  return localStorage.getItem(KEY) !== null;
}

export async function signIn(secret) {
  const { token } = await post("/api/session", { secret });
  localStorage.setItem(KEY, token);
}

export async function signOut() {
  await ask("DELETE", "/api/session").catch(() => {});
  localStorage.removeItem(KEY);
}

// Yields server-sent events as [event, data] until the connection ends. (EventSource could not send the token.)
export async function* events(path, signal) {
  const response = await ask("GET", path, undefined, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const found = /^event: (.*)\ndata: (.*)$/.exec(block);
      if (found) yield [found[1], JSON.parse(found[2])];
    }
  }
}

/** A conversation with the served model. */

class Chat {
  /** `request(path, options)` sends the token along; `refused(response)` is what the server says. */
  constructor(request) {
    this.request = request;
    this.messages = [];
    this.running = null;
    byId("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask(byId("message").value);
    });
    byId("message").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.running) byId("ask").requestSubmit();
    });
    document.addEventListener("keydown", (event) => { if (event.key === "Escape") this.running?.abort(); });
    byId("stop").addEventListener("click", () => this.running?.abort());
    byId("new").addEventListener("click", () => this.begin());
  }

  showModels(names) {
    const shown = [...byId("model").options].map((option) => option.value);
    if (shown.join("\n") === names.join("\n")) return;
    byId("model").replaceChildren(...names.map((name) => make("option", { value: name, text: name })));
  }

  begin() {
    if (this.running) this.running.forgotten = true;
    this.running?.abort();
    this.messages = [];
    byId("log").replaceChildren();
    this.fail("");
    byId("message").focus();
  }

  async ask(text) {
    if (!text.trim() || this.running) return;
    const run = this.running = new AbortController();
    this.fail("");
    byId("chat-hint")?.remove();
    byId("message").value = "";
    this.showRunning(true);
    const asked = [...this.messages, { role: "user", content: text }];
    const question = this.say("user", text), reply = this.say("assistant", "");
    let written = "", ended = "";
    reply.classList.add("waiting");
    reply.setAttribute("aria-busy", "true");
    try {
      for await (const piece of this.pieces(asked)) {
        written += piece;
        reply.textContent = written;
        this.scroll();
      }
    } catch (error) {
      ended = run.signal.aborted ? "stopped" : error.message;
    }
    this.running = null;
    this.showRunning(false);
    reply.classList.remove("waiting");
    reply.removeAttribute("aria-busy");
    if (run.forgotten) return;
    if (ended && ended !== "stopped") this.fail(ended);
    if (written || ended === "stopped") {
      this.messages = [...asked, { role: "assistant", content: written }];
      if (ended === "stopped") reply.append(make("footer", { text: "stopped" }));
    } else if (ended) {
      question.remove();
      reply.remove();
      byId("message").value ||= text;
    } else {
      this.messages = [...asked, { role: "assistant", content: "" }];
      reply.append(make("footer", { text: "an empty answer" }));
    }
    this.scroll();
  }

  /** The answer, piece by piece. Throws what the server refuses, and what ends an answer before its end. */
  async *pieces(messages) {
    const body = JSON.stringify({ model: byId("model").value, messages, stream: true });
    const response = await this.request("v1/chat/completions", {
      method: "POST", body, headers: { "Content-Type": "application/json" }, signal: this.running.signal,
    });
    if (!response.ok) throw new Error(await refusal(response));
    let whole = false;
    for await (const data of eventData(response.body)) {
      if (data === "[DONE]") whole = true;
      else yield pieceOf(JSON.parse(data));
    }
    if (!whole) throw new Error("the connection ended before the answer did");
  }

  say(role, text) {
    const said = make("div", { class: `said ${role}`, text });
    const who = make("span", { class: "unseen", text: role === "user" ? "You: " : "Model: " });
    const both = make("div", { class: "turn" }, who, said);
    both.style.display = "contents";
    byId("log").append(both);
    this.scroll();
    said.remove = () => both.remove();
    return said;
  }

  scroll() {
    const log = byId("log");
    log.scrollTop = log.scrollHeight;
  }

  showRunning(running) {
    byId("stop").hidden = !running;
    byId("send").disabled = running;
  }

  fail(message) {
    byId("chat-error").hidden = !message;
    byId("chat-error").textContent = message;
  }
}

function pieceOf(event) {
  if (event.error) throw new Error(event.error.message ?? String(event.error));
  return event.choices?.[0]?.delta?.content ?? "";
}

/** The data of each server-sent event. */
async function* eventData(body) {
  let rest = "";
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const lines = event.split("\n").filter((line) => line.startsWith("data:"));
      if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
    }
  }
}

/** What the server says about a request that it refuses. */
async function refusal(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answers ${response.status}`;
  }
}

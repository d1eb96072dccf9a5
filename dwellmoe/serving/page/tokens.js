/** The last answer, each token in the colour of how many experts had to be fetched for it. */

const MOST_TOKENS = 2000;
/** The oldest leave first. */

class TokenStrip {
  constructor() {
    this.number = null;
    this.tokens = [];
    this.most = 0;
    this.element = byId("tokens");
    this.picker = new Picker(this.element, {
      label: "Tokens of the last answer",
      about: "tokens",
      count: () => this.tokens.length,
      at: (event) => this.under(event),
      text: (index) => this.text(index),
      show: (index) => this.show(index),
    });
  }

  /** How many of the answer's tokens are here already, for the next request. */
  get known() {
    return this.tokens.length ? this.tokens.at(-1).place + 1 : 0;
  }

  /** `most`: experts that a token needs. */
  update(answer, most) {
    if (answer.number !== this.number || answer.first !== this.known) this.begin(answer.number);
    this.most = most;
    const first = answer.first;
    answer.tokens.forEach((piece, i) => this.append({ piece, place: first + i, seconds: answer.seconds[i], fetched: answer.fetched[i] }));
    while (this.tokens.length > MOST_TOKENS) {
      this.tokens.shift();
      this.element.firstChild.remove();
    }
    this.showAbout(answer);
    if (answer.tokens.length) this.picker.refresh();
    if (this.picker.index === null) this.show(null);
  }

  begin(number) {
    this.number = number;
    this.tokens = [];
    this.element.replaceChildren();
    this.picker.pick(null);
  }

  append(token) {
    const shown = make("span", { text: token.piece });
    if (!token.piece) shown.className = "cut";
    shown.style.setProperty("--share", this.most ? Math.min(1, token.fetched / this.most).toFixed(3) : 0);
    this.tokens.push(token);
    const atEnd = this.element.scrollTop + this.element.clientHeight >= this.element.scrollHeight - 4;
    this.element.append(shown);
    if (atEnd) this.element.scrollTop = this.element.scrollHeight;
  }

  under(event) {
    const span = event.target.closest("#tokens > span");
    return span ? Array.prototype.indexOf.call(this.element.children, span) : null;
  }

  show(index) {
    this.element.querySelector(".picked")?.classList.remove("picked");
    const hint = this.tokens.length ? "Point at a token, or walk there with the arrow keys." : "";
    readOff(byId("token-about"), index === null ? null : this.text(index), hint);
    if (index === null) return;
    const span = this.element.children[index];
    span.classList.add("picked");
    if (document.activeElement === this.element) span.scrollIntoView({ block: "nearest" });
  }

  text(index) {
    const { piece, place, seconds, fetched } = this.tokens[index], before = this.tokens[index - 1];
    const words = piece.trim() ? `“${piece.trim()}”` : piece ? "white space" : "no text of its own";
    const time = before ? `${Math.round(1000 * (seconds - before.seconds))} ms after the one before` : `after ${threeDigits(seconds)} s`;
    const experts = place ? `${fetched} of ${this.most} experts fetched` : `${counted(fetched, "expert")} fetched for the prompt`;
    return `token ${place + 1}, ${words}: ${this.most ? `${experts}, ` : ""}${time}`;
  }

  showAbout(answer) {
    const parts = [answer.model, `${counted(answer.count, "token")} after a prompt of ${answer.prompt_tokens.toLocaleString("en")}`];
    if (answer.count) parts.push(`the first after ${threeDigits(answer.first_seconds)} s`);
    if (answer.count > 1) parts.push(`then ${threeDigits((answer.count - 1) / (answer.last_seconds - answer.first_seconds))} a second`);
    byId("answer-about").textContent = parts.join(" · ");
    byId("most-fetched").textContent = this.most || "";
  }
}

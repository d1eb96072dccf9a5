/**
 * Lets pointer and arrow keys pick one of the things that an element shows. To a screen reader it is a
 * slider whose value is the text of what is picked.
 *
 * count()   how many there are
 * at(event) the index under the pointer, or null
 * text(i)   what a screen reader says
 * show(i)   called with what is picked, null for nothing
 * columns() things in a row, for up and down; without it they do as left and right
 */
class Picker {
  constructor(element, { label, about, count, at, text, show, columns }) {
    Object.assign(this, { element, count, text, show, columns });
    this.index = null;
    for (const [name, value] of Object.entries({ tabindex: 0, role: "slider", "aria-label": label })) {
      element.setAttribute(name, value);
    }
    if (about) element.setAttribute("aria-roledescription", about);
    element.addEventListener("pointermove", (event) => this.pick(at(event)));
    element.addEventListener("pointerdown", (event) => this.pick(at(event)));
    element.addEventListener("pointerleave", () => this.pick(null));
    element.addEventListener("blur", () => this.pick(null));
    element.addEventListener("keydown", (event) => this.onKey(event));
    this.describe();
  }

  /** Called when there are other things than before. */
  refresh() {
    if (this.index !== null && this.index >= this.count()) this.index = null;
    if (this.index !== null) this.show(this.index);
    this.describe();
  }

  pick(index) {
    if (index === this.index) return;
    this.index = index;
    this.show(index);
    this.describe();
  }

  describe() {
    const set = (name, value) => this.element.setAttribute(name, value);
    const last = Math.max(0, this.count() - 1);
    set("aria-valuemin", 0);
    set("aria-valuemax", last);
    set("aria-valuenow", this.index ?? last);
    set("aria-valuetext", this.count() ? this.text(this.index ?? last) : "no values yet");
  }

  onKey(event) {
    const last = this.count() - 1, row = this.columns?.() ?? 1, now = this.index;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: this.columns ? -row : 1, ArrowDown: this.columns ? row : -1, PageUp: -10 * row, PageDown: 10 * row };
    let index = null;
    if (event.key in steps) index = now === null ? (this.columns ? 0 : last) : now + steps[event.key];
    else if (event.key === "Home") index = 0;
    else if (event.key === "End") index = last;
    else if (event.key !== "Escape") return;
    event.preventDefault();
    this.pick(index === null || last < 0 ? null : Math.min(last, Math.max(0, index)));
  }
}

/**
 * A map of cells, a row a layer and a column an expert, whose cells pointer and arrow keys read off.
 *
 * label
 * paint(context, row, column, x, y, width, height, colour)  draws one cell; `colour(name)` is one of the theme
 * text(row, column)        what a cell says
 * read(text or null)       called with what the picked cell says
 */
class HeatMap {
  constructor(container, { label, paint, text, read }) {
    Object.assign(this, { container, paint, text, read });
    this.size = { rows: 0, columns: 0 };
    this.rowNames = make("div", { class: "rows", "aria-hidden": "true" });
    this.canvas = make("canvas", { "aria-hidden": "true" });
    this.cells = make("div", { class: "cells" }, this.canvas);
    container.classList.add("heat");
    container.append(this.rowNames, this.cells);
    this.picker = new Picker(this.cells, {
      label,
      about: "heat map",
      count: () => this.size.rows * this.size.columns,
      columns: () => this.size.columns,
      at: (event) => this.under(event),
      text: (index) => this.text(...this.place(index)),
      show: (index) => this.show(index),
    });
    redrawn(container, () => this.draw());
  }

  set(rows, columns) {
    const same = rows === this.size.rows && columns === this.size.columns;
    this.size = { rows, columns };
    if (same && this.cell) this.paintAll();
    else this.draw();
    this.picker.refresh();
  }

  draw() {
    const { rows, columns } = this.size, room = this.container.clientWidth - 28;
    if (!rows || room <= 0) return;
    const width = Math.min(28, Math.max(6, Math.floor(room / columns)));
    const height = Math.min(width + 2, rows > 40 ? 8 : rows > 24 ? 11 : 18);
    this.cell = { width, height: Math.max(8, height) };
    const scale = devicePixelRatio || 1;
    this.canvas.width = columns * width * scale;
    this.canvas.height = rows * this.cell.height * scale;
    this.canvas.style.width = `${columns * width}px`;
    this.canvas.style.height = `${rows * this.cell.height}px`;
    this.context = this.canvas.getContext("2d");
    this.context.scale(scale, scale);
    this.nameRows();
    this.paintAll();
  }

  nameRows() {
    const { rows } = this.size, every = Math.ceil(14 / this.cell.height);
    const names = Array.from({ length: rows }, (_, row) => row).filter((row) => row % every === 0);
    this.rowNames.replaceChildren(...names.map((row) => {
      const name = make("span", { text: row });
      name.style.top = `${(row + 0.5) * this.cell.height}px`;
      return name;
    }));
  }

  paintAll() {
    const { rows, columns } = this.size, { width, height } = this.cell, found = new Map();
    const colour = (name) => found.get(name) ?? found.set(name, themeColour(name)).get(name);
    this.context.clearRect(0, 0, columns * width, rows * height);
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++) {
        this.paint(this.context, row, column, column * width, row * height, width - 1, height - 1, colour);
      }
    }
    if (this.picker.index !== null) this.frame(this.picker.index, colour("--ink"));
  }

  place(index) {
    return [Math.floor(index / this.size.columns), index % this.size.columns];
  }

  frame(index, colour) {
    const [row, column] = this.place(index), { width, height } = this.cell;
    this.context.strokeStyle = colour;
    this.context.lineWidth = 2;
    this.context.strokeRect(column * width, row * height, width - 1, height - 1);
  }

  under(event) {
    if (!this.cell) return null;
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / this.cell.width);
    const row = Math.floor((event.clientY - box.top) / this.cell.height);
    const inside = row >= 0 && row < this.size.rows && column >= 0 && column < this.size.columns;
    return inside ? row * this.size.columns + column : null;
  }

  show(index) {
    if (this.cell) this.paintAll();
    this.read(index === null ? null : this.text(...this.place(index)));
    if (index === null || !this.cell || document.activeElement !== this.cells) return;
    const left = this.place(index)[1] * this.cell.width, { scrollLeft, clientWidth } = this.cells;
    if (left < scrollLeft || left + this.cell.width > scrollLeft + clientWidth) this.cells.scrollLeft = left - clientWidth / 2;
  }
}

/** Numbers as people read them; they read as those of report.json and of the command line do. */

const NONE = "–";

/** `0.662`, `58.2`, `1024`. */
function threeDigits(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return NONE;
  const size = Math.abs(value);
  if (size >= 1e6 || (size > 0 && size < 0.0005)) return value.toExponential(2);
  return value.toFixed(size < 10 ? 3 : size < 100 ? 1 : 0);
}

/** `1.25 MB`, in decimal units. */
function readableBytes(size) {
  if (size === null || size === undefined || !Number.isFinite(size)) return NONE;
  for (const [factor, unit] of [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]]) {
    if (size >= factor) return `${(size / factor).toFixed(2)} ${unit}`;
  }
  return `${size.toFixed(0)} B`;
}

/** `1.2 MB` and `20 MB`, for an axis. */
function shortBytes(size) {
  return size ? readableBytes(size).replace(/(\.\d*?)0+ /, "$1 ").replace(". ", " ") : "0";
}

/** `1 token`, `2 tokens`. */
function counted(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

function percent(share) {
  return Number.isFinite(share) ? `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %` : NONE;
}

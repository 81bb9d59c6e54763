// Writes numbers for people.

export function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  let value = bytes;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

export function rate(bytesPerSecond) {
  return `${size(bytesPerSecond)}/s`;
}

export function count(number) {
  return Math.round(number).toLocaleString("en");
}

export function duration(seconds) {
  if (seconds < 0.1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

export function milliseconds(seconds) {
  return seconds === null ? "" : `${(seconds * 1000).toFixed(1)} ms`;
}

export function timeOf(date) {
  return date.toLocaleTimeString("en-GB");
}

export function dateOf(date) {
  return `${date.toLocaleDateString("sv")} ${date.toLocaleTimeString("en-GB")}`;
}

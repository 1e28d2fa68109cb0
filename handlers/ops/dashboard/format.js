/* Numbers, money and moments as people read them. */

const whole = new Intl.NumberFormat("en-US");
const short = new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 1 });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric" });
const moment = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit" });
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
const SPANS = [["day", 86400], ["hour", 3600], ["minute", 60]];

export const count = (number) => whole.format(number);
export const compact = (number) => (number < 10_000 ? whole.format(number) : short.format(number));

/** Dollars of an exact decimal string: cents, and as many digits more as a small amount needs. */
export function dollars(text) {
  const amount = Number(text);
  const digits = amount !== 0 && Math.abs(amount) < 0.1 ? Math.min(9, 2 - Math.floor(Math.log10(Math.abs(amount)))) : 2;
  const shown = Math.abs(amount).toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: digits });
  return `${amount < 0 ? "−" : ""}$${shown}`;
}

/** Times are µs since the epoch. */
export const date = (micros) => day.format(micros / 1000);
export const time = (micros) => moment.format(micros / 1000);

/** "3 minutes ago", "in 6 days". */
export function ago(micros) {
  const seconds = (micros / 1000 - Date.now()) / 1000;
  for (const [unit, length] of SPANS) {
    if (Math.abs(seconds) >= length) return relative.format(Math.trunc(seconds / length), unit);
  }
  return seconds > 0 ? "in a moment" : "just now";
}

/** Milliseconds, or seconds from one on. */
export function span(milliseconds) {
  if (milliseconds >= 1000) return `${(milliseconds / 1000).toLocaleString("en-US", { maximumFractionDigits: 1 })} s`;
  return `${milliseconds < 10 ? milliseconds.toFixed(1) : Math.round(milliseconds)} ms`;
}

export const plural = (number, one, many = `${one}s`) => `${compact(number)} ${number === 1 ? one : many}`;

/** Numbers and times as a person reads them. Times are seconds since 1970. */
import type { Counts, StateName } from "../api/client";

export const STATES: readonly StateName[] = ["done", "error", "locked", "todo", "stateless"];

export const LABELS: Record<StateName, string> = {
  todo: "waiting",
  locked: "running",
  done: "done",
  error: "failed",
  stateless: "no state",
};

/** How the state is drawn: as Airflow draws the state of a task that it resembles. */
export const COLOURS: Record<StateName, string> = {
  todo: "var(--picas-todo)",
  locked: "var(--picas-locked)",
  done: "var(--picas-done)",
  error: "var(--picas-error)",
  stateless: "var(--picas-stateless)",
};

export const total = (counts: Counts): number => STATES.reduce((sum, state) => sum + counts[state], 0);

export const number = (value: number): string => value.toLocaleString("en-GB", { maximumFractionDigits: 0 });

/** One token, 2 tokens. */
export const many = (count: number, what: string): string => `${number(count)} ${what}${count === 1 ? "" : "s"}`;

/** The names that a pool has for parts of a state, with their numbers, such as "12 downloading, 3 launched". */
export const namesOf = ({ named }: Counts, state: StateName): string =>
  Object.entries(named[state] ?? {})
    .filter(([, count]) => count > 0)
    .map(([name, count]) => `${number(count)} ${name}`)
    .join(", ");

/** The members of a group that must have finished: a fraction up to 1, a number, or all but a number. */
export const atLeast = (value: number): string => {
  if (value < 0) {
    return `all but ${number(-value)}`;
  }
  return value <= 1 ? (value === 1 ? "all" : `${number(100 * value)} %`) : number(value);
};

/** A rate in the unit that gives a number near one. */
export const rate = (perSecond: number): string => {
  for (const [seconds, unit] of [[1, "s"], [60, "min"], [3600, "h"]] as const) {
    if (perSecond * seconds >= 1) {
      const value = perSecond * seconds;
      return `${value.toLocaleString("en-GB", { maximumFractionDigits: value < 10 ? 1 : 0 })}/${unit}`;
    }
  }
  return `${(perSecond * 86_400).toLocaleString("en-GB", { maximumFractionDigits: 1 })}/day`;
};

/** "4 s", "3 min", "2 h 05", "3 d 4 h". */
export const duration = (seconds: number): string => {
  const s = Math.max(0, seconds);
  if (s < 10) {
    return `${s.toLocaleString("en-GB", { maximumFractionDigits: 1 })} s`;
  }
  if (s < 90) {
    return `${Math.round(s)} s`;
  }
  if (s < 5400) {
    return `${Math.round(s / 60)} min`;
  }
  if (s < 2 * 86_400) {
    const minutes = Math.round(s / 60);
    return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")}`;
  }
  const hours = Math.round(s / 3600);
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
};

/** How long something took. Its times may be whole seconds, so that 0 means less than one. */
export const took = (seconds: number): string => {
  if (seconds === 0) {
    return "< 1 s";
  }
  return seconds < 0.05 ? "< 0.1 s" : duration(seconds);
};

/** A few core-seconds or many core-hours, in the unit that gives a readable number. */
export const coreTime = (hours: number): string => {
  const [value, unit] = hours < 0.1 ? [hours * 3600, "core-seconds"] : [hours, "core-hours"];
  return `${value.toLocaleString("en-GB", value < 100 ? { maximumSignificantDigits: 2 } : { maximumFractionDigits: 0 })} ${unit}`;
};

/** A range of durations; one when both read the same. */
export const range = (low: number, high: number): string => {
  const [from, to] = [duration(low), duration(high)];
  return from === to ? from : `${from} – ${to}`;
};

/** How long ago, at the time `now`. */
export const ago = (time: number, now: number): string =>
  now - time < 2 ? "now" : `${duration(Math.floor(now - time))} ago`;

/** The time of a day of the last 24 hours, else with its date. */
export const clock = (time: number, now = Date.now() / 1000): string => {
  const date = new Date(time * 1000);
  const hours = date.toLocaleTimeString("en-GB");
  return Math.abs(now - time) < 86_400 ? hours : `${date.toLocaleDateString("en-CA")} ${hours}`;
};

export const bytes = (size: number): string => {
  if (size < 1000) {
    return `${size} B`;
  }
  const [value, unit] = size < 1e6 ? [size / 1e3, "KB"] : size < 1e9 ? [size / 1e6, "MB"] : [size / 1e9, "GB"];
  return `${value.toLocaleString("en-GB", { maximumFractionDigits: value < 10 ? 1 : 0 })} ${unit}`;
};

/** Whatever a job reports about its progress, in a line. */
export const progress = (value: unknown): string => {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    return typeof value === "string" ? value : JSON.stringify(value);
  }
  return Object.entries(value)
    .map(([name, one]) => `${name} ${typeof one === "string" ? one : JSON.stringify(one)}`)
    .join(", ");
};

/** A token's id without its batch. */
export const keyOfId = (id: string): string => id.slice(id.indexOf(":") + 1) || id;

export interface Share {
  state: StateName;
  count: number;
  /** Of the bar's width, from 0 to 100. */
  percent: number;
}

/** The parts of the bar. What exists is seen: a state with few tokens keeps a sliver. */
export const shares = (counts: Counts, sliver = 0.6): Share[] => {
  const all = total(counts);
  const present = STATES.filter((state) => counts[state] > 0);
  const wide = present.map((state) => Math.max(sliver, (100 * counts[state]) / all));
  const sum = wide.reduce((a, b) => a + b, 0);
  return present.map((state, i) => ({ state, count: counts[state], percent: (100 * (wide[i] ?? 0)) / sum }));
};

/** Sums over time from the tokens that ended in each step: [times, done, failed], for a plot. */
export const sums = (history: { step: number; points: number[][] }, now: number): [number[], number[], number[]] => {
  const begin = history.points[0]?.[0];
  if (begin === undefined) {
    return [[], [], []];
  }
  const [times, done, failed] = [[begin], [0], [0]];
  let [d, f] = [0, 0];
  for (const [time = begin, ended = 0, errors = 0] of history.points) {
    // Nothing ended between two steps that are apart: the line stays level there.
    if (time > (times.at(-1) ?? time)) {
      times.push(time);
      done.push(d);
      failed.push(f);
    }
    d += ended;
    f += errors;
    times.push(Math.max(time, Math.min(time + history.step, now)));
    done.push(d);
    failed.push(f);
  }
  return [times, done, failed];
};

/** Where the bars of the timeline are: a row for each pilot, time from left to right. */
import type { Bar, Pilot } from "../api/client";

export const ROW = 22;
export const BAR = 14;
export const AXIS = 24;
const MOST_LANES = 7; // thinner bars could not be seen

export interface Box {
  bar: Bar;
  x: number;
  y: number;
  width: number;
  height: number;
}

export interface Span {
  from: number;
  to: number;
}

/** Pilots with bars first, in the order in which they began. */
export const rows = (pilots: Pilot[], bars: Bar[]): string[] => {
  const begin = new Map<string, number>();
  for (const bar of bars) {
    begin.set(bar.pilot, Math.min(begin.get(bar.pilot) ?? Infinity, bar.start));
  }
  for (const pilot of pilots) {
    if (pilot.started != null) {
      begin.set(pilot.pilot, Math.min(begin.get(pilot.pilot) ?? Infinity, pilot.started));
    }
  }
  return [...begin.keys()].sort((a, b) => (begin.get(a) ?? 0) - (begin.get(b) ?? 0) || (a < b ? -1 : 1));
};

/** The time that all bars take, a little wider. */
export const span = (bars: Bar[], now: number): Span => {
  const from = bars.reduce((least, bar) => Math.min(least, bar.start), Infinity);
  const to = bars.reduce((most, bar) => Math.max(most, bar.end ?? now), -Infinity);
  if (from > to) {
    return { from: now - 60, to: now };
  }
  const margin = Math.max(1, (to - from) * 0.01);
  return { from: from - margin, to: to + margin };
};

/**
 * For each bar the lane of its row: bars that run at the same time lie below each other. And the lanes of each pilot. Times
 * may be whole seconds, so an overlap of one is none.
 */
const lanes = (bars: Bar[], now: number): { lane: number[]; of: Map<string, number> } => {
  const order = bars.map((_, i) => i).sort((a, b) => (bars[a]?.start ?? 0) - (bars[b]?.start ?? 0));
  const ends = new Map<string, number[]>();
  const lane: number[] = [];
  for (const i of order) {
    const bar = bars[i];
    if (bar) {
      const taken = ends.get(bar.pilot) ?? [];
      const free = taken.findIndex((end) => end - 1 <= bar.start);
      lane[i] = free >= 0 ? free : Math.min(taken.length, MOST_LANES - 1);
      taken[lane[i]] = bar.end ?? now;
      ends.set(bar.pilot, taken);
    }
  }
  return { lane, of: new Map([...ends].map(([pilot, taken]) => [pilot, taken.length])) };
};

export const layout = (bars: Bar[], names: string[], { from, to }: Span, width: number, now: number): Box[] => {
  const row = new Map(names.map((name, i) => [name, i]));
  const scale = width / (to - from);
  const { lane, of } = lanes(bars, now);
  return bars.flatMap((bar, i) => {
    const at = row.get(bar.pilot);
    if (at === undefined) {
      return [];
    }
    const x = (bar.start - from) * scale;
    const end = ((bar.end ?? now) - from) * scale;
    const height = BAR / (of.get(bar.pilot) ?? 1);
    return [{ bar, x, y: AXIS + at * ROW + (ROW - BAR) / 2 + (lane[i] ?? 0) * height, width: Math.max(1.5, end - x), height }];
  });
};

/** The bar at a place; of several the one drawn last. */
export const hit = (boxes: Box[], x: number, y: number): Bar | undefined => {
  for (let i = boxes.length - 1; i >= 0; i -= 1) {
    const box = boxes[i];
    if (box && y >= box.y && y <= box.y + box.height && x >= box.x - 1 && x <= box.x + box.width + 1) {
      return box.bar;
    }
  }
  return undefined;
};

/** Round times for the axis. `about`: roughly how many. */
export const ticks = ({ from, to }: Span, about: number): number[] => {
  const steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 21_600, 43_200, 86_400, 172_800, 604_800];
  const wanted = (to - from) / Math.max(1, about);
  const step = steps.find((candidate) => candidate >= wanted) ?? Math.ceil(wanted / 604_800) * 604_800;
  const found: number[] = [];
  for (let time = Math.ceil(from / step) * step; time <= to; time += step) {
    found.push(time);
  }
  return found;
};

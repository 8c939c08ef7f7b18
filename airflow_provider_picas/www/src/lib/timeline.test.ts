import { describe, expect, it } from "vitest";

import type { Bar, Pilot } from "../api/client";
import { hit, layout, rows, span, ticks } from "./timeline";

const bar = (pilot: string, token: string, start: number, end: number | null = null): Bar => ({
  pilot, token, start, end, state: end === null ? "locked" : "done",
});
const bars = [bar("b", "t1", 100, 150), bar("a", "t2", 120), bar("b", "t3", 150, 151)];

describe("the timeline", () => {
  it("has pilots in the order in which they began, also those without tokens", () => {
    expect(rows([{ pilot: "c", started: 90 } as Pilot, { pilot: "d" } as Pilot], bars)).toEqual(["c", "b", "a"]);
  });

  it("reaches from the first bar to now while one runs", () => {
    const { from, to } = span(bars, 200);
    expect([Math.round(from), Math.round(to)]).toEqual([99, 201]);
    expect(span([], 200)).toEqual({ from: 140, to: 200 });
  });

  it("finds the bar under the pointer", () => {
    const boxes = layout(bars, ["b", "a"], { from: 100, to: 200 }, 1000, 200);
    expect(hit(boxes, 250, boxes[0]?.y ?? 0)?.token).toBe("t1");
    expect(hit(boxes, 999, boxes[1]?.y ?? 0)?.token).toBe("t2");
    expect(hit(boxes, 700, boxes[0]?.y ?? 0)).toBeUndefined();
    expect(Math.min(...boxes.map(({ width }) => width))).toBeGreaterThanOrEqual(1.5);
  });

  it("puts bars of one pilot that run at the same time below each other", () => {
    const slots = [bar("a", "t1", 0, 10), bar("a", "t2", 5, 12), bar("a", "t3", 10, 20), bar("b", "t4", 0, 20)];
    const [one, two, three, alone] = layout(slots, ["a", "b"], { from: 0, to: 20 }, 200, 20);
    expect(two?.y).toBe((one?.y ?? 0) + (one?.height ?? 0));
    expect(three?.y).toBe(one?.y);
    expect(alone?.height).toBe(2 * (one?.height ?? 0));
  });

  it("has ticks at round times", () => {
    expect(ticks({ from: 3, to: 125 }, 4)).toEqual([60, 120]);
    expect(ticks({ from: 0, to: 40_000_000 }, 5).length).toBeLessThan(8);
  });
});

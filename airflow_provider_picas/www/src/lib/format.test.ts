import { describe, expect, it } from "vitest";

import { ago, bytes, coreTime, duration, many, progress, range, rate, shares, sums, took } from "./format";

const counts = { todo: 0, locked: 0, done: 0, error: 0, stateless: 0, named: {} };

describe("numbers and times", () => {
  it.each([
    [0.24, "0.2 s"], [59, "59 s"], [89.4, "89 s"], [90, "2 min"], [3599, "60 min"], [7500, "2 h 05"], [200_000, "2 d 8 h"], [-3, "0 s"],
  ])("%d seconds are %s", (seconds, text) => expect(duration(seconds)).toBe(text));

  it("leaves no 60 minutes beside hours", () => {
    expect(duration(7199)).toBe("2 h 00");
  });

  it("does not say that a token took no time", () => expect([0, 0.01, 0.3, 61].map(took)).toEqual(["< 1 s", "< 0.1 s", "0.3 s", "61 s"]));

  it.each([[0.000016, "0.058 core-seconds"], [0.0044, "16 core-seconds"], [0.079, "284 core-seconds"], [0.26, "0.26 core-hours"], [1234.5, "1,235 core-hours"]])(
    "%d core-hours are %s", (hours, text) => expect(coreTime(hours)).toBe(text),
  );

  it("gives one duration where both ends read the same", () => {
    expect(range(700, 710)).toBe("12 min");
    expect(range(600, 1200)).toBe("10 min – 20 min");
  });

  it.each([[12, "12/s"], [0.5, "30/min"], [0.01, "36/h"], [0.0001, "8.6/day"]])("%d a second are %s", (value, text) =>
    expect(rate(value)).toBe(text),
  );

  it("counts with the plural", () => {
    expect([many(0, "token"), many(1, "token"), many(1200, "token")]).toEqual(["0 tokens", "1 token", "1,200 tokens"]);
  });

  it("says how long ago", () => {
    expect([ago(100, 101), ago(100, 130), ago(200, 100)]).toEqual(["now", "30 s ago", "now"]);
  });

  it("gives sizes", () => expect([bytes(12), bytes(2048), bytes(8e6), bytes(3e9)]).toEqual(["12 B", "2 KB", "8 MB", "3 GB"]));

  it("shows a job's progress of any form", () => {
    expect([progress("half"), progress({ percent: 40, step: "b" }), progress([1]), progress(3), progress(null)]).toEqual([
      "half", "percent 40, step b", "[1]", "3", "null",
    ]);
  });
});

describe("the bar of states", () => {
  it("fills its width, and shows a single failure among a million", () => {
    const parts = shares({ ...counts, done: 999_999, error: 1 });
    expect(parts.reduce((sum, { percent }) => sum + percent, 0)).toBeCloseTo(100);
    expect(parts.find(({ state }) => state === "error")?.percent).toBeGreaterThan(0.5);
  });

  it("leaves out states without tokens", () => {
    expect(shares({ ...counts, todo: 3 })).toEqual([{ state: "todo", count: 3, percent: 100 }]);
    expect(shares(counts)).toEqual([]);
  });
});

describe("sums over time", () => {
  it("stay level where nothing ended", () => {
    const [times, done, failed] = sums({ step: 10, points: [[0, 2, 0], [10, 1, 1], [50, 4, 0]] }, 55);
    expect(times).toEqual([0, 10, 20, 50, 55]);
    expect(done).toEqual([0, 2, 3, 3, 7]);
    expect(failed).toEqual([0, 0, 1, 1, 1]);
  });

  it("are none without points", () => expect(sums({ step: 10, points: [] }, 5)).toEqual([[], [], []]));
});

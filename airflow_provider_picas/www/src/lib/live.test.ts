import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";

import { atMostEach, pollEvery } from "./live";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

describe("the feed", () => {
  it("is asked at intervals only where nothing is pushed", () => {
    expect((["opening", "open", "held", "closed"] as const).map(pollEvery)).toEqual([false, false, 5000, 5000]);
  });

  it("refreshes lists more seldom, the longer they change without a rest", () => {
    let runs = 0;
    const lists = atMostEach([5000, 20_000], () => (runs += 1));
    const change = (seconds: number) => {
      for (let i = 0; i < seconds; i += 1) {
        lists.call();
        vi.advanceTimersByTime(1000);
      }
    };
    change(76); // at 0, 5, 15, 35, 55 and 75 s
    expect(runs).toBe(6);
    vi.advanceTimersByTime(60_000); // the last change, and a rest
    expect(runs).toBe(7);
    change(6);
    expect(runs).toBe(9);
    lists.stop();
  });

  it("refreshes lists at once and then at most once in a while", () => {
    let runs = 0;
    const lists = atMostEach([5000, 5000], () => (runs += 1));
    lists.call();
    for (let i = 0; i < 40; i += 1) {
      lists.call();
      vi.advanceTimersByTime(250);
    }
    expect(runs).toBe(3);
    lists.call();
    lists.stop();
    vi.advanceTimersByTime(20_000);
    expect(runs).toBe(3);
  });
});

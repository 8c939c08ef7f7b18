import { useEffect, useMemo, useRef, useState } from "react";
import uPlot from "uplot";

import type { Overview } from "../api/client";
import { clock, many, number, sums } from "../lib/format";
import { useColours, useWidth } from "./canvas";
import { State } from "./parts";

type History = NonNullable<Overview["history"]>;

// Seconds between two times on the axis.
const STEPS = [1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21_600, 43_200, 86_400, 172_800, 604_800, 2_592_000];

/** Times on the axis, with seconds if one of them needs them. */
const labels = (times: number[]): string[] => {
  const whole = times.every((time) => time % 60 === 0);
  return times.map((time) => (whole ? clock(time).replace(/:00$/, "") : clock(time)));
};

const options = (colour: (name: string) => string, width: number, onOver: (index: number | undefined) => void): uPlot.Options => {
  const axis = {
    font: "11px sans-serif",
    grid: { stroke: colour("--picas-line"), width: 1 },
    stroke: colour("--picas-muted"),
    ticks: { stroke: colour("--picas-line"), width: 1 },
  };
  const line = (label: string, name: string) => ({
    label,
    stroke: colour(name),
    fill: `color-mix(in srgb, ${colour(name)} 18%, transparent)`,
    width: 2,
    points: { show: false },
  });
  return {
    axes: [
      { ...axis, space: 90, incrs: STEPS, values: (_, times) => labels(times) },
      { ...axis, size: 56, values: (_, values) => values.map((value) => (Number.isInteger(value) ? number(value) : "")) },
    ],
    cursor: { y: false },
    height: 190,
    padding: [null, 52, null, null], // half of the longest time
    hooks: { setCursor: [({ cursor }) => onOver(cursor.idx ?? undefined)] },
    legend: { show: false },
    scales: { y: { range: (_, __, max) => [0, Math.max(1, max * 1.05)] } },
    series: [{}, line("done", "--picas-done"), line("failed", "--picas-error")],
    width,
  };
};

/** How many tokens were done, and had failed, over time. */
export const Plot = ({ history, at }: { history: History; at: number }) => {
  const place = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const width = useWidth(place);
  const { colour, theme } = useColours(place);
  const values = useMemo(() => sums(history, at), [history, at]);
  const latest = useRef(values);
  const [over, setOver] = useState<number | undefined>();

  useEffect(() => {
    latest.current = values;
    plot.current?.setData(values);
  }, [values]);

  useEffect(() => {
    if (!place.current || width === 0) {
      return undefined;
    }
    plot.current = new uPlot(options(colour, width, setOver), latest.current, place.current);
    return () => {
      plot.current?.destroy();
      plot.current = null;
    };
  }, [colour, theme, width]);

  const [times, done, failed] = values;
  const i = over !== undefined && over < times.length ? over : times.length - 1;
  const words = `A plot over time: ${many(done.at(-1) ?? 0, "token")} done and ${number(failed.at(-1) ?? 0)} failed so far`;
  return (
    <>
      <div aria-label={words} className="plot" ref={place} role="img" />
      <div aria-hidden className="row small">
        <span className="muted">{clock(times[i] ?? at)}</span>
        <State state="done" /> {number(done[i] ?? 0)}
        <State state="error" /> {number(failed[i] ?? 0)}
      </div>
    </>
  );
};

import { useEffect, useMemo, useRef } from "react";
import uPlot from "uplot";

import type { Overview } from "../api/client";
import { many, sums } from "../lib/format";
import { useColours, useWidth } from "./canvas";

type History = NonNullable<Overview["history"]>;

const options = (colour: (name: string) => string, width: number): uPlot.Options => {
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
    axes: [axis, { ...axis, size: 56 }],
    cursor: { y: false },
    height: 190,
    legend: { live: true },
    scales: { y: { range: (_, __, max) => [0, Math.max(1, max * 1.05)] } },
    series: [{ value: "{YYYY}-{MM}-{DD} {HH}:{mm}:{ss}" }, line("done", "--picas-done"), line("failed", "--picas-error")],
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

  useEffect(() => {
    latest.current = values;
    plot.current?.setData(values);
  }, [values]);

  useEffect(() => {
    if (!place.current || width === 0) {
      return undefined;
    }
    plot.current = new uPlot(options(colour, width), latest.current, place.current);
    return () => {
      plot.current?.destroy();
      plot.current = null;
    };
  }, [colour, theme, width]);

  const [, done, failed] = values;
  const words = `A plot over time: ${many(done.at(-1) ?? 0, "token")} done and ${failed.at(-1) ?? 0} failed so far`;
  return <div aria-label={words} className="plot" ref={place} role="img" />;
};

import { useEffect, useMemo, useRef, useState } from "react";

import type { Bar, Pilot } from "../api/client";
import { clock, duration, keyOfId, many } from "../lib/format";
import { shown } from "../lib/text";
import { AXIS, hit, layout, ROW, rows, span, ticks } from "../lib/timeline";
import { useColours, useWidth } from "./canvas";
import { useAddress } from "./hooks";

const COLOURS: Record<Bar["state"], string> = {
  done: "--picas-done",
  error: "--picas-error",
  locked: "--picas-locked",
};

const NAMES = 130; // pixels for the names of pilots

interface Drawing {
  names: string[];
  bars: Bar[];
  at: number;
  width: number;
}

const draw = (context: CanvasRenderingContext2D, { names, bars, at, width }: Drawing, colour: (name: string) => string) => {
  const time = span(bars, at);
  const plot = width - NAMES;
  context.font = "11px sans-serif";
  context.textBaseline = "middle";
  context.strokeStyle = colour("--picas-line");
  context.fillStyle = colour("--picas-muted");
  for (const tick of ticks(time, Math.max(2, plot / 120))) {
    const x = NAMES + ((tick - time.from) * plot) / (time.to - time.from);
    context.fillText(clock(tick), x + 3, AXIS / 2);
    context.beginPath();
    context.moveTo(x, 4);
    context.lineTo(x, AXIS + names.length * ROW);
    context.stroke();
  }
  names.forEach((name, i) => context.fillText(shorten(shown(name)), 0, AXIS + (i + 0.5) * ROW, NAMES - 8));
  const known = new Map(Object.values(COLOURS).map((name) => [name, colour(name)]));
  for (const { bar, x, y, width: wide, height } of layout(bars, names, time, plot, at)) {
    context.fillStyle = known.get(COLOURS[bar.state]) ?? "gray";
    context.fillRect(NAMES + x, y, Math.max(1, wide - 1), height > 4 ? height - 0.5 : height);
  }
};

const shorten = (name: string): string => (name.length > 20 ? `…${name.slice(-19)}` : name);

/** Pilots as rows, tokens as bars. The table of pilots has the same for those who do not see it. */
export const Timeline = ({ pilots, bars, at }: { pilots: Pilot[]; bars: Bar[]; at: number }) => {
  const place = useRef<HTMLDivElement>(null);
  const canvas = useRef<HTMLCanvasElement>(null);
  const width = useWidth(place);
  const { colour, theme } = useColours(place);
  const [, set] = useAddress();
  const [over, setOver] = useState<Bar | undefined>();
  const names = useMemo(() => rows(pilots, bars), [pilots, bars]);
  const height = AXIS + names.length * ROW + 4;

  useEffect(() => {
    const context = canvas.current?.getContext("2d");
    if (!canvas.current || !context || width === 0) {
      return;
    }
    const scale = globalThis.devicePixelRatio || 1;
    canvas.current.width = width * scale;
    canvas.current.height = height * scale;
    context.scale(scale, scale);
    draw(context, { names, bars, at, width }, colour);
  }, [at, bars, colour, height, names, theme, width]);

  const under = ({ nativeEvent: { offsetX, offsetY } }: React.MouseEvent) =>
    hit(layout(bars, names, span(bars, at), width - NAMES, at), offsetX - NAMES, offsetY);
  const words = over
    ? `${shown(keyOfId(over.token))}: ${over.state === "locked" ? "running" : over.state}, ${clock(over.start)}, ${duration((over.end ?? at) - over.start)}`
    : `${many(names.length, "pilot")}, ${many(bars.length, "run")} of tokens`;
  return (
    <div>
      <div className="timeline-scroll" ref={place}>
        <canvas
          aria-label={`A timeline of ${many(names.length, "pilot")} with ${many(bars.length, "run")} of tokens`}
          className="timeline"
          onClick={(event) => {
            const bar = under(event);
            if (bar) {
              set({ token: bar.token });
            }
          }}
          onMouseLeave={() => setOver(undefined)}
          onMouseMove={(event) => setOver(under(event))}
          ref={canvas}
          role="img"
          style={{ cursor: over ? "pointer" : "default", height }}
        />
      </div>
      <div aria-hidden className="muted small foreign">{words}</div>
    </div>
  );
};

/** Whether to ask at intervals: the server pushes what changes, unless something between here and there holds it back. */

/** Being opened; open; open, but silent (held back by a proxy, which may pass everything on at the end); or ended. */
export type Feed = "opening" | "open" | "held" | "closed";

/** The server sends the overview as soon as it is asked: a feed that stays silent for so long (ms) is held back. */
export const PATIENCE = 5_000;
export const POLL = 5_000;
export const AGAIN = 30_000;
/** Between two readings of the lists: at first, and when the counts change all the time. */
export const LISTS: [number, number] = [5_000, 30_000];

/** The time between two requests in ms, or false if the feed works. */
export const pollEvery = (feed: Feed): number | false => (feed === "held" || feed === "closed" ? POLL : false);

/** Runs a function immediately, then at most once per interval (in ms). Calls within an interval run once at its end, and
 * the next interval is twice as long. */
export const atMostEach = ([shortest, longest]: [number, number], run: () => void) => {
  let timer: ReturnType<typeof setTimeout> | undefined;
  let again = false;
  let ms = shortest;
  const ended = () => {
    timer = undefined;
    ms = again ? Math.min(longest, 2 * ms) : shortest;
    if (again) {
      again = false;
      call();
    }
  };
  const call = () => {
    if (timer !== undefined) {
      again = true;
      return;
    }
    run();
    timer = setTimeout(ended, ms);
  };
  const stop = () => {
    clearTimeout(timer);
    timer = undefined;
    again = false;
  };
  return { call, stop };
};

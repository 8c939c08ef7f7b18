import { type QueryKey, useQuery, useQueryClient } from "@tanstack/react-query";
import { useCallback, useEffect, useState } from "react";
import { useSearchParams } from "react-router-dom";

import { address, client, data, type Overview, type Scope } from "../api/client";
import { AGAIN, atMostEach, type Feed, LISTS, PATIENCE, POLL, pollEvery } from "../lib/live";

// Airflow's own pages have names in the address too, such as `state`.
const PREFIX = "picas_";

/** What the address of the page says, so that a link shows the same. The names have a prefix there. */
export const useAddress = (): [(name: string) => string | undefined, (values: Record<string, string | undefined>) => void] => {
  const [params, setParams] = useSearchParams();
  const get = useCallback((name: string) => params.get(PREFIX + name) ?? undefined, [params]);
  const set = useCallback(
    (values: Record<string, string | undefined>) => {
      setParams((old) => {
        const changed = new URLSearchParams(old);
        for (const [name, value] of Object.entries(values)) {
          if (value === undefined || value === "") {
            changed.delete(PREFIX + name);
          } else {
            changed.set(PREFIX + name, value);
          }
        }
        return changed;
      });
    },
    [setParams],
  );
  return [get, set];
};

/** The time in seconds since 1970, again each second. */
export const useNow = (): number => {
  const [now, setNow] = useState(() => Date.now() / 1000);
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now() / 1000), 1000);
    return () => clearInterval(timer);
  }, []);
  return now;
};

/** The address of a batch, or of a whole pool, on the page of the navigation: Airflow's page of a run leaves little room on a
 * phone. */
export const batchPage = ({ conn_id, database, batch, dag_id, run_id }: Scope): string => {
  const query = new URLSearchParams({ picas_conn: conn_id });
  for (const [name, value] of Object.entries({ picas_db: database, picas_dag: dag_id, picas_run: run_id })) {
    if (value !== undefined) {
      query.set(name, value);
    }
  }
  query.set(batch === undefined ? "picas_whole" : "picas_batch", batch ?? "yes");
  return `/plugin/picas?${query.toString()}`;
};

/** The key of everything that a scope's answers are kept under. */
export const keyOf = (scope: Scope, ...more: unknown[]): QueryKey => ["picas", scope, ...more];

/** The time in ms until an answer is asked for again that lacks what comes from the index of the page's views. */
export const againWhileBuilding = ({ state }: { state: { data?: { building: unknown } } }): number | false => (state.data?.building ? POLL : false);

interface Listener {
  onFeed: (feed: Feed) => void;
  onOverview: (overview: Overview) => void;
  onTrouble: (sentence: string) => void;
}

/** Listen to the overviews that the server pushes, until the returned function is called. */
const listen = (events: string, { onFeed, onOverview, onTrouble }: Listener): (() => void) => {
  let source: EventSource;
  let timer: ReturnType<typeof setTimeout> | undefined;
  const open = () => {
    onFeed("opening");
    source = new EventSource(events);
    timer = setTimeout(() => onFeed("held"), PATIENCE);
    source.addEventListener("overview", (event: MessageEvent<string>) => {
      clearTimeout(timer);
      onFeed("open");
      onOverview(JSON.parse(event.data) as Overview);
    });
    source.addEventListener("trouble", (event: MessageEvent<string>) => onTrouble(event.data));
    source.onerror = () => {
      clearTimeout(timer);
      onFeed("closed");
      if (source.readyState === EventSource.CLOSED) {
        timer = setTimeout(open, AGAIN);
      } // else the browser opens it again by itself
    };
  };
  open();
  return () => {
    clearTimeout(timer);
    source.close();
  };
};

/** Whether a person can see the page. */
const useVisible = (): boolean => {
  const [visible, setVisible] = useState(() => document.visibilityState !== "hidden");
  useEffect(() => {
    const look = () => setVisible(document.visibilityState !== "hidden");
    document.addEventListener("visibilitychange", look);
    return () => document.removeEventListener("visibilitychange", look);
  }, []);
  return visible;
};

/** The overview of a batch, pushed by the server where that works, else asked for. A hidden page does neither. */
export const useOverview = (scope: Scope) => {
  const queries = useQueryClient();
  const [feed, setFeed] = useState<Feed>("opening");
  const [trouble, setTrouble] = useState("");
  const visible = useVisible();
  const events = address("/batch/events", scope);
  const key = JSON.stringify(scope);

  useEffect(() => {
    if (!visible) {
      return undefined;
    }
    const known = JSON.parse(key) as Scope;
    // The lists follow the counts, but not at their pace.
    const lists = atMostEach(LISTS, () => void queries.invalidateQueries({ queryKey: keyOf(known, "list") }));
    let last = "";
    const onOverview = (overview: Overview) => {
      setTrouble("");
      queries.setQueryData(keyOf(known, "overview"), overview);
      const counts = JSON.stringify(overview.counts);
      if (last !== "" && counts !== last) {
        lists.call();
      }
      last = counts;
    };
    const close = listen(events, { onFeed: setFeed, onOverview, onTrouble: setTrouble });
    return () => {
      close();
      lists.stop();
    };
  }, [events, key, queries, visible]);

  const query = useQuery({
    queryKey: keyOf(scope, "overview"),
    queryFn: () => data(client().GET("/api/batch", { params: { query: scope } })),
    refetchInterval: pollEvery(feed),
  });
  return { ...query, live: feed === "open" && trouble === "", trouble: trouble || query.data?.trouble };
};

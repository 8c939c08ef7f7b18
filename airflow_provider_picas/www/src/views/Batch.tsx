import { useState } from "react";
import { Link } from "react-router-dom";

import { type Overview, type Scope, type Selection } from "../api/client";
import { ago, COLOURS, LABELS, namesOf, number, STATES } from "../lib/format";
import { shown } from "../lib/text";
import { type Asked, Confirm, Toolbar } from "./Actions";
import { Causes } from "./Causes";
import { WayBack } from "./Chain";
import { Glance } from "./Glance";
import { useAddress, useNow, useOverview } from "./hooks";
import { Bar, Loading, Trouble } from "./parts";
import { Pilots } from "./Pilots";
import { Token } from "./Token";
import { Tokens } from "./Tokens";

const TABS = ["overview", "causes", "tokens", "pilots"] as const;
type Tab = (typeof TABS)[number];
const TITLES: Record<Tab, string> = { overview: "Overview", causes: "Failures", tokens: "All tokens", pilots: "Pilots" };

/** What the views of a batch may do with each other. */
export interface BatchProps {
  scope: Scope;
  overview: Overview;
  ask: (asked: Asked) => void;
  refuse: (why: string) => void;
}

const Live = ({ live, at }: { live: boolean; at: number }) => {
  const now = useNow();
  return (
    <span className={live ? "live on" : "live off"} title={live ? "Changes are shown as they happen." : "Polled every 5 s."}>
      <i /> {live ? "live" : `read ${ago(at, now)}`}
    </span>
  );
};

/** The numbers of the states; each opens its tokens. */
const Legend = ({ overview }: { overview: Overview }) => {
  const [, setAddress] = useAddress();
  const present = STATES.filter((state) => state !== "stateless" || overview.counts.stateless > 0);
  return (
    <div className="legend">
      {present.map((state) => (
        <button key={state} onClick={() => setAddress({ tab: "tokens", state, name: undefined, cause: undefined })} type="button">
          <span className="dot" style={{ background: COLOURS[state] }} />
          <b data-state={state}>{number(overview.counts[state])}</b> {LABELS[state]}
          {namesOf(overview.counts, state) !== "" && <span className="muted foreign">({shown(namesOf(overview.counts, state))})</span>}
        </button>
      ))}
    </div>
  );
};

const Tabs = ({ overview, tab, onTab }: { overview: Overview; tab: Tab; onTab: (tab: Tab) => void }) => {
  const counts: Partial<Record<Tab, number>> = { causes: overview.counts.error, pilots: overview.pilots.running };
  const move = (by: number) => {
    const next = TABS[(TABS.indexOf(tab) + by + TABS.length) % TABS.length] ?? "overview";
    onTab(next);
    document.getElementById(`picas-tab-${next}`)?.focus();
  };
  return (
    <div
      aria-label="Views of the batch"
      className="tabs"
      onKeyDown={(event) => {
        if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
          event.stopPropagation(); // Airflow's grid moves with these keys, too
          move(event.key === "ArrowRight" ? 1 : -1);
        }
      }}
      role="tablist"
    >
      {TABS.map((name) => (
        <button
          aria-controls="picas-view"
          aria-selected={name === tab}
          id={`picas-tab-${name}`}
          key={name}
          onClick={() => onTab(name)}
          role="tab"
          tabIndex={name === tab ? 0 : -1}
          type="button"
        >
          {TITLES[name]}
          {(counts[name] ?? 0) > 0 && <span className="count">{number(counts[name] ?? 0)}</span>}
        </button>
      ))}
    </div>
  );
};

/** What a link asks for at once: `do=rerun` opens the question. */
const useQuestion = () => {
  const [get, set] = useAddress();
  const [chosen, choose] = useState<Asked | undefined>();
  const asked = chosen ?? (get("do") === "rerun" ? ({ action: "rerun", selection: { all: true } as Selection } as const) : undefined);
  const close = () => {
    choose(undefined);
    if (get("do") !== undefined) {
      set({ do: undefined });
    }
  };
  return { asked, choose, close };
};

/** A batch: its state, what may be done with it, and its tokens, failures and pilots. `wide` leads to a page of its own. */
export const Batch = ({ scope, title, wide }: { scope: Scope; title: string; wide?: string }) => {
  const { data: overview, error, live, trouble } = useOverview(scope);
  const [get, set] = useAddress();
  const { asked, choose, close } = useQuestion();
  const [refused, refuse] = useState("");
  const tab = TABS.find((name) => name === get("tab")) ?? "overview";
  const token = get("token");

  if (!overview) {
    // What the server pushes stays; an error of the query goes while it is tried again.
    const problem = trouble == null ? error : new Error(trouble);
    return problem ? <Trouble error={problem} /> : <Loading what={`batch ${title}`} />;
  }
  const props: BatchProps = { scope, overview, ask: choose, refuse };
  return (
    <section aria-label={`Batch ${title}`} className="stack">
      <div className="row">
        <h2 className="grow foreign">{shown(title)}</h2>
        <Live at={overview.at} live={live} />
        {wide !== undefined && (
          <Link className="small" to={wide}>
            Full page
          </Link>
        )}
      </div>
      {overview.chain && <WayBack place={overview.chain} scope={scope} />}
      <div className="stack" style={{ gap: 8 }}>
        <Bar counts={overview.counts} />
        <Legend overview={overview} />
      </div>
      <div className="stack" style={{ gap: 8 }}>
        <Toolbar {...props} />
        {refused !== "" && (
          <p className="note warn" role="alert">
            {shown(refused)}
          </p>
        )}
      </div>
      {trouble != null && (
        <p className="note warn" role="status">
          {shown(trouble)}
        </p>
      )}
      <Tabs onTab={(name) => set({ tab: name === "overview" ? undefined : name })} overview={overview} tab={tab} />
      <div aria-labelledby={`picas-tab-${tab}`} id="picas-view" role="tabpanel">
        {tab === "overview" && <Glance {...props} />}
        {tab === "causes" && <Causes {...props} />}
        {tab === "tokens" && <Tokens {...props} />}
        {tab === "pilots" && <Pilots {...props} />}
      </div>
      {token !== undefined && <Token {...props} id={token} key={token} onClose={() => set({ token: undefined })} />}
      {asked && <Confirm asked={asked} onClose={close} scope={scope} />}
    </section>
  );
};

import { useQuery } from "@tanstack/react-query";

import { client, data, type Overview, type Scope } from "../api/client";
import { coreTime, many, number, range, rate, total } from "../lib/format";
import { shown } from "../lib/text";
import type { BatchProps } from "./Batch";
import { CauseList } from "./Causes";
import { Chain } from "./Chain";
import { keyOf } from "./hooks";
import { BuildingNote } from "./parts";
import { Plot } from "./Plot";

const Progress = ({ overview }: { overview: Overview }) => {
  const { counts, rate: speed, time_left: left } = overview;
  const all = Math.max(total(counts), overview.expected ?? 0);
  const ended = counts.done + counts.error;
  const percent = all > 0 ? Math.floor((100 * ended) / all) : 0;
  return (
    <div className="card">
      <h3>Progress</h3>
      <div className="figure">{percent} %</div>
      <div>
        {number(ended)} of {many(all, "token")} ended
      </div>
      {ended < all && (
        <div className="muted">
          {speed ? `${rate(speed.per_second)}, over the last ${many(speed.tokens, "token")}` : "no rate yet"}
        </div>
      )}
      {left && <div>{range(left.low, left.high)} left</div>}
    </div>
  );
};

const PilotCard = ({ overview }: { overview: Overview }) => {
  const { running, waiting, silent, ended, reasons, source } = overview.pilots;
  const others = Object.entries({ waiting, silent, ended }).flatMap(([state, pilots]) => (pilots > 0 ? [`${number(pilots)} ${state}`] : []));
  return (
    <div className="card">
      <h3>Pilots</h3>
      <div className="figure">{number(running)} running</div>
      {others.length > 0 && <div>{others.join(", ")}</div>}
      {reasons.map(({ reason, text, jobs }) => (
        <div className="muted foreign" key={reason} title={reason}>
          {many(jobs, "job")}: {shown(text)}
        </div>
      ))}
      {source === "leases" && <div className="muted small">Known from leases; pilots pending in Slurm are not shown.</div>}
    </div>
  );
};

const CoreHours = ({ overview }: { overview: Overview }) => {
  const used = overview.core_hours;
  return (
    <div className="card">
      <h3>Core time</h3>
      <div className="figure">{used ? coreTime(used.total) : "–"}</div>
      <div className="muted">
        {used?.per_token != null ? `${coreTime(used.per_token)} per token that ended` : used ? "no token has ended yet" : "not known for these pilots"}
      </div>
    </div>
  );
};

const Budget = ({ overview }: { overview: Overview }) => {
  const { budget } = overview;
  const spent = budget ? Math.min(100, (100 * budget.failed) / Math.max(1, budget.allowed)) : 0;
  const over = budget != null && budget.failed > budget.allowed;
  return (
    <div className="card">
      <h3>Error budget</h3>
      <div className="figure">{budget ? `${number(budget.failed)} of ${number(budget.allowed)}` : "no limit"}</div>
      {budget && (
        <div aria-label={`${Math.round(spent)} % spent`} className="bar thin" role="img">
          <span style={{ background: over || spent > 80 ? "var(--picas-error)" : "var(--picas-stateless)", width: `${over ? 100 : spent}%` }} />
        </div>
      )}
      <div className="muted">
        {budget ? (over ? "more failed than the wait allows" : `${Math.round(spent)} % spent`) : "the wait sets no limit on failed tokens"}
      </div>
    </div>
  );
};

/** Why nothing runs, for a batch or one of its tokens. */
export const Why = ({ scope, id }: { scope: Scope; id?: string }) => {
  const { data: why } = useQuery({
    queryKey: keyOf(scope, "list", "why", id),
    queryFn: () => data(client().GET("/api/batch/why", { params: { query: { ...scope, id } } })),
  });
  if (!why || why.sentences.length === 0) {
    return null;
  }
  return (
    <div className="note">
      <h3>Why {id === undefined ? "do tokens wait" : "does it not run"}?</h3>
      {why.sentences.map((sentence) => (
        <p className="foreign" key={sentence}>
          {shown(sentence)}
        </p>
      ))}
    </div>
  );
};

/** The batch at a glance. */
export const Glance = (props: BatchProps) => {
  const { scope, overview } = props;
  const stuck = overview.counts.todo > 0 && overview.counts.locked === 0;
  return (
    <div className="stack">
      {stuck && <Why scope={scope} />}
      <div className="cards">
        <Progress overview={overview} />
        <PilotCard overview={overview} />
        <CoreHours overview={overview} />
        <Budget overview={overview} />
      </div>
      {overview.chain && <Chain counts={overview.counts} scope={scope} />}
      {overview.history && overview.history.points.length > 0 && (
        <div className="card">
          <h3>Done and failed over time</h3>
          <Plot at={overview.at} history={overview.history} />
        </div>
      )}
      {overview.building && !overview.history && <BuildingNote building={overview.building} what="The plot over time appears" />}
      {overview.counts.error > 0 && (
        <div className="stack" style={{ gap: 8 }}>
          <h3>What failed</h3>
          <CauseList {...props} most={5} />
        </div>
      )}
      {overview.views === "partial" && (
        <p className="muted small">
          The pool has no views for this page, so some figures are of a part of the tokens. An admin of the database adds them with{" "}
          <code className="mono">airflow-picas deploy-views</code>.
        </p>
      )}
    </div>
  );
};

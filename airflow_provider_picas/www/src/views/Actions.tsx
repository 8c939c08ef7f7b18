import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { Link } from "react-router-dom";

import { type ActionName, client, data, type Done, type Overview, type Scope, type Selection } from "../api/client";
import { many } from "../lib/format";
import { shown } from "../lib/text";
import { keyOf } from "./hooks";
import { Dialog, Loading, Trouble } from "./parts";

/** An action that the user has chosen, and for which tokens. */
export interface Asked {
  action: ActionName;
  selection: Selection;
}

const NAMES: Record<ActionName, string> = {
  rerun: "Rerun failed",
  release: "Release tokens of dead pilots",
  drain: "Drain pilots",
  cancel: "Cancel pilots",
  priority: "Set priority",
  archive: "Archive",
};

const WORDS: Record<ActionName, string> = {
  rerun: "Rerun",
  release: "Release",
  drain: "Drain",
  cancel: "Cancel pilots",
  priority: "Set priority",
  archive: "Archive",
};

/** A button that stays readable when it may not be used, and says why. */
export const ActionButton = ({
  action, overview, selection, label, main = false, onAsk, onRefused,
}: {
  action: ActionName;
  overview: Overview;
  selection: Selection;
  label?: string;
  main?: boolean;
  onAsk: (asked: Asked) => void;
  onRefused: (why: string) => void;
}) => {
  const { allowed, why_not: whyNot } = overview.actions[action];
  const why = whyNot ?? "This is not possible now.";
  return (
    <button
      aria-disabled={!allowed}
      className={main ? "button main" : "button"}
      onClick={() => (allowed ? onAsk({ action, selection }) : onRefused(why))}
      title={allowed ? undefined : why}
      type="button"
    >
      {label ?? NAMES[action]}
    </button>
  );
};

/** All actions on a batch. */
export const Toolbar = ({ overview, onAsk, onRefused }: { overview: Overview; onAsk: (asked: Asked) => void; onRefused: (why: string) => void }) => {
  const shared = { overview, onAsk, onRefused };
  const failed = overview.counts.error;
  return (
    <div aria-label="Actions" className="row" role="group">
      <ActionButton action="rerun" label={failed > 0 ? `Rerun ${many(failed, "failed token")}` : "Rerun failed"} main selection={{ all: true }} {...shared} />
      {(["drain", "cancel", "release", "priority", "archive"] as const).map((action) => (
        <ActionButton action={action} key={action} selection={{ all: true }} {...shared} />
      ))}
    </div>
  );
};

const Result = ({ done, onClose }: { done: Done; onClose: () => void }) => (
  <>
    <p className="note good" role="status">
      {shown(done.text)}
    </p>
    <div className="buttons">
      {done.links.map(({ label, href }) => (
        <Link className="button" key={href} to={href}>
          {label}
        </Link>
      ))}
      <button autoFocus className="button main" onClick={onClose} type="button">
        Close
      </button>
    </div>
  </>
);

/** Asks before something is done: what will happen, and to how many. */
export const Confirm = ({ scope, asked, onClose }: { scope: Scope; asked: Asked; onClose: () => void }) => {
  const queries = useQueryClient();
  const [priority, setPriority] = useState("1");
  const body: Selection = { ...asked.selection };
  if (asked.action === "priority") {
    body.priority = Number(priority);
  }
  const params = { path: { action: asked.action }, query: scope };
  const full = { all: false, ...body };
  const plan = useQuery({
    queryKey: keyOf(scope, "plan", asked.action, body),
    queryFn: () => data(client().POST("/api/batch/actions/{action}/plan", { params, body: full })),
    gcTime: 0,
    staleTime: 0,
  });
  const act = useMutation({
    mutationFn: () => data(client().POST("/api/batch/actions/{action}", { params, body: full })),
    onSuccess: () => queries.invalidateQueries({ queryKey: keyOf(scope) }),
  });
  const ready = plan.data?.possible === true && !act.isPending;
  return (
    <Dialog label={NAMES[asked.action]} onClose={onClose}>
      <div className="stack">
        <h2>{plan.data ? shown(plan.data.title) : NAMES[asked.action]}</h2>
        {act.data ? (
          <Result done={act.data} onClose={onClose} />
        ) : (
          <>
            {asked.action === "priority" && (
              <label className="row">
                New priority: <input onChange={(event) => setPriority(event.target.value)} type="number" value={priority} />
                <span className="muted">A pilot takes the waiting token with the highest priority first.</span>
              </label>
            )}
            {plan.isPending && <Loading what="what this would do" />}
            {plan.error && <Trouble error={plan.error} />}
            {plan.data && (
              <ul>
                {plan.data.lines.map((line) => (
                  <li className="foreign" key={line}>
                    {shown(line)}
                  </li>
                ))}
              </ul>
            )}
            {plan.data && plan.data.tasks.length > 0 && (
              <p>
                Airflow clears: <span className="mono">{plan.data.tasks.map(shown).join(", ")}</span>
              </p>
            )}
            {act.error && <Trouble error={act.error} />}
            <div className="buttons">
              <button className="button" onClick={onClose} type="button">
                Go back
              </button>
              <button className="button main" disabled={!ready} onClick={() => act.mutate()} type="button">
                {act.isPending ? "Working …" : WORDS[asked.action]}
              </button>
            </div>
          </>
        )}
      </div>
    </Dialog>
  );
};

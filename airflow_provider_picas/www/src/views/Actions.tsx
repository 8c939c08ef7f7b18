import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { Link } from "react-router-dom";

import { type ActionName, client, data, type Done, type Plan, type Scope, type Selection } from "../api/client";
import { many } from "../lib/format";
import { shown } from "../lib/text";
import type { BatchProps } from "./Batch";
import { keyOf } from "./hooks";
import { Dialog, Loading, Trouble } from "./parts";

/** An action that the user has chosen, and for which tokens. */
export interface Asked {
  action: ActionName;
  selection: Selection;
  onDone?: () => void;
}

const NAMES: Record<ActionName, string> = {
  rerun: "Rerun failed",
  release: "Release tokens",
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

/** A button that stays readable when it may not be used, and says why. `of`: the batch that it is about. */
export const ActionButton = ({
  of: { overview, ask, refuse }, label, main = false, ...asked
}: {
  of: BatchProps;
  label?: string;
  main?: boolean;
} & Asked) => {
  const { allowed, why_not: whyNot } = overview.actions[asked.action];
  const why = whyNot ?? "This is not possible now.";
  return (
    <button
      aria-disabled={!allowed}
      className={main ? "button main" : "button"}
      onClick={() => (allowed ? ask(asked) : refuse(why))}
      title={allowed ? undefined : why}
      type="button"
    >
      {label ?? NAMES[asked.action]}
    </button>
  );
};

/** All actions on a batch. */
export const Toolbar = (batch: BatchProps) => {
  const failed = batch.overview.counts.error;
  return (
    <div aria-label="Actions" className="row" role="group">
      <ActionButton action="rerun" label={failed > 0 ? `Rerun ${many(failed, "failed token")}` : "Rerun failed"} main of={batch} selection={{ all: true }} />
      {(["drain", "cancel", "release", "priority", "archive"] as const).map((action) => (
        <ActionButton action={action} key={action} of={batch} selection={{ all: true }} />
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

const WhatHappens = ({ plan, error }: { plan: Plan | undefined; error: unknown }) => {
  if (!plan) {
    return error ? <Trouble error={error} /> : <Loading what="what this would do" />;
  }
  return (
    <>
      <ul>
        {plan.lines.map((line) => (
          <li className="foreign" key={line}>
            {shown(line)}
          </li>
        ))}
      </ul>
      {plan.tasks.length > 0 && (
        <p>
          Airflow clears: <span className="mono">{plan.tasks.map(shown).join(", ")}</span>
        </p>
      )}
    </>
  );
};

/** Asks before something is done: what will happen, and to how many. */
export const Confirm = ({ scope, asked, onClose }: { scope: Scope; asked: Asked; onClose: () => void }) => {
  const queries = useQueryClient();
  const [priority, setPriority] = useState("1");
  const body: Selection = { ...asked.selection };
  const complete = asked.action !== "priority" || priority !== ""; // the input gives "" for anything but a number
  if (asked.action === "priority") {
    body.priority = Number(priority);
  }
  const params = { path: { action: asked.action }, query: scope };
  const full = { all: false, ...body };
  const plan = useQuery({
    queryKey: keyOf(scope, "plan", asked.action, body),
    queryFn: () => data(client().POST("/api/batch/actions/{action}/plan", { params, body: full })),
    enabled: complete,
    gcTime: 0,
    staleTime: 0,
  });
  const title = plan.data ? shown(plan.data.title) : NAMES[asked.action];
  const [confirmed, setConfirmed] = useState<string>(); // the plan is read again after the action, and then finds no tokens
  const act = useMutation({
    mutationFn: () => data(client().POST("/api/batch/actions/{action}", { params, body: full })),
    onMutate: () => setConfirmed(title),
    onError: () => setConfirmed(undefined),
    onSuccess: () => {
      asked.onDone?.();
      return queries.invalidateQueries({ queryKey: keyOf(scope) });
    },
  });
  const ready = complete && plan.data?.possible === true && !act.isPending;
  return (
    <Dialog label={NAMES[asked.action]} onClose={onClose}>
      <div className="stack">
        <h2>{confirmed ?? title}</h2>
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
            {complete && <WhatHappens error={plan.error} plan={plan.data} />}
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

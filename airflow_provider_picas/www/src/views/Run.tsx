import { useQuery } from "@tanstack/react-query";

import { client, data, type Scope } from "../api/client";
import { shown } from "../lib/text";
import { Batch } from "./Batch";
import { batchPage, useAddress } from "./hooks";
import { Loading, Trouble } from "./parts";

interface RunProps {
  dagId: string;
  runId: string;
  taskId?: string;
  mapIndex?: string;
}

type RunBatch = Awaited<ReturnType<typeof batches>>["batches"][number];

const batches = ({ dagId, runId, taskId, mapIndex }: RunProps) =>
  data(
    client().GET("/api/run", {
      params: { query: { dag_id: dagId, run_id: runId, task_id: taskId, map_index: mapIndex === undefined ? undefined : Number(mapIndex) } },
    }),
  );

const nameOf = ({ conn_id, database, batch }: RunBatch): string => JSON.stringify([conn_id, database, batch]);

const scopeOf = ({ conn_id, database, batch, dag_id, run_id }: RunBatch): Scope => ({
  conn_id, database, batch: batch ?? undefined, dag_id, run_id,
});

/** Mapped tasks push a batch each: choose one. */
const Choice = ({ found, chosen, onChoose }: { found: RunBatch[]; chosen: RunBatch; onChoose: (name: string) => void }) => (
  <label className="row">
    Batch
    <select onChange={({ target: { value } }) => onChoose(value)} value={nameOf(chosen)}>
      {found.map((batch) => (
        <option key={nameOf(batch)} value={nameOf(batch)}>
          {shown(batch.label)} · {batch.task_id}
          {batch.map_index >= 0 ? ` [${batch.map_index}]` : ""}
        </option>
      ))}
    </select>
    <span className="muted">one of {found.length} of this run</span>
  </label>
);

/** The batches of a DAG run, or that of a task. */
export const Run = (props: RunProps) => {
  const [get, set] = useAddress();
  const { data: answer, error } = useQuery({
    queryKey: ["picas", "run", props],
    queryFn: () => batches(props),
    // A batch appears when the push has begun.
    refetchInterval: (query) => (query.state.data?.batches.length === 0 ? 5_000 : 30_000),
  });
  if (!answer) {
    return error ? <Trouble error={error} /> : <Loading what="the batches of this run" />;
  }
  const chosen = answer.batches.find((batch) => nameOf(batch) === get("batch")) ?? answer.batches[0];
  if (!chosen) {
    return (
      <p className="muted">
        {props.taskId === undefined
          ? "No task of this run has named a batch of tokens yet."
          : "This task has not named a batch of tokens, or has not started yet."}
      </p>
    );
  }
  return (
    <div className="stack">
      {answer.batches.length > 1 && (
        <Choice chosen={chosen} found={answer.batches} onChoose={(batch) => set({ batch, token: undefined, cause: undefined })} />
      )}
      <Batch key={nameOf(chosen)} scope={scopeOf(chosen)} title={chosen.batch ?? chosen.label} wide={batchPage(scopeOf(chosen))} />
    </div>
  );
};

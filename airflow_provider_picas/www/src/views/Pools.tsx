import { useInfiniteQuery, useQuery } from "@tanstack/react-query";
import { Link } from "react-router-dom";

import { client, type Counts, data, type Scope } from "../api/client";
import { many, number, total } from "../lib/format";
import { shown } from "../lib/text";
import { Batch } from "./Batch";
import { useAddress } from "./hooks";
import { Bar, Foreign, Loading, Trouble } from "./parts";

// Only what would end the path: Airflow marks the tab of an address that reads as its own links do.
const inPath = (name: string): string => name.replace(/[%?#/]/g, encodeURIComponent);

const runPage = (dag: string, run: string): string => `/dags/${inPath(dag)}/runs/${inPath(run)}/plugin/picas-run`;

const CountCells = ({ counts }: { counts: Counts }) => (
  <>
    <td className="wide">
      <Bar counts={counts} thin />
    </td>
    <td className="number">{number(total(counts))}</td>
    <td className="number">{number(counts.done)}</td>
    <td className="number">{number(counts.error)}</td>
  </>
);

const Heads = ({ first }: { first: string }) => (
  <thead>
    <tr>
      <th>{first}</th>
      <th>State</th>
      <th className="number">Tokens</th>
      <th className="number">Done</th>
      <th className="number">Failed</th>
    </tr>
  </thead>
);

/** The batches of a pool, those that changed last first. */
const Batches = ({ scope }: { scope: Scope }) => {
  const [, set] = useAddress();
  const { data: pages, error, fetchNextPage, hasNextPage, isFetchingNextPage } = useInfiniteQuery({
    queryKey: ["picas", "batches", scope],
    queryFn: ({ pageParam }) => data(client().GET("/api/pools/batches", { params: { query: { ...scope, cursor: pageParam } } })),
    initialPageParam: undefined as string | undefined,
    getNextPageParam: (last) => last.next ?? undefined,
    refetchInterval: 15_000,
  });
  if (!pages) {
    return error ? <Trouble error={error} /> : <Loading what="the batches" />;
  }
  // Pages count from the batch that changed last, so one may be on two of them.
  const found = [...new Map(pages.pages.flatMap(({ batches }) => batches.map((batch) => [batch.batch, batch]))).values()];
  return (
    <div className="stack" style={{ gap: 8 }}>
      <div className="scroll" tabIndex={-1}>
        <table>
          <Heads first="Batch" />
          <tbody>
            {found.map(({ batch, label, dag_id: dag, run_id: run, counts }) => (
              <tr key={batch}>
                <td className="wide">
                  <button className="link" onClick={() => set({ batch, dag: dag ?? undefined, run: run ?? undefined })} type="button">
                    <Foreign text={label ?? batch} />
                  </button>
                  {dag != null && run != null && (
                    <div className="small">
                      <Link to={runPage(dag, run)}>DAG run</Link>
                    </div>
                  )}
                </td>
                <CountCells counts={counts} />
              </tr>
            ))}
            {found.length === 0 && (
              <tr>
                <td className="empty" colSpan={5}>
                  This pool has no batches.
                </td>
              </tr>
            )}
          </tbody>
        </table>
      </div>
      {hasNextPage && (
        <button className="button" disabled={isFetchingNextPage} onClick={() => void fetchNextPage()} type="button">
          More batches
        </button>
      )}
    </div>
  );
};

const AllPools = () => {
  const [, set] = useAddress();
  const { data: answer, error } = useQuery({
    queryKey: ["picas", "pools"],
    queryFn: () => data(client().GET("/api/pools")),
    refetchInterval: 15_000,
  });
  if (!answer) {
    return error ? <Trouble error={error} /> : <Loading what="the pools" />;
  }
  if (answer.pools.length === 0) {
    return <p className="muted">You do not have access to a PiCaS connection. Add one under Admin, Connections.</p>;
  }
  return (
    <div className="scroll" tabIndex={-1}>
      <table>
        <Heads first="Pool" />
        <tbody>
          {answer.pools.map(({ conn_id: conn, database, host, counts, error: trouble }) => (
            <tr key={`${conn}/${database}`}>
              <td className="wide">
                <button className="link" onClick={() => set({ conn, db: database })} type="button">
                  <Foreign text={database} />
                </button>
                <div className="muted small">
                  <Foreign text={`${conn}, ${host}`} />
                </div>
              </td>
              {counts ? <CountCells counts={counts} /> : <td className="muted foreign" colSpan={4}>{shown(trouble ?? "")}</td>}
            </tr>
          ))}
        </tbody>
      </table>
      {answer.partial && <p className="muted small">There are more than {many(answer.pools.length, "pool")}.</p>}
    </div>
  );
};

const NOTHING = Object.fromEntries(
  ["conn", "db", "batch", "dag", "run", "whole", "tab", "token", "state", "cause", "key", "node", "pilot", "attempts"].map((name) => [name, undefined]),
);

/** The way from all pools to the one, or the batch, that is shown. */
const Way = ({ scope, whole }: { scope: Scope; whole: boolean }) => {
  const [, set] = useAddress();
  const pool = { ...NOTHING, conn: scope.conn_id, db: scope.database };
  return (
    <nav aria-label="Pools" className="row">
      <button className="link" onClick={() => set(NOTHING)} type="button">
        Pools
      </button>
      <span className="muted">/</span>
      <button className="link" onClick={() => set(pool)} type="button">
        <Foreign text={scope.database ?? scope.conn_id} />
      </button>
      {scope.dag_id !== undefined && scope.run_id !== undefined && (
        <>
          <span className="muted">/</span>
          <Link to={runPage(scope.dag_id, scope.run_id)}>DAG run</Link>
        </>
      )}
      {scope.batch === undefined && !whole && (
        <button className="button" onClick={() => set({ whole: "yes" })} type="button">
          The whole pool
        </button>
      )}
    </nav>
  );
};

/** The page in the navigation: pools, then the batches of one, then one of these. */
export const Pools = () => {
  const [get] = useAddress();
  const conn = get("conn");
  if (conn === undefined) {
    return (
      <div className="stack">
        <h2>PiCaS pools</h2>
        <AllPools />
      </div>
    );
  }
  const scope: Scope = { conn_id: conn, database: get("db"), batch: get("batch"), dag_id: get("dag"), run_id: get("run") };
  const whole = get("whole") === "yes";
  return (
    <div className="stack">
      <Way scope={scope} whole={whole} />
      {scope.batch === undefined && !whole ? (
        <Batches scope={scope} />
      ) : (
        <Batch key={scope.batch} scope={scope} title={scope.batch ?? scope.database ?? conn} />
      )}
    </div>
  );
};

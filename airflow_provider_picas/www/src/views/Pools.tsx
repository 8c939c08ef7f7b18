import { useInfiniteQuery, useQuery } from "@tanstack/react-query";
import { Link } from "react-router-dom";

import { client, type Counts, data, type Scope } from "../api/client";
import { many, number, total } from "../lib/format";
import { shown } from "../lib/text";
import { Batch } from "./Batch";
import { useAddress } from "./hooks";
import { Bar, Foreign, Loading, Trouble } from "./parts";

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
  const found = pages.pages.flatMap(({ batches }) => batches);
  return (
    <div className="stack" style={{ gap: 8 }}>
      <div className="scroll" tabIndex={-1}>
        <table>
          <Heads first="Batch" />
          <tbody>
            {found.map(({ batch, label, dag_id: dag, run_id: run, counts }) => (
              <tr key={batch}>
                <td className="wide">
                  <button className="link" onClick={() => set({ batch })} type="button">
                    <Foreign text={label ?? batch} />
                  </button>
                  {dag != null && run != null && (
                    <div className="small">
                      <Link to={`/dags/${encodeURIComponent(dag)}/runs/${encodeURIComponent(run)}/plugin/picas-run`}>DAG run</Link>
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
    return <p className="muted">There is no connection of type PiCaS that you may read. Add one under Admin, Connections.</p>;
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

/** The page in the navigation: pools, then the batches of one, then one of these. */
export const Pools = () => {
  const [get, set] = useAddress();
  const [conn, database, batch] = [get("conn"), get("db"), get("batch")];
  const whole = get("whole") === "yes";
  const up = { tab: undefined, token: undefined, state: undefined, cause: undefined, whole: undefined };
  return (
    <div className="stack">
      <nav aria-label="Pools and batches" className="row">
        <h2>
          <button className="link" onClick={() => set({ ...up, conn: undefined, db: undefined, batch: undefined })} type="button">
            Pools
          </button>
        </h2>
        {conn !== undefined && (
          <>
            <span className="muted">/</span>
            <button className="link" onClick={() => set({ ...up, batch: undefined })} type="button">
              <Foreign text={database ?? conn} />
            </button>
            {batch === undefined && !whole && (
              <button className="button" onClick={() => set({ whole: "yes" })} type="button">
                The whole pool
              </button>
            )}
          </>
        )}
      </nav>
      {conn === undefined && <AllPools />}
      {conn !== undefined && batch === undefined && !whole && <Batches scope={{ conn_id: conn, database }} />}
      {conn !== undefined && (batch !== undefined || whole) && (
        <Batch key={batch} scope={{ conn_id: conn, database, batch }} title={batch ?? database ?? conn} />
      )}
    </div>
  );
};

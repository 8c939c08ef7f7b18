import { useQuery } from "@tanstack/react-query";

import { client, data, type Pilot, type Scope } from "../api/client";
import { ago, duration, keyOfId, number, progress } from "../lib/format";
import { shown } from "../lib/text";
import { ActionButton } from "./Actions";
import type { BatchProps } from "./Batch";
import { againWhileBuilding, keyOf, useAddress, useNow } from "./hooks";
import { BuildingNote, Foreign, Lines, Loading, Trouble } from "./parts";
import { Timeline } from "./Timeline";

const STATE_COLOURS: Record<Pilot["state"], string> = {
  working: "var(--picas-locked)",
  idle: "var(--picas-done)",
  draining: "var(--picas-stateless)",
  stopping: "var(--picas-stateless)",
  silent: "var(--picas-error)",
  ended: "var(--picas-todo)",
  unknown: "var(--picas-todo)",
};

/** Pilots of PiCaS clients have no lease, so that it is unknown whether they live. */
const MAY_BE_DEAD: ReadonlySet<Pilot["state"]> = new Set(["silent", "ended", "unknown"]);

type Running = Pilot["now"][number];

const Now = ({ now, at }: { now: Running; at: number }) => {
  const [, set] = useAddress();
  return (
    <div>
      <button className="link mono" onClick={() => set({ token: now.token })} type="button">
        <Foreign text={keyOfId(now.token)} />
      </button>{" "}
      {now.since != null && <span className="muted">for {duration(Math.max(0, at - now.since))}</span>}{" "}
      {now.progress != null && <Foreign text={progress(now.progress)} />}
      {now.tail != null && now.tail !== "" && <Lines label={`Last lines of ${shown(now.token)}`} text={now.tail} />}
    </div>
  );
};

/** A pilot. `holds`: tokens of the batch are locked by it. */
const Row = ({ pilot, at, holds, ...props }: BatchProps & { pilot: Pilot; at: number; holds: boolean }) => (
  <tr>
    <td className="wide">
      <Foreign mono text={pilot.pilot} />
      {pilot.now.map((now) => (
        <Now at={at} key={now.token} now={now} />
      ))}
    </td>
    <td>
      <span className="state">
        <span className="dot" style={{ background: STATE_COLOURS[pilot.state] }} />
        {pilot.state}
      </span>
    </td>
    <td className="narrow-off">{pilot.node != null && <Foreign text={pilot.node} />}</td>
    <td className="narrow-off mono">{pilot.job != null && <Foreign text={pilot.job} />}</td>
    <td className="number">{number(pilot.done)}</td>
    <td className="number">{number(pilot.failed)}</td>
    <td className="narrow-off">{pilot.heard == null ? "" : ago(pilot.heard, at)}</td>
    <td>
      {holds && MAY_BE_DEAD.has(pilot.state) && <ActionButton action="release" label="Release" of={props} selection={{ pilot: pilot.pilot }} />}
    </td>
  </tr>
);

const HEADS: [string, string][] = [
  ["Pilot", ""],
  ["State", ""],
  ["Node", "narrow-off"],
  ["Slurm job", "narrow-off"],
  ["Done", "number"],
  ["Failed", "number"],
  ["Last heard", "narrow-off"],
];

const PilotTable = ({ pilots, at, holders, ...props }: BatchProps & { pilots: Pilot[]; at: number; holders: ReadonlySet<string> }) => (
  <div className="scroll" tabIndex={-1}>
    <table>
      <thead>
        <tr>
          {HEADS.map(([head, name]) => (
            <th className={name} key={head}>
              {head}
            </th>
          ))}
          <th>
            <span className="hidden">Action</span>
          </th>
        </tr>
      </thead>
      <tbody>
        {pilots.map((pilot) => (
          <Row at={at} holds={holders.has(pilot.pilot)} key={pilot.pilot} pilot={pilot} {...props} />
        ))}
        {pilots.length === 0 && (
          <tr>
            <td className="empty" colSpan={8}>
              No pilot has taken a token of this batch yet.
            </td>
          </tr>
        )}
      </tbody>
    </table>
  </div>
);

/** Nodes with the share of their tokens that failed. */
const Nodes = ({ scope }: { scope: Scope }) => {
  const { data: answer, error } = useQuery({
    queryKey: keyOf(scope, "list", "nodes"),
    queryFn: () => data(client().GET("/api/batch/nodes", { params: { query: scope } })),
    refetchInterval: againWhileBuilding,
  });
  const [, set] = useAddress();
  if (!answer) {
    return error ? <Trouble error={error} /> : <Loading what="nodes" />;
  }
  if (answer.building) {
    return <BuildingNote building={answer.building} what="The nodes appear" />;
  }
  return (
    <div className="scroll" tabIndex={-1}>
      <table>
        <thead>
          <tr>
            <th>Node</th>
            <th className="number">Done</th>
            <th className="number">Failed</th>
            <th>Failure rate</th>
          </tr>
        </thead>
        <tbody>
          {answer.nodes.map(({ node, done, error: failed }) => {
            const share = (100 * failed) / Math.max(1, done + failed);
            return (
              <tr key={node}>
                <td>
                  <button className="link" onClick={() => set({ tab: "tokens", node, state: failed > 0 ? "error" : undefined, name: undefined })} type="button">
                    <Foreign text={node} />
                  </button>
                </td>
                <td className="number">{number(done)}</td>
                <td className="number">{number(failed)}</td>
                <td>
                  <div className="row" style={{ flexWrap: "nowrap" }}>
                    <div aria-hidden className="bar thin grow">
                      <span style={{ background: "var(--picas-error)", width: `${share}%` }} />
                    </div>
                    <span className="number">{share.toLocaleString("en-GB", { maximumFractionDigits: 1 })} %</span>
                  </div>
                </td>
              </tr>
            );
          })}
          {answer.nodes.length === 0 && (
            <tr>
              <td className="empty" colSpan={4}>
                No tokens have finished yet.
              </td>
            </tr>
          )}
        </tbody>
      </table>
    </div>
  );
};

/** The pilots of a batch: over time, now, and by node. */
export const Pilots = (props: BatchProps) => {
  const now = useNow();
  const { data: answer, error, dataUpdatedAt } = useQuery({
    queryKey: keyOf(props.scope, "list", "pilots"),
    queryFn: () => data(client().GET("/api/batch/pilots", { params: { query: props.scope } })),
    refetchInterval: (query) => (props.overview.counts.locked > 0 ? 5_000 : againWhileBuilding(query)),
  });
  if (!answer) {
    return error ? <Trouble error={error} /> : <Loading what="pilots" />;
  }
  // The database's time, which may differ from the browser's.
  const at = answer.at + Math.max(0, now - dataUpdatedAt / 1000);
  const holders = new Set(answer.bars.flatMap(({ pilot, state }) => (state === "locked" ? [pilot] : [])));
  return (
    <div className="stack">
      {answer.building && <BuildingNote building={answer.building} what="Runs that have ended appear in the timeline" />}
      {answer.bars.length > 0 && (
        <div className="card">
          <h3>Who ran what</h3>
          <Timeline at={answer.at} bars={answer.bars} pilots={answer.pilots} />
        </div>
      )}
      <PilotTable {...props} at={at} holders={holders} pilots={answer.pilots} />
      {answer.partial && <p className="muted small">There are more pilots or tokens than are shown here.</p>}
      <h3>Nodes</h3>
      <Nodes scope={props.scope} />
    </div>
  );
};

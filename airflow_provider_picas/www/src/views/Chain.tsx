import { useQuery } from "@tanstack/react-query";
import type { CSSProperties } from "react";
import { Link } from "react-router-dom";

import { type ChainEdge, type ChainNode, type ChainPlace, client, data, type Scope } from "../api/client";
import { atLeast, many, number, total } from "../lib/format";
import { shown } from "../lib/text";
import { batchPage, keyOf } from "./hooks";
import { Bar } from "./parts";

const AGAIN = 20_000; // ms; the server reads the pool less often
const LANE = 10; // px between two edges that pass other stages

const nameOf = ({ stage, batch }: ChainNode): string => stage ?? batch;

/** What may still happen to a stage, in words. */
const notesOf = ({ growing, pending, groups, made, counts }: ChainNode): string[] => [
  ...(counts && growing ? ["more tokens may appear"] : []),
  ...(pending > 0 ? [`${many(pending, "list")} of new tokens pending: ${pending === 1 ? "it makes" : "they make"} tokens of later stages`] : []),
  ...(groups != null && made != null && groups > made ? [`${number(groups - made)} of ${many(groups, "group")} not made yet`] : []),
];

/** How the tokens of a stage come to be, for everybody who does not see the lines. */
const originOf = (node: ChainNode, at: number, nodes: ChainNode[], edges: ChainEdge[]): string =>
  edges
    .filter(({ end }) => end === at)
    .map(({ begin, group, tokens }) => {
      const from = nodes[begin]?.stage ?? "the pushed batch";
      const share = node.at_least == null ? "" : `, when ${atLeast(node.at_least)} of its members have finished`;
      return group ? `one token for each group of ${from}${share}` : tokens > 0 ? `${many(tokens, "token")} made by ${from}` : `made by ${from} or an earlier stage`;
    })
    .join("; ");

const Node = ({ node, at, nodes, edges, scope }: { node: ChainNode; at: number; nodes: ChainNode[]; edges: ChainEdge[]; scope: Scope }) => {
  const { batch, stage, counts } = node;
  const here = batch === scope.batch;
  const name = shown(nameOf(node));
  const notes = notesOf(node);
  const origin = originOf(node, at, nodes, edges);
  return (
    <li aria-current={here ? "page" : undefined} style={{ gridRow: at + 1 }}>
      <div className="row">
        <span className="foreign grow">
          {here || !counts ? <b>{name}</b> : <Link to={batchPage({ ...scope, batch })}>{name}</Link>}
          {stage == null && <span className="muted"> (the batch that was pushed)</span>}
        </span>
        {counts && (
          <span className="number">
            {number(counts.done)} of {number(total(counts))} done{counts.error > 0 && `, ${number(counts.error)} failed`}
            {counts.locked > 0 && `, ${number(counts.locked)} running`}
          </span>
        )}
      </div>
      {counts ? <Bar counts={counts} thin /> : <div className="muted small">You may not see this batch.</div>}
      {origin !== "" && <div className="muted small foreign">{shown(origin)}</div>}
      {notes.map((note) => (
        <div className="small" key={note}>
          {note}
        </div>
      ))}
    </li>
  );
};

/** The lanes of the edges: those to the next stage are straight, others pass beside the stages between. */
const lanesOf = (edges: ChainEdge[]): number[] => {
  const ends: number[] = [];
  return edges.map(({ begin, end }) => {
    if (end === begin + 1) {
      return 0;
    }
    const free = ends.findIndex((last) => last <= begin);
    const lane = free < 0 ? ends.length : free;
    ends[lane] = end;
    return lane + 1;
  });
};

/** The stages of a chain in order, with what each makes for the others. */
export const Chain = ({ scope, counts }: { scope: Scope; counts: NonNullable<ChainNode["counts"]> }) => {
  const { data: chain } = useQuery({
    queryKey: keyOf(scope, "list", "chain"),
    queryFn: () => data(client().GET("/api/batch/chain", { params: { query: scope } })),
    refetchInterval: AGAIN,
  });
  if (!chain || chain.nodes.length === 0) {
    return null;
  }
  const nodes = chain.nodes.map((node) => (node.batch === scope.batch ? { ...node, counts } : node));
  const lanes = lanesOf(chain.edges);
  const gutter = 14 + LANE * Math.max(0, ...lanes);
  return (
    <div className="card">
      <h3 id="picas-chain">Stages</h3>
      <ol aria-labelledby="picas-chain" className="chain" style={{ "--picas-gutter": `${gutter}px` } as CSSProperties}>
        {nodes.map((node, at) => (
          <Node at={at} edges={chain.edges} key={node.batch} node={node} nodes={nodes} scope={scope} />
        ))}
        {chain.edges.map(({ begin, end, group }, i) => (
          <li
            aria-hidden="true"
            className={`edge${group ? " group" : ""}${lanes[i] === 0 ? " straight" : ""}`}
            key={`${begin}-${end}-${String(group)}`}
            style={{ gridRow: `${begin + 1} / ${end + 1}`, marginInlineStart: gutter - 9 - LANE * (lanes[i] ?? 0) }}
          />
        ))}
      </ol>
      {chain.partial && <p className="muted small">There are more groups than were counted.</p>}
    </div>
  );
};

/** The way from a stage back to the batch that its chain begins with. */
export const WayBack = ({ scope, place }: { scope: Scope; place: ChainPlace }) =>
  place.stage == null ? null : (
    <nav aria-label="Chain of stages" className="small">
      Stage <b className="foreign">{shown(place.stage)}</b> of <Link to={batchPage({ ...scope, batch: place.batch })}>{shown(place.batch)}</Link>
    </nav>
  );

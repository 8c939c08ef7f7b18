import { useQuery } from "@tanstack/react-query";
import { useState } from "react";

import { type Cause, client, data, type Scope } from "../api/client";
import { clock, keyOfId, many, number } from "../lib/format";
import { shown } from "../lib/text";
import { ActionButton } from "./Actions";
import type { BatchProps } from "./Batch";
import { keyOf, useAddress } from "./hooks";
import { Foreign, Loading, Trouble } from "./parts";

export const useCauses = (scope: Scope) =>
  useQuery({
    queryKey: keyOf(scope, "list", "causes"),
    queryFn: () => data(client().GET("/api/batch/causes", { params: { query: scope } })),
  });

const NODES = 3;

const nodes = ({ nodes: all }: Cause): string => {
  const named = all.slice(0, NODES).map(({ node, tokens }) => (tokens > 1 ? `${node} (${number(tokens)})` : node));
  return shown(named.join(", ")) + (all.length > NODES ? ` and ${all.length - NODES} more` : "");
};

const when = ({ first, last }: Cause): string => {
  if (first == null || last == null) {
    return "";
  }
  return first === last ? clock(first) : `${clock(first)} – ${clock(last)}`;
};

/** Tokens of a cause: some at once, the others in the table. */
const Opened = ({ cause }: { cause: Cause }) => {
  const [, set] = useAddress();
  return (
    <div className="row small">
      {cause.sample.map((id) => (
        <button className="link mono" key={id} onClick={() => set({ token: id })} type="button">
          <Foreign text={keyOfId(id)} />
        </button>
      ))}
      <button className="link" onClick={() => set({ tab: "tokens", cause: cause.id, state: "error", name: undefined })} type="button">
        {cause.tokens > cause.sample.length ? `All ${number(cause.tokens)} in the table` : "In the table"}
      </button>
    </div>
  );
};

const Group = ({ cause, open, onToggle, ...props }: BatchProps & { cause: Cause; open: boolean; onToggle: () => void }) => (
  <>
    <tr>
      <td className="number">{number(cause.tokens)}</td>
      <td className="wide">
        <button aria-expanded={open} className="link" onClick={onToggle} type="button">
          {open ? "▾" : "▸"} <Foreign text={cause.cause} />
        </button>
      </td>
      <td className="narrow-off">{when(cause)}</td>
      <td className="narrow-off foreign">{nodes(cause)}</td>
      <td>
        <ActionButton action="rerun" label="Rerun" of={props} selection={{ cause: cause.id }} />
      </td>
    </tr>
    {open && (
      <tr>
        <td />
        <td colSpan={4}>
          <Opened cause={cause} />
        </td>
      </tr>
    )}
  </>
);

/** The causes in a table, the most frequent first. */
export const CauseList = ({ most = Infinity, ...props }: BatchProps & { most?: number }) => {
  const { data: answer, error } = useCauses(props.scope);
  const [, set] = useAddress();
  const [chosen, choose] = useState<string | null | undefined>();
  if (!answer) {
    return error ? <Trouble error={error} /> : <Loading what="the causes" />;
  }
  // The first is open until one is chosen: its tokens are one click away.
  const open = chosen === undefined ? answer.causes[0]?.id : chosen;
  return (
    <div className="stack" style={{ gap: 8 }}>
      <div className="scroll" tabIndex={-1}>
        <table>
          <thead>
            <tr>
              <th className="number">Tokens</th>
              <th>Cause</th>
              <th className="narrow-off">First and last</th>
              <th className="narrow-off">Nodes</th>
              <th>
                <span className="hidden">Action</span>
              </th>
            </tr>
          </thead>
          <tbody>
            {answer.causes.slice(0, most).map((cause) => (
              <Group
                cause={cause}
                key={cause.id}
                onToggle={() => choose(open === cause.id ? null : cause.id)}
                open={open === cause.id}
                {...props}
              />
            ))}
            {answer.causes.length === 0 && (
              <tr>
                <td className="empty" colSpan={5}>
                  No tokens have failed.
                </td>
              </tr>
            )}
          </tbody>
        </table>
      </div>
      {answer.causes.length > most && (
        <button className="link" onClick={() => set({ tab: "causes" })} type="button">
          All {many(answer.causes.length, "cause")}
        </button>
      )}
      {answer.partial && <p className="muted small">Of {many(answer.read, "failed token")} that were read; there are more.</p>}
    </div>
  );
};

export const Causes = (props: BatchProps) => <CauseList {...props} />;

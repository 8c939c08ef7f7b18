import { keepPreviousData, useQuery } from "@tanstack/react-query";
import { type Dispatch, type SetStateAction, useState } from "react";

import { client, type Counts, data, type Overview, type Scope, type StateName, type TokenFilter, type TokenRow, type TokensAnswer } from "../api/client";
import { clock, LABELS, many, number, STATES, took } from "../lib/format";
import { shown } from "../lib/text";
import { ActionButton } from "./Actions";
import type { BatchProps } from "./Batch";
import { useCauses } from "./Causes";
import { againWhileBuilding, keyOf, useAddress } from "./hooks";
import { BuildingNote, Foreign, Loading, State, Trouble } from "./parts";

const FIELDS = ["state", "name", "key", "cause", "node", "pilot", "attempts"] as const;
type Field = (typeof FIELDS)[number];
const SIZE = 50;

/** A text field that asks once the person stops typing, or presses Enter. */
const Typed = ({ label, name, hint, type = "text" }: { label: string; name: Field; hint?: string; type?: string }) => {
  const [get, set] = useAddress();
  const [typed, setTyped] = useState<string | undefined>();
  const [timer, setTimer] = useState<ReturnType<typeof setTimeout>>();
  const ask = (value: string) => {
    clearTimeout(timer);
    set({ [name]: value });
    setTyped(undefined);
  };
  return (
    <label>
      {label}
      <input
        min={type === "number" ? 0 : undefined}
        name={name}
        onChange={({ target: { value } }) => {
          setTyped(value);
          clearTimeout(timer);
          setTimer(setTimeout(() => ask(value), 400));
        }}
        onKeyDown={({ key, currentTarget }) => {
          if (key === "Enter") {
            ask(currentTarget.value);
          }
        }}
        placeholder={hint}
        type={type}
        value={typed ?? get(name) ?? ""}
      />
    </label>
  );
};

const CauseChoice = ({ scope }: { scope: Scope }) => {
  const { data: answer } = useCauses(scope);
  const [get, set] = useAddress();
  const known = answer?.causes ?? [];
  const chosen = get("cause") ?? "";
  return (
    <label>
      Cause
      <select name="cause" onChange={({ target: { value } }) => set({ cause: value })} value={chosen}>
        <option value="">any</option>
        {chosen !== "" && !known.some(({ id }) => id === chosen) && <option value={chosen}>the chosen one</option>}
        {known.map(({ id, cause, tokens }) => (
          <option key={id} value={id}>
            {shown(cause).slice(0, 60)} ({number(tokens)})
          </option>
        ))}
      </select>
    </label>
  );
};

/** The states, each followed by the names that the pool itself has for it. */
const StateChoice = ({ counts }: { counts: Counts }) => {
  const [get, set] = useAddress();
  const [state, name] = [get("state"), get("name")];
  const namesIn = (of: StateName): string[] => {
    const found = Object.keys(counts.named[of] ?? {});
    return of === state && name !== undefined && !found.includes(name) ? [...found, name] : found;
  };
  const choose = (value: string) => {
    const [chosen, ...rest] = value.split("/");
    set({ state: chosen, name: rest.join("/") });
  };
  return (
    <label>
      State
      <select name="state" onChange={({ target: { value } }) => choose(value)} value={name === undefined ? (state ?? "") : `${state ?? ""}/${name}`}>
        <option value="">any</option>
        {STATES.flatMap((each) => [
          <option key={each} value={each}>
            {LABELS[each]}
          </option>,
          ...namesIn(each).map((of) => (
            <option key={`${each}/${of}`} value={`${each}/${of}`}>
              {LABELS[each]} ({shown(of).slice(0, 60)})
            </option>
          )),
        ])}
      </select>
    </label>
  );
};

const Filters = ({ scope, overview }: BatchProps) => {
  const [get, set] = useAddress();
  const used = FIELDS.some((name) => get(name) !== undefined);
  return (
    <div className="filters" role="search">
      <StateChoice counts={overview.counts} />
      <Typed hint="begins with" label="Key" name="key" />
      <CauseChoice scope={scope} />
      <Typed label="Node" name="node" />
      <Typed label="Pilot or Slurm job" name="pilot" />
      <Typed hint="at least" label="Attempts" name="attempts" type="number" />
      {used && (
        <button className="button" onClick={() => set(Object.fromEntries(FIELDS.map((name) => [name, undefined])))} style={{ alignSelf: "end" }} type="button">
          Clear filters
        </button>
      )}
    </div>
  );
};

/** The database has the tokens in the order of their ends for a state only, and only with the page's views. */
const useSortsByEnd = (overview: Overview): boolean => {
  const [get] = useAddress();
  return overview.views === "page" && FIELDS.every((name) => name === "state" || get(name) === undefined);
};

/** The filter that the page's address holds. */
const useFilter = ({ scope, overview }: BatchProps): TokenFilter => {
  const [get] = useAddress();
  const attempts = Number(get("attempts"));
  const byEnd = useSortsByEnd(overview) && get("sort") === "ended";
  return {
    ...scope,
    state: get("state") as StateName | undefined,
    name: get("name"),
    key: get("key"),
    cause: get("cause"),
    node: get("node"),
    pilot: get("pilot"),
    min_attempts: attempts > 0 ? attempts : undefined,
    sort: byEnd ? "ended" : "id",
    descending: get("descending") === "yes",
    limit: SIZE,
  };
};

/** Sorting by the server: a click sorts, a second one turns it round. */
const Sort = ({ by, className, children }: { by: "id" | "ended"; className?: string; children: string }) => {
  const [get, set] = useAddress();
  const now = (get("sort") === "ended" ? "ended" : "id") === by;
  const down = get("descending") === "yes";
  const click = () => set({ sort: by, descending: now ? (down ? undefined : "yes") : by === "ended" ? "yes" : undefined });
  return (
    <th aria-sort={now ? (down ? "descending" : "ascending") : "none"} className={className}>
      <button onClick={click} type="button">
        {children} {now ? (down ? "↓" : "↑") : "↕"}
      </button>
    </th>
  );
};

const Row = ({ token, chosen, onChoose }: { token: TokenRow; chosen: boolean; onChoose: () => void }) => {
  const [, set] = useAddress();
  return (
    <tr>
      <td>
        <input aria-label={`Select ${token.key}`} checked={chosen} onChange={onChoose} type="checkbox" />
      </td>
      <td className="wide">
        <button className="link mono" onClick={() => set({ token: token.id })} type="button">
          <Foreign text={token.key} />
        </button>
        {token.cause != null && (
          <div className="muted small">
            <Foreign text={token.cause} />
          </div>
        )}
      </td>
      <td>
        <State name={token.name} state={token.state} />
      </td>
      <td className="narrow-off">{token.node != null && <Foreign text={token.node} />}</td>
      <td className="narrow-off mono">{token.job != null && <Foreign text={token.job} />}</td>
      <td className="number">{number(token.attempts)}</td>
      <td className="narrow-off number">{token.exit_code != null && <Foreign text={token.exit_code} />}</td>
      <td className="narrow-off number">{token.seconds != null && took(token.seconds)}</td>
      <td className="narrow-off number">{token.ended != null && clock(token.ended)}</td>
    </tr>
  );
};

const Table = ({ tokens, chosen, setChosen, byEnd }: { tokens: TokenRow[]; byEnd: boolean; chosen: ReadonlySet<string>; setChosen: Dispatch<SetStateAction<ReadonlySet<string>>> }) => {
  const all = tokens.length > 0 && tokens.every(({ id }) => chosen.has(id));
  const turn = (ids: string[], on: boolean) =>
    setChosen((old) => {
      const changed = new Set(old);
      for (const id of ids) {
        if (on) {
          changed.add(id);
        } else {
          changed.delete(id);
        }
      }
      return changed;
    });
  return (
    <div className="scroll" tabIndex={-1}>
      <table>
        <thead>
          <tr>
            <th>
              <input aria-label="Select all of this page" checked={all} onChange={() => turn(tokens.map(({ id }) => id), !all)} type="checkbox" />
            </th>
            <Sort by="id">Key</Sort>
            <th>State</th>
            <th className="narrow-off">Node</th>
            <th className="narrow-off">Slurm job</th>
            <th className="number">Attempts</th>
            <th className="narrow-off number">Exit code</th>
            <th className="narrow-off number">Took</th>
            {byEnd ? (
              <Sort by="ended" className="narrow-off number">
                Ended
              </Sort>
            ) : (
              <th className="narrow-off number">Ended</th>
            )}
          </tr>
        </thead>
        <tbody>
          {tokens.map((token) => (
            <Row chosen={chosen.has(token.id)} key={token.id} onChoose={() => turn([token.id], !chosen.has(token.id))} token={token} />
          ))}
          {tokens.length === 0 && (
            <tr>
              <td className="empty" colSpan={9}>
                No matching tokens.
              </td>
            </tr>
          )}
        </tbody>
      </table>
    </div>
  );
};

/** What can be done with the tokens that are chosen. */
const Chosen = ({ chosen, onClear, ...props }: BatchProps & { chosen: ReadonlySet<string>; onClear: () => void }) => {
  const shared = { of: props, selection: { ids: [...chosen] }, onDone: onClear };
  return (
    <div aria-label="Selection" className="row note" role="group">
      <b>{many(chosen.size, "token")} selected</b>
      <ActionButton action="rerun" label="Rerun" main {...shared} />
      <ActionButton action="priority" {...shared} />
      <button className="link" onClick={onClear} type="button">
        Clear selection
      </button>
    </div>
  );
};

/** The tokens of a batch, filtered, sorted and paged by the server. */
export const Tokens = (props: BatchProps) => {
  const filter = useFilter(props);
  const byEnd = useSortsByEnd(props.overview);
  const [chosen, setChosen] = useState<ReadonlySet<string>>(new Set());
  const asked = JSON.stringify(filter);
  const [pages, setPages] = useState<{ asked: string; cursors: string[] }>({ asked, cursors: [] });
  const cursors = pages.asked === asked ? pages.cursors : []; // another filter begins on its first page
  const cursor = cursors.at(-1);
  const { data: answer, error, isPlaceholderData } = useQuery({
    queryKey: keyOf(props.scope, "list", "tokens", filter, cursor),
    queryFn: () => data(client().GET("/api/batch/tokens", { params: { query: { ...filter, cursor } } })),
    placeholderData: keepPreviousData,
    refetchInterval: againWhileBuilding,
  });
  return (
    <div className="stack">
      <Filters {...props} />
      {chosen.size > 0 && <Chosen {...props} chosen={chosen} onClear={() => setChosen(new Set())} />}
      {error && <Trouble error={error} />}
      {!answer && !error && <Loading what="tokens" />}
      {answer?.building && <BuildingNote building={answer.building} what="The tokens that ended last appear" />}
      {answer && !answer.building && (
        <>
          <div aria-busy={isPlaceholderData} style={{ opacity: isPlaceholderData ? 0.6 : 1 }}>
            <Table byEnd={byEnd} chosen={chosen} setChosen={setChosen} tokens={answer.tokens} />
          </div>
          <Pager answer={answer} cursors={cursors} onCursors={(changed) => setPages({ asked, cursors: changed })} />
        </>
      )}
    </div>
  );
};

const Pager = ({ answer, cursors, onCursors }: { answer: TokensAnswer; cursors: string[]; onCursors: (cursors: string[]) => void }) => (
  <div className="row">
    <span className="muted grow">
      {answer.partial
        ? "The search stopped before it had read all tokens; Next continues it."
        : `Page ${cursors.length + 1}, ${many(answer.tokens.length, "token")}`}
    </span>
    <button className="button" disabled={cursors.length === 0} onClick={() => onCursors(cursors.slice(0, -1))} type="button">
      Previous
    </button>
    <button
      className="button"
      disabled={answer.next == null}
      onClick={() => answer.next != null && onCursors([...cursors, answer.next])}
      type="button"
    >
      Next
    </button>
  </div>
);


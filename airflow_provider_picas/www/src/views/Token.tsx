import { useQuery } from "@tanstack/react-query";
import { useState } from "react";

import { address, type Attempt, type AttachmentInfo, client, data, Failure, type Scope, type Text, type TokenAnswer } from "../api/client";
import { bytes, clock, many, number, took } from "../lib/format";
import { shown } from "../lib/text";
import { ActionButton } from "./Actions";
import type { BatchProps } from "./Batch";
import { Why } from "./Glance";
import { keyOf } from "./hooks";
import { Dialog, Foreign, Lines, Loading, State, Trouble } from "./parts";

const TAIL = 65_536;

const read = async (url: string): Promise<string> => {
  const response = await fetch(url);
  if (!response.ok) {
    throw new Failure(response.status, `The attachment cannot be read: Airflow answered ${response.status}.`);
  }
  return response.text();
};

/** The end of an attachment. */
const TextFile = ({ scope, id, file }: { scope: Scope; id: string; file: AttachmentInfo }) => {
  const { data: text, error } = useQuery({
    queryKey: keyOf(scope, "attachment", id, file.name, file.bytes),
    queryFn: () => read(address("/token/attachment", scope, { id, name: file.name, tail: String(TAIL) })),
  });
  if (text === undefined) {
    return error ? <Trouble error={error} /> : <Loading what={shown(file.name)} />;
  }
  return (
    <>
      {file.bytes > TAIL && <p className="muted small">The last {bytes(TAIL)} of {bytes(file.bytes)}:</p>}
      {text === "" ? <p className="muted">It is empty.</p> : <Lines className="log" label={shown(file.name)} text={text} />}
    </>
  );
};

/** An attachment: text and pictures are shown, the rest is to download. */
const File = ({ scope, id, file, open }: { scope: Scope; id: string; file: AttachmentInfo; open: boolean }) => {
  const [seen, see] = useState(open);
  const download = address("/token/attachment", scope, { id, name: file.name, download: "true" });
  return (
    <details onToggle={({ currentTarget }) => currentTarget.open && see(true)} open={open || undefined}>
      <summary>
        <Foreign text={file.name} /> <span className="muted small">{bytes(file.bytes)}</span>
      </summary>
      <div className="stack" style={{ gap: 6 }}>
        {seen && file.show === "text" && <TextFile file={file} id={id} scope={scope} />}
        {seen && file.show === "picture" && (
          <img alt={shown(file.name)} className="attachment" src={address("/token/attachment", scope, { id, name: file.name })} />
        )}
        <a download href={download}>
          Download
        </a>
      </div>
    </details>
  );
};

const Value = ({ label, text }: { label: string; text: Text }) => (
  <div>
    <h3>
      {shown(label)} {text.cut && <span className="muted small">the first part of {bytes(text.bytes)}</span>}
    </h3>
    <Lines label={shown(label)} text={text.text} />
  </div>
);

const Facts = ({ facts }: { facts: [string, string | null | undefined][] }) => (
  <dl>
    {facts.map(
      ([name, value]) =>
        value != null &&
        value !== "" && (
          <div key={name} style={{ display: "contents" }}>
            <dt>{name}</dt>
            <dd>
              <Foreign text={value} />
            </dd>
          </div>
        ),
    )}
  </dl>
);

const facts = (attempt: Attempt): [string, string | null | undefined][] => [
  ["Node", attempt.node],
  ["Pilot", attempt.pilot],
  ["Slurm job", attempt.job],
  ["Began", attempt.started == null ? null : clock(attempt.started)],
  ["Ended", attempt.ended == null ? null : clock(attempt.ended)],
  ["Took", attempt.seconds == null ? null : took(attempt.seconds)],
  ["Exit code", attempt.exit_code],
  ["Reason", attempt.reason === "error" ? null : attempt.reason],
  ["Error", attempt.error],
];

/** The logs of the last attempt are open: they are what one looks for. */
const AttemptCard = ({ attempt, last, scope, token }: { attempt: Attempt; last: boolean; scope: Scope; token: TokenAnswer }) => {
  const files = token.attachments.filter(({ name }) => attempt.logs.includes(name));
  const full = files.find(({ name, bytes: size }) => size > 0 && name.endsWith(".err")) ?? files.find(({ bytes: size }) => size > 0);
  return (
    <div className="card stack" style={{ gap: 8 }}>
      <h3>Attempt {number(attempt.number)}</h3>
      <Facts facts={facts(attempt)} />
      {files.map((file) => (
        <File file={file} id={token.id} key={file.name} open={last && file === full} scope={scope} />
      ))}
    </div>
  );
};

const Content = ({ token, ...props }: BatchProps & { token: TokenAnswer }) => {
  const { scope } = props;
  const logs = new Set(token.attempts.flatMap((attempt) => attempt.logs));
  const others = token.attachments.filter(({ name }) => !logs.has(name));
  const newest = [...token.attempts].reverse();
  const shared = { of: props, selection: { ids: [token.id] } };
  return (
    <>
      <div className="row">
        <State name={token.name} state={token.state} />
        {token.scrubs > 0 && <span className="muted">released {many(token.scrubs, "time")}</span>}
        {token.priority != null && <span className="muted">priority {token.priority}</span>}
        <span className="grow" />
        {token.state === "error" && <ActionButton action="rerun" label="Rerun this token" main {...shared} />}
        {token.state === "todo" && <ActionButton action="priority" {...shared} />}
      </div>
      {token.cause != null && (
        <p className="note bad">
          <Foreign text={token.cause} />
        </p>
      )}
      {token.state === "todo" && <Why id={token.id} scope={scope} />}
      {newest.map((attempt, i) => (
        <AttemptCard attempt={attempt} key={attempt.number} last={i === 0} scope={scope} token={token} />
      ))}
      {token.earlier > 0 && <p className="muted small">The token keeps no record of {many(token.earlier, "earlier attempt")}.</p>}
      {token.input && <Value label="Input" text={token.input} />}
      {token.output && <Value label="Output" text={token.output} />}
      {token.error && <Value label="Error" text={token.error} />}
      {others.length > 0 && (
        <div className="stack" style={{ gap: 6 }}>
          <h3>Attachments</h3>
          {others.map((file) => (
            <File file={file} id={token.id} key={file.name} open={false} scope={scope} />
          ))}
        </div>
      )}
      {Object.keys(token.fields).length > 0 && (
        <details>
          <summary>Other fields</summary>
          <div className="stack" style={{ gap: 8 }}>
            {Object.entries(token.fields).map(([name, text]) => (
              <Value key={name} label={name} text={text} />
            ))}
          </div>
        </details>
      )}
    </>
  );
};

/** Everything of a token, at the side. */
export const Token = ({ id, onClose, ...props }: BatchProps & { id: string; onClose: () => void }) => {
  const { data: token, error } = useQuery({
    queryKey: keyOf(props.scope, "list", "token", id),
    queryFn: () => data(client().GET("/api/token", { params: { query: { ...props.scope, id } } })),
  });
  return (
    <Dialog label={`Token ${shown(id)}`} onClose={onClose} side>
      <div className="stack">
        <div className="row">
          <h2 className="grow foreign mono">{shown(token?.key ?? id)}</h2>
          <button aria-label="Close" className="button" onClick={onClose} type="button">
            ✕
          </button>
        </div>
        {error && <Trouble error={error} />}
        {!token && !error && <Loading what="the token" />}
        {token && <Content {...props} token={token} />}
      </div>
    </Dialog>
  );
};

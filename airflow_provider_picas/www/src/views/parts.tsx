/** Small parts that the views share. */
import { type ReactNode, useEffect, useRef } from "react";

import { type Building, type Counts, Failure, type StateName } from "../api/client";
import { COLOURS, LABELS, number, shares, total } from "../lib/format";
import { linked, pretty, shown } from "../lib/text";

/** Foreign text, as text. */
export const Foreign = ({ text, mono = false }: { text: string; mono?: boolean }) => (
  <span className={mono ? "foreign mono" : "foreign"}>{shown(text)}</span>
);

/** Foreign text over several lines, with its web addresses as links. */
export const Lines = ({ text, label, className }: { text: string; label: string; className?: string }) => (
  <pre aria-label={label} className={className} role="region" tabIndex={0}>
    {linked(shown(pretty(text))).map(({ text: part, href }, i) =>
      href === undefined ? (
        part
      ) : (
        <a href={href} key={i} rel="noopener noreferrer nofollow" target="_blank">
          {part}
        </a>
      ),
    )}
  </pre>
);

/** A state, and the name that the pool itself has for it. */
export const State = ({ state, name }: { state: StateName; name?: string | null | undefined }) => (
  <span className="state">
    <span className="dot" style={{ background: COLOURS[state] }} />
    {LABELS[state]}
    {name != null && (
      <span className="muted">
        (<Foreign text={name} />)
      </span>
    )}
  </span>
);

/** What the bar shows, in words. */
const inWords = (counts: Counts): string => shares(counts).map(({ state, count }) => `${number(count)} ${LABELS[state]}`).join(", ");

export const Bar = ({ counts, thin = false }: { counts: Counts; thin?: boolean }) => (
  <div aria-label={inWords(counts) || "no tokens"} className={thin ? "bar thin" : "bar"} role="img">
    {total(counts) > 0 &&
      shares(counts).map(({ state, count, percent }) => (
        <span
          className={state}
          key={state}
          style={{ backgroundColor: COLOURS[state], width: `${percent}%` }}
          title={`${number(count)} ${LABELS[state]}`}
        />
      ))}
  </div>
);

/** An error as a sentence. */
export const Trouble = ({ error }: { error: unknown }) => (
  <p className="note bad" role="alert">
    {error instanceof Failure || error instanceof Error ? shown(error.message) : "Something failed."}
  </p>
);

export const Loading = ({ what }: { what: string }) => (
  <p className="muted" role="status">
    Reading {what} …
  </p>
);

/** Why a part is missing for now: CouchDB indexes the page's views only when somebody looks. */
export const BuildingNote = ({ building, what }: { building: Building; what: string }) => (
  <p className="note" role="status">
    CouchDB is building the index of this page{building.percent != null && `, ${building.percent} % so far`}. {what} when it is done.
  </p>
);

/** A dialog of the browser: it keeps the focus inside, and Escape closes it. */
export const Dialog = ({ label, onClose, side = false, children }: { label: string; onClose: () => void; side?: boolean; children: ReactNode }) => {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    const shownDialog = dialog.current;
    const before = document.activeElement;
    shownDialog?.showModal();
    return () => {
      shownDialog?.close();
      if (before instanceof HTMLElement) {
        before.focus();
      }
    };
  }, []);
  return (
    <dialog
      aria-label={label}
      className={side ? "side" : undefined}
      onCancel={(event) => {
        event.preventDefault();
        onClose();
      }}
      onClick={(event) => {
        if (event.target === dialog.current) {
          onClose();
        }
      }}
      ref={dialog}
    >
      <div className="inside">{children}</div>
    </dialog>
  );
};

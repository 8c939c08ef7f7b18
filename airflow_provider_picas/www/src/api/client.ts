/** Requests to the page's routes, typed by openapi.json. */
import createClient from "openapi-fetch";

import type { components, paths } from "./types";

type Schemas = components["schemas"];
export type ActionName = paths["/api/batch/actions/{action}"]["post"]["parameters"]["path"]["action"];
export type Building = Schemas["Building"];
export type Attempt = Schemas["Attempt"];
export type AttachmentInfo = Schemas["AttachmentInfo"];
export type Bar = Schemas["Bar"];
export type Cause = Schemas["Cause"];
export type ChainEdge = Schemas["ChainEdge"];
export type ChainNode = Schemas["ChainNode"];
export type ChainPlace = Schemas["ChainPlace"];
export type Counts = Schemas["Counts"];
export type Done = Schemas["Done"];
/** openapi-fetch knows no tuples. */
export type Overview = Omit<Schemas["Overview"], "history"> & { history: { step: number; points: number[][] } | null };
export type Pilot = Schemas["Pilot"];
export type Plan = Schemas["Plan"];
export type Selection = Partial<Schemas["ActionBody"]>;
export type StateName = Schemas["TokenRow"]["state"];
export type Text = Schemas["Text"];
export type TokenAnswer = Schemas["TokenAnswer"];
export type TokenRow = Schemas["TokenRow"];
export type TokensAnswer = Schemas["TokensAnswer"];
export type TokenFilter = NonNullable<paths["/api/batch/tokens"]["get"]["parameters"]["query"]>;

/** What a request is about: a batch, or with none the whole pool; and the DAG run through which the user sees it. */
export interface Scope {
  conn_id: string;
  database?: string;
  batch?: string;
  dag_id?: string;
  run_id?: string;
}

/** A request that failed, with a sentence for the user. */
export class Failure extends Error {
  readonly status: number;

  constructor(status: number, text: string) {
    super(text);
    this.status = status;
  }
}

/** Airflow's base path: it may be behind a proxy, below a path. */
export const root = (): string => {
  const href = document.querySelector("head > base")?.getAttribute("href") ?? "/";
  return new URL(href, globalThis.location.origin).pathname.replace(/\/+$/, "");
};

/** The sentence of an answer that is an error. */
export const sentence = (status: number, answer: unknown): string => {
  const detail = (answer as { detail?: unknown } | null | undefined)?.detail;
  if (typeof detail === "string") {
    return detail;
  }
  if (Array.isArray(detail)) {
    return detail.map((part: { msg?: string }) => part.msg ?? "").join("; ");
  }
  return `Airflow answered ${status}.`;
};

let made: ReturnType<typeof createClient<paths>> | undefined;

export const client = () => {
  // The header shows that a change comes from this page: no page of another origin can send it.
  made ??= createClient<paths>({ baseUrl: `${root()}/picas`, headers: { "X-PiCaS-Request": "1" } });
  return made;
};

interface Answer<T> {
  data?: T;
  error?: unknown;
  response: Response;
}

/** The data of an answer. Throws a Failure. */
export const data = async <T>(answer: Promise<Answer<T>>): Promise<T> => {
  const { data: found, error, response } = await answer;
  if (!response.ok || found === undefined) {
    throw new Failure(response.status, sentence(response.status, error));
  }
  return found;
};

/** The address of a route that the browser itself asks: events, pictures, downloads. */
export const address = (path: string, scope: Scope, more: Record<string, string> = {}): string => {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries({ ...scope, ...more })) {
    if (value !== undefined && value !== "") {
      query.set(name, value);
    }
  }
  return `${root()}/picas/api${path}?${query.toString()}`;
};

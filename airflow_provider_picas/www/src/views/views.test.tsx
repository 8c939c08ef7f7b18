/** The page with answers as the server gives them: what it asks for, what it shows, what it offers. */
import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { cleanup, fireEvent, render, screen, waitFor, within } from "@testing-library/react";
import type { ReactNode } from "react";
import { MemoryRouter } from "react-router-dom";
import { afterEach, beforeEach, expect, it, vi } from "vitest";

import type { Overview } from "../api/client";
import { Batch } from "./Batch";
import { Pools } from "./Pools";

const may = { allowed: true, why_not: null };
const mayNot = { allowed: false, why_not: "You may look, but not act." };
const overview: Overview = {
  at: 1000,
  counts: { todo: 1, locked: 2, done: 30, error: 4, stateless: 0, named: {} },
  expected: 37,
  rate: null,
  time_left: null,
  history: null,
  pilots: { running: 2, waiting: 0, silent: 0, ended: 0, reasons: [], source: "leases", at: null },
  core_hours: null,
  budget: { allowed: 5, failed: 4 },
  views: "page",
  building: null,
  chain: null,
  trouble: null,
  actions: { rerun: may, release: may, drain: mayNot, cancel: may, priority: may, archive: may },
};
const EVIL = "<img src=x onerror=alert(1)>\u202e\u001b[31m javascript:alert(1)";
const cause = { id: "c1", cause: EVIL, tokens: 4, first: 1, last: 2, nodes: [{ node: "n1", tokens: 4 }], sample: ["t:1"] };
const token = {
  id: "t:1", key: EVIL, state: "error", node: "n1", pilot: "p", job: "7", attempts: 1, exit_code: "3", seconds: 2, started: 1, ended: 3,
  cause: EVIL, cause_id: "c1", priority: null,
};

class Source {
  static readonly CLOSED = 2;
  static last: Source | undefined;
  onerror: (() => void) | undefined;
  readyState = 1;
  readonly heard = new Map<string, (event: { data: string }) => void>();

  constructor(readonly url: string) {
    Source.last = this;
  }

  addEventListener(name: string, listener: (event: { data: string }) => void) {
    this.heard.set(name, listener);
  }

  send(name: string, data: string) {
    this.heard.get(name)?.({ data });
  }

  close() {
    this.readyState = Source.CLOSED;
  }
}

let asked: { method: string; url: URL; body: unknown; header: string | null }[];
let answers: Record<string, unknown>;

beforeEach(() => {
  asked = [];
  answers = {
    "/picas/api/batch": overview,
    "/picas/api/batch/causes": { causes: [cause], read: 4, partial: false },
    "/picas/api/batch/tokens": { tokens: [token], next: "cursor2", partial: false },
    "/picas/api/batch/actions/rerun/plan": { title: "Rerun 4 tokens?", lines: ["4 tokens wait again."], tokens: 4, tasks: ["wait"], possible: true },
    "/picas/api/batch/actions/rerun": { text: "4 tokens wait again.", tokens: 4, links: [] },
  };
  vi.stubGlobal("EventSource", Source);
  vi.stubGlobal("fetch", async (request: Request) => {
    const url = new URL(request.url);
    const body: unknown = request.method === "POST" ? await request.json() : undefined;
    asked.push({ method: request.method, url, body, header: request.headers.get("X-PiCaS-Request") });
    const answer = await answers[url.pathname];
    return answer === undefined ? Response.json({ detail: "There is no such thing." }, { status: 404 }) : Response.json(answer);
  });
});

afterEach(() => {
  cleanup();
  vi.unstubAllGlobals();
});

const show = (view: ReactNode, at = "/") =>
  render(
    <QueryClientProvider client={new QueryClient({ defaultOptions: { queries: { retry: false } } })}>
      <MemoryRouter initialEntries={[at]}>{view}</MemoryRouter>
    </QueryClientProvider>,
  );
const batch = <Batch scope={{ conn_id: "c", database: "d", batch: "b" }} title="b" />;
const requests = (path: string) => asked.filter(({ url }) => url.pathname === path);

it("follows what the server pushes, and asks for it once", async () => {
  show(batch);
  await screen.findByText("30");
  Source.last?.send("overview", JSON.stringify({ ...overview, counts: { ...overview.counts, done: 31 } }));
  await screen.findByText("31");
  expect(screen.getByText("live")).toBeTruthy();
  Source.last?.send("trouble", "The database does not answer.");
  await screen.findByText("The database does not answer.");
  expect(screen.queryByText("live")).toBeNull();
  expect(requests("/picas/api/batch")).toHaveLength(1);
});

it("asks again by itself where a proxy breaks the events", async () => {
  show(batch);
  await screen.findByText("30");
  answers["/picas/api/batch"] = { ...overview, counts: { ...overview.counts, done: 32 } };
  Source.last?.onerror?.();
  await screen.findByText("32", {}, { timeout: 7000 });
}, 10_000);

it("shows the names that a pool has for parts of a state", async () => {
  answers["/picas/api/batch"] = { ...overview, counts: { ...overview.counts, named: { locked: { downloading: 1, "\u202elaunched": 1, other: 0 } } } };
  show(batch);
  const running = await screen.findByRole("button", { name: /2 running/ });
  expect(running.textContent).toBe("2 running(1 downloading, 1 ⟨U+202E⟩launched)");
});

it("shows the name of a token's state, and filters by it on the server", async () => {
  const named = { locked: { "\u202elaunched/2": 1, downloading: 1 } };
  answers["/picas/api/batch"] = { ...overview, counts: { ...overview.counts, named } };
  const running = { ...token, state: "locked", name: "downloading", cause: null };
  answers["/picas/api/batch/tokens"] = { tokens: [running, { ...running, id: "t:2", name: "\u202elaunched/2" }], next: null, partial: false };
  answers["/picas/api/token"] = { ...running, rev: "1-a", scrubs: 0, fields: {}, attempts: [], earlier: 0, attachments: [] };
  show(batch, "/?picas_tab=tokens&picas_sort=ended");
  expect((await screen.findAllByRole("row")).map((row) => row.children[2]?.textContent)).toEqual([
    "State", "running(downloading)", "running(⟨U+202E⟩launched/2)",
  ]);
  const choice = screen.getByLabelText<HTMLSelectElement>("State");
  expect([...choice.options].map(({ text }) => text)).toEqual([
    "any", "done", "failed", "running", "running (⟨U+202E⟩launched/2)", "running (downloading)", "waiting", "no state",
  ]);
  fireEvent.change(choice, { target: { value: "locked/\u202elaunched/2" } });
  await waitFor(() => expect(requests("/picas/api/batch/tokens")).toHaveLength(2));
  const query = requests("/picas/api/batch/tokens").at(-1)?.url.searchParams;
  expect([query?.get("state"), query?.get("name"), query?.get("sort")]).toEqual(["locked", "\u202elaunched/2", "id"]);

  // The last such token may be gone: the choice stays. Another state sets no name.
  Source.last?.send("overview", JSON.stringify(overview));
  await waitFor(() => expect(choice.options).toHaveLength(7));
  expect(choice.value).toBe("locked/\u202elaunched/2");
  fireEvent.change(choice, { target: { value: "locked" } });
  await waitFor(() => expect(requests("/picas/api/batch/tokens")).toHaveLength(3));
  expect(requests("/picas/api/batch/tokens").at(-1)?.url.searchParams.get("name")).toBeNull();

  fireEvent.click(screen.getAllByRole("button", { name: /onerror/ })[0] as HTMLElement);
  const dialog = within(await screen.findByRole("dialog", { hidden: true }));
  expect((await dialog.findByText("downloading")).closest(".state")?.textContent).toBe("running(downloading)");
});

it("says why an action may not be used, and does not ask for it", async () => {
  show(batch);
  const drain = await screen.findByRole("button", { name: "Drain pilots" });
  expect(drain.getAttribute("aria-disabled")).toBe("true");
  fireEvent.click(drain);
  expect((await screen.findByRole("alert")).textContent).toBe("You may look, but not act.");
  expect(asked.every(({ method }) => method === "GET")).toBe(true);
});

it("reruns a cause after it has said what will happen, with the header of this page", async () => {
  show(batch, "/?picas_tab=causes");
  fireEvent.click(await screen.findByRole("button", { name: "Rerun" }));
  await screen.findByText("4 tokens wait again.");
  expect(requests("/picas/api/batch/actions/rerun")).toHaveLength(0);
  answers["/picas/api/batch/actions/rerun/plan"] = { title: "Rerun 0 tokens?", lines: ["0 tokens wait again."], tokens: 0, tasks: [], possible: false };
  fireEvent.click(screen.getAllByRole("button", { name: "Rerun" }).at(-1) as HTMLElement);
  await screen.findByRole("status");
  await screen.findByRole("heading", { name: "Rerun 4 tokens?" });
  const [done] = requests("/picas/api/batch/actions/rerun");
  expect(done?.body).toEqual({ all: false, cause: "c1" });
  expect(done?.header).toBe("1");
});

it("shows foreign text as text", async () => {
  const { container } = show(batch, "/?picas_tab=tokens");
  await screen.findAllByText(/onerror/);
  expect(container.querySelectorAll("img, script, a[href^='javascript']")).toHaveLength(0);
  expect(container.textContent).toContain("⟨U+202E⟩ javascript");
});

it("filters and pages on the server", async () => {
  show(batch, "/?picas_tab=tokens&picas_state=error&picas_node=n1&state=done");
  fireEvent.click(await screen.findByRole("button", { name: "Next" }));
  await waitFor(() => expect(requests("/picas/api/batch/tokens")).toHaveLength(2));
  const query = requests("/picas/api/batch/tokens").at(-1)?.url.searchParams;
  expect([query?.get("state"), query?.get("node"), query?.get("cursor")]).toEqual(["error", "n1", "cursor2"]);
  fireEvent.change(screen.getByLabelText("State"), { target: { value: "done" } });
  await waitFor(() => expect(requests("/picas/api/batch/tokens")).toHaveLength(3));
  expect(requests("/picas/api/batch/tokens").at(-1)?.url.searchParams.get("cursor")).toBeNull();
});

it("says that the index is being built, and shows what comes from it when it is there", async () => {
  const building = { percent: 12 };
  answers["/picas/api/batch"] = { ...overview, building };
  show(batch);
  expect((await screen.findByText(/building the index/)).textContent).toContain("12 % so far. The plot over time appears when it is done.");
  Source.last?.send("overview", JSON.stringify({ ...overview, building: null }));
  await waitFor(() => expect(screen.queryByText(/building the index/)).toBeNull());
  cleanup();

  answers["/picas/api/batch/nodes"] = { nodes: [], partial: false, building };
  answers["/picas/api/batch/pilots"] = { at: 1, pilots: [], bars: [], partial: false, building };
  show(batch, "/?picas_tab=pilots");
  await waitFor(() => expect(screen.getAllByText(/12 % so far/)).toHaveLength(2));
  answers["/picas/api/batch/nodes"] = { nodes: [{ node: "n7", done: 1, error: 0 }], partial: false, building: null };
  await screen.findByText("n7", {}, { timeout: 7000 });
}, 10_000);

it("says what went wrong in the server's words", async () => {
  delete answers["/picas/api/batch"];
  show(batch);
  expect((await screen.findByRole("alert")).textContent).toBe("There is no such thing.");
});

it("says what is wrong while nothing could be read yet", async () => {
  answers["/picas/api/batch"] = new Promise(() => undefined);
  show(batch);
  await screen.findByText("Reading batch b …");
  Source.last?.send("trouble", "The database does not answer.");
  expect((await screen.findByRole("alert")).textContent).toBe("The database does not answer.");
});

it("releases the tokens of pilots that may be dead, and only these", async () => {
  const pilot = (name: string, state: string) => ({ pilot: name, state, done: 0, failed: 0, now: [] });
  const bar = (name: string) => ({ pilot: name, token: `t:${name}`, start: 1, end: null, state: "locked" });
  const pilots = [pilot("p1", "working"), pilot("p2", "silent"), pilot("p3", "ended"), pilot("p4", "unknown"), pilot("p5", "ended")];
  answers["/picas/api/batch/pilots"] = { at: 9, pilots, bars: ["p1", "p2", "p3", "p4"].map(bar), partial: false };
  answers["/picas/api/batch/nodes"] = { nodes: [], partial: false };
  answers["/picas/api/batch/actions/release/plan"] = { title: "Release 1 token", lines: ["It waits."], tokens: 1, tasks: [], possible: true };
  show(batch, "/?picas_tab=pilots");
  const buttons = await screen.findAllByRole("button", { name: "Release" });
  expect(buttons.map((button) => button.closest("tr")?.textContent?.slice(0, 2))).toEqual(["p2", "p3", "p4"]);
  fireEvent.click(buttons[2] as HTMLElement);
  await screen.findByText("It waits.");
  expect(requests("/picas/api/batch/actions/release/plan")[0]?.body).toEqual({ all: false, pilot: "p4" });
});

it("takes no empty priority", async () => {
  answers["/picas/api/batch"] = { ...overview, actions: { ...overview.actions, priority: { allowed: true, why_not: null } } };
  answers["/picas/api/batch/actions/priority/plan"] = { title: "Set it", lines: ["It waits."], tokens: 1, tasks: [], possible: true };
  show(batch);
  fireEvent.click(await screen.findByRole("button", { name: "Set priority" }));
  await screen.findByText("It waits.");
  fireEvent.change(screen.getByRole("spinbutton"), { target: { value: "" } });
  expect(screen.queryByText("It waits.")).toBeNull();
  expect(screen.getAllByRole("button", { name: "Set priority" }).at(-1)).toHaveProperty("disabled", true);
  fireEvent.change(screen.getByRole("spinbutton"), { target: { value: "2" } });
  await screen.findByText("It waits.");
  const priorities = requests("/picas/api/batch/actions/priority/plan").map(({ body }) => (body as { priority: number }).priority);
  expect(priorities).toEqual([1, 2]);
});

it("lists pools and the batches of one", async () => {
  answers["/picas/api/pools"] = { pools: [{ conn_id: "c", database: "pool", host: "h", counts: overview.counts, error: null }], partial: false };
  answers["/picas/api/pools/batches"] = {
    batches: [{ batch: "b1", label: null, dag_id: "d", run_id: "r+1", counts: overview.counts, changed: true }], next: null, partial: false,
  };
  show(<Pools />);
  fireEvent.click(await screen.findByRole("button", { name: "pool" }));
  expect(await screen.findByRole("button", { name: "b1" })).toBeTruthy();
  expect(screen.getByRole("link", { name: "DAG run" }).getAttribute("href")).toBe("/dags/d/runs/r+1/plugin/picas-run");
});

const stageOf = (stage: string | null, counts: object | null, more: object = {}) => ({
  batch: stage === null ? "b" : `b.${stage}`, stage, counts: counts && { ...overview.counts, ...counts }, pending: 0, growing: false, groups: null,
  made: null, at_least: null, ...more,
});

it("shows the stages of a chain with their counts, what may still come, and a link to each that the user may see", async () => {
  answers["/picas/api/batch"] = { ...overview, chain: { batch: "b", stage: null } };
  answers["/picas/api/batch/chain"] = {
    nodes: [
      stageOf(null, { done: 1 }, { pending: 2 }),
      stageOf("calibration", { done: 5, error: 1 }, { growing: true }),
      stageOf("imaging", { done: 0 }, { growing: true, groups: 4, made: 1, at_least: 0.9 }),
      stageOf("secret", null),
    ],
    edges: [
      { begin: 0, end: 1, tokens: 6, group: false },
      { begin: 1, end: 2, tokens: 1, group: true },
      { begin: 0, end: 3, tokens: 0, group: false },
    ],
    partial: false,
  };
  const { container } = show(<Batch scope={{ conn_id: "c", database: "d", batch: "b", dag_id: "g", run_id: "r+1" }} title="b" />);
  const rows = within(await screen.findByRole("list", { name: "Stages" })).getAllByRole("listitem");
  const [first, calibration, imaging, secret] = rows.map((row) => row.textContent);
  expect(rows).toHaveLength(4);
  expect(first).toContain("30 of 37 done"); // the live counts, not those of the chain
  expect(first).toContain("2 lists of new tokens pending");
  expect(calibration).toContain("6 tokens made by the pushed batch");
  expect(calibration).toContain("more tokens may appear");
  expect(imaging).toContain("one token for each group of calibration, when 90 % of its members have finished");
  expect(imaging).toContain("3 of 4 groups not made yet");
  expect(secret).toContain("You may not see this batch.");
  const links = [...container.querySelectorAll("ol.chain a")].map((link) => link.getAttribute("href"));
  expect(links).toEqual(
    ["b.calibration", "b.imaging"].map((name) => `/plugin/picas?picas_conn=c&picas_db=d&picas_dag=g&picas_run=r%2B1&picas_batch=${name}`),
  );
  expect(container.querySelectorAll("ol.chain .edge.straight")).toHaveLength(2);
  expect(container.querySelectorAll("ol.chain .edge.group")).toHaveLength(1);
  expect(screen.queryByRole("navigation", { name: "Chain of stages" })).toBeNull();
});

it("leads from a stage back to its chain, and asks for no chain where there is none", async () => {
  answers["/picas/api/batch"] = { ...overview, chain: { batch: "b", stage: "imaging" } };
  show(<Batch scope={{ conn_id: "c", database: "d", batch: "b.imaging" }} title="b.imaging" />);
  const way = await screen.findByRole("navigation", { name: "Chain of stages" });
  expect(way.textContent).toBe("Stage imaging of b");
  expect(within(way).getByRole("link", { name: "b" }).getAttribute("href")).toBe("/plugin/picas?picas_conn=c&picas_db=d&picas_batch=b");
  cleanup();
  asked = [];
  answers["/picas/api/batch"] = overview;
  show(batch);
  await screen.findByText("30");
  expect(requests("/picas/api/batch/chain")).toHaveLength(0);
});

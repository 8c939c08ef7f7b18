import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import plotStyle from "uplot/dist/uPlot.min.css?inline";

import { Failure } from "./api/client";
import style from "./style.css?inline";
import { Pools } from "./views/Pools";
import { Run } from "./views/Run";

/** What Airflow tells a page about its place; nothing in the navigation. */
export interface PageProps {
  dagId?: string;
  runId?: string;
  taskId?: string;
  mapIndex?: string;
}

const queries = new QueryClient({
  defaultOptions: {
    queries: {
      // What the user may not see, or is not there, stays so.
      retry: (failures, error) => failures < 2 && !(error instanceof Failure && error.status < 500),
      staleTime: 2_000,
    },
  },
});

const Page = ({ dagId, runId, taskId, mapIndex }: PageProps) => (
  <QueryClientProvider client={queries}>
    <style>{plotStyle + style}</style>
    <div className="picas">
      <div className="picas-body">
        {dagId !== undefined && runId !== undefined ? (
          <Run dagId={dagId} runId={runId} taskId={taskId} mapIndex={mapIndex} />
        ) : (
          <Pools />
        )}
      </div>
    </div>
  </QueryClientProvider>
);

// The UI imports one address once, whatever number of places shows it, and looks the component up by the place's name.
Object.assign(globalThis, { AirflowPlugin: Page, PiCaS: Page, Tokens: Page });

export default Page;

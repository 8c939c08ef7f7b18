import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { useEffect, useRef, useState } from "react";
import { useLocation, useNavigate } from "react-router-dom";
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

const Content = ({ dagId, runId, taskId, mapIndex }: PageProps) => (
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

let settled = false;

/**
 * Airflow renders a page that it has just loaded through a wrapper, and without it from its own next rendering on. React
 * takes these for two components: the page would be made anew, without its focus, at the first change of the address. So
 * the address is set again at once, before there is anything to lose.
 */
const Page = (props: PageProps) => {
  const [ready, setReady] = useState(settled);
  const { search, hash } = useLocation();
  const navigate = useNavigate();
  const again = useRef(() => navigate({ search, hash }, { replace: true }));
  useEffect(() => {
    if (settled) {
      return undefined;
    }
    settled = true;
    void again.current();
    const timer = setTimeout(() => setReady(true), 300); // where Airflow does not render the page anew
    return () => clearTimeout(timer);
  }, []);
  return ready ? <Content {...props} /> : null;
};

// The UI imports one address once, whatever number of places shows it, and looks the component up by the place's name.
Object.assign(globalThis, { AirflowPlugin: Page, PiCaS: Page, Tokens: Page });

export default Page;

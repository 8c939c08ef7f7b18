import { fileURLToPath } from "node:url";

import { defineConfig } from "vitest/config";

// One file that Airflow's UI imports. React and its router are Airflow's own, or hooks would not work.
export default defineConfig({
  build: {
    lib: { entry: fileURLToPath(new URL("src/main.tsx", import.meta.url)), fileName: () => "picas.js", formats: ["iife"], name: "PicasPage" },
    rollupOptions: {
      onLog: (level, log, report) => log.code !== "MODULE_LEVEL_DIRECTIVE" && report(level, log),
      external: ["react", "react-dom", "react-router-dom", "react/jsx-runtime"],
      output: {
        globals: {
          react: "React",
          "react-dom": "ReactDOM",
          "react-router-dom": "ReactRouterDOM",
          "react/jsx-runtime": "ReactJSXRuntime",
        },
      },
    },
    target: "es2022",
  },
  define: { "process.env.NODE_ENV": JSON.stringify(process.env.VITEST ? "test" : "production") },
  test: { environment: "happy-dom", include: ["src/**/*.test.{ts,tsx}"] },
});

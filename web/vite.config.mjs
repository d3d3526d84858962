import { defineConfig } from "vite";
import { sourcesHash } from "./sources.mjs";

// Names without hashes: the files are committed, and a change shows as a change. The server answers by ETag, so no old copy is used.
export default defineConfig(({ command }) => ({
  base: command === "build" ? "/assets/" : "/",
  plugins: [
    {
      name: "sources",
      transformIndexHtml: () => [{ tag: "meta", attrs: { name: "sources", content: sourcesHash(import.meta.dirname) }, injectTo: "head" }],
    },
  ],
  build: {
    outDir: "../pellucid/serve/assets",
    emptyOutDir: true,
    assetsDir: "",
    target: "es2022",
    modulePreload: false,
    license: { fileName: "licenses.md" },
    rolldownOptions: { output: { entryFileNames: "page.js", assetFileNames: "page[extname]" } },
  },
  server: {
    proxy: Object.fromEntries(["/v1", "/tokenize", "/detokenize", "/report", "/health", "/version"].map((path) => [path, "http://127.0.0.1:8000"])),
  },
  test: { include: ["test/*.test.ts"] },
}));

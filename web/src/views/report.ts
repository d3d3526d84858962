// What the model is: all that loading it decided, what it was made from, and the run record that lies beside it.
import type { App } from "../app";
import { h } from "../dom";
import { count } from "./welcome";

const span = ([least, most]: [number, number]): string => (least === most ? String(least) : `${least} to ${most}`);
const size = (n: number): string =>
  n >= 1e9 ? `${(n / 1e9).toFixed(1)} GB` : n >= 1e6 ? `${(n / 1e6).toFixed(1)} MB` : `${(n / 1e3).toFixed(1)} kB`;
const rows = (facts: [string, unknown][]): Element =>
  h(
    "dl",
    {},
    ...facts.filter(([, value]) => value !== null && value !== "").flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))]),
  );

export async function reportView(app: App): Promise<Element> {
  let report;
  try {
    report = await app.api.report(app.model);
  } catch (error) {
    return h("p", { class: "error", role: "alert" }, (error as Error).message);
  }
  const load = report.load;
  const stored = Object.entries<number>(load.stored)
    .map(([format, bytes]) => `${format} ${size(bytes)}`)
    .join(" + ");
  const record = report.record;
  return h(
    "div",
    { class: "report" },
    rows([
      ["Model", report.id],
      ["Family", load.family],
      ["Licence", load.license ?? "not stated"],
      ["Parameters", count(load.n_parameters)],
      ["Layers", load.n_layers],
      ["Width", load.d_model],
      ["Heads", `${span(load.n_heads)}, ${span(load.n_kv_heads)} of keys and values`],
      ["Context", `${load.n_ctx.toLocaleString("en")} tokens`],
      ["Weights", `${load.format}: ${stored}`],
      ["Computed in", `${load.dtype}, activations ${load.activations}`],
      ["Runs on", `${load.device}: ${load.ops}`],
      ["Cache", `${(load.cache_bytes_per_token / 1024).toFixed(load.cache_bytes_per_token < 10240 ? 1 : 0)} KiB a token`],
      ["Chat template", report.chat ? "yes" : "none"],
      ["Read in", `${load.seconds.toFixed(2)} s`],
      ...load.adapters.map((a: string): [string, string] => ["Adapter", a]),
      ...load.notes.map((n: string): [string, string] => ["Note", n]),
    ]),
    h("details", {}, h("summary", {}, "What loading said"), h("pre", {}, report.lines.join("\n"))),
    h("h3", {}, "Made from"),
    report.lineage_error ? h("p", { class: "error" }, report.lineage_error) : h("pre", {}, report.lineage_lines.join("\n")),
    h("h3", {}, "Run record"),
    record
      ? rows([
          ["Written by", record.kind],
          ["On", record.created],
          ["Seed", record.seed],
          ...Object.entries<any>(record.inputs).map(([role, f]): [string, string] => [role, `${f.sha256.slice(0, 16)}…, ${size(f.bytes)}`]),
          ...Object.entries<any>(record.measured).map(([name, value]): [string, string] => [name, String(value)]),
        ])
      : h("p", { class: "fine" }, "None lies beside these weights: they were not written by Pellucid, or came without it."),
    h("h3", {}, "In force"),
    rows(
      [...Object.entries<any>(report.in_force), ...Object.entries<any>(report.versions)].map(([name, value]): [string, unknown] => [
        name,
        String(value),
      ]),
    ),
  );
}

// How answers are drawn, each setting with what it does.
import type { App } from "../app";
import { h, put } from "../dom";
import { CONTROLS, DEFAULTS, EXAMPLES, parseSchema, type Control, type Sampling } from "../sampling";

export function settingsView(app: App): Element {
  const out = h("div", { class: "settings" });
  if (app.current.mode === "chat")
    out.append(
      field(
        "System prompt",
        "Said before the conversation, by nobody: what the model is to be or to heed. Of this conversation alone.",
        h("textarea", {
          rows: 3,
          id: "system",
          value: app.current.system,
          placeholder: "None",
          oninput: (e: Event) => app.system((e.target as HTMLTextAreaElement).value),
        }),
      ),
    );
  out.append(formatField(app));
  put(out, ...CONTROLS.filter((c) => !c.more).map((c) => slider(app, c)), longest(app));
  put(
    out,
    h(
      "details",
      {},
      h("summary", {}, "More"),
      ...CONTROLS.filter((c) => c.more).map((c) => slider(app, c)),
      seed(app),
      stops(app),
      probabilities(app),
    ),
  );
  out.append(
    h(
      "button",
      {
        type: "button",
        class: "reset",
        onclick: () => {
          app.set({ ...DEFAULTS, schema: app.sampling.schema });
          out.replaceWith(settingsView(app));
        },
      },
      "Back to the defaults",
    ),
  );
  return out;
}

let counted = 0;

function field(label: string, about: string, control: HTMLElement, value?: HTMLElement): HTMLElement {
  control.id ||= `field-${++counted}`;
  const hint = `${control.id}-about`;
  control.setAttribute("aria-describedby", hint);
  return h("div", { class: "field" }, h("label", { for: control.id }, label, value), control, h("p", { class: "about", id: hint }, about));
}

function slider(app: App, control: Control): Element {
  const value = h("output", {}, String(app.sampling[control.key]));
  const input = h("input", { type: "range", min: control.min, max: control.max, step: control.step, id: `set-${control.key}` });
  input.value = String(app.sampling[control.key]);
  input.addEventListener("input", () => {
    value.textContent = input.value;
    app.set({ [control.key]: Number(input.value) } as Partial<Sampling>);
  });
  return field(control.label, control.about, input, value);
}

const whole = (text: string): number | null => (text.trim() === "" ? null : Math.trunc(Number(text)));

function longest(app: App): Element {
  return field(
    "Longest answer",
    app.current.mode === "chat"
      ? "In tokens. Empty: until the model ends it, or the context is full."
      : "In tokens. Empty: 200, or what there is room for.",
    h("input", {
      type: "number",
      id: "set-max_tokens",
      min: 1,
      step: 1,
      inputmode: "numeric",
      placeholder: "no limit of its own",
      value: app.sampling.max_tokens ?? "",
      oninput: (e: Event) => app.set({ max_tokens: whole((e.target as HTMLInputElement).value) }),
    }),
  );
}

function seed(app: App): Element {
  return field(
    "Seed",
    "The same seed, settings and prompt give the same answer. Empty: another one each time, told beside the answer.",
    h("input", {
      type: "number",
      id: "set-seed",
      min: 0,
      step: 1,
      inputmode: "numeric",
      placeholder: "another each time",
      value: app.sampling.seed ?? "",
      oninput: (e: Event) => app.set({ seed: whole((e.target as HTMLInputElement).value) }),
    }),
  );
}

function stops(app: App): Element {
  return field(
    "Stop before",
    "The answer ends where one of these would come. One a line.",
    h("textarea", {
      rows: 2,
      id: "set-stop",
      placeholder: "None",
      value: app.sampling.stop.join("\n"),
      oninput: (e: Event) => app.set({ stop: (e.target as HTMLTextAreaElement).value.split("\n").filter((line) => line !== "") }),
    }),
  );
}

function probabilities(app: App): Element {
  const box = h("input", { type: "checkbox", id: "set-logprobs", onchange: () => app.set({ logprobs: box.checked }) });
  box.checked = app.sampling.logprobs;
  return field(
    "Keep probabilities",
    "Asks for every token's probability and the five likeliest in its place, which the views Tokens and Surprise show.",
    box,
  );
}

function formatField(app: App): Element {
  const schema = h("textarea", {
    rows: 8,
    class: "code",
    id: "set-schema",
    spellcheck: "false",
    value: app.sampling.schema,
    "aria-label": "JSON schema",
    placeholder: '{"type": "object"}',
  });
  const fault = h("p", { class: "fine", role: "status" });
  const examples = h(
    "div",
    { class: "starts small" },
    ...Object.entries(EXAMPLES).map(([name, value]) =>
      h(
        "button",
        {
          type: "button",
          onclick: () => {
            schema.value = JSON.stringify(value, null, 2);
            write();
          },
        },
        name,
      ),
    ),
  );
  const write = (): void => {
    app.set({ schema: schema.value });
    try {
      parseSchema(schema.value);
      fault.textContent = "";
    } catch (error) {
      fault.textContent = (error as Error).message;
    }
  };
  schema.addEventListener("input", write);
  const more = h("div", { hidden: app.sampling.format !== "schema" }, examples, schema, fault);
  const select = h(
    "select",
    {
      id: "set-format",
      onchange: () => {
        app.set({ format: select.value as Sampling["format"] });
        more.hidden = select.value !== "schema";
      },
    },
    h("option", { value: "text" }, "Text"),
    h("option", { value: "json" }, "JSON, any object"),
    h("option", { value: "schema" }, "JSON of a schema"),
  );
  select.value = app.sampling.format;
  const out = field(
    "The answer is",
    "Held to it while it is written: only tokens that keep it so can be drawn. What cannot be enforced is refused.",
    select,
  );
  out.append(more);
  return out;
}

// What may be set about an answer, what each setting means in plain words, and the fields of the API they become.

export interface Sampling {
  temperature: number;
  top_p: number;
  top_k: number;
  min_p: number;
  repetition_penalty: number;
  presence_penalty: number;
  frequency_penalty: number;
  max_tokens: number | null;
  seed: number | null;
  stop: string[];
  format: "text" | "json" | "schema";
  schema: string;
  logprobs: boolean;
}

export const DEFAULTS: Sampling = {
  temperature: 0.8,
  top_p: 0.95,
  top_k: 0,
  min_p: 0,
  repetition_penalty: 1,
  presence_penalty: 0,
  frequency_penalty: 0,
  max_tokens: null,
  seed: null,
  stop: [],
  format: "text",
  schema: "",
  logprobs: true,
};

export interface Control {
  key: keyof Sampling;
  label: string;
  about: string;
  min: number;
  max: number;
  step: number;
  more?: boolean;
}

export const CONTROLS: Control[] = [
  {
    key: "temperature",
    label: "Temperature",
    min: 0,
    max: 2,
    step: 0.05,
    about: "How daring the choice of words is. 0 always takes the likeliest token; 1 draws as often as the model believes; above, it gets wild.",
  },
  {
    key: "top_p",
    label: "Top p",
    min: 0.05,
    max: 1,
    step: 0.05,
    about: "Draw only from the likeliest tokens that together have this share. 1 leaves none out; 0.9 cuts off the unlikely tail.",
  },
  {
    key: "top_k",
    label: "Top k",
    min: 0,
    max: 200,
    step: 1,
    more: true,
    about: "Draw only from this many of the likeliest tokens. 0 sets no limit.",
  },
  {
    key: "min_p",
    label: "Min p",
    min: 0,
    max: 1,
    step: 0.01,
    more: true,
    about: "Leave out tokens less likely than this share of the likeliest one. 0.05 drops what is twenty times less likely.",
  },
  {
    key: "repetition_penalty",
    label: "Repetition penalty",
    min: 1,
    max: 2,
    step: 0.05,
    more: true,
    about: "Makes every token that was there already, in the prompt too, less likely. 1 does nothing; 1.1 is a gentle nudge.",
  },
  {
    key: "presence_penalty",
    label: "Presence penalty",
    min: -2,
    max: 2,
    step: 0.1,
    more: true,
    about: "Above 0, a token that the answer has used once is less likely: new subjects. Below 0, it is likelier.",
  },
  {
    key: "frequency_penalty",
    label: "Frequency penalty",
    min: -2,
    max: 2,
    step: 0.1,
    more: true,
    about: "The same, once for every time it was used: fewer repeated words.",
  },
];

/** The fields of a request. Those at their neutral value are left out. Throws SyntaxError where the schema is no JSON object. */
export function fields(s: Sampling, chat: boolean): Record<string, unknown> {
  const out: Record<string, unknown> = { temperature: s.temperature, top_p: s.top_p };
  if (s.top_k > 0) out.top_k = s.top_k;
  if (s.min_p > 0) out.min_p = s.min_p;
  if (s.repetition_penalty !== 1) out.repetition_penalty = s.repetition_penalty;
  if (s.presence_penalty !== 0) out.presence_penalty = s.presence_penalty;
  if (s.frequency_penalty !== 0) out.frequency_penalty = s.frequency_penalty;
  if (s.stop.length) out.stop = s.stop;
  if (s.max_tokens !== null) out.max_tokens = s.max_tokens;
  // Chosen here where nobody chose one, so that every answer can be asked for again.
  out.seed = s.seed ?? crypto.getRandomValues(new Uint32Array(1))[0]! >>> 1;
  if (s.logprobs) Object.assign(out, chat ? { logprobs: true, top_logprobs: 5 } : { logprobs: 5, logprobs_content: true });
  if (s.format === "json") out.response_format = { type: "json_object" };
  if (s.format === "schema")
    out.response_format = { type: "json_schema", json_schema: { name: "answer", schema: parseSchema(s.schema), strict: true } };
  return out;
}

/** Throws SyntaxError that says what is wrong. Whether every keyword can be enforced, the server says. */
export function parseSchema(text: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new SyntaxError(text.trim() ? `The schema is not JSON: ${(error as Error).message}` : "The schema is empty. Write one, or take an example");
  }
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw new SyntaxError('The schema has to be a JSON object, such as {"type": "object"}');
  return value as Record<string, unknown>;
}

export const EXAMPLES: Record<string, unknown> = {
  "Yes or no": { type: "object", properties: { answer: { enum: ["yes", "no"] } }, required: ["answer"], additionalProperties: false },
  "A person": {
    type: "object",
    properties: { name: { type: "string", maxLength: 40 }, age: { type: "integer", minimum: 0, maximum: 120 } },
    required: ["name", "age"],
    additionalProperties: false,
  },
  "A list": { type: "array", items: { type: "string", maxLength: 60 }, minItems: 1, maxItems: 5 },
};

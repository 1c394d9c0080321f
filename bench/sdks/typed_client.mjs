// Ten Zod schemas, each answered through the Node SDKs, as a tool and by `inferd run`: node typed_client.mjs BASE MODEL
// PYTHON, with the address of the daemon in INFERD_ADDRESS. Writes a JSON object a line, as node_client.mjs does. Zod
// itself validates each answer.

import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import Anthropic from "@anthropic-ai/sdk";
import { Ollama } from "ollama";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import * as z from "zod";

const [base, model, python] = process.argv.slice(2);
const max_tokens = 500;
const CUT = "cut off by the limit of tokens";
const REFUSED = "refused by the SDK, which sent nothing"; // its strict form has no tuples and no open objects
const word = z.string().max(16);

const cat = z.object({ kind: z.literal("cat"), lives: z.int().min(1).max(9) });
const dog = z.object({ kind: z.literal("dog"), barks: z.boolean() });
const node = z.object({
  value: z.int().min(-9).max(9),
  get next() {
    return z.union([node, z.null()]);
  },
});
const kinds = {
  person: z.object({ name: word, age: z.int().min(0).max(120), code: z.string().regex(/^[A-Z]{2}-\d{4}$/) }),
  ticket: z.object({ level: z.enum(["low", "high"]), state: z.union([z.literal("open"), z.literal(3)]), title: word.nullable() }),
  invoice: z.object({
    lines: z.array(z.object({ product: word, count: z.int().positive().max(99), price: z.number().min(0).max(1000).multipleOf(0.01) })).min(1).max(3),
    paid: z.boolean(),
  }),
  owner: z.object({ pets: z.array(z.discriminatedUnion("kind", [cat, dog])).min(1).max(3) }),
  tree: node,
  event: z.object({ id: z.uuid(), at: z.iso.datetime(), day: z.iso.date() }),
  server: z.object({ host: z.ipv4(), port: z.int().min(1).max(65535), owner: z.email() }),
  pair: z.object({ place: z.tuple([z.number(), z.number()]), named: z.tuple([word, z.enum(["n", "s"])]) }),
  scores: z.object({ scores: z.record(z.enum(["a", "b"]), z.int()), ratio: z.number().gt(0).lt(1) }),
  union: z.object({ value: z.union([z.int(), z.boolean(), word, z.array(z.boolean()).max(3)]), größe: z.enum(["klein", "groß"]), pet: z.union([cat, dog, z.null()]) }),
};

async function check(sdk, name, run) {
  const { version } = JSON.parse(readFileSync(new URL(`node_modules/${sdk}/package.json`, import.meta.url)));
  let wrong = "";
  let note = "passed";
  try {
    const found = await run();
    if (!found) wrong = "an empty answer";
    if (found === CUT) note = CUT;
  } catch (error) {
    if (error.name === "Error" && error.message.includes("the length limit was reached")) note = CUT;
    else if (error.message.includes("strict Structured Outputs")) note = REFUSED;
    else wrong = `${error.name}: ${error.message}`.slice(0, 400);
  }
  console.log(JSON.stringify({ sdk: `${sdk} (Node) ${version}`, check: name, wrong, note }));
}

const openai = new OpenAI({ baseURL: `${base}/v1`, apiKey: "any", maxRetries: 0 });
const anthropic = new Anthropic({ baseURL: base, apiKey: "any", maxRetries: 0 });
const ollama = new Ollama({ host: base });
const folder = mkdtempSync(join(tmpdir(), "typed-"));

for (const [name, kind] of Object.entries(kinds)) {
  const content = `Invent an example of: ${name}`;
  const messages = [{ role: "user", content }];
  const schema = z.toJSONSchema(kind);
  await check("openai", `${name}, parse`, async () => {
    const answer = await openai.chat.completions.parse({ model, messages, max_tokens, response_format: zodResponseFormat(kind, name) });
    return kind.parse(answer.choices[0].message.parsed);
  });
  await check("openai", `${name}, tool`, async () => {
    const tools = [zodFunction({ name, parameters: kind })];
    const answer = await openai.chat.completions.parse({ model, messages, max_tokens, tools, tool_choice: "required" });
    return kind.parse(answer.choices[0].message.tool_calls[0].function.parsed_arguments);
  });
  await check("@anthropic-ai/sdk", `${name}, output_config`, async () => {
    const format = { type: "json_schema", schema }; // zodOutputFormat would move patterns and bounds into descriptions
    const answer = await anthropic.messages.create({ model, messages, max_tokens, output_config: { format } });
    return answer.stop_reason === "max_tokens" ? CUT : kind.parse(JSON.parse(answer.content[0].text));
  });
  await check("ollama", `${name}, format`, async () => {
    const answer = await ollama.chat({ model, messages, format: schema, options: { num_predict: max_tokens } });
    return answer.done_reason === "length" ? CUT : kind.parse(JSON.parse(answer.message.content));
  });
  await check("zod", `${name}, inferd run`, () => {
    const file = join(folder, `${name}.json`);
    writeFileSync(file, JSON.stringify(schema));
    const run = ["-m", "inferd", "run", "--json-schema", file, "--max-tokens", `${max_tokens}`, content];
    const { stdout, stderr } = spawnSync(python, run, { encoding: "utf8" });
    return stderr.startsWith("(cut after") ? CUT : kind.parse(JSON.parse(stdout));
  });
}

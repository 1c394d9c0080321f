// The checks of the Node SDKs installed in the directory of this file: node node_client.mjs BASE MODEL.
// Writes one JSON object a line: the SDK with its version, the check, and an empty text or the error.

import { readFileSync } from "node:fs";
import Anthropic from "@anthropic-ai/sdk";
import { Ollama } from "ollama";
import OpenAI from "openai";

const [base, model] = process.argv.slice(2);
const messages = [{ role: "user", content: "Say hello." }];
const schema = {
  type: "object",
  properties: { city: { type: "string", maxLength: 12 } },
  required: ["city"],
  additionalProperties: false,
};

async function check(sdk, name, run) {
  const { version } = JSON.parse(readFileSync(new URL(`node_modules/${sdk}/package.json`, import.meta.url)));
  let wrong = "";
  try {
    if (!(await run())) wrong = "an empty answer";
  } catch (error) {
    wrong = `${error.name}: ${error.message}`.slice(0, 200);
  }
  console.log(JSON.stringify({ sdk: `${sdk} (Node) ${version}`, check: name, wrong }));
}

async function refused(status, promise) {
  try {
    await promise;
  } catch (error) {
    return (error.status ?? error.status_code) === status;
  }
  return false;
}

const openai = new OpenAI({ baseURL: `${base}/v1`, apiKey: "any" });
const create = (more) => openai.chat.completions.create({ model, messages, max_tokens: 24, ...more });
const tools = [{ type: "function", function: { name: "weather", parameters: schema } }];
await check("openai", "text", async () => (await create({})).choices[0].message.content);
await check("openai", "stream", async () => {
  const stream = openai.chat.completions.stream({ model, messages, max_tokens: 24 });
  return (await stream.finalChatCompletion()).choices[0].message.content;
});
await check("openai", "tool", async () => {
  const answer = await create({ tools, tool_choice: "required" });
  return JSON.parse(answer.choices[0].message.tool_calls[0].function.arguments).city;
});
await check("openai", "responses, stream", async () => {
  const stream = openai.responses.stream({ model, input: "Say hello.", max_output_tokens: 16 });
  return (await stream.finalResponse()).output[0].content[0].text; // 5.23 does not join it to output_text
});
await check("openai", "models", async () => (await openai.models.list()).data.some((each) => each.id === model));
await check("openai", "404", () => refused(404, openai.models.retrieve("none")));

const anthropic = new Anthropic({ baseURL: base, apiKey: "any" });
const message = { model, messages, max_tokens: 24 };
await check("@anthropic-ai/sdk", "text", async () => (await anthropic.messages.create(message)).content[0].text);
await check("@anthropic-ai/sdk", "stream", async () => (await anthropic.messages.stream(message).finalMessage()).content[0].text);
await check("@anthropic-ai/sdk", "count", async () => (await anthropic.messages.countTokens({ model, messages })).input_tokens);
await check("@anthropic-ai/sdk", "404", () => refused(404, anthropic.messages.create({ ...message, model: "none" })));

const ollama = new Ollama({ host: base });
const options = { num_predict: 8 };
await check("ollama", "text", async () => (await ollama.chat({ model, messages, options })).message.content);
await check("ollama", "stream", async () => {
  let last;
  for await (const part of await ollama.chat({ model, messages, options, stream: true })) last = part;
  return last.done;
});
await check("ollama", "list", async () => (await ollama.list()).models[0].digest);
await check("ollama", "404", () => refused(404, ollama.chat({ model: "none", messages })));

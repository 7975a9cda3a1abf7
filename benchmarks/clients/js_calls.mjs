// Usual calls of JavaScript clients; run_calls.py describes the output.
//
//     node js_calls.mjs CLIENT URL

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

// The clients are those of the working directory, not of this file's.
const require = createRequire(`${process.cwd()}/package.json`);
const load = async (name) => {
  const found = await import(pathToFileURL(require.resolve(name)).href);
  return { ...found.default, ...found };
};

const [client, url] = process.argv.slice(2);
const model = "tiny";
const messages = [{ role: "user", content: "What is the sea?" }];
const long = "word ".repeat(20_000);
const schema = {
  type: "object",
  properties: { city: { enum: ["Bonn", "Paris"] }, days: { type: "integer" } },
  required: ["city", "days"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "weather", parameters: schema } }];
const paths = Object.keys((await (await fetch(url.replace(/v1$/, "openapi.json"))).json()).paths);
const embeds = paths.includes("/v1/embeddings");

function check(condition, text) {
  if (!condition) throw new Error(text);
}

function valid(value) {
  const found = typeof value === "string" ? JSON.parse(value) : value;
  check(["Bonn", "Paris"].includes(found.city) && Number.isInteger(found.days), String(value));
}

async function fails(call, text) {
  try {
    await call();
  } catch (error) {
    const found = `${error.constructor.name} ${error.code ?? ""} ${error.message}`;
    return check(found.includes(text), `${found}, and not ${text}`);
  }
  throw new Error(`did not fail with ${text}`);
}

async function openaiCalls() {
  const { default: OpenAI } = await load("openai");
  const { z } = await load("zod");
  const { zodResponseFormat, zodTextFormat } = await load("openai/helpers/zod");
  const openai = new OpenAI({ baseURL: url, apiKey: "none", maxRetries: 0 });
  const ask = { model, messages, max_tokens: 16 };
  const chat = (fields) => openai.chat.completions.create({ ...ask, ...fields });
  const one = { model, input: "What is the sea?", max_output_tokens: 16 };
  const forecast = z.object({ city: z.enum(["Bonn", "Paris"]), days: z.int() });
  const calls = {
    "chat": () => chat(),
    "stream with usage": async () => {
      let usage;
      const parts = await chat({ stream: true, stream_options: { include_usage: true } });
      for await (const part of parts) usage = part.usage ?? usage;
      check(usage.completion_tokens <= 16, "no usage");
    },
    "stream()": async () => {
      const stream = openai.chat.completions.stream(ask);
      check((await stream.finalChatCompletion()).choices.length === 1, "no choice");
    },
    "history": async () => {
      const { message } = (await chat()).choices[0];
      await chat({ messages: [{ role: "developer", content: "Brief." }, ...messages, message, ...messages] });
    },
    "parse() with zod": async () => {
      const format = zodResponseFormat(forecast, "forecast");
      const fields = { ...ask, max_tokens: 200, response_format: format };
      valid((await openai.chat.completions.parse(fields)).choices[0].message.parsed);
    },
    "tools: required, results": async () => {
      const fields = { tools, max_tokens: 400 };
      const { message } = (await chat({ ...fields, tool_choice: "required" })).choices[0];
      const results = message.tool_calls.map((call) => {
        valid(call.function.arguments);
        return { role: "tool", tool_call_id: call.id, content: "Sunny." };
      });
      await chat({ ...fields, messages: [...messages, message, ...results] });
    },
    "runTools()": async () => {
      const run = { parse: JSON.parse, function: async () => "Sunny.", ...tools[0].function };
      const fields = { ...ask, max_tokens: 400, tools: [{ type: "function", function: run }] };
      await openai.chat.completions.runTools(fields).finalContent();
    },
    "tools: stream": async () => {
      const fields = { ...ask, tools, tool_choice: "required", max_tokens: 400 };
      const answer = await openai.chat.completions.stream(fields).finalChatCompletion();
      answer.choices[0].message.tool_calls.forEach((call) => valid(call.function.arguments));
    },
    "completions": () => openai.completions.create({ model, prompt: "The sea", max_tokens: 8 }),
    "models": async () => check((await openai.models.list()).data[0].id === model, "no model"),
    "responses": () => openai.responses.create(one),
    "responses: stream": async () => {
      const kinds = [];
      const events = await openai.responses.create({ ...one, stream: true });
      for await (const event of events) kinds.push(event.type);
      check(/completed|incomplete/.test(kinds.at(-1)), kinds.join());
    },
    "responses: parse() with zod": async () => {
      const text = { format: zodTextFormat(forecast, "forecast") };
      valid((await openai.responses.parse({ ...one, max_output_tokens: 200, text })).output_parsed);
    },
    "responses: tools and results": async () => {
      const fields = { ...one, max_output_tokens: 400, tools: [{ type: "function", strict: true, ...tools[0].function }] };
      const first = await openai.responses.create({ ...fields, tool_choice: "required" });
      const results = first.output.map((call) => {
        valid(call.arguments);
        return { type: "function_call_output", call_id: call.call_id, output: "Sunny." };
      });
      await openai.responses.create({ ...fields, input: [...messages, ...first.output, ...results] });
    },
    "abort": () => {
      const controller = new AbortController();
      setTimeout(() => controller.abort(), 20);
      const fields = { ...ask, max_tokens: 5000 };
      return fails(() => openai.chat.completions.create(fields, { signal: controller.signal }), "Abort");
    },
    "errors: context, model": async () => {
      const content = [{ role: "user", content: long }];
      await fails(() => chat({ messages: content }), "context_length_exceeded");
      await fails(() => chat({ model: "other" }), "NotFoundError");
    },
  };
  if (embeds) calls["embeddings"] = () => openai.embeddings.create({ model, input: ["a", "b"] });
  return calls;
}

async function aiCalls() {
  const { generateText, streamText, embedMany, Output, stepCountIs, tool } = await load("ai");
  const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
  const { createOpenAI } = await load("@ai-sdk/openai");
  const { z } = await load("zod");
  const where = { name: "own", baseURL: url, apiKey: "none", includeUsage: true };
  const compatible = createOpenAICompatible({ ...where, supportsStructuredOutputs: true });
  const plain = createOpenAICompatible(where);
  const openai = createOpenAI({ baseURL: url, apiKey: "none" });
  const forecast = z.object({ city: z.enum(["Bonn", "Paris"]), days: z.int() });
  const weather = tool({ inputSchema: forecast, execute: async (given) => (valid(given), "Sunny.") });
  const kinds = {
    "openai-compatible": compatible(model),
    "openai.chat": openai.chat(model),
    "openai (responses)": openai(model),
  };
  const calls = {};
  for (const [name, used] of Object.entries(kinds)) {
    // Without a store, the provider sends items and not their ids.
    const providerOptions = name.includes("responses") ? { openai: { store: false } } : {};
    const given = { model: used, maxOutputTokens: 400, maxRetries: 0, providerOptions };
    const prompt = "What is the sea?";
    calls[`${name}: generateText`] = () => generateText({ ...given, system: "Brief.", prompt });
    calls[`${name}: streamText with usage`] = async () => {
      const result = streamText({ ...given, prompt, onError: () => {} });
      for await (const part of result.fullStream) if (part.type === "error") throw part.error;
      check((await result.usage).outputTokens > 0, "no usage");
    };
    calls[`${name}: history`] = async () => {
      const { response } = await generateText({ ...given, messages });
      await generateText({ ...given, messages: [...messages, ...response.messages, ...messages] });
    };
    calls[`${name}: Output.object`] = async () => {
      const output = Output.object({ schema: forecast });
      valid((await generateText({ ...given, prompt, output })).output);
    };
    const both = { ...given, messages, tools: { weather } };
    calls[`${name}: tools and results`] = async () => {
      const first = await generateText({ ...both, toolChoice: "required" });
      check(first.toolResults.length > 0, "no call");
      await generateText({ ...both, messages: [...messages, ...first.response.messages] });
    };
    calls[`${name}: tools, stream, steps`] = async () => {
      const result = streamText({ ...both, toolChoice: "required", stopWhen: stepCountIs(2), onError: () => {} });
      for await (const part of result.fullStream) if (part.type === "error") throw part.error;
      check((await result.steps).length === 2, "one step");
    };
    calls[`${name}: Output.object with tools`] = async () => {
      const output = Output.object({ schema: forecast });
      valid((await generateText({ ...both, output, stopWhen: stepCountIs(20) })).output);
    };
    calls[`${name}: error`] = () =>
      fails(() => generateText({ ...given, prompt: long }), "maximum context length");
  }
  calls["openai-compatible: JSON mode"] = () =>
    generateText({ model: plain(model), prompt: "as JSON", maxOutputTokens: 400, output: Output.json() });
  calls["openai (responses): history by item ids"] = {
    rejected: "item_reference",
    call: async () => {
      let response, text = "";
      for (let tries = 0; !text && tries < 20; tries++) { // of an empty answer nothing is sent back
        ({ response, text } = await generateText({ model: openai(model), messages, maxOutputTokens: 16 }));
      }
      const again = [...messages, ...response.messages, ...messages];
      await generateText({ model: openai(model), messages: again, maxRetries: 0 });
    },
  };
  if (embeds) {
    calls["openai-compatible: embedMany"] = () =>
      embedMany({ model: compatible.embeddingModel(model), values: ["a", "b"] });
  }
  return calls;
}

const clients = { openai: openaiCalls, ai: aiCalls };
for (const [name, given] of Object.entries(await clients[client]())) {
  if (!new RegExp(process.env.ONLY_CALLS ?? "").test(name)) continue;
  const { rejected, call } = typeof given === "function" ? { call: given } : given;
  let result = rejected ? `FAILS: ${rejected} was not rejected` : "works";
  try {
    await call();
  } catch (error) {
    const body = error.responseBody ?? "";
    const text = `${error.constructor.name}: ${error.message} ${body}`.replace(/\s+/g, " ");
    result = `FAILS: ${text.slice(-600)}`;
    if (rejected && text.includes(rejected)) result = `rejected by name: ${error.message}`;
  }
  console.log(JSON.stringify({ call: name, result }));
}
process.exit(0);

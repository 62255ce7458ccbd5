// Vercel's `ai` with its OpenAI and Anthropic providers: generateText, streamText, generateObject, streamObject, embed.

import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { embedMany, generateObject, generateText, jsonSchema, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";
import { drive, TOOL, TOOL_DESCRIPTION, TOOL_NAME, TOOL_RESULT } from "../driver.mjs";

globalThis.AI_SDK_LOG_WARNINGS = false;

const Place = z.object({ name: z.string(), floors: z.number().int(), opens_at: z.array(z.string()) });
const declared = { description: TOOL_DESCRIPTION, inputSchema: jsonSchema(TOOL) };
const TOOLS = { [TOOL_NAME]: tool(declared) };
const RUN_TOOLS = { [TOOL_NAME]: tool({ ...declared, execute: async () => TOOL_RESULT }) };

async function seen(result, more = {}) {
  const [call] = (await result.toolCalls) ?? [];
  const response = await result.response;
  return {
    text: (await result.text) || undefined,
    tool: call?.toolName,
    arguments: call?.input,
    thought: (await result.reasoningText) || undefined,
    usage: (await result.usage)?.totalTokens,
    cache: response?.headers?.["cache-status"],
    ...more,
  };
}

function talkOf(model, providerOptions = {}) {
  const settings = (prompt) => ({ model, system: "Answer briefly.", prompt, maxRetries: 0, providerOptions });
  const ask = async (prompt, more = {}) => seen(await generateText({ ...settings(prompt), ...more }));
  const follow = async (prompt, more = {}) => {
    let failure;
    const result = streamText({ ...settings(prompt), ...more, onError: ({ error }) => (failure = error) });
    let pieces = 0;
    for await (const part of result.fullStream) if (/-delta$/.test(part.type)) pieces += 1;
    if (failure) throw failure;
    return seen(result, { pieces });
  };
  return {
    text: ask,
    stream: follow,
    tool: (prompt) => ask(prompt, { tools: TOOLS }),
    tool_stream: (prompt) => follow(prompt, { tools: TOOLS }),
    loop: (prompt) => ask(prompt, { tools: RUN_TOOLS, stopWhen: stepCountIs(3) }),
    object: async (prompt) => {
      const { object, response } = await generateObject({ ...settings(prompt), schema: Place });
      return { object, cache: response.headers["cache-status"] };
    },
    object_stream: async (prompt) => {
      const result = streamObject({ ...settings(prompt), schema: Place });
      let pieces = 0;
      for await (const _ of result.textStream) pieces += 1;
      return { object: await result.object, pieces, cache: (await result.response).headers["cache-status"] };
    },
  };
}

const openai = (base, apiKey, headers) => createOpenAI({ baseURL: `${base}/v1`, apiKey, headers });

const chat = (...connection) => talkOf(openai(...connection).chat("gpt-4o-mini"));

function responses(...connection) {
  const provider = openai(...connection);
  const stateless = { openai: { store: false } };
  const reasons = talkOf(provider.responses("o4-mini"), {
    openai: { store: false, reasoningEffort: "low", reasoningSummary: "auto" },
  });
  return {
    ...talkOf(provider.responses("gpt-4o-mini"), stateless),
    thought: reasons.text,
    thought_stream: reasons.stream,
  };
}

function messages(base, apiKey, headers) {
  const model = createAnthropic({ baseURL: `${base}/v1`, apiKey, headers })("claude-sonnet-4-5");
  const reasons = talkOf(model, { anthropic: { thinking: { type: "enabled", budgetTokens: 1024 } } });
  return { ...talkOf(model), thought: reasons.text, thought_stream: reasons.stream };
}

const completions = (...connection) => {
  const { text, stream } = talkOf(openai(...connection).completion("gpt-3.5-turbo-instruct"));
  return { text, stream };
};

const embeddings = (...connection) => ({
  embed: async (values) => {
    const model = openai(...connection).textEmbedding("text-embedding-3-small");
    const { embeddings: vectors, responses: replies } = await embedMany({ model, values, maxRetries: 0 });
    return { vectors, cache: replies?.[0]?.headers?.["cache-status"] };
  },
});

await drive(
  import.meta.url,
  ["ai", "@ai-sdk/openai", "@ai-sdk/anthropic"],
  { chat, responses, messages, completions },
  { embeddings },
);
